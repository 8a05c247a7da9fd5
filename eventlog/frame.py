"""Frames: one event <-> the bytes of one whole Arrow IPC message with a checksum.

A frame is a record batch of the schema below, one row per key of the event, in the encapsulated
message format of Arrow IPC. Arrow allows many layouts of the same message; format 1 fixes one, so
that a frame can be made with `struct`, checked without a flatbuffer library, and compared byte by
byte with golden vectors::

    offset  bytes  what
         0      4  FF FF FF FF
         4      4  632, the length of the metadata
         8    632  metadata: a flatbuffer ``Message`` of fixed layout (see `_metadata`)
       640   body  the columns' buffers, each padded with zeros to 8 bytes

The metadata's custom key ``eventlog`` has the value ``durable=<16 hex> crc32=<8 hex>``:

* ``durable``: how many events of its writer, counted from seq 0, the writer knew to have survived
  a power cut when it wrote this frame;
* ``crc32``: CRC-32 (zlib's) of every byte of the frame but these eight digits, seeded with the
  checksum of the segment's header, so that no frame is valid in another segment.

Numbers are little-endian. ``seq`` and ``time`` and ``step`` are the same in every row of a frame.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog.errors import FormatError, ValueRefused
from eventlog.event import Event, Row
from eventlog.value import EXACT

if TYPE_CHECKING:
    import pyarrow as pa

#: The largest frame, in bytes.
MAX_FRAME = 16 * 2**20
#: The bytes before a frame's body.
HEAD = 640
#: Ends a segment that was closed by its writer (Arrow's end of stream).
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
CONTINUATION = b"\xff\xff\xff\xff"

_META = HEAD - 8
#: How every frame begins.
PREFIX = CONTINUATION + struct.pack("<i", _META)
_AT_BODY_LENGTH = 8 + 24
_AT_ROWS = 8 + 64
_AT_DURABLE = 8 + 592 + len("durable=")
_AT_CRC = HEAD - 9
_COLUMNS = 8
_BUFFERS = 20
_CACHE = 512


def schema() -> pa.Schema:
    """Return the schema of every segment, without its metadata."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("seq", pa.int64(), nullable=False),
            pa.field("time", pa.timestamp("ns", "UTC"), nullable=False),
            pa.field("step", pa.int64()),
            pa.field("key", pa.utf8(), nullable=False),
            pa.field("kind", pa.utf8(), nullable=False),
            pa.field("type", pa.utf8(), nullable=False),
            pa.field("num", pa.float64()),
            pa.field("data", pa.binary()),
        ]
    )


# ------------------------------------------------------------------------------ making


class Shape:
    """What is the same in all frames of one set of keys, kinds and types whose values are all
    numbers: everything but seq, time, step and the numbers themselves.
    """

    __slots__ = ("count", "exact", "head", "middle", "narrow", "numbers", "stepless", "tail")

    def __init__(self, rows: Sequence[Row], *, with_step: bool) -> None:
        probe = _Body(rows, 0, 0, 0 if with_step else None)
        self.count = len(rows)
        self.head = _metadata(len(rows), probe)[:_AT_DURABLE]
        start, stop = probe.numbers_at
        self.middle = probe.bytes[probe.keys_at : start]
        self.tail = probe.bytes[stop:]
        self.numbers = struct.Struct(f"<{len(rows)}d")
        self.stepless = None if with_step else probe.bytes[probe.step_at : probe.keys_at]
        words = [row.type for row in rows]
        # Integers may have grown beyond what a float64 holds; a narrow NaN may lose its payload.
        self.exact = tuple(i for i, w in enumerate(words) if w.startswith(("int", "uint")))
        self.narrow = tuple(i for i, w in enumerate(words) if w in ("float32", "float16"))

    def proven(self, rows: Sequence[Row], step: int | None) -> bool:
        """Return whether the frames of this shape are those that the generic way makes."""
        numbers = [row.num for row in rows]
        event = Event(1, 2, step, tuple(rows))
        encoder = Encoder(3)
        return encoder.numbers(self, 1, 2, step, numbers) == encoder.event(event)

    def holds(self, values: Sequence[Any]) -> bool:
        """Return whether these values can be stored as numbers alone, exactly."""
        for i in self.exact:
            if not -EXACT <= values[i] <= EXACT:
                return False
        return all(values[i] == values[i] for i in self.narrow)

    def body(self, seq: int, time: int, step: int | None, values: Sequence[Any]) -> bytes:
        """Return the body of a frame."""
        n = self.count
        pack = _INT64.pack
        steps = self.stepless if step is None else pack(step) * n
        return b"".join(
            (
                pack(seq) * n,
                pack(time) * n,
                steps,
                self.middle,
                self.numbers.pack(*values),
                self.tail,
            )  # type: ignore[arg-type]
        )


