"""The chain: the segments of one writer, each behind the other, and where the next frame goes.

It appends frames, begins a new segment when one is full, broken or poisoned by a failed sync, and
keeps what it may have to write again: the frames that are not known durable, in a bounded memory.

It must never: sync, read a segment, wait for a disk that fails. Its owner holds a lock.
"""

from __future__ import annotations

import contextlib
import time as clock
from collections import deque
from collections.abc import Callable
from typing import Any

from eventlog.files import Files
from eventlog.options import BUFFER_BYTES, Options
from eventlog.segment import Header, NotCreated, SegmentWriter

#: While a disk fails, a new segment is tried at most this often, in seconds.
RETRY_SECONDS = 1.0


class Chain:
    """The segments of one writer.

    Attributes
    ----------
    seq:
        How many events were appended: the seq of the next one.
    synced:
        How many of them are known to survive a power cut, the blobs that they name aside.
    durable:
        How many of them are known to survive it with their blobs, or with the record that these
        were dropped.
    segment:
        The one that is appended to; None before the first frame and after a failure.
    retired:
        Those that take no more frames and are not known durable.
    rewrite:
        Frames that the next segment begins with: they were in one whose sync failed.
    writing:
        Whether an exception from outside (Ctrl-C) ended a write: `settle` is due.
    tail_bytes:
        How many bytes are not known durable and kept in memory.
    error:
        Why nothing can be appended; None if something can.
    """

    def __init__(
        self,
        folder: str,
        run: str,
        writer: str,
        identity: dict[str, Any],
        options: Options,
        files: Files,
        warn: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.seq = 0
        self.synced = 0
        self.durable = 0
        self.segment: SegmentWriter | None = None
        self.retired: list[SegmentWriter] = []
        self.rewrite: list[bytes] = []
        self.writing: tuple[SegmentWriter, int, int, bytes] | None = None
        self.error: OSError | None = None
        self._run = run
        self._writer = writer
        self._identity = identity
        self._options = options
        self._buffers = options.durability == "memory"
        self._remembers = options.durability != "os"
        self._files = files
        self._warn = warn
        self._number = 0
        self._tail: deque[tuple[int, bytes]] = deque()
        self.tail_bytes = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._buffer_for: SegmentWriter | None = None
        self._retry_at = 0.0
        self._rotate_at = 0.0

    @property
    def written(self) -> int:
        """How many events are in a segment, durable or not."""
        return self.seq - len(self.rewrite) - len(self._buffer)

    # ---------------------------------------------------------------- segments

    def open(self) -> SegmentWriter:
        """Return the segment to append to, a new one if need be. Raises OSError."""
        segment = self.segment
        usable = segment is not None and not segment.broken
        if segment is not None and usable and segment.size < self._options.segment_bytes:
            return segment
        now = clock.monotonic()
        if segment is not None and usable:
            if now < self._rotate_at:
                return segment
            self._write_buffer(segment)
        if self.error is not None and now < self._retry_at:
            raise self.error
        try:
            made = self.begin()
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
        self.segment = made
        return made

    def begin(self) -> SegmentWriter:
        """Return a new segment that holds what is to be written again. Raises OSError."""
        header = Header(self._run, self._writer, self._number, self.written, self._identity)
        self._number += 1
        segment = SegmentWriter(self.folder, header, self._files)
        segment.encoder.mark(self.durable)
        try:
            for frame in self.rewrite:
                segment.append(segment.encoder.again(frame))
        except BaseException:
            segment.discard()
            raise
        self.rewrite = []
        return segment

    def _let_go(self) -> None:
        """Append no more to the segment; the next commit syncs it before anything behind it."""
        segment, self.segment = self.segment, None
        if segment is None:
            return
        with contextlib.suppress(OSError):
            segment.end()
        self.retired.append(segment)
        if self._options.durability in ("memory", "os"):
            segment.abandon()  # one descriptor for all; a commit opens it again

    def end(self, *, durable: bool) -> None:
        """End the last segment; without an end of stream if not all before it is durable."""
        segment, self.segment = self.segment, None
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

    def abandon(self) -> None:
        """Let go of every file as it is."""
        for segment in (*self.retired, self.segment):
            if segment is not None:
                segment.abandon()

    # ---------------------------------------------------------------- frames

    def put(self, segment: SegmentWriter, frame: bytes) -> None:
        """Append the frame of event `seq`, to a new segment if this one fails.

        Raises
        ------
        OSError
            If neither takes it: the event has no seq.
        """
        if self._buffers:
            self._put_buffer(segment, frame)
            return
        try:
            self._put_file(segment, frame)
        except OSError as error:
            self._move(frame, error)

    def _put_file(self, segment: SegmentWriter, frame: bytes) -> None:
        seq = self.seq
        self.writing = (segment, segment.size + len(frame), seq, frame)
        try:
            segment.append(frame)
        except OSError:
            self.writing = None
            raise
        self.seq = seq + 1
        if self._remembers:
            self._remember(seq + 1, frame)
        self.writing = None

    def _remember(self, end: int, frame: bytes) -> None:
        """Keep a frame until all events before `end` are durable, or memory is full."""
        # In this order: an exception from outside comes behind a call, and so behind both.
        self.tail_bytes += len(frame)
        self._tail.append((end, frame))
        while self.tail_bytes > self._options.memory_bytes:
            self.tail_bytes -= len(self._tail.popleft()[1])

    def settle(self) -> None:
        """Find out whether an event was written whose append an exception from outside ended
        (Ctrl-C): the file's length tells, and the next event must not get the same seq.
        """
        if self.writing is None:
            return
        segment, end, seq, frame = self.writing
        try:
            length = segment.length()
        except OSError:
            length = -1
        if length == end:
            segment.size = end
            self.seq = seq + 1
            if self._remembers and (not self._tail or self._tail[-1][0] <= seq):
                self._remember(self.seq, frame)
        if length in (end, end - len(frame)):
            segment.broken = False
        self.writing = None

    def _put_buffer(self, segment: SegmentWriter, frame: bytes) -> None:
        size = len(frame)
        if not self._buffer:
            self._buffer_for = segment
        elif self._buffer_for is not segment:  # a failed sync came between
            self._buffer = [segment.encoder.again(f) for f in self._buffer]
            self._buffer_for = segment
        self.seq += 1
        self._buffered += size
        self._buffer.append(frame)
        if self._buffered >= BUFFER_BYTES:
            try:
                self._write_buffer(segment)
            except OSError as error:
                self._let_go()
                self.failed(error)

    def _write_buffer(self, segment: SegmentWriter) -> None:
        if self._buffer:
            if self._buffer_for is not segment:
                self._buffer = [segment.encoder.again(f) for f in self._buffer]
            frames, self._buffer, self._buffered = self._buffer, [], 0
            self.rewrite = frames
            for end, frame in enumerate(frames, self.written + 1):
                self._remember(end, frame)
            segment.append(b"".join(frames))
            self.rewrite = []

    def flush(self) -> None:
        """Write what the level ``memory`` has gathered, and what is to be written again."""
        if self.rewrite:
            self.segment = self.open()
        if self._buffer:
            self._write_buffer(self.open())

    def _move(self, frame: bytes, error: OSError) -> None:
        """The segment is broken: put the frame into a new one at once. Raises OSError."""
        self._let_go()
        try:
            segment = self.segment = self.begin()
            self._put_file(segment, segment.encoder.again(frame))
        except OSError:
            if self.segment is not None:
                self.segment.discard()
                self.segment = None
            raise
        self._warn(f"a segment could not be written ({error}); a new one was begun")

    # ---------------------------------------------------------------- trouble

    def failed(self, error: OSError) -> None:
        """Remember why nothing can be appended, and when to try again."""
        if error is self.error:  # not tried again yet
            return
        if self.error is None:
            self._warn(
                f"the journal cannot be written ({error}); training goes on, up to "
                f"{self._options.memory_bytes >> 20} MiB of events wait in memory: {self.folder}"
            )
        self.error = error
        self._retry_at = clock.monotonic() + RETRY_SECONDS

    def may_try(self) -> bool:
        """Return whether it is time to try again."""
        return clock.monotonic() >= self._retry_at

    def try_now(self) -> None:
        """Have the next call try, however short ago the last failure was."""
        self._retry_at = self._rotate_at = 0.0

    # ---------------------------------------------------------------- durability

    def advance(self, synced: int, durable: int) -> None:
        """Note up to where events survive a power cut, without and with their blobs."""
        self.synced = max(self.synced, synced)
        kept = deque([kept for kept in self._tail if kept[0] > self.synced])
        size = sum([len(frame) for _end, frame in kept])
        self._tail, self.tail_bytes = kept, size
        if durable <= self.durable:
            return
        self.durable = durable
        if self.segment is not None:
            self.segment.encoder.mark(durable)

    def poison(self, *others: SegmentWriter | None) -> tuple[list[SegmentWriter], bool]:
        """Give up all segments that are not known durable, after a sync that failed: the kernel
        may have dropped pages and will not say so again. Their frames are written again.

        Returns
        -------
        Those segments, and whether memory still holds every frame of them.
        """
        several = (*self.retired, *others, self.segment)
        poisoned = list({id(s): s for s in several if s is not None}.values())
        for old in poisoned:
            old.abandon()
        self.segment, self.retired = None, []
        # Both end with the same event; what was never written may be more than memory keeps.
        self.rewrite = max([frame for _end, frame in self._tail], self.rewrite, key=len)
        return poisoned, self.written <= self.synced
