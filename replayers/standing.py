"""How far each target is with each run: read from cursors and folders, with no network.

A run whose files are as the last sync left them is not opened: its cursor knows how it stands.
Otherwise it is read from the cursor on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import Cursor, deliveries, footprint, state_folder
from eventlog.event import RUNNING
from eventlog.glance import sum_up
from eventlog.identity import provably_gone
from eventlog.listing import listing
from eventlog.reader import WriterReader, headers, unreadable
from eventlog.tally import Tally, count
from replayers.superseding import APPEND


@dataclasses.dataclass(frozen=True)
class Standing:
    """One run and one target; `target` and what belongs to it is None where there is none.

    Attributes
    ----------
    state, events:
        How the run stands, and its events.
    acknowledged, behind:
        Events that the target is proven to hold (or that need not be sent), and the others.
    last_step:
        The highest step among the last ones that were acknowledged of each writer.
    lost:
        Events that the target holds and the journal lost in a power cut.
    synced:
        When the cursor last moved, in nanoseconds since 1970 UTC.
    unreadable:
        What of the run cannot be read, and why.
    superseded_choice:
        What the last sync was told to do with superseded points that the target holds
        (`replayers.superseding`).
    keys:
        Globs of the metrics that it gets, all of them if there is none (`replayers.keys`).
    replaced:
        The target's own ids of the runs that the one written to replaced, the oldest first.
    """

    id: str
    project: str
    name: str
    state: str
    events: int
    target: str | None = None
    acknowledged: int = 0
    behind: int = 0
    last_step: int | None = None
    quarantined: int = 0
    lost: int = 0
    known_as: str | None = None
    synced: int | None = None
    unreadable: tuple[str, ...] = ()
    superseded_choice: str | None = None
    keys: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def cursors_of(found: Sequence[Found], state: str | None) -> dict[tuple[str, str], list[Cursor]]:
    """Return the cursors of runs by (project, id), of the state folders that belong to them."""
    known: dict[tuple[str, str], list[Cursor]] = {}
    for folder in sorted({state_folder(item.journal, state) for item in found}):
        for cursor in deliveries(folder):
            known.setdefault((cursor.project, cursor.run), []).append(cursor)
    return known


def standings(item: Found, cursors: Sequence[Cursor]) -> Iterator[Standing]:
    """Yield how far each target is with a run.

    Raises
    ------
    EventlogError, OSError
        If the run cannot be read.
    """
    status, ends, lost = _look(item, cursors)
    events = sum(ends.values())
    run = item.run
    if not cursors:
        yield Standing(
            run.id, run.project, run.name, status, events, behind=events, unreadable=lost
        )
    for cursor in cursors:
        marks = {writer: cursor.mark(writer) for writer in ends}
        acked = sum(mark.acked for mark in marks.values())
        steps = [mark.step for mark in marks.values() if mark.step is not None]
        yield Standing(
            run.id,
            run.project,
            run.name,
            status,
            events,
            f"{cursor.kind}:{cursor.address}",
            acked,
            events - acked,
            max(steps, default=None),
            sum(map(len, cursor.quarantined.values())),
            sum(m.acked - m.lost for m in marks.values() if m.lost is not None),
            cursor.known_as,
            cursor.synced,
            lost,
            cursor.superseded or APPEND,
            tuple(cursor.keys),
            tuple(known_as for known_as, _generation in cursor.replaced),
        )


def _look(item: Found, cursors: Sequence[Cursor]) -> tuple[str, dict[str, int], tuple[str, ...]]:
    """Return how a run stands, the seq behind the last event of each writer, what is unreadable."""
    folder = item.folder
    print = footprint(folder)
    for cursor in cursors:
        if print and cursor.footprint == print and cursor.status != RUNNING:
            return cursor.status, {w: mark.acked for w, mark in cursor.writers.items()}, ()
    parts = headers(folder)
    item.run.check(folder, parts)
    for cursor in cursors:
        if print and cursor.footprint == print:
            last = [attempt.writers for attempt in attempts(parts)][-1:]
            if not all(provably_gone(parts[w][-1].identity) for ws in last for w in ws):
                return RUNNING, {w: mark.acked for w, mark in cursor.writers.items()}, ()
    known = set(listing(folder).writers) <= set(parts)
    seen = {writer: _tally(folder, writer, cursors) for writer in parts}
    found = sum_up(parts, seen, {} if known else unreadable(folder))
    return found.status, found.ends, tuple(found.unreadable.values())


def _tally(folder: str, writer: str, cursors: Sequence[Cursor]) -> Tally:
    """Return the sum of a writer's events, read from where the furthest cursor is."""
    tallies = [t for cursor in cursors if (t := cursor.mark(writer).tally) is not None]
    best = max((Tally(**tally) for tally in tallies), key=lambda t: t.end, default=Tally())
    reader = WriterReader(folder, writer, start=best.end, skip_missing=True)
    for table in reader.tables():
        count(best, table)
    return best
