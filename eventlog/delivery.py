"""What was delivered: the formats of cursor and ledger, kept apart from the journal.

::

    <state>/<target>/<project>/<run id>/
        cursor.json                how far the target is proven to hold each writer
        <writer>-<n>.arrows        the ledger: ordinary writers of the journal's own format
        sealed/*.parquet           what of it was merged

A *cursor* is a hint that saves work: identity and read-back decide what a target holds. It is
bound to the journal by the digest (`eventlog.event.digest`) of the event it stands at, so that a
journal which was restored or changed under it is noticed.

The *ledger* (`eventlog.ledger`) tells every delivery, mapping, quarantine and loss.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.errors import FormatError
from eventlog.files import LOCAL, Files
from eventlog.formats import FORMAT, check_format
from eventlog.layout import SEALED, escape
from eventlog.listing import listing

if TYPE_CHECKING:
    from eventlog.ledger import Ledger

CURSOR_FILE = "cursor.json"
DEFAULT_STATE = "_replay"


@dataclasses.dataclass(frozen=True)
class Mark:
    """How far one writer is with one target.

    Attributes
    ----------
    acked:
        How many events, counted from seq 0, are settled: confirmed, superseded or quarantined.
    attempted:
        How many may have reached the target: never less than `acked`.
    crc:
        The digest of event ``acked - 1``.
    step, time:
        The last step and time of what was settled, for people.
    sent:
        The last event with metrics that the target was seen to hold; None if there is none.
    durable:
        How many events the writer knew to be durable when the last of them was sent: what a
        power cut may not have taken.
    lost:
        Where the events begin that were delivered and then lost to a power cut; None if none were.
    tally:
        What the events before `acked` add up to (`eventlog.glance.Tally`), so that nobody has to
        read them again.
    """

    acked: int = 0
    attempted: int = 0
    crc: int = 0
    step: int | None = None
    time: int | None = None
    sent: int | None = None
    durable: int = 0
    lost: int | None = None
    tally: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Cursor:
    """How far a run is with a target.

    `footprint` is that of the run's folder (`footprint`) when everything in it was settled,
    `awaited` tells those in quarantine whose blobs had not come, `without` by writer the tables, as
    (seq, SHA-256), that were sent as null because nobody was to wait for them any longer,
    `status` how the run stood then,
    `rewound` whether it said that it went back, `view` which view of it was settled (""
    in cursors of earlier versions: ``effective``, unless they were told another), `keys` which
    metrics the target gets, by globs (`replayers.keys`; none: all). `restarts` tells,
    by attempt key, at which step it was found to start again, and how, when something was
    delivered on that (`eventlog.views`).

    `superseded` is what was chosen for superseded points that the target holds
    (`replayers.superseding`), "" for ``append``; `looked` what was known when it was last looked for
    some; `generation` which run of the target is written to, "" for the first; `replaced` the
    target's ids and the generations of the ones before, of which the last is `unmarked` until the
    target says so itself; `shown_as` what people called it there before it was rebuilt. `unproven` says that no sync came to its end since the target had to be
    asked what it holds: it has to be asked again.
    """

    run: str
    project: str
    kind: str
    address: str
    known_as: str | None = None
    rules: str = ""
    state: str = ""
    synced: int = 0
    writers: dict[str, Mark] = dataclasses.field(default_factory=dict)
    quarantined: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    awaited: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    without: dict[str, list[tuple[int, str]]] = dataclasses.field(default_factory=dict)
    footprint: str = ""
    status: str = ""
    rewound: bool = False
    view: str = ""
    keys: list[str] = dataclasses.field(default_factory=list)
    restarts: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    superseded: str = ""
    looked: str = ""
    generation: str = ""
    replaced: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unmarked: bool = False
    shown_as: str = ""
    unproven: bool = False

    def mark(self, writer: str) -> Mark:
        """Return how far a writer is."""
        return self.writers.get(writer, Mark())

    def with_mark(self, writer: str, mark: Mark) -> Cursor:
        """Return the cursor with one writer moved."""
        return dataclasses.replace(self, writers={**self.writers, writer: mark})

    def with_quarantined(self, writer: str, seqs: list[int], awaited: Sequence[int] = ()) -> Cursor:
        """Return the cursor with more events in quarantine, `awaited` of them for their blobs."""
        there = self.quarantined.get(writer, [])
        known = {**self.quarantined, writer: sorted({*there, *seqs})}
        waiting = {*self.awaited.get(writer, [])}.difference(seqs).union(awaited)
        return dataclasses.replace(
            self, quarantined=known, awaited=_with(self.awaited, writer, sorted(waiting))
        )

    def with_lost(self, writer: str, tables: Sequence[tuple[int, str]]) -> Cursor:
        """Return the cursor with more tables of a writer that are not waited for."""
        there = self.without.get(writer, [])
        known = {**self.without, writer: sorted({*there, *tables})}
        return dataclasses.replace(self, without=known)

    def without_quarantined(self, writer: str, seqs: list[int]) -> Cursor:
        """Return the cursor with fewer events in quarantine."""
        left = [seq for seq in self.quarantined.get(writer, []) if seq not in seqs]
        waiting = [seq for seq in self.awaited.get(writer, []) if seq not in seqs]
        return dataclasses.replace(
            self,
            quarantined=_with(self.quarantined, writer, left),
            awaited=_with(self.awaited, writer, waiting),
        )


def _with(known: dict[str, list[int]], writer: str, seqs: list[int]) -> dict[str, list[int]]:
    return {w: s for w, s in {**known, writer: seqs}.items() if s}


_OF_CURSOR, _OF_MARK = (frozenset(f.name for f in dataclasses.fields(t)) for t in (Cursor, Mark))


def state_folder(journal: str, given: str | None = None) -> str:
    """Return the folder of the replay side's state: given, ``EVENTLOG_STATE``, ``_replay`` in the
    journal where that can be written, else a folder of this user for this journal.
    """
    told = given or os.environ.get("EVENTLOG_STATE")
    if told:
        return os.path.abspath(told)
    inside = os.path.join(os.path.abspath(journal), DEFAULT_STATE)
    probe = inside
    while not os.path.isdir(probe) and os.path.dirname(probe) != probe:
        probe = os.path.dirname(probe)  # a journal that is not there yet will be made there
    if os.access(probe, os.W_OK | os.X_OK):
        return inside
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(
        os.path.expanduser("~"),
        "Library/Application Support" if sys.platform == "darwin" else ".local/state",
    )
    mark = f"{zlib.crc32(os.path.abspath(journal).encode()):08x}"
    return os.path.join(home, "eventlog", f"{os.path.basename(os.path.abspath(journal))}-{mark}")


class Delivery:
    """Cursor and ledger of one run and one target."""

    def __init__(
        self,
        state: str,
        *,
        kind: str,
        address: str,
        project: str,
        run: str,
        files: Files = LOCAL,
    ) -> None:
        self.files = files
        self.run, self.project, self.kind, self.address = run, project, kind, address
        target = escape(f"{kind}:{address}")
        self.folder = os.path.join(state, target, escape(project), escape(run))

    # ---------------------------------------------------------------- cursor

    def load(self) -> tuple[Cursor, bool]:
        """Return the cursor, and whether one was there (a damaged one was not: identity and
        read-back make up for it).

        Raises
        ------
        FormatError
            If it is of a newer major version.
        """
        empty = Cursor(self.run, self.project, self.kind, self.address)
        try:
            text = self.files.read(os.path.join(self.folder, CURSOR_FILE))
            cursor = parse_cursor(text)
        except FileNotFoundError:
            return empty, False
        except FormatError as error:
            if error.hint:
                raise
            return empty, False
        same = (cursor.run, cursor.project) == (self.run, self.project)
        return (cursor, True) if same else (empty, False)

    def save(self, cursor: Cursor) -> None:
        """Put the cursor in place, durable. Raises `OSError`."""
        self.prepare()
        path = os.path.join(self.folder, CURSOR_FILE)
        self.files.write_whole(path, cursor_bytes(cursor))

    def prepare(self) -> None:
        """Create the folder, readable by its owner only: it holds addresses."""
        if not os.path.isdir(self.folder):
            target = os.path.dirname(os.path.dirname(self.folder))
            new = not os.path.isdir(target)
            self.files.make_folder(self.folder)
            for path in (self.folder, *([target] if new else [])):
                os.chmod(path, 0o700)

    # ---------------------------------------------------------------- ledger

    @functools.cached_property
    def _ledger(self) -> Ledger:
        from eventlog.ledger import Ledger  # it writes, which a look at the cursor does not

        identity = {"project": self.project, "target": f"{self.kind}:{self.address}"}
        return Ledger(self.folder, self.run, identity, self.files)

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one event to the ledger."""
        self.prepare()
        self._ledger.record(kind, fields)

    def sync_ledger(self) -> None:
        """Make the ledger durable; called before the cursor moves over what it tells."""
        self._ledger.sync()

    def close(self) -> None:
        """Close the ledger's segment."""
        self._ledger.close()

    def ledger(self) -> Iterator[dict[str, Any]]:
        """Yield the ledger's events; see `eventlog.ledger.Ledger.entries`."""
        return self._ledger.entries()


