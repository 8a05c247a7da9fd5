r"""Trackio as a target: a run's events as rows of one of its projects.

A run is known by its ``run_id`` in Trackio, which we choose; an event by its ``log_id``,
``<run_id>:<writer>:<seq>`` (twelve digits), unique in a project's database. Trackio ignores a row
whose log id it has, which makes sending idempotent; what it holds is read from the database, never
concluded from a call that returned. Trackio's own ``init`` and ``log`` are never used: they choose
ids and times of their own, and answer before anything is stored.

Mapping, version ``trackio-1``. The first column names the rule in the ledger; rows without one
change nothing.

==================  ========================================================================
rule                what becomes of it
==================  ========================================================================
(event)             an event with metric or system rows is one row: a JSON object of its
                    values, its step, its time. ``config`` rows go into the run's config;
                    ``summary``, ``tag``, ``definition`` and ``state`` rows into its
                    ``_eventlog``: of two values of a key the later one stays (within a writer
                    by seq, between writers by time)
kind-not-held       other kinds (alert, console, note, ...) are left out; the key is the kind
(time)              ISO 8601 in UTC, to the microsecond, or nanosecond where it needs one. A
                    server keeps no time of a row: there it is in the row, ``_eventlog/time``
step-from-seq       no step: the event's seq (Trackio wants a step)
key-reserved        ``project run timestamp step time metrics``, ``_eventlog/time`` and keys that
                    start with ``__`` get ``__`` before them, as in Trackio's own log call. In the config
                    ``_Created _Group _Username _eventlog`` get one more underscore
key-taken           a key that the event has already: ``#2``, ``#3``, ... after it
(system)            ``system/`` before the key of a system row
(number)            float64 exact; narrower floats widened, exact; integers of 64 bits with a
                    sign exact; bool and null stay
int-as-text         larger integers: decimal text (hexadecimal beyond 4096 bits)
nonfinite-as-text   NaN and infinities: ``"NaN" "Infinity" "-Infinity"``, which Trackio writes
                    itself and reads as numbers
nan-payload         a NaN of unusual bits: those bits are lost
string-escaped      text of one of these three spellings: a backslash before it
surrogate-escaped   lone surrogates in text: ``\udXXX`` in ASCII
bytes-as-text       ``base64:`` and base64
complex-as-text     Python's form, ``(1+2j)``
datetime-as-text    ISO 8601
decimal-as-text     the decimal literal
array-as-list       arrays of numbers of up to 10,000 elements: nested lists
array-as-digest     other arrays: dtype, shape and SHA-256 of the bytes, as text
dict-key-as-text    keys of nested dicts that are no text: their JSON; if two of a dict become
                    one, the dict becomes a list of pairs
type-escaped        a nested ``_type`` that starts with ``trackio.``: a backslash before it, so
                    that Trackio does not take the dict for one of its own objects
object-as-text      anything else inside a list or dict: ``str()``
type-unknown        a type word this version does not know: its stored form
blob-as-reference   a value kept as a blob: the reference to it, as an object
table-as-reference  a table in config or summary: the reference to its blob
(table)             columns input and output, in any case: a list of traces (messages of user and
                    assistant; the other columns, ``sample_index`` and the blob's SHA-256 in
                    ``table``, as metadata); other tables inline, with their SHA-256
table-no-content    no reader of blobs was given: an empty inline table with the SHA-256
project-renamed     a project name that Trackio would change, refuse or take for a renamed one:
                    what is left of it, ``--``, 16 hexadecimal digits of its SHA-256
run-id-hashed       a run id that is not ``[a-z0-9][a-z0-9._-]*`` (up to 80): ``sha-`` and 40
                    hexadecimal digits of its SHA-256
==================  ========================================================================

Image and read-back name a table by its blob and count of rows; the cells are compared, when
reading back, with the blob if there is a reader for it. ``_eventlog.definitions`` and
``_eventlog.states`` are held and confirmed, and not part of the image.

Trackio 0.43's ``rename`` of a run drops the log ids of its rows. Such rows are found again when
they are sent anew to a folder: one of equal time, step and content gets its log id back. On a
server, where no call can do that, such a run is `Foreign`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventlog.errors import UsageError
from replayers.superseding import CHOICES
from replayers.target import Change, RunInfo
from replayers.trackio_http import HttpStore
from replayers.trackio_local import LocalStore
from replayers.trackio_map import changes, image
from replayers.trackio_names import RULES
from replayers.trackio_session import ReadBlob, TrackioSession

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TrackioSession", "TrackioTarget"]


class TrackioTarget:
    """A Trackio folder, such as ``./dir``, or a server that somebody runs.

    Parameters
    ----------
    address:
        A folder (what Trackio calls ``TRACKIO_DIR``), or ``http(s)://host:port`` (the token in
        ``?write_token=`` or ``TRACKIO_WRITE_TOKEN``; it is no part of the attribute `address`).
    read_blob:
        Reads the content of tables; without it, tables are references.
    patience:
        Seconds to wait for a lock that somebody else holds, before `Retry`.

    Raises
    ------
    UsageError
        For a folder that cannot be made or written, or an address of another kind.
    """

    kind = "trackio"
    rules = RULES
    folds = False
    superseded = frozenset(CHOICES)

    def __init__(
        self, address: str, *, read_blob: ReadBlob | None = None, patience: float = 5.0
    ) -> None:
        self.store: LocalStore | HttpStore
        if address.startswith(("http://", "https://")):
            self.store = HttpStore(address)
            self.address = self.store.address
        elif "://" in address:
            raise UsageError(
                "an address of Trackio is a folder or http(s)://host:port",
                on=address.partition("://")[0] + "://...",
            )
        else:
            self.store = LocalStore(address, patience=patience)
            self.address = str(self.store.folder)
        self._read_blob = read_blob
        self._version = ""

    def open(self, run: RunInfo) -> TrackioSession:
        """Find the run by its id. Its first batch creates it.

        Raises
        ------
        UsageError
            If Trackio is not installed, or of a kind that is not known here.
        Foreign
            If somebody else logged under this run's id.
        Retry, Down
            If the database is locked; if the server does not answer.
        """
        self._version = self._version or self.store.check()
        return TrackioSession(self.store, run, self._read_blob)

    def image(self, batch: pa.Table) -> pa.Table:
        """Return what these rows of one writer become in Trackio."""
        return image(batch)

    def changes(self, batch: pa.Table) -> list[Change]:
        """Return what the rules change of these rows."""
        return changes(batch)

    def close(self) -> None:
        """End the child process."""
        self.store.close()
