"""A run at a glance: how it stands, its attempts, how much it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.attempts import RUNNING, UNKNOWN, Attempt, attempts
from eventlog.columns import is_word
from eventlog.event import METRIC, STATE
from eventlog.files import LOCAL, Store
from eventlog.identity import provably_gone
from eventlog.reader import WriterReader, headers, unreadable
from eventlog.runfile import RunFile
from eventlog.segment import Header
from eventlog.value import decode

if TYPE_CHECKING:
    import pyarrow as pa


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


@dataclasses.dataclass
class Tally:
    """What the events of one writer add up to, so far: see `Glance`. `end` is the seq behind the
    last of them.
    """

    events: int = 0
    end: int = 0
    points: int = 0
    last: int = 0
    last_step: int | None = None
    status: str = RUNNING
    exit_code: int | None = None
    ended: int | None = None


def glance(folder: str, store: Store = LOCAL, *, run: RunFile | None = None) -> Glance:
    """Read a run once and sum it up.

    Raises
    ------
    EventlogError, OSError
        If it cannot be read, or its files are not those of `run`.
    """
    parts = headers(folder, store)
    if run is not None:
        run.check(folder, parts)
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


def count(seen: Tally, table: pa.Table) -> None:
    """Add the rows of whole events of one writer to its tally."""
    import pyarrow.compute as pc

    seqs = table.column("seq")
    seen.end = seqs[-1].as_py() + 1
    seen.events += seen.end - seqs[0].as_py()
    kinds = table.column("kind")
    seen.points += pc.sum(is_word(kinds, METRIC)).as_py() or 0
    seen.last = max(seen.last, pc.max(table.column("time").cast("int64")).as_py())
    step = pc.max(table.column("step")).as_py()
    if step is not None:
        seen.last_step = step if seen.last_step is None else max(step, seen.last_step)
    states = table.filter(is_word(kinds, STATE))
    times = states.column("time").cast("int64").to_pylist()
    for time, row in zip(times, states.drop_columns(["time"]).to_pylist(), strict=True):
        _state(seen, time, row)


def _state(seen: Tally, time: int, row: dict[str, Any]) -> None:
    if row["key"] not in ("state", "exit_code"):
        return
    try:
        value = decode(row["type"], row["num"], row["data"])
    except ValueError:  # damaged, or made by a stranger
        return
    if row["key"] == "state" and isinstance(value, str):
        seen.status = value
        seen.ended = None if value == RUNNING else time
    elif row["key"] == "exit_code":
        seen.exit_code = value if isinstance(value, int) else None
