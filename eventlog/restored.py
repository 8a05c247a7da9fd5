"""A journal held against what was delivered of it: was it restored from a backup, or changed?

A cursor remembers how far a target held each writer, with the digest of the event that it stands
at. A journal that lacks what was durable when it was delivered, or has another event in that place,
is not the one that was delivered. One that lacks only what no durable mark had covered may have
lost it to a power cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from eventlog.delivery import Cursor, Mark
from eventlog.errors import FormatError
from eventlog.event import digest
from eventlog.files import LOCAL, Store
from eventlog.listing import listing
from eventlog.reader import WriterReader


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """What a cursor says and the journal does not, in a sentence; `failure` if it cannot be what a
    power cut took.
    """

    text: str
    failure: bool


def contradictions(
    folder: str, run: str, project: str, cursors: Iterable[Cursor], store: Store = LOCAL
) -> Iterator[Contradiction]:
    """Hold a run against the cursors of a state folder; those of other runs are passed over."""
    for cursor in cursors:
        delivered = {writer for writer, mark in cursor.writers.items() if mark.acked}
        mine = (cursor.run, cursor.project) == (run, project)
        # Those of another node's journal of this run know none of these writers.
        if not mine or delivered.isdisjoint(listing(folder, store).writers):
            continue
        for writer in sorted(delivered):
            found = _writer(folder, writer, cursor, cursor.mark(writer), store)
            if found is not None:
                yield found


def _writer(
    folder: str, writer: str, cursor: Cursor, mark: Mark, store: Store
) -> Contradiction | None:
    last = mark.acked - 1
    target = f"{cursor.kind}:{cursor.address}"
    reader = WriterReader(folder, writer, start=last, store=store)
    try:
        event = next(reader.events(), None)
        if any(gap.first <= last <= gap.last for gap in reader.lost):
            return None  # said with the writer
        if event is not None and event.seq == last:
            if digest(event) == mark.crc:
                return None
            text = f"event {last} of {writer} is not the one that was delivered to {target}"
            return Contradiction(f"{text}: the journal was changed", failure=True)
        have = _end(folder, writer, store)
    except (FormatError, OSError):
        return None  # said with the writer
    if have == mark.lost:  # known since a sync
        return None
    text = f"{target} was proven to hold {mark.acked} events of {writer}, {have} are here"
    if have >= mark.durable:
        return Contradiction(f"{text}: a power cut may have taken the others", failure=False)
    return Contradiction(f"{text}: the journal was restored, or copied in part", failure=True)


def _end(folder: str, writer: str, store: Store) -> int:
    """Return the seq behind the last event of a writer."""
    reader = WriterReader(folder, writer, skip_missing=True, store=store, columns=())
    for _table in reader.tables():
        pass
    return reader.next_seq
