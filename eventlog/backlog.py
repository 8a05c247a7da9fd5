"""What could not be written yet: a bounded memory for events and for the blobs that they name, and
an account of what it dropped.
"""

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
#: The same for a blob, and how many wait at most: their names have to fit into one event.
_BLOB, _BLOBS = 400, 10_000


class Pending(NamedTuple):
    """An event without a seq: it gets one when it is appended."""

    time: int
    step: int | None
    rows: tuple[Row, ...]

    def size(self) -> int:
        """Return roughly how many bytes this event holds."""
        return sum(_ROW + len(row.key) + len(row.data or b"") for row in self.rows)


class Blob(NamedTuple):
    """Bytes that are to be a file of their own; no event below `seq` names them."""

    data: bytes
    seq: int
    time: int
    step: int | None

    def size(self) -> int:
        """Return roughly how many bytes of memory this takes."""
        return _BLOB + len(self.data)


@dataclasses.dataclass
class Dropped:
    """What found no place: how many events, how many tables and large values of other events, and
    the range of times and steps of both.

    `blobs` are those of the values that an event names all the same, because they waited for a
    while; the others are null in their events. `reason` is why.
    """

    events: int = 0
    first_time: int = 0
    last_time: int = 0
    first_step: int | None = None
    last_step: int | None = None
    values: int = 0
    blobs: list[str] = dataclasses.field(default_factory=list)
    reason: str | None = None
    #: No event below it names one of `blobs`; not recorded.
    seq: int | None = None

    def add(self, event: Pending) -> None:
        """Count one more event."""
        self._extend(event.time, event.step)
        self.events += 1

    def add_value(self, time: int, step: int | None, reason: str | None) -> None:
        """Count one more value."""
        self._extend(time, step)
        self.values += 1
        self.reason = reason

    def _extend(self, time: int, step: int | None) -> None:
        if not self:
            self.first_time, self.first_step = time, step
        self.last_time = time
        if step is not None:
            self.last_step = step

    def gap(self, time: int) -> Pending:
        """Return the event that records the loss."""
        fields = dataclasses.asdict(self)
        del fields["seq"]
        if not self.values:
            del fields["values"], fields["blobs"], fields["reason"]
        rows, _ = make_rows(GAP, fields.items())
        return Pending(time, None, tuple(rows))

    def __bool__(self) -> bool:
        return self.events > 0 or self.values > 0


class Sink(Protocol):
    """Where events go at last."""

    def write(self, event: Pending) -> object:
        """Append an event; raises OSError, or ValueRefused for one that nothing can hold."""

    def written(self) -> int:
        """Return how many events were appended."""


class Backlog:
    """A queue of events, and blobs beside it, of at most `limit` bytes together, of which blobs get
    half: a table takes no room from many numbers. What comes when it is full is dropped and
    counted: the history that it keeps has no hole but at its end.

    Attributes
    ----------
    bytes:
        What it holds, roughly.
    blobs:
        The blobs that wait, by SHA-256, the oldest first.
    dropped:
        What was dropped and is not recorded yet.
    lost, lost_values:
        How many events, and how many tables and large values, were dropped in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.lost = self.lost_values = 0
        self.dropped = Dropped()
        self.blobs: dict[str, Blob] = {}
        self._blob_bytes = 0
        self._recorded: tuple[int, int] | None = None
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

    # ---------------------------------------------------------------- blobs

    def keep(self, digest: str, blob: Blob, reason: str) -> bool:
        """Keep a blob, or count it as dropped; return whether it was kept."""
        if digest in self.blobs:
            return True
        size = blob.size()
        full = self.bytes + size > self.limit or self._blob_bytes + size > self.limit // 2
        if full or len(self.blobs) >= _BLOBS:
            self.drop_value(blob.time, blob.step, reason)
            return False
        self.blobs[digest] = blob
        self.bytes += size
        self._blob_bytes += size
        return True

    def drop_value(self, time: int, step: int | None, reason: str | None) -> None:
        """Count a blob, or what would have been one, as dropped."""
        self.dropped.add_value(time, step, reason)
        self.lost_values += 1

    def forget(self, digest: str) -> None:
        """Keep a blob no longer: it was written."""
        blob = self.blobs.pop(digest, None)
        if blob is not None:
            self.bytes -= blob.size()
            self._blob_bytes -= blob.size()

    def drop_blobs(self, reason: str) -> None:
        """Drop all blobs, which events name. The next drain records it."""
        dropped = self.dropped
        for digest, blob in list(self.blobs.items()):
            self.drop_value(blob.time, blob.step, reason)
            dropped.blobs.append(digest)
            dropped.seq = blob.seq if dropped.seq is None else min(blob.seq, dropped.seq)
            self.forget(digest)

    def bound(self, seq: int) -> int:
        """Return up to where, `seq` at most, no event names a blob that waits, or one of which no
        event below `seq` records that it was dropped.
        """
        first = [] if self.dropped.seq is None else [self.dropped.seq]
        if self._recorded is not None and self._recorded[0] >= seq:  # it may be in a buffer
            first.append(self._recorded[1])
        return min([seq, *first, *(blob.seq for blob in self.blobs.values())])

    # ---------------------------------------------------------------- events

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
        if self.dropped:
            dropped, self.dropped = self.dropped, Dropped()
            if dropped.seq is not None:
                self._recorded = sink.written(), dropped.seq
            before = sink.written()
            try:
                sink.write(dropped.gap(clock.time_ns()))
            except BaseException:
                if sink.written() == before:
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

    @property
    def queued(self) -> bool:
        """Whether there is something to write that new events must not overtake."""
        return bool(self._events) or self.dropped.events > 0

    def losses(self) -> str:
        """Return what is lost if nothing is written any more, in words; empty if nothing is."""
        counts = {"events": self.lost + len(self), "tables or large values": self.lost_values}
        return " and ".join(f"{count} {what}" for what, count in counts.items() if count)

    def __bool__(self) -> bool:
        """Return whether there is something to write: an event, a blob, the account of lost ones."""
        return bool(self._events) or bool(self.blobs) or bool(self.dropped)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._events)
