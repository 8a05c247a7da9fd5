"""Strips: frames of one shape that follow each other, checked and read without a loop over rows.

A training loop logs the same keys again and again: frames of one shape have one size, and lie in a
segment like the rows of a matrix. Their heads are compared, and their columns cut out, by numpy;
only the checksum is computed frame by frame. What is not alike goes through `eventlog.frame` and
pyarrow, an order of magnitude slower and to the same result.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

from eventlog import frame as frames
from eventlog.columns import numbers

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Words = np.ndarray[Any, np.dtype[np.uint64]]

#: Fewer frames than this are not worth a matrix.
SHORTEST = 8

#: So many bytes at their start are equal in all frames of a strip.
HEAD = 608

# Where things lie in a frame (see `eventlog.frame`), in bytes; the mark fills two words.
_MARK = HEAD
_CRC = 631
_REST = 639
_NODES = 8 + 84 + 4
_BUFFERS = 8 + 220 + 4
_COLUMNS = 8
_TEXT = (3, 4, 5)
_NAMES = ("seq", "time", "step", "key", "kind", "type", "num", "data")
_INT64 = 8


def alike(view: memoryview, at: int, size: int, seq: int, seed: int) -> tuple[int, int]:
    """Return how many frames from `at` on are whole, of one shape and in order, and the highest
    durable mark among them.

    Parameters
    ----------
    view:
        Bytes of a segment; at `at` begins a frame of `size` bytes whose head is one
        (`eventlog.frame.read_head`).
    seq:
        What the seq of that frame must be.
    seed:
        The checksum of the segment's header.
    """
    import numpy as np

    count = (len(view) - at) // size
    words = np.frombuffer(view, "<u8", count * size // 8, at).reshape(count, size // 8)
    probe = _same(words[: SHORTEST + 1], seq)
    count = probe if probe <= SHORTEST else _same(words, seq)
    heads = np.frombuffer(view, np.uint8, count * size, at).reshape(count, size)
    marks = _digits(heads[:, _MARK : _MARK + 16])
    crcs = _digits(heads[:, _CRC:_REST])
    count = min(len(marks), len(crcs))
    if not count:
        return 0, 0
    mark = words[:count, _MARK // 8 : _MARK // 8 + 2]
    new = np.ones(count, bool)
    new[1:] = (mark[1:] != mark[:-1]).any(axis=1)
    crc32 = zlib.crc32
    before, start = crc32(view[at : at + _MARK], seed), 0
    good = 0
    for is_new, crc in zip(new.tolist(), crcs[:count].tolist(), strict=True):
        if is_new:
            start = crc32(view[at + _MARK : at + _CRC], before)
        if crc32(view[at + _REST : at + size], start) != crc:
            break
        at += size
        good += 1
    return good, int(marks[:good].max()) if good else 0


def _same(words: Words, seq: int) -> int:
    """Return how many frames have the head of the first, durable mark and checksum aside, and the
    seqs that follow `seq`.
    """
    import numpy as np

    first, mark = words[0], _MARK // 8
    same = (words[:, :mark] == first[:mark]).all(axis=1)
    seqs = words[:, frames.HEAD // 8].view("<i8")
    same &= seqs == seq + np.arange(len(words), dtype=np.int64)
    # " crc32=" before the digits, and the zero behind them.
    same &= (words[:, mark + 2] ^ first[mark + 2]) & np.uint64(0x00FF_FFFF_FFFF_FFFF) == 0
    same &= (words[:, mark + 3] ^ first[mark + 3]) >> np.uint64(56) == 0
    return len(same) if same.all() else int(same.argmin())


def _digits(text: np.ndarray[Any, np.dtype[np.uint8]]) -> Words:
    """Return the numbers of rows of lower-case hexadecimal digits, up to the first that has
    another character.
    """
    import numpy as np

    values = np.full(256, 255, np.uint64)
    values[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint64)
    digits = values[text]
    good = (digits < 16).all(axis=1)
    stop = len(good) if good.all() else int(good.argmin())
    places = np.uint64(4) * np.arange(text.shape[1], dtype=np.uint64)[::-1]
    out: Words = (digits[:stop] << places).sum(axis=1, dtype=np.uint64)
    return out


# ------------------------------------------------------------------------------ columns


@dataclasses.dataclass(frozen=True)
class _Strip:
    """The matrix of a strip, and where its columns lie."""

    bytes: np.ndarray[Any, np.dtype[np.uint8]]
    words: Words
    rows: int
    nulls: list[int]
    buffers: list[list[int]]

    def cut(self, buffer: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the first `length` bytes of a buffer in every frame."""
        start = frames.HEAD + self.buffers[buffer][0]
        return self.bytes[:, start : start + length]

    def same(self, buffer: int) -> bool:
        """Return whether a buffer, its padding included, is the same in every frame."""
        offset, length = self.buffers[buffer]
        first, last = (frames.HEAD + offset) // 8, (frames.HEAD + offset + length + 7) // 8
        words = self.words[:, first:last]
        return offset % 8 == 0 and bool((words == words[0]).all())


