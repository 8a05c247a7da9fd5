"""Events that could not be written yet: a bounded memory, and an account of what it dropped."""

from __future__ import annotations

import dataclasses
import time as clock
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from eventlog.errors import ValueRefused
from eventlog.event import GAP, Row, make_rows

#: What one row costs in memory beyond its key and data, roughly, in bytes.
_ROW = 200


class Pending(NamedTuple):
    """An event without a seq: it gets one when it is appended."""

    time: int
    step: int | None
    rows: tuple[Row, ...]

    def size(self) -> int:
        """Return roughly how many bytes this event holds."""
        return sum(_ROW + len(row.key) + len(row.data or b"") for row in self.rows)


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


class Sink(Protocol):
    """Where events go at last."""

    def write(self, event: Pending) -> object:
        """Append an event; raises OSError, or ValueRefused for one that nothing can hold."""

    def written(self) -> int:
        """Return how many events were appended."""


class Backlog:
    """A queue of at most `limit` bytes. What comes when it is full is dropped and counted: the
    history that it keeps has no hole but at its end.

    Attributes
    ----------
    bytes:
        What it holds, roughly.
    dropped:
        What was dropped and is not recorded yet.
    lost:
        How many events were dropped in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.lost = 0
        self.dropped = Dropped()
        self._events: deque[Pending] = deque()

    def add(self, event: Pending) -> None:
        """Keep an event, or count it as dropped."""
        size = event.size()
        if self.bytes + size > self.limit:
            self._drop(event)
            return
        self._events.append(event)
        self.bytes += size

    def _drop(self, event: Pending) -> None:
        self.dropped.add(event)
        self.lost += 1

    def drain(self, sink: Sink, most: int) -> bool:
        """Write what waits, oldest first, and then what was lost; but about `most` bytes at once.

        Returns
        -------
        Whether all is written. Raises OSError as `sink` does; an event is forgotten only when it
        is written, whatever exception comes from outside.
        """
        enough = self.bytes - most
        while self._events:
            if self.bytes < enough:
                return False
            self._write_first(sink)
        if self.dropped.events:
            dropped, self.dropped = self.dropped, Dropped()
            try:
                sink.write(dropped.gap(clock.time_ns()))
            except OSError:
                self.dropped = dropped
                raise
        return True

    def _write_first(self, sink: Sink) -> None:
        event, before = self._events[0], sink.written()
        try:
            sink.write(event)
        except ValueRefused:  # no frame could hold it
            self._drop(event)
        except BaseException:
            if sink.written() > before:
                self._pop()
            raise
        self._pop()

    def _pop(self) -> None:
        self.bytes -= self._events.popleft().size()

    def __bool__(self) -> bool:
        """Return whether there is something to write: an event, or the account of lost ones."""
        return bool(self._events) or self.dropped.events > 0

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._events)
