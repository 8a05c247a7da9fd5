"""Events that could not be written yet: a bounded memory, and an account of what it dropped."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from eventlog.event import GAP, Row, make_rows

#: What one row costs in memory beyond its data, roughly, in bytes.
_ROW = 200


class Pending(NamedTuple):
    """An event without a seq: it gets one when it is appended."""

    time: int
    step: int | None
    rows: tuple[Row, ...]

    def size(self) -> int:
        """Return roughly how many bytes this event holds."""
        return sum(_ROW + len(row.data or b"") for row in self.rows)


@dataclasses.dataclass
class Dropped:
    """What found no place: how many events, and the range of their times and steps."""

    events: int = 0
    first_time: int = 0
    last_time: int = 0
    first_step: int | None = None
    last_step: int | None = None

    def add(self, event: Pending) -> None:
        """Count one more."""
        if not self.events:
            self.first_time, self.first_step = event.time, event.step
        self.events += 1
        self.last_time = event.time
        if event.step is not None:
            self.last_step = event.step

    def gap(self, time: int) -> Pending:
        """Return the event that records the loss."""
        rows, _ = make_rows(GAP, dataclasses.asdict(self).items())
        return Pending(time, None, tuple(rows))


class Backlog:
    """A queue of at most `limit` bytes. What comes when it is full is dropped and counted: the
    history that it keeps has no hole but at its end.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.dropped = Dropped()
        self._events: deque[Pending] = deque()

    def add(self, event: Pending) -> bool:
        """Keep an event; return False if it was dropped."""
        size = event.size()
        if self.bytes + size > self.limit:
            self.dropped.add(event)
            return False
        self._events.append(event)
        self.bytes += size
        return True

    def first(self) -> Pending:
        """Return the oldest event."""
        return self._events[0]

    def pop(self) -> None:
        """Forget the oldest event: it has been appended."""
        self.bytes -= self._events.popleft().size()

    def take_dropped(self) -> Dropped:
        """Return the account of what was dropped and start a new one."""
        dropped, self.dropped = self.dropped, Dropped()
        return dropped

    def __bool__(self) -> bool:
        """Return whether there is something to write: an event, or the account of lost ones."""
        return bool(self._events) or self.dropped.events > 0

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._events)