def footprint(folder: str, files: Files = LOCAL) -> str:
    """Return what changes when anything is written to a run: names, sizes and times of its
    segments and sealed files, those in archives as they were in its folder. It is read from the
    folders, and from the footers of archives.
    """
    found = listing(folder, files)
    files_of = [(folder, str(name)) for names in found.segments.values() for name in names]
    sealed = os.path.join(folder, SEALED)
    files_of += [(sealed, str(name)) for names in found.sealed.values() for name in names]
    parts = []
    if found.archived:
        from eventlog.archived import stamps

        parts += [f"{name} {size} {time!r}" for name, size, time in stamps(folder, files)]
    for place, name in files_of:
        try:
            size, time = files.size_and_time(os.path.join(place, name))
            parts.append(f"{name} {size} {time!r}")
        except FileNotFoundError:  # sealed in this moment
            return ""
    return hashlib.sha256("\n".join(sorted(set(parts))).encode()).hexdigest()[:32]


def cursor_bytes(cursor: Cursor) -> bytes:
    """Return a cursor file's content."""
    fields = dataclasses.asdict(cursor)
    fields["synced"] = cursor.synced or time.time_ns()
    text = json.dumps({"format": FORMAT, **fields}, sort_keys=True, separators=(",", ":"))
    outer = {"crc32": f"{zlib.crc32(text.encode()):08x}", "cursor": text}
    # No blanks: a blank that became another one would be no difference to JSON.
    return json.dumps(outer, separators=(",", ":")).encode()