class Encoder:
    """Makes the frames of one segment. `seed` is the checksum of the segment's header."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._durable = b"%016x" % 0
        self._mark = 0

    def mark(self, durable: int) -> None:
        """Note that the events before seq `durable` survive a power cut."""
        if durable != self._mark:
            self._mark = durable
            self._durable = b"%016x" % durable

    def numbers(
        self, shape: Shape, seq: int, time: int, step: int | None, values: Sequence[Any]
    ) -> bytes:
        """Return the frame of an event of a known shape."""
        return self._finish(shape.head, shape.body(seq, time, step, values))

    def event(self, event: Event) -> bytes:
        """Return the frame of any event.

        Raises
        ------
        ValueRefused
            If the frame would be larger than `MAX_FRAME`.
        """
        body = _Body(event.rows, event.seq, event.time, event.step)
        if HEAD + len(body.bytes) > MAX_FRAME:
            raise ValueRefused(
                f"an event of {len(event.rows)} keys and {HEAD + len(body.bytes)} bytes is larger "
                f"than the {MAX_FRAME} bytes that one event may have",
                hint="log it in several calls",
            )
        return self._finish(_metadata(len(event.rows), body)[:_AT_DURABLE], body.bytes)

    def again(self, frame: bytes) -> bytes:
        """Return the frame of another segment as one of this segment, its durable mark kept."""
        crc = zlib.crc32(frame[_AT_CRC + 8 :], zlib.crc32(frame[:_AT_CRC], self.seed))
        return frame[:_AT_CRC] + b"%08x" % crc + frame[_AT_CRC + 8 :]

    def _finish(self, start: bytes, body: bytes) -> bytes:
        head = b"".join((start, self._durable, b" crc32="))
        rest = b"\0" + body
        crc = zlib.crc32(rest, zlib.crc32(head, self.seed))
        return b"".join((head, b"%08x" % crc, rest))


_INT64 = struct.Struct("<q")


class _Body:
    """The buffers of a record batch, and where they lie."""

    def __init__(self, rows: Sequence[Row], seq: int, time: int, step: int | None) -> None:
        n = len(rows)
        self._parts: list[bytes] = []
        self.buffers: list[tuple[int, int]] = []
        self.nulls = [0] * _COLUMNS
        self._size = 0
        self._fixed(_INT64.pack(seq) * n)
        self._fixed(_INT64.pack(time) * n)
        self.step_at = self._size
        self._fixed(_INT64.pack(step or 0) * n, 2, [step is not None] * n)
        self.keys_at = self._size
        self._texts([row.key.encode() for row in rows])
        self._texts([row.kind.encode("ascii") for row in rows])
        self._texts([row.type.encode("ascii") for row in rows])
        numbers = [row.num for row in rows]
        packed = struct.pack(f"<{n}d", *(0.0 if x is None else x for x in numbers))
        self._fixed(packed, 6, [x is not None for x in numbers])
        self.numbers_at = (self._size - len(packed), self._size)
        datas = [row.data for row in rows]
        self._texts([d or b"" for d in datas], 7, [d is not None for d in datas])
        self.bytes = b"".join(self._parts)

    def _add(self, data: bytes) -> None:
        self.buffers.append((self._size, len(data)))
        data += b"\0" * (-len(data) % 8)
        self._parts.append(data)
        self._size += len(data)

    def _validity(self, column: int, present: list[bool]) -> None:
        missing = len(present) - sum(present)
        self.nulls[column] = missing
        bits = int("".join("01"[here] for here in reversed(present)), 2) if missing else 0
        self._add(bits.to_bytes((len(present) + 7) // 8, "little") if missing else b"")

    def _fixed(self, data: bytes, column: int = 0, present: list[bool] | None = None) -> None:
        self._validity(column, present or [])
        self._add(data)

    def _texts(
        self, texts: list[bytes], column: int = 3, present: list[bool] | None = None
    ) -> None:
        self._validity(column, present or [])
        offsets = [0]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        self._add(struct.pack(f"<{len(offsets)}i", *offsets))
        self._add(b"".join(texts))


def _metadata(rows: int, body: _Body) -> bytes:
    """Return prefix and metadata of a frame, its checksum still zero.

    The flatbuffer, by offset from its start (the numbers in brackets are what must be written)::

          0  root: Message at 20          4  its vtable [14 24 20 22 12 4 16]
         20  Message: vtable 16 back; 24 body length; 32 header at 60; 36 custom metadata at 544;
             40 version 4 (V5); 42 header type 3 (record batch)
         44  vtable [10 20 4 12 16]
         60  RecordBatch: vtable 16 back; 64 rows; 72 nodes at 84; 76 buffers at 220
         84  8 nodes (length, nulls)    220  20 buffers (offset, length)
        544  1 key-value at 560         552  vtable [8 12 4 8]
        560  KeyValue: vtable 8 back; 564 key at 572; 568 value at 588
    """
    nodes = [x for nulls in body.nulls for x in (rows, nulls)]
    buffers = [x for pair in body.buffers for x in pair]
    return b"".join(
        (
            PREFIX,
            struct.pack("<I7H2x", 20, 14, 24, 20, 22, 12, 4, 16),
            struct.pack("<iqIIhBx", 16, len(body.bytes), 28, 508, 4, 3),
            struct.pack("<5H6x", 10, 20, 4, 12, 16),
            struct.pack("<iqII4x", 16, rows, 12, 144),
            struct.pack(f"<I{2 * _COLUMNS}q4x", _COLUMNS, *nodes),
            struct.pack(f"<I{2 * _BUFFERS}q", _BUFFERS, *buffers),
            struct.pack("<II4H", 1, 12, 8, 12, 4, 8),
            struct.pack("<iII", 8, 8, 20),
            struct.pack("<I8s4x", 8, b"eventlog"),
            struct.pack("<I", 39),
            b"durable=%016x crc32=%08x\0" % (0, 0),
        )
    )


# ------------------------------------------------------------------------------ checking


_DIGITS = re.compile(rb"[0-9a-f]{24}")


def _fixed_bytes() -> tuple[tuple[int, int, bytes], ...]:
    """Return what is the same in the head of every frame, as (start, stop, bytes)."""
    one = _metadata(0, _Body([], 0, 0, None))
    nodes, buffers = 8 + 84 + 4, 8 + 220 + 4
    spans = (
        (8, _AT_BODY_LENGTH),
        (_AT_BODY_LENGTH + 8, _AT_ROWS),
        (_AT_ROWS + 8, nodes),
        (nodes + 16 * _COLUMNS, buffers),
        (buffers + 16 * _BUFFERS, _AT_DURABLE),
        (_AT_DURABLE + 16, _AT_CRC),
        (_AT_CRC + 8, HEAD),
    )
    return tuple((start, stop, one[start:stop]) for start, stop in spans)


_FIXED = _fixed_bytes()


class Head(NamedTuple):
    """What a frame's head says before its checksum is known to hold."""

    size: int
    rows: int
    durable: int
    crc: int


