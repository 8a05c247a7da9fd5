r"""W&B as a target: a run's events as rows of one of its runs' history.

The genuine client writes, in a child process; what it wrote is believed once the server, asked
anew, shows it. Every row carries the position of its event in a hidden key, from which a lost
cursor is rebuilt; `replayers.wandb_session` has the protocol, `replayers.wandb_state` what the
run's config says of the journal.

Mapping, version ``wandb-1``. The first column names the rule in the ledger; rows without one
change nothing.

==================  ========================================================================
rule                what becomes of it
==================  ========================================================================
(event)             an event with metric or system rows is one row of the history, in the
                    order of sending; W&B's ``_step`` is the number of the row, so that steps
                    may repeat, go back and come late
(step)              ``training/global_step``, the x-axis of all charts
                    (``define_metric("*", step_metric="training/global_step")``); a metric of
                    that very name that was logged stays what it is
step-from-seq       no step: ``training/global_step`` is the event's seq, and
                    ``_eventlog/row`` says that there was none
(position)          ``_eventlog/position``, ``writer:seq``; ``_eventlog/row`` where the row
                    alone does not tell what was logged (`replayers.wandb_map`). Text, and
                    with a leading underscore: no charts
time-rounded        ``_timestamp``, seconds as a float64; read back to the microsecond
(runtime)           ``_runtime`` is W&B's own: the time of the replay
key-renamed         ``_step _runtime _timestamp _wandb _eventlog``, keys below
                    ``_eventlog/``, each with any number of leading underscores, and keys of
                    underscores only, the empty one too: one more underscore. In the config
                    ``_wandb wandb_version eventlog`` get one, and ``-`` at either end is
                    ``%2D`` (W&B strips it), ``%`` is ``%25``, the empty key ``%``
(system)            ``system/`` before the key of a system row
key-taken           a key that the event has already: ``#2``, ``#3``, ... after it
(number)            float64 exact, narrower floats widened, NaN and infinities kept; integers
                    of 64 bits with a sign exact; bool, null, text as they are. W&B does not
                    tell 3.0 from 3
negative-zero       -0.0: 0
nan-payload         a NaN of unusual bits: those bits are lost
int-as-text         larger integers: as a float64 where that is exact, else decimal text
                    (hexadecimal beyond 4096 bits)
surrogate-escaped   lone surrogates in text: ``\udXXX`` in ASCII
bytes-as-text       ``base64:`` and base64
complex-as-text     Python's form, ``(1+2j)``
datetime-as-text    ISO 8601
decimal-as-text     the decimal literal
array-as-list       arrays of numbers of up to 1,000 elements: nested lists
array-as-digest     other arrays: dtype, shape and SHA-256 of the bytes, as text
dict-key-as-text    keys of nested dicts that are no text: ``str()``
object-as-text      anything else inside a list or dict: ``str()``
type-unknown        a type word this version does not know: its stored form, as text
value-cut           a value of more than 900,000 bytes of JSON, and the largest ones of a row
                    of more than 8 MB: ``cut sha256:... of N bytes`` (the client leaves rows
                    over 9.9 MiB out in silence)
blob-as-reference   a value kept as a blob: ``blob sha256:...``
(table)             a ``wandb.Table`` under its key; cells by the rules above
table-as-reference  a table in config or summary, or without a reader of blobs:
                    ``table sha256:...``
(config)            a key of the run's config; the last value stays (within a writer by seq,
                    between writers by time)
(summary)           a key of the run's summary; it stands over the last value that W&B puts
                    there by itself
nonfinite-as-text   NaN and infinities in config and summary: ``"NaN" "Infinity" "-Infinity"``
(tag)               a tag; tags that people gave the run in W&B stay
tag-cut             tags W&B refuses (empty, over 64 characters): 46 characters of it, ``--``,
                    16 hexadecimal digits of the SHA-256
(definition)        ``define_metric``, before the ``*`` above, because the first that fits wins
(note)              group, job_type and notes of ``init``
kind-not-held       other kinds (state, alert, console, other notes): the key is the kind
==================  ========================================================================

Project: the recorded ``WANDB_PROJECT``, else the run's; one that W&B refuses (empty, over 128
characters, with ``/\#?%:``) becomes what is left of it, ``--`` and 16 digits of its SHA-256. Run
id: the recorded ``WANDB_RUN_ID``, else that of this environment, else the run's, else, where that
is not ``[a-z0-9_-]{1,64}``, 32 digits of its SHA-256. Entity: the address, else the recorded
``WANDB_ENTITY``, else that of this environment, else the account's own. An event with so many keys
that its row is over 8 MB is refused (quarantine).

A run that ended without a word is ``failed`` in W&B, one whose process closed it is ``finished``.

A run that replaces another one (``--superseded new-run``) has its id with ``-`` and the generation
behind it (32 digits of its SHA-256, where that is longer than 64 characters), and its name with the
generation in parentheses. ``eventlog.replaces`` and ``eventlog.replaced_by`` in the configs have the
path of the other one, the tags ``replaces:ID`` and ``replaced-by:ID`` its id.
"""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from eventlog.errors import UsageError
from replayers.superseding import APPEND, NEW_RUN, REBUILD
from replayers.target import Change, RunInfo
from replayers.wandb_api import Place
from replayers.wandb_child import WandbChild
from replayers.wandb_map import RULES, image, map_batch
from replayers.wandb_session import WandbSession
from replayers.wandb_values import project_name, run_id

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["WandbSession", "WandbTarget"]

