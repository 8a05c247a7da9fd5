"""Frames: one event <-> the bytes of one whole Arrow IPC message with a checksum.

A frame is a record batch of the schema below, one row per key of the event, in the encapsulated
message format of Arrow IPC. Arrow allows many layouts of the same message; format 1 fixes one, so
that a frame can be made with `struct`, checked without a flatbuffer library, and compared byte by
byte with golden vectors::

    offset  bytes  what
         0      4  FF FF FF FF
         4      4  632, the length of the metadata
         8    632  metadata: a flatbuffer ``Message`` of fixed layout (see `Layout.head`)
       640   body  the columns' buffers, each padded with zeros to 8 bytes

The metadata's custom key ``eventlog`` has the value ``durable=<16 hex> crc32=<8 hex>``:

* ``durable``: how many events of its writer, counted from seq 0, the writer knew to have survived
  a power cut when it wrote this frame;
* ``crc32``: CRC-32 (zlib's) of every byte of the frame but these eight digits, seeded with the
  checksum of the segment's header, so that no frame is valid in another segment.

Numbers are little-endian. ``seq`` and ``time`` and ``step`` are the same in every row of a frame.
"""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from eventlog.errors import FormatError, ValueRefused
from eventlog.event import Event, Row

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
_AT_NODES = 8 + 84 + 4
_AT_PLACES = 8 + 220 + 4
_AT_DURABLE = 8 + 592 + len("durable=")
_AT_CRC = HEAD - 9
#: The digits of a frame's checksum, which it does not cover.
CRC_DIGITS = 8
_COLUMNS = 8
_BUFFERS = 20


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


