"""The ledger of one run and target: what was delivered, mapped and refused, when and how.

It is an ordinary writer of the journal's own format, in the state folder; a sync that has
something to say opens one of its own. Its events are of the kinds ``delivery`` (a batch was
confirmed), ``mapping`` (a rule changed values of a key), ``quarantine`` (events that the target
will never take), ``loss`` (events that were delivered and that the journal has no more) and
``note``.

A sync a night would leave a file a night, so many small writers are *merged* into one: a writer
whose first event names those it ``replaces`` and whose last one says ``merged``. Killed before that
last event, it counts as not there; killed behind it, the writers it names do. Either way an event
is told once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from eventlog.errors import EventlogError, JournalError
from eventlog.event import NOTE, Event, make_rows
from eventlog.files import LOCAL, Files
from eventlog.journal import Options, Writer
from eventlog.layout import SEALED
from eventlog.listing import listing
from eventlog.reader import WriterReader
from eventlog.seal import seal

DELIVERY, MAPPING, QUARANTINE, LOSS = "delivery", "mapping", "quarantine", "loss"
#: So many small writers are merged; a larger one stays as it is.
MANY = 16
SMALL_BYTES = 2**20
_REPLACES, _MERGED = "eventlog/replaces", "eventlog/merged"


class Ledger:
    """The ledger in one folder. Who writes to it holds the lease of the run and target."""

    def __init__(self, folder: str, run: str, identity: Mapping[str, Any], files: Files = LOCAL):
        self.folder = folder
        self._run = run
        self._identity = dict(identity)
        self._files = files
        self._writer: Writer | None = None

    # ---------------------------------------------------------------- writing

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one event."""
        if self._writer is None:
            self._writer = self._new()
        rows, refused = make_rows(kind, fields.items())
        if refused:
            rows += make_rows(NOTE, [("refused", "; ".join(refused))])[0]
        self._writer.append_rows(rows, None)

    def sync(self) -> None:
        """Make what was recorded durable. Raises `OSError`."""
        if self._writer is not None:
            try:
                self._writer.commit()
            except JournalError as error:
                raise OSError(5, f"the ledger cannot be written: {error}", self.folder) from error

    def close(self) -> None:
        """Close what was written, and merge small writers if they have become many."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        # The ledger is whole without it; the next sync tries again.
        with contextlib.suppress(OSError, EventlogError):
            self.merge()

    def _new(self) -> Writer:
        options = Options(durability="os")
        return Writer(self.folder, self._run, self._identity, options=options, files=self._files)

    # ---------------------------------------------------------------- reading

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the events as dicts with ``time`` (nanoseconds) and ``kind``, in order of time."""
        found = [event for events in self._told().values() for event in events]
        for event in sorted(found, key=lambda event: event.time):
            told: dict[str, Any] = {"time": event.time, "kind": event.rows[0].kind}
            for row in event.rows:
                with contextlib.suppress(ValueError):  # damaged, and of no use to anybody
                    told.setdefault(row.key, row.value)
            yield told

    def _told(self) -> dict[str, list[Event]]:
        """Return the events that count, by writer, without what merging adds."""
        whole: dict[str, list[Event]] = {}
        gone: set[str] = set()
        for writer in listing(self.folder, self._files).writers:
            reader = WriterReader(self.folder, writer, skip_missing=True, store=self._files)
            events = list(reader.events())
            replaces = events[0].values(NOTE).get(_REPLACES) if events else None
            if not isinstance(replaces, list):
                whole[writer] = events
            elif _MERGED in events[-1].values(NOTE):
                whole[writer] = events[1:-1]
                gone.update(map(str, replaces))
            else:
                gone.add(writer)
        return {writer: events for writer, events in whole.items() if writer not in gone}

    # ---------------------------------------------------------------- merging

    def merge(self, many: int = MANY) -> bool:
        """Make one sealed writer of the small ones, if there are `many`; return whether.

        Raises
        ------
        OSError, EventlogError
            If a file cannot be read or written; what the ledger tells is the same.
        """
        small = [
            w for w in listing(self.folder, self._files).writers if self._size(w) < SMALL_BYTES
        ]
        if len(small) < many:
            return False
        told = self._told()
        merged = self._new()
        try:
            merged.append_rows(make_rows(NOTE, [(_REPLACES, small)])[0], None)
            events = [event for writer in small for event in told.get(writer, ())]
            for event in sorted(events, key=lambda event: event.time):
                merged.append_rows(list(event.rows), event.step, event.time)
            merged.append_rows(make_rows(NOTE, [(_MERGED, len(events))])[0], None)
            merged.commit()
        finally:
            merged.close()
        for writer in small:
            self._remove(writer)
        seal(self.folder, writer=merged.name, files=self._files)
        return True

    def _paths(self, writer: str) -> list[str]:
        found = listing(self.folder, self._files)
        live = [os.path.join(self.folder, str(name)) for name in found.segments.get(writer, ())]
        sealed = found.sealed.get(writer, ())
        return [*live, *(os.path.join(self.folder, SEALED, str(name)) for name in sealed)]

    def _size(self, writer: str) -> int:
        return sum(self._files.size(path) for path in self._paths(writer))

    def _remove(self, writer: str) -> None:
        for path in self._paths(writer):
            self._files.remove(path)