_DEFAULT = "https://api.wandb.ai"
ReadBlob = Callable[[RunInfo, str], bytes]


class WandbTarget:
    """A W&B server and entity.

    Parameters
    ----------
    address:
        ``https://host``, ``https://host/entity``, ``entity``, or "" for ``WANDB_BASE_URL`` and
        ``WANDB_ENTITY``. The key is ``WANDB_API_KEY`` or what ``wandb login`` left.
    read_blob:
        Reads the content of tables; without it, tables are references.
    settle:
        Seconds for which a line count must stand still before it is believed after a session that
        did not end well (default: ``EVENTLOG_WANDB_SETTLE`` or 10).
    patience:
        Seconds to wait for a server that takes rows and shows nothing new, before the rows are
        sent again (default: ``EVENTLOG_WANDB_PATIENCE`` or 60).

    Raises
    ------
    UsageError
        For an address, or seconds, that make no sense.
    """

    kind = "wandb"
    rules = RULES
    folds = False
    shares_tags = True
    superseded = frozenset((APPEND, NEW_RUN))
    never: ClassVar = {REBUILD: "W&B never gives the id of a deleted run again"}
    #: Opening a run lets go of the one before: a child with its wandb-core for each would be many.
    one_run = True

    def __init__(
        self,
        address: str = "",
        *,
        read_blob: ReadBlob | None = None,
        settle: float | None = None,
        patience: float | None = None,
    ) -> None:
        self._base_url, self._entity = _parse(address)
        base = self._base_url or os.environ.get("WANDB_BASE_URL", "").rstrip("/") or _DEFAULT
        entity = self._entity or os.environ.get("WANDB_ENTITY", "")
        self.address = _without_credentials(base) + (f"/{entity}" if entity else "")
        self._read_blob = read_blob
        self._settle = _seconds("EVENTLOG_WANDB_SETTLE", settle, 10.0)
        self._patience = _seconds("EVENTLOG_WANDB_PATIENCE", patience, 60.0)
        self._open: list[tuple[int, WandbChild, WandbSession | None]] = []

    def open(self, run: RunInfo) -> WandbSession:
        """Find the run by its id and what its config says. Its first batch creates it.

        Raises
        ------
        Unauthorised
            If there is no key, or the server refuses it.
        Down, Retry
            If the server does not answer, or not well.
        Foreign
            If the run in W&B is not that of this journal.
        UsageError
            If wandb is not installed.
        """
        thread = threading.get_ident()
        self._let_go(thread)  # a child with its wandb-core for each run would be many
        child = WandbChild(self._base_url, self.address)
        self._open.append((thread, child, None))
        session = WandbSession(child, self._place(run), run, self._read_blob)
        self._open[self._open.index((thread, child, None))] = (thread, child, session)
        return session

    def _place(self, run: RunInfo) -> Place:
        known = (run.known_as or "").split("/")
        if len(known) == 3:
            # Where it is, it stays, whatever a later attempt recorded.
            return Place(known[0], known[1], known[2], self._settle, self._patience)
        entity = self._entity or run.elsewhere.get("WANDB_ENTITY")
        return Place(
            entity or os.environ.get("WANDB_ENTITY", ""),
            project_name(run),
            run_id(run, os.environ.get("WANDB_RUN_ID", "")),
            self._settle,
            self._patience,
        )

    def image(self, batch: pa.Table) -> pa.Table:
        """Return what these rows of one writer become in W&B."""
        return image(batch)

    def changes(self, batch: pa.Table) -> list[Change]:
        """Return what the rules change of these rows."""
        return map_batch(batch).changes

    def close(self) -> None:
        """End the writing and the child processes; open sessions begin anew when used."""
        self._let_go(None)

    def _let_go(self, thread: int | None) -> None:
        """Let go of the sessions that a thread opened, or of all."""
        for entry in [e for e in self._open if thread in (None, e[0])]:
            self._open.remove(entry)
            _thread, child, session = entry
            if session is not None:
                session.let_go()
            child.kill()


def _parse(address: str) -> tuple[str, str]:
    """Return base URL and entity, each "" where the address does not say it."""
    if "://" not in address:
        if "/" in address.strip("/") or any(c.isspace() or c in "\\#?%:" for c in address):
            raise UsageError(
                f"{address!r} is no address of W&B",
                hint="write wandb:https://host/entity, wandb:https://host or wandb:entity",
            )
        return "", address.strip("/")
    url = urllib.parse.urlsplit(address)
    parts = [part for part in url.path.split("/") if part]
    if url.scheme not in ("http", "https") or not url.hostname or len(parts) > 1:
        raise UsageError(
            f"{_without_credentials(address)!r} is no address of W&B",
            hint="write wandb:https://host/entity or wandb:https://host",
        )
    if url.username or url.password:
        raise UsageError(
            "an address has no room for credentials",
            on=_without_credentials(address),
            hint="set WANDB_API_KEY, or run wandb login",
        )
    return f"{url.scheme}://{url.netloc}", parts[0] if parts else ""


def _without_credentials(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")
    )


def _seconds(variable: str, given: float | None, default: float) -> float:
    text = os.environ.get(variable)
    if given is not None or not text:
        return default if given is None else given
    try:
        return max(0.0, float(text))
    except ValueError:
        raise UsageError(f"{variable}={text!r} is no number of seconds") from None