class Encoder:
    """Makes the frames of one segment. `seed` is the checksum of the segment's header.

    Attributes
    ----------
    stamp:
        The durable mark as frames hold it: another object for each mark, and for each encoder.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._mark = 0
        self.stamp = _DURABLE % 0

    def mark(self, durable: int) -> None:
        """Note that the events before seq `durable` survive a power cut."""
        if durable != self._mark:
            self._mark = durable
            self.stamp = _DURABLE % durable

    def event(self, event: Event) -> bytes:
        """Return the frame of any event.

        Raises
        ------
        ValueRefused
            If the frame would be larger than `MAX_FRAME`.
        """
        layout = lay_out(event.rows, event.seq, event.time, event.step)
        if HEAD + len(layout.body) > MAX_FRAME:
            raise ValueRefused(
                f"an event of {len(event.rows)} keys and {HEAD + len(layout.body)} bytes is larger "
                f"than the {MAX_FRAME} bytes that one event may have",
                hint="log it in several calls",
            )
        return self.finish(layout.head(len(layout.body)), b"\0" + layout.body)

    def again(self, frame: bytes) -> bytes:
        """Return the frame of another segment as one of this segment, its durable mark kept."""
        crc = zlib.crc32(frame[_AT_CRC + 8 :], zlib.crc32(frame[:_AT_CRC], self.seed))
        return frame[:_AT_CRC] + b"%08x" % crc + frame[_AT_CRC + 8 :]

    def finish(self, start: bytes, rest: bytes) -> bytes:
        """Return a frame: `start` ends before the durable mark, `rest` begins behind the checksum."""
        head, crc = self.begin(start)
        return b"%b%08x%b" % (head, zlib.crc32(rest, crc), rest)

    def begin(self, start: bytes) -> tuple[bytes, int]:
        """Return a frame's beginning up to its checksum, and the checksum so far; both hold as
        long as `stamp` is the same object.
        """
        head = start + self.stamp
        return head, zlib.crc32(head, self.seed)


_INT64 = struct.Struct("<q")
_pack = _INT64.pack
_DURABLE = b"%016x crc32="
#: Which of the 20 buffers hold the keys, the kinds (behind their offsets), the numbers and the data.
KEYS, KINDS, NUMBERS, DATA = 8, 9, 16, 19


class Layout(NamedTuple):
    """A body: its bytes, where its buffers lie in it, and how many nulls each column has."""

    rows: int
    body: bytes
    offsets: list[int]
    lengths: list[int]
    nulls: tuple[int, ...]

    def head(self, size: int) -> bytes:
        """Return prefix and metadata of the frame, up to its mark; its body has `size` bytes.

        The flatbuffer, by offset from its start (the numbers in brackets are what must be
        written)::

              0  root: Message at 20          4  its vtable [14 24 20 22 12 4 16]
             20  Message: vtable 16 back; 24 body length; 32 header at 60; 36 custom metadata at
                 544; 40 version 4 (V5); 42 header type 3 (record batch)
             44  vtable [10 20 4 12 16]
             60  RecordBatch: vtable 16 back; 64 rows; 72 nodes at 84; 76 buffers at 220
             84  8 nodes (length, nulls)    220  20 buffers (offset, length)
            544  1 key-value at 560         552  vtable [8 12 4 8]
            560  KeyValue: vtable 8 back; 564 key at 572; 568 value at 588
        """
        head = bytearray(_START)
        _INT64.pack_into(head, _AT_BODY_LENGTH, size)
        _INT64.pack_into(head, _AT_ROWS, self.rows)
        nodes = [self.rows] * (2 * _COLUMNS)
        nodes[1::2] = self.nulls
        _NODES.pack_into(head, _AT_NODES, *nodes)
        buffers = [0] * (2 * _BUFFERS)
        buffers[::2], buffers[1::2] = self.offsets, self.lengths
        _PLACES.pack_into(head, _AT_PLACES, *buffers)
        return bytes(head)


def resized(head: bytes, size: int, data: int) -> bytes:
    """Return the same head for a body of another size, with so many bytes of data at its end."""
    other = bytearray(head)
    _INT64.pack_into(other, _AT_BODY_LENGTH, size)
    _INT64.pack_into(other, _AT_PLACES + 16 * DATA + 8, data)
    return bytes(other)


def lay_out(rows: Sequence[Row], seq: int, time: int, step: int | None) -> Layout:
    """Return the body of the frame of an event."""
    n = len(rows)
    keys, kinds, types, numbers, datas = zip(*rows, strict=True)
    stepless, steps = (n, bytes(8 * n)) if step is None else (0, _pack(step) * n)
    numberless, datasless = numbers.count(None), datas.count(None)
    known = [0.0 if x is None else x for x in numbers] if numberless else numbers
    pieces = [d or b"" for d in datas] if datasless < n else []
    buffers = (
        *(b"", _pack(seq) * n),
        *(b"", _pack(time) * n),
        *(_bits(n, stepless, None), steps),
        *(b"", *texts(keys)),
        *(b"", *_words(kinds)),
        *(b"", *_words(types)),
        *(_bits(n, numberless, numbers), _row(n, "d").pack(*known)),
        _bits(n, datasless, datas),
        _row(n + 1, "i").pack(*accumulate(map(len, pieces), initial=0))
        if pieces
        else bytes(4 * n + 4),
        b"".join(pieces),
    )
    lengths = list(map(len, buffers))
    padded = [b + PADS[len(b) & 7] for b in buffers]
    offsets = list(accumulate(map(len, padded), initial=0))
    offsets.pop()
    nulls = (0, 0, stepless, 0, 0, 0, numberless, datasless)
    return Layout(n, b"".join(padded), offsets, lengths, nulls)


PADS = tuple(b"\0" * (-n % 8) for n in range(8))


@functools.lru_cache(1024)
def _row(n: int, code: str) -> struct.Struct:
    return struct.Struct(f"<{n}{code}")


def _bits(n: int, missing: int, values: Sequence[object] | None) -> bytes:
    """Return which of a column's values are there, a bit each; nothing if all are."""
    if not missing:
        return b""
    if missing == n or values is None:
        return bytes((n + 7) // 8)
    bits = int("".join("0" if v is None else "1" for v in reversed(values)), 2)
    return bits.to_bytes((n + 7) // 8, "little")


def texts(column: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the offsets and the bytes of a column of text."""
    data = "".join(column).encode()
    ends = list(accumulate(map(len, column), initial=0))
    if ends[-1] != len(data):  # not only ASCII
        ends = list(accumulate((len(text.encode()) for text in column), initial=0))
    return _row(len(ends), "i").pack(*ends), data


def _words(words: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Return the same for words, of which there are few."""
    return _known_words(words) if len(words) <= _MOST_KNOWN else texts(words)


_MOST_KNOWN = 1024
_known_words = functools.lru_cache(256)(texts)


_NODES = struct.Struct(f"<{2 * _COLUMNS}q")
_PLACES = struct.Struct(f"<{2 * _BUFFERS}q")
#: The head of a frame of no rows.
_BLANK = b"".join(
    (
        PREFIX,
        struct.pack("<I7H2x", 20, 14, 24, 20, 22, 12, 4, 16),
        struct.pack("<iqIIhBx", 16, 0, 28, 508, 4, 3),
        struct.pack("<5H6x", 10, 20, 4, 12, 16),
        struct.pack("<iqII4x", 16, 0, 12, 144),
        struct.pack("<I132x", _COLUMNS),
        struct.pack("<I320x", _BUFFERS),
        struct.pack("<II4H", 1, 12, 8, 12, 4, 8),
        struct.pack("<iII", 8, 8, 20),
        struct.pack("<I8s4x", 8, b"eventlog"),
        struct.pack("<I", 39),
        b"durable=%016x crc32=%08x\0" % (0, 0),
    )
)
_START = _BLANK[:_AT_DURABLE]


# ------------------------------------------------------------------------------ checking


_DIGITS = re.compile(rb"[0-9a-f]{24}")


def _fixed_bytes() -> tuple[tuple[int, int, bytes], ...]:
    """Return what is the same in the head of every frame, as (start, stop, bytes)."""
    spans = (
        (8, _AT_BODY_LENGTH),
        (_AT_BODY_LENGTH + 8, _AT_ROWS),
        (_AT_ROWS + 8, _AT_NODES),
        (_AT_NODES + 16 * _COLUMNS, _AT_PLACES),
        (_AT_PLACES + 16 * _BUFFERS, _AT_DURABLE),
        (_AT_DURABLE + 16, _AT_CRC),
        (_AT_CRC + 8, HEAD),
    )
    return tuple((start, stop, _BLANK[start:stop]) for start, stop in spans)


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
