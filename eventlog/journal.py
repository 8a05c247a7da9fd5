"""The writing side of a run: one writer, its segments, its group commit, its bad days.

A writer belongs to one process and appends events to segments of its own. Its promises:

* when `Writer.append` returns a seq, the event is in the operating system's hands (but for the
  level ``memory``), and a SIGKILL loses nothing;
* it never raises for a full or failing disk: the event waits in a bounded memory, `health` says
  ``degraded``, and what finds no room there is counted and recorded as an event of kind ``gap``;
* a failed sync is final for its segment: what was not known durable is appended again to a new
  one, under the same seqs;
* a forked child gets a writer of its own, and never touches its parent's file.

It must never: read a segment, know of other writers, open a connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time as clock
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from eventlog import blobs
from eventlog.backlog import Backlog, Pending
from eventlog.errors import JournalError, ValueRefused
from eventlog.event import GAP, Event, Row, flatten, make_rows
from eventlog.files import LOCAL, Files
from eventlog.frame import Shape, prove
from eventlog.identity import process, random_writer
from eventlog.segment import Header, NotCreated, SegmentWriter
from eventlog.value import Stored, dumps

#: The levels of durability, weakest first.
LEVELS = ("memory", "os", "group", "sync")
#: A segment is followed by a new one when it has grown beyond this many bytes.
SEGMENT_BYTES = 64 * 2**20
#: Longest time, in seconds, that the group commit leaves an event unsynced before it starts.
GROUP_SECONDS = 0.5
#: Memory for events that wait for a disk, and for events that wait for their sync, in bytes each.
MEMORY_BYTES = 64 * 2**20
#: The level ``memory`` writes when so many bytes wait.
BUFFER_BYTES = 2**20
#: While a disk fails, a new segment is tried at most this often, in seconds.
RETRY_SECONDS = 1.0

_SHAPES = 512
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class Options:
    """How a writer writes."""

    durability: str = "group"
    segment_bytes: int = SEGMENT_BYTES
    group_seconds: float = GROUP_SECONDS
    memory_bytes: int = MEMORY_BYTES


@dataclasses.dataclass(frozen=True)
class Health:
    """How a writer is: ``ok`` or ``degraded``, and what waits or is lost.

    `waiting` events are in memory only; `dropped` ones are lost (and recorded as such once there
    is room again); `error` is the last error of the file system.
    """

    state: str
    appended: int
    durable: int
    waiting: int
    dropped: int
    error: str | None


class Writer:
    """One process's events of one run.

    Parameters
    ----------
    folder:
        The run's folder; it exists.
    run:
        The run's id.
    identity:
        What the header of each segment says of the run, the attempt and the launch; the process
        is added here, because a fork changes it.
    warn:
        Called with a sentence, at most once a kind of trouble.
    """

    def __init__(
        self,
        folder: str,
        run: str,
        identity: Mapping[str, Any],
        *,
        options: Options | None = None,
        files: Files = LOCAL,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.run = run
        self.options = options or Options()
        self._identity = dict(identity)
        self._files = files
        self._warn = warn
        self._shapes: dict[Any, Shape] = {}
        self._reset(random_writer(), None)
        Header(run, self.name, 0, 0, self._identity).to_bytes()  # too long a name is found here
        _writers.add(self)

    def _reset(self, name: str, parent: str | None) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()
        self._inside = False
        self._deferred: deque[Pending] = deque()
        self._segment: SegmentWriter | None = None
        self._number = 0
        self._seq = 0
        self._durable = 0
        self._writing: tuple[SegmentWriter, int, int, bytes] | None = None
        self._retired: list[SegmentWriter] = []
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_bytes = 0
        self._rewrite: list[bytes] = []
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._buffer_for: SegmentWriter | None = None
        self._backlog = Backlog(self.options.memory_bytes)
        self._dropped = 0
        self._error: OSError | None = None
        self._retry_at = 0.0
        self._rotate_at = 0.0
        self._sync_error: OSError | None = None
        self._sync_failures = 0
        self._sync_after = 0.0
        self._incomplete = False
        self._closed = False
        self._close_later = False
        self._wake = threading.Event()
        weakref.finalize(self, self._wake.set).atexit = False
        self._unsynced_blobs: dict[str, None] = {}
        self._suspect_blobs: dict[str, None] = {}
        self._armed = False
        self._thread: threading.Thread | None = None
        self._identity.update(process())
        self._identity["parent_writer"] = parent

    # ---------------------------------------------------------------- state

    @property
    def seq(self) -> int:
        """How many events were appended: the seq of the next one."""
        return self._seq

    def health(self) -> Health:
        """Return how this writer is."""
        with self._lock:
            error = self._error or self._sync_error
            return Health(
                "degraded" if error is not None or self._backlog else "ok",
                self._seq,
                self._durable,
                len(self._backlog) + len(self._deferred) + len(self._rewrite),
                self._dropped,
                None if error is None else str(error),
            )

    # ---------------------------------------------------------------- append

    def append(
        self, kind: str, data: Mapping[Any, Any], step: int | None, time: int | None = None
    ) -> int | None:
        """Append one event; return its seq, or None if it waits in memory or was dropped.

        `data` is a mapping of keys to values that `eventlog.value` can keep, or `Stored` ones;
        nested mappings are flattened with ``/``.

        Raises
        ------
        ValueRefused
            If something of it cannot be kept (the rest of the event was appended), or the whole
            is larger than one frame may be.
        JournalError
            If the writer is closed.
        """
        now = clock.time_ns() if time is None else time
        values = list(data.values())
        key = (kind, step is None, tuple(data), tuple(map(type, values)))
        shape = self._shapes.get(key)
        if shape is not None and shape.holds(values):
            try:
                with self._lock:
                    fast = not (
                        self._inside
                        or self._closed
                        or self._writing
                        or self._backlog.bytes
                        or self._backlog.dropped.events
                    )
                    seq = self._append_shape(shape, now, step, values, kind, data) if fast else None
            finally:
                if self._close_later:
                    self._close_if_asked()
            if fast:
                return seq if self.options.durability != "sync" else self._synced(seq)
        return self._append_slow(kind, data, step, now)

    def _synced(self, seq: int | None) -> int | None:
        # Not under the lock: a commit takes the lock for syncs before it takes that one.
        if clock.monotonic() >= self._sync_after:
            with contextlib.suppress(JournalError):
                self.commit()
        return seq

    def _append_shape(
        self,
        shape: Shape,
        now: int,
        step: int | None,
        values: list[Any],
        kind: str,
        data: Mapping[str, Any],
    ) -> int | None:
        self._inside = True
        try:
            try:
                segment = self._open_segment()
                frame = segment.encoder.numbers(shape, self._seq, now, step, values)
            except OSError as error:
                self._trouble(error)
                rows, _ = make_rows(kind, data.items())
                self._keep(Pending(now, step, tuple(rows)))
                return None
            if self._put(segment, frame):
                return self._seq - 1
            rows, _ = make_rows(kind, data.items())
            self._keep(Pending(now, step, tuple(rows)))
            return None
        finally:
            self._inside = False
            if self._deferred:
                self._take_deferred()

    def _append_slow(
        self, kind: str, data: Mapping[Any, Any], step: int | None, now: int
    ) -> int | None:
        flat = flatten(data)
        if flat.twice:
            self._warn(f"keys given twice in one call keep their last value: {flat.twice[:3]}")
        values, refused = flat.values, flat.refused
        for key, value in values.items():
            if hasattr(type(value), "__eventlog__"):  # a value that keeps itself, such as a Table
                try:
                    values[key] = value.__eventlog__(self.put_blob)
                except (ValueRefused, OSError) as error:
                    values[key] = Stored("null", None, None)
                    refused.append(f"{key!r}: {error}; null was kept in its place")
        rows, more = make_rows(kind, values.items())
        refused += more
        seq = None
        if rows:
            seq = self.append_rows([self._outlined(row) for row in rows], step, now)
            self._learn(kind, values, rows, step)
        if refused:
            raise ValueRefused("these values cannot be kept: " + "; ".join(refused[:5]))
        return seq

    def _learn(
        self, kind: str, values: Mapping[str, Any], rows: list[Row], step: int | None
    ) -> None:
        """Remember the shape of an event, if its types alone say that the next one has it."""
        types = tuple(map(type, values.values()))
        if len(rows) != len(types) or not all(_is_shaped(t) for t in types):
            return
        if any(row.data is not None or row.num is None for row in rows):
            return
        if not all(type(key) is str for key in values):
            return
        if len(self._shapes) >= _SHAPES:
            self._shapes.clear()
        key = (kind, step is None, tuple(values), types)
        shape = Shape(rows, with_step=step is not None)
        if shape.proven(rows, step):
            self._shapes[key] = shape

    def put_blob(self, data: bytes) -> str:
        """Keep bytes beside the segments and return their SHA-256; log an event that names them
        next. They are durable before that event is.

        Raises
        ------
        OSError
            If they could not be written.
        """
        digest, path = blobs.put(self.folder, data, self._files)
        with self._lock:
            self._unsynced_blobs[path] = None
        return digest

    def _outlined(self, row: Row) -> Row:
        """Return a row whose large value lies in a blob."""
        if row.data is None or len(row.data) <= blobs.INLINE or row.type in ("table", "blob"):
            return row
        try:
            digest = self.put_blob(row.data)
        except OSError:
            return row  # it may still fit into a frame, and wait for the disk with its event
        reference = {"sha256": digest, "size": len(row.data), "type": row.type}
        return Row(row.key, row.kind, "blob", None, dumps(reference))

    def append_rows(self, rows: list[Row], step: int | None, time: int | None = None) -> int | None:
        """Append one event of rows in stored form; as `append` otherwise."""
        if not rows:
            raise ValueRefused("an event without a key cannot be kept")
        event = Pending(clock.time_ns() if time is None else time, step, tuple(rows))
        try:
            with self._lock:
                if self._closed:
                    raise JournalError("this run is finished: nothing more can be logged to it")
                if self._inside:  # a signal's handler, or a destructor, in the middle of a log()
                    self._deferred.append(event)
                    return None
                self._inside = True
                try:
                    seq = self._append_event(event)
                finally:
                    self._inside = False
                    if self._deferred:
                        self._take_deferred()
        finally:
            if self._close_later:
                self._close_if_asked()
        return seq if self.options.durability != "sync" else self._synced(seq)

    def _append_event(self, event: Pending) -> int | None:
        self._settle()
        if self._backlog and not self._drain():
            self._keep(event)
            return None
        try:
            return self._write_event(event)
        except OSError as error:
            self._trouble(error)
            self._keep(event)
            return None

    def _write_event(self, event: Pending) -> int | None:
        """Append or raise OSError; ValueRefused for what no segment could take."""
        segment = self._open_segment()
        numbered = Event(self._seq, event.time, event.step, event.rows)
        frame = segment.encoder.event(numbered)
        if not self._seq:  # once a writer: later shapes are proven against this way of making them
            prove(frame, numbered)
        if not self._put(segment, frame):
            raise self._error or OSError(5, "the event could not be written")
        return self._seq - 1

    def _take_deferred(self) -> None:
        while self._deferred:
            event = self._deferred.popleft()
            self._inside = True
            try:
                self._append_event(event)
            except ValueRefused as error:
                self._warn(str(error))
            finally:
                self._inside = False

    # ---------------------------------------------------------------- segments

    def _open_segment(self) -> SegmentWriter:
        """Return the segment to append to, a new one if need be. Raises OSError."""
        segment = self._segment
        usable = segment is not None and not segment.broken
        if segment is not None and usable and segment.size < self.options.segment_bytes:
            return segment
        now = clock.monotonic()
        if segment is not None and usable:
            if now < self._rotate_at:
                return segment
            self._write_buffer(segment)
        if self._error is not None and now < self._retry_at:
            raise self._error
        try:
            made = self._new_segment()
        except NotCreated:
            # An inode table may be full while a file can still grow: go on with the old segment.
            if segment is None or segment.broken:
                self._retry_at = now + RETRY_SECONDS
                raise
            self._rotate_at = now + RETRY_SECONDS
            return segment
        except OSError:
            # A successor was seen: who seals may have taken the old segment for closed.
            self._retry_at = now + RETRY_SECONDS
            self._let_go()
            raise
        self._let_go()
        self._segment = made
        if not self._backlog:
            self._error = None
        return made

    def _new_segment(self) -> SegmentWriter:
        first = self._seq - len(self._rewrite) - len(self._buffer)
        header = Header(self.run, self.name, self._number, first, self._identity)
        self._number += 1
        segment = SegmentWriter(self.folder, header, self._files)
        segment.encoder.mark(self._durable)
        try:
            for frame in self._rewrite:
                segment.append(segment.encoder.again(frame))
        except BaseException:
            segment.discard()
            raise
        self._rewrite = []
        return segment

    def _let_go(self) -> None:
        """Append no more to the segment; the next commit syncs it before anything behind it."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        with contextlib.suppress(OSError):
            segment.end()
        self._retired.append(segment)
        if self.options.durability in ("memory", "os"):
            segment.abandon()  # one descriptor for all; a commit opens it again

    def _put(self, segment: SegmentWriter, frame: bytes) -> bool:
        """Write the frame of event `_seq`, to a new segment if this one fails; False if neither."""
        level = self.options.durability
        if level == "memory":
            self._put_buffer(segment, frame)
        else:
            try:
                self._put_file(segment, frame)
            except OSError as error:
                if not self._move(frame, error):
                    return False
        if not self._armed and level in ("group", "memory"):
            self._arm()
        return True

    def _put_file(self, segment: SegmentWriter, frame: bytes) -> None:
        self._writing = (segment, segment.size + len(frame), self._seq, frame)
        try:
            segment.append(frame)
        except OSError:
            self._writing = None
            raise
        self._written(self._seq, frame)
        self._writing = None

    def _written(self, seq: int, frame: bytes) -> None:
        self._seq = seq + 1
        if self.options.durability == "os" or (self._tail and self._tail[-1][0] == self._seq):
            return
        self._tail.append((self._seq, frame))
        self._tail_bytes += len(frame)
        while self._tail_bytes > self.options.memory_bytes:
            self._tail_bytes -= len(self._tail.popleft()[1])

    def _settle(self) -> None:
        """Find out whether an event was written whose append an exception from outside ended
        (Ctrl-C): the file's length tells, and the next event must not get the same seq.
        """
        if self._writing is None:
            return
        segment, end, seq, frame = self._writing
        try:
            length = segment.length()
        except OSError:
            length = -1
        if length == end:
            segment.size = end
            self._written(seq, frame)
        if length in (end, end - len(frame)):
            segment.broken = False
        self._writing = None

    def _put_buffer(self, segment: SegmentWriter, frame: bytes) -> None:
        size = len(frame)
        if not self._buffer:
            self._buffer_for = segment
        elif self._buffer_for is not segment:  # a failed sync came between
            self._buffer = [segment.encoder.again(f) for f in self._buffer]
            self._buffer_for = segment
        self._seq += 1
        self._buffered += size
        self._buffer.append(frame)
        if self._buffered >= BUFFER_BYTES:
            try:
                self._write_buffer(segment)
            except OSError as error:
                self._let_go()
                self._trouble(error)

    def _write_buffer(self, segment: SegmentWriter) -> None:
        if self._buffer:
            if self._buffer_for is not segment:
                self._buffer = [segment.encoder.again(f) for f in self._buffer]
            frames, self._buffer, self._buffered = self._buffer, [], 0
            self._rewrite = frames
            segment.append(b"".join(frames))
            self._rewrite = []

    def _move(self, frame: bytes, error: OSError) -> bool:
        """The segment is broken: try a new one at once. Return whether the frame is in it."""
        self._let_go()
        try:
            segment = self._segment = self._new_segment()
            self._put_file(segment, segment.encoder.again(frame))
        except OSError as second:
            if self._segment is not None:
                self._segment.discard()
                self._segment = None
            self._trouble(second)
            return False
        self._warn(f"a segment could not be written ({error}); a new one was begun")
        return True

    # ---------------------------------------------------------------- trouble

    def _trouble(self, error: OSError) -> None:
        if error is self._error:  # not tried again yet
            return
        if self._error is None:
            self._warn(
                f"the journal cannot be written ({error}); training goes on, up to "
                f"{self.options.memory_bytes >> 20} MiB of events wait in memory: {self.folder}"
            )
        self._error = error
        self._retry_at = clock.monotonic() + RETRY_SECONDS

    def _keep(self, event: Pending) -> None:
        if not self._backlog.add(event):
            self._dropped += 1

    def _drain(self) -> bool:
        """Write what waits, oldest first; return whether all of it is written."""
        if clock.monotonic() < self._retry_at:
            return False
        try:
            while len(self._backlog):
                self._write_first()
            self._record_gap()
        except OSError as error:
            self._trouble(error)
            return False
        self._error = None
        return True

    def _write_first(self) -> None:
        """Write the oldest event that waits, and forget it only then."""
        event, before = self._backlog.first(), self._seq
        try:
            self._write_event(event)
        except ValueRefused as error:  # no frame could hold it
            self._warn(str(error))
            self._backlog.dropped.add(event)
            self._dropped += 1
        except BaseException:
            self._settle()
            if self._seq > before:
                self._backlog.pop()
            raise
        self._backlog.pop()

    def _record_gap(self) -> None:
        if not self._backlog.dropped.events:
            return
        dropped = self._backlog.take_dropped()
        fields = dataclasses.asdict(dropped).items()
        rows, _ = make_rows(GAP, ((key, value) for key, value in fields))
        try:
            self._write_event(Pending(clock.time_ns(), None, tuple(rows)))
        except OSError:
            self._backlog.dropped = dropped
            raise

    # ---------------------------------------------------------------- durability

    def _arm(self) -> None:
        self._armed = True
        if self._thread is None:
            name = f"eventlog-commit-{self.name}"
            self._thread = threading.Thread(
                target=_commit_loop, args=(weakref.ref(self), self._wake), name=name, daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending: `close` will commit
                self._thread = None
                return
        self._wake.set()

    def commit(self) -> None:
        """Make everything that was appended survive a power cut.

        Raises
        ------
        JournalError
            If the system reports that it could not. What was not durable is appended again to a
            new segment, so that a later call may succeed. Also in the handler of a signal that
            came in the middle of an append of the same thread.
        """
        self._retry_at = self._rotate_at = 0.0
        # A handler may hold the lock that the committing thread waits for: never wait for it then.
        mine = self._lock._is_owned()  # type: ignore[attr-defined]
        if (mine and self._inside) or not self._sync_lock.acquire(blocking=not mine):
            raise JournalError(
                "a sync was asked for in the middle of a log() of the same thread",
                on=self.folder,
                hint="in a signal's handler call finish(), or set a flag and flush later",
            )
        try:
            self._commit()
        finally:
            self._sync_lock.release()
            self._close_if_asked()

    def _commit(self) -> None:
        with self._lock:
            self._armed = False
            self._settle()
            self._flush_waiting()
            segment = self._segment
            target = self._seq - len(self._rewrite) - len(self._buffer)
            retired, self._retired = self._retired, []
            fresh, self._unsynced_blobs = self._unsynced_blobs, {}
            suspect, self._suspect_blobs = self._suspect_blobs, {}
        try:
            blobs.put_again(suspect, self._files)
            blobs.sync(fresh, self._files)
        except OSError as error:
            with self._lock:
                self._retired = retired + self._retired
                self._suspect_blobs = {**suspect, **fresh, **self._suspect_blobs}
                self._sync_failed(error)
            raise self._not_durable(error) from error
        try:
            for old in retired:
                old.sync()
                old.close()
            if segment is not None:
                segment.sync()
        except OSError as error:
            self._poison(segment, retired, error)
            raise self._not_durable(error) from error
        with self._lock:
            if self._incomplete:
                raise self._not_durable(self._sync_error or OSError(5, "too much for memory"))
            self._sync_failures, self._sync_after, self._sync_error = 0, 0.0, None
            self._advance(target)
            if self._backlog or self._rewrite:
                raise JournalError(
                    f"{len(self._backlog) + len(self._rewrite)} events wait in memory: the "
                    f"journal cannot be written ({self._error})",
                    on=self.folder,
                )

    def _not_durable(self, error: OSError) -> JournalError:
        what = f"events from seq {self._durable} on are not durable: a sync failed ({error})"
        return JournalError(what, on=self.folder)

    def _flush_waiting(self) -> None:
        """Bring buffered and waiting events to the segment, as far as it can take them."""
        self._inside = True
        try:
            if self._rewrite:
                self._segment = self._open_segment()
            if self._backlog:
                self._drain()
            if self._buffer:
                self._write_buffer(self._open_segment())
        except OSError as error:
            self._trouble(error)
        finally:
            self._inside = False
            self._take_deferred()

    def _advance(self, durable: int) -> None:
        if durable <= self._durable:
            return
        self._durable = durable
        if self._segment is not None:
            self._segment.encoder.mark(durable)
        while self._tail and self._tail[0][0] <= durable:
            self._tail_bytes -= len(self._tail.popleft()[1])

    def _sync_failed(self, error: OSError) -> None:
        """Wait longer before each next try, so that a disk that is dying is not filled."""
        self._sync_failures += 1
        delay = min(RETRY_SECONDS * 2 ** min(self._sync_failures - 1, 6), 60.0)
        self._sync_error, self._sync_after = error, clock.monotonic() + delay
        if self.options.durability in ("group", "memory") and not self._closed:
            self._arm()

    def _poison(
        self, segment: SegmentWriter | None, retired: list[SegmentWriter], error: OSError
    ) -> None:
        """A sync failed: the kernel may have dropped pages and will not say so again."""
        with self._lock:
            poisoned = [*retired, *self._retired]
            poisoned += [s for s in {id(x): x for x in (segment, self._segment)}.values() if s]
            for old in poisoned:
                old.abandon()
            self._segment, self._retired = None, []
            self._rewrite = [frame for _seq, frame in self._tail] or self._rewrite
            first = self._seq - len(self._buffer) - len(self._rewrite)
            if first > self._durable:  # memory does not hold all of it any more
                self._incomplete = True
            again = self._sync_failures > 0
            self._sync_failed(error)
            self._warn(f"a sync of the journal failed ({error}); its tail is written again")
            try:
                self._segment = self._new_segment()
            except OSError as second:
                self._trouble(second)
                return
            for old in poisoned if again and not self._incomplete else ():
                if old.first_seq >= self._durable:  # only a copy of the tail, now written again
                    old.discard()

    def close(self) -> None:
        """End the segment, make it durable, let go of it. Idempotent; never raises OSError.

        In a signal's handler that came in the middle of an append of the same thread, that append
        does it when it ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._inside:
                self._close_later = True
                return
        self._close()

    def _close_if_asked(self) -> None:
        if self._close_later and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._close_later = False
            self._close()

    def _close(self) -> None:
        self._wake.set()
        durable = True
        try:
            self.commit()
        except JournalError as error:
            durable = False
            self._warn(str(error))
        with self._sync_lock, self._lock:
            self._end_segment(durable=durable)

    def _end_segment(self, *, durable: bool) -> None:
        """End the last segment; without an end of stream if not all before it is durable."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            if durable:
                segment.end()
            segment.sync()
            segment.close()
        except OSError as error:
            self._warn(f"the journal's last segment could not be closed ({error})")
            segment.abandon()

    # ---------------------------------------------------------------- fork

    def _after_fork(self) -> None:
        """In the child: forget the parent's file and start as a writer of one's own."""
        parent = self.name
        closed = self._closed
        if self._segment is not None:
            self._segment.abandon()
        for old in self._retired:
            old.abandon()
        self._reset(random_writer(), parent)
        self._closed = closed


def _commit_loop(reference: weakref.ref[Writer], wake: threading.Event) -> None:
    """Commit soon after something was appended, for as long as the writer is there."""
    while True:
        wake.wait()
        writer = reference()
        if writer is None or writer._closed:
            return
        wake.clear()
        seconds = max(writer.options.group_seconds, writer._sync_after - clock.monotonic())
        del writer
        clock.sleep(seconds)
        writer = reference()
        if writer is None or writer._closed:
            return
        with contextlib.suppress(JournalError):
            writer.commit()
        if writer._closed:
            return
        if writer._backlog or writer._rewrite:
            writer._wake.set()
        del writer


_NUMPY = frozenset(
    "float64 float32 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool bool_".split()
)


def _is_shaped(kind: type) -> bool:
    """Return whether a Python type alone says the stored type."""
    if kind is float or kind is int or kind is bool:
        return True
    return kind.__module__ == "numpy" and kind.__name__ in _NUMPY


def _fork_children() -> None:
    for writer in list(_writers):
        writer._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_children)
