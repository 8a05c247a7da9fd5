"""A run at a glance: how it stands, its attempts, how much it holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from eventlog.archive import open_sealed
from eventlog.attempts import Attempt, attempts
from eventlog.errors import FormatError
from eventlog.event import RUNNING, UNKNOWN
from eventlog.files import LOCAL, Store
from eventlog.footer import SealedSegment
from eventlog.identity import provably_gone
from eventlog.layout import archived_path
from eventlog.listing import listing
from eventlog.reader import WriterReader, headers, unreadable
from eventlog.runfile import RunFile
from eventlog.sealed import footer_of
from eventlog.segment import Header
from eventlog.tally import Tally, count


@dataclasses.dataclass(frozen=True)
class Glance:
    """What `glance` saw.

    Attributes
    ----------
    status:
        ``running``, ``finished``, ``failed``, ``closed`` (its process ended and said no more) or
        ``unknown`` (its process is gone without a word), of the last attempt.
    ended:
        The time of its last words, in nanoseconds since 1970 UTC; None while it runs.
    start, last:
        Times of the first attempt's start and of the last event.
    events, points:
        Events of all kinds, and rows of metrics.
    writers:
        Events by writer.
    ends:
        The seq behind the last event of each writer: more than it has events where some are
        missing.
    unreadable:
        Writers of which nothing can be read, and why.
    """

    status: str
    exit_code: int | None
    ended: int | None
    start: int
    last: int
    last_step: int | None
    events: int
    points: int
    writers: dict[str, int]
    attempts: tuple[Attempt, ...]
    owner: str = ""
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    ends: dict[str, int] = dataclasses.field(default_factory=dict)


def glance(folder: str, store: Store = LOCAL, *, run: RunFile | None = None) -> Glance:
    """Sum a run up: from the footers of its files where they tell everything, else by reading it.

    Raises
    ------
    EventlogError, OSError
        If it cannot be read, or its files are not those of `run`.
    """
    told = _told(folder, store)
    parts = headers(folder, store) if told is None else told[0]
    if run is not None:
        run.check(folder, parts)
    if told is not None:
        return sum_up(parts, told[1], {})
    seen = {writer: _look(folder, writer, store) for writer in parts}
    return sum_up(parts, seen, unreadable(folder, store))


def sum_up(
    parts: Mapping[str, Sequence[Header]], seen: Mapping[str, Tally], lost: dict[str, str]
) -> Glance:
    """Return the glance at a run of which each writer's headers and tally are known.

    Parameters
    ----------
    parts:
        What `eventlog.reader.headers` returns.
    seen:
        A tally for each writer of `parts`.
    lost:
        What `eventlog.reader.unreadable` returns.
    """
    found = attempts(parts)
    status, exit_code, ended = RUNNING, None, None
    if found:
        group = [seen[w] for w in found[-1].writers if w in seen]
        spoke = [s for s in group if s.ended is not None]
        if spoke:
            final = max(spoke, key=lambda s: s.ended or 0)
            status, exit_code, ended = final.status, final.exit_code, final.ended
        elif all(provably_gone(parts[w][-1].identity) for w in found[-1].writers):
            status = UNKNOWN
            ended = max((s.last for s in group), default=0)
    if lost and not found:
        status = UNKNOWN
    owners = [str(p.identity.get("owner", "")) for ps in parts.values() for p in ps[:1]]
    steps = [s.last_step for s in seen.values() if s.last_step is not None]
    return Glance(
        status=status,
        exit_code=exit_code,
        ended=ended,
        start=min((a.start for a in found), default=0),
        last=max((s.last for s in seen.values()), default=0),
        last_step=max(steps, default=None),
        events=sum(s.events for s in seen.values()),
        points=sum(s.points for s in seen.values()),
        writers={w: s.events for w, s in seen.items()},
        attempts=tuple(found),
        owner=owners[0] if owners else "",
        unreadable=lost,
        ends={w: s.end for w, s in seen.items()},
    )


def _look(folder: str, writer: str, store: Store) -> Tally:
    seen = Tally()
    for table in WriterReader(folder, writer, skip_missing=True, store=store).tables():
        count(seen, table)
    return seen


def _told(folder: str, store: Store) -> tuple[dict[str, list[Header]], dict[str, Tally]] | None:
    """Return the headers and the tally of each writer of a run that is sealed whole, as the footers
    of its files tell them; None if they do not tell everything.
    """
    found = listing(folder, store)
    if found.segments:
        return None
    parts: dict[str, list[Header]] = {}
    seen: dict[str, Tally] = {}
    for writer in found.writers:
        tally = Tally()
        headers_: dict[int, Header] = {}
        for name in sorted(found.parquet(writer), key=lambda name: name.first):
            try:
                segments, told = _footer(os.path.join(folder, name.path), store)
            except (OSError, FormatError):  # who reads it says what is wrong
                return None
            if told is None or not segments or name.first != tally.end:
                return None
            headers_ |= {part.header.segment: part.header for part in segments}
            tally.add(name.first, name.last, told)
        parts[writer] = [headers_[number] for number in sorted(headers_)]
        seen[writer] = tally
    return parts, seen


def _footer(path: str, store: Store) -> tuple[Sequence[SealedSegment], dict[str, Any] | None]:
    if archived_path(path) is None:
        return footer_of(path, store)
    with open_sealed(path, store) as file:
        return file.segments, None if file.lost else file.tally()