def parse_cursor(content: bytes) -> Cursor:
    """Read a cursor file.

    Raises
    ------
    FormatError
        If it is damaged (without a hint), or of a newer major version (with one).
    """
    try:
        outer = json.loads(content)
        text = outer["cursor"]
        if f"{zlib.crc32(text.encode()):08x}" != outer["crc32"]:
            raise FormatError("a cursor's checksum does not hold")
        fields = json.loads(text)
        check_format(str(fields.pop("format")))
        fields = {key: value for key, value in fields.items() if key in _OF_CURSOR}
        fields["writers"] = {
            writer: Mark(**{k: v for k, v in mark.items() if k in _OF_MARK})
            for writer, mark in fields["writers"].items()
        }
        fields["without"] = {  # JSON has no tuples
            writer: [(seq, digest) for seq, digest in tables]
            for writer, tables in fields.get("without", {}).items()
        }
        return Cursor(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"a cursor cannot be read ({error!r})") from error


def deliveries_of(state: str, project: str, run: str, files: Files = LOCAL) -> Iterator[Cursor]:
    """Yield the cursors of one run, a target each; what cannot be read is left out."""
    for target in files.names(state):
        path = os.path.join(state, target, escape(project), escape(run), CURSOR_FILE)
        try:
            cursor = parse_cursor(files.read(path))
        except (OSError, FormatError):
            continue
        if (cursor.project, cursor.run) == (project, run):
            yield cursor


def deliveries(state: str, files: Files = LOCAL) -> Iterator[Cursor]:
    """Yield every cursor of a state folder; what cannot be read is left out."""
    for target in files.names(state):
        for project in files.names(os.path.join(state, target)):
            place = os.path.join(state, target, project)
            for run in files.names(place):
                try:
                    yield parse_cursor(files.read(os.path.join(place, run, CURSOR_FILE)))
                except (OSError, FormatError):
                    continue