def read_head(head: bytes | memoryview) -> Head | None:
    """Parse the first `HEAD` bytes of a frame; None if they are no frame's."""
    if len(head) < HEAD or bytes(head[:8]) != PREFIX:
        return None
    # A compressed or otherwise different message, valid or not, is no frame of format 1.
    if any(head[start:stop] != fixed for start, stop, fixed in _FIXED):
        return None
    (body,) = _INT64.unpack_from(head, _AT_BODY_LENGTH)
    (rows,) = _INT64.unpack_from(head, _AT_ROWS)
    if not 0 < body <= MAX_FRAME - HEAD or body % 8 or not 0 < rows <= body:
        return None
    digits = bytes(head[_AT_DURABLE : _AT_DURABLE + 16]) + bytes(head[_AT_CRC : _AT_CRC + 8])
    if _DIGITS.fullmatch(digits) is None:  # int() would take other texts for the same number
        return None
    return Head(HEAD + body, rows, int(digits[:16], 16), int(digits[16:], 16))


def checksum(frame: memoryview, seed: int) -> int:
    """Return the CRC-32 of a whole frame's bytes but its eight digits."""
    return zlib.crc32(frame[_AT_CRC + 8 :], zlib.crc32(frame[:_AT_CRC], seed))


def first_seq(frame: memoryview) -> int:
    """Return the seq of a whole frame (its body begins with the column of seqs)."""
    return int(_INT64.unpack_from(frame, HEAD)[0])


def read_batch(frame: bytes | memoryview, kind: pa.Schema) -> pa.RecordBatch:
    """Read one frame with pyarrow, every offset and length checked.

    Raises
    ------
    FormatError
        If Arrow finds anything wrong with it.
    """
    import pyarrow as pa

    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(frame), kind)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"a frame is no valid Arrow message ({error})") from error
    return batch


def prove(frame: bytes, event: Event) -> None:
    """Read a frame with pyarrow as anybody would.

    Raises
    ------
    FormatError
        If that does not give the event that was put in: no frame of this process can be trusted.
    """
    (again,) = to_events(read_batch(frame, schema())) or (None,)
    if again is None or repr(again) != repr(event):
        raise FormatError(
            "this pyarrow does not read what was written",
            hint="install another version of pyarrow and report this",
        )


def to_events(batch: pa.RecordBatch | pa.Table) -> list[Event]:
    """Return the events of rows that lie in the order of one writer."""
    columns = [batch.column(i).to_pylist() for i in (0, 2, 3, 4, 5, 6, 7)]
    times = batch.column(1).cast("int64").to_pylist()
    events: list[Event] = []
    rows: list[Row] = []
    last: tuple[int, int, int | None] | None = None
    for time, seq, step, *row in zip(times, *columns, strict=True):
        if last is not None and last[0] != seq:
            events.append(Event(*last, tuple(rows)))
            rows = []
        last = (seq, time, step)
        rows.append(Row(*row))
    if last is not None:
        events.append(Event(*last, tuple(rows)))
    return events