def columns(
    data: memoryview, size: int, rows: int, *, dictionaries: bool = False
) -> list[pa.Array] | None:
    """Return the columns of frames that `alike` found, in the order of the schema.

    Parameters
    ----------
    data:
        The frames' bytes and nothing else.
    size, rows:
        Bytes and rows of each frame.
    dictionaries:
        Give `key`, `kind` and `type` as dictionaries where all frames have the same ones.

    Returns
    -------
    list of pyarrow.Array, or None
        None if the layout is none that this function knows: pyarrow may know it, or say why not.
    """
    import numpy as np

    matrix = np.frombuffer(data, np.uint8).reshape(-1, size)
    nodes = np.frombuffer(data, "<i8", 2 * _COLUMNS, _NODES).reshape(_COLUMNS, 2)
    buffers = np.frombuffer(data, "<i8", 40, _BUFFERS).reshape(20, 2)
    words = np.frombuffer(data, "<u8").reshape(-1, size // 8)
    strip = _Strip(matrix, words, rows, nodes[:, 1].tolist(), buffers.tolist())
    ends = buffers.sum(axis=1)
    inside = (buffers >= 0).all() and (ends <= size - frames.HEAD).all() and (ends >= 0).all()
    if not inside or (nodes[:, 0] != rows).any():
        return None
    out: list[pa.Array] = []
    at = 0
    for column, name in enumerate(_NAMES):
        if name in ("key", "kind", "type", "data"):
            made = _texts(strip, column, at, dictionaries=dictionaries)
            at += 3
        else:
            made = _fixed(strip, column, at)
            at += 2
        if made is None:
            return None
        out.append(made)
    return out


def _validity(strip: _Strip, column: int, at: int) -> tuple[bool, Any, int]:
    """Return whether the buffer can be read, the bitmap of all rows (None if none is null), and
    how many are.
    """
    import numpy as np
    import pyarrow as pa

    if not strip.nulls[column]:
        return True, None, 0
    length = (strip.rows + 7) // 8
    if strip.buffers[at][1] < length or column in (0, 1, *_TEXT):
        return False, None, 0
    bits = np.unpackbits(strip.cut(at, length), axis=1, count=strip.rows, bitorder="little")
    nulls = bits.size - int(bits.sum())
    # Frames of one shape have as many nulls each as their head says.
    good = nulls == strip.nulls[column] * len(bits)
    return good, pa.py_buffer(np.packbits(bits.ravel(), bitorder="little")), nulls


def _fixed(strip: _Strip, column: int, at: int) -> pa.Array | None:
    import pyarrow as pa

    good, validity, nulls = _validity(strip, column, at)
    if not good or strip.buffers[at + 1][1] < _INT64 * strip.rows:
        return None
    values = pa.py_buffer(strip.cut(at + 1, _INT64 * strip.rows).tobytes())
    kind = frames.schema().field(column).type
    return pa.Array.from_buffers(kind, strip.rows * len(strip.bytes), [validity, values], nulls)


def _texts(strip: _Strip, column: int, at: int, *, dictionaries: bool) -> pa.Array | None:
    import numpy as np
    import pyarrow as pa

    good, validity, nulls = _validity(strip, column, at)
    if not good or strip.buffers[at + 1][1] < 4 * (strip.rows + 1):
        return None
    count, length = len(strip.bytes), strip.buffers[at + 2][1]
    offsets = strip.cut(at + 1, 4 * (strip.rows + 1))
    text = strip.cut(at + 2, length)
    same = strip.same(at + 1) and strip.same(at + 2)
    places = np.ascontiguousarray(offsets[:1] if same else offsets).view("<i4")
    ends_well = (places[:, 0] == 0).all() and (places[:, -1] == length).all()
    if not ends_well or (np.diff(places, axis=1) < 0).any() or count * length >= 2**31:
        return None
    kind = frames.schema().field(column).type
    if same and dictionaries and column in _TEXT:
        return _repeated(places[0], bytes(text[0]), kind, count)
    shifts = np.arange(count, dtype=np.int32)[:, None] * np.int32(length)
    starts = np.empty(count * strip.rows + 1, np.int32)
    starts[:-1] = (places[:, :-1] + shifts).ravel()
    starts[-1] = count * length
    whole = bytes(text[0]) * count if same else text.tobytes()
    parts = [validity, pa.py_buffer(starts), pa.py_buffer(whole)]
    array = pa.Array.from_buffers(kind, count * strip.rows, parts, nulls)
    return _proven(array, strip.rows if same else len(array))


def _repeated(places: Any, text: bytes, kind: pa.DataType, count: int) -> pa.Array | None:
    """Return the texts of one frame, `count` times, as a dictionary."""
    import numpy as np
    import pyarrow as pa

    parts = [None, pa.py_buffer(np.ascontiguousarray(places)), pa.py_buffer(text)]
    once = _proven(pa.Array.from_buffers(kind, len(places) - 1, parts, 0), len(places) - 1)
    if once is None:
        return None
    encoded = once.dictionary_encode()
    data = pa.py_buffer(np.tile(numbers(encoded.indices), count))
    indices = pa.Array.from_buffers(pa.int32(), len(once) * count, [None, data])
    return pa.DictionaryArray.from_arrays(indices, encoded.dictionary)


def _proven(array: pa.Array, rows: int) -> pa.Array | None:
    """Return the array if Arrow finds nothing wrong with its first rows, text that is no UTF-8
    say.
    """
    import pyarrow as pa

    try:
        array.slice(0, rows).validate(full=True)
    except pa.ArrowException:
        return None
    return array
