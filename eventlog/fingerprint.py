"""The fingerprint of a row group: one number for its rows, however they lie in memory.

The CRC-32 of, one after the other: the number of rows in decimal; then for each column in the
schema's order which rows are null (one bit a row, the first row the highest bit of the first byte),
and for numbers the 64 bits of each (0 where null), for text and bytes the length of each as int32
(-1 where null) and all bytes; little-endian.

Columns of text that repeat with each event are not spelled out: the checksum of a block that is
repeated follows from that of the block by arithmetic over GF(2), as in zlib's ``crc32_combine``.
"""

from __future__ import annotations

import functools
import zlib
from typing import TYPE_CHECKING, Any

from eventlog.columns import numbers, present

if TYPE_CHECKING:
    import pyarrow as pa

_POLYNOMIAL = 0xEDB88320
_LONGEST_PERIOD = 4096
#: The polynomial is primitive: so many powers of x are different.
_ORDER = 2**32 - 1


def fingerprint(table: pa.Table) -> int:
    """Return the fingerprint of a row group; columns of text may be dictionaries."""
    import numpy as np
    import pyarrow as pa

    check = zlib.crc32(str(table.num_rows).encode())
    period = _period(numbers(table.column(0))) if table.num_rows else 0
    for column in table.combine_chunks().columns:
        array = column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
        if array.null_count:
            missing = ~present(array)
            check = zlib.crc32(np.packbits(missing).tobytes(), check)
        else:
            missing = None
            check = _zeros((len(array) + 7) // 8, check)
        if pa.types.is_dictionary(array.type):
            check = _dictionary(array, period, check)
        elif pa.types.is_primitive(array.type):
            words = np.frombuffer(array.buffers()[1], dtype=np.uint64)
            bits = words[array.offset : array.offset + len(array)]
            whole = bits if missing is None else np.where(missing, np.uint64(0), bits)
            check = zlib.crc32(np.ascontiguousarray(whole).view(np.uint8).data, check)
        else:
            check = _texts(array, check)
    return check


def _period(seqs: Any) -> int:
    """Return how many rows the first event has."""
    import numpy as np

    return int(np.searchsorted(seqs, seqs[0], side="right"))


def _zeros(count: int, check: int) -> int:
    return combine(check, _repeated(b"\0", count), count)


def _texts(array: pa.Array, check: int) -> int:
    import numpy as np
    import pyarrow.compute as pc

    lengths = numbers(pc.binary_length(array))
    if array.null_count:
        lengths = np.where(present(array), lengths, np.int32(-1))
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)
    start, stop = offsets[array.offset], offsets[array.offset + len(array)]
    data = array.buffers()[2]
    text = b"" if data is None else memoryview(data)[start:stop]
    return zlib.crc32(text, zlib.crc32(lengths.tobytes(), check))


def _dictionary(array: pa.DictionaryArray, period: int, check: int) -> int:
    import numpy as np

    if array.null_count:
        return _texts(array.cast(array.type.value_type), check)
    indices = numbers(array.indices)
    if len(indices) and (indices == indices[0]).all():
        period = 1
    count, rest = divmod(len(indices), period) if period else (0, 0)
    periodic = 0 < period <= _LONGEST_PERIOD and (indices[period:] == indices[:-period]).all()
    if not periodic or count < 2:
        return _texts(array.cast(array.type.value_type), check)
    words = [word.encode() for word in array.dictionary.to_pylist()]
    block = [words[i] for i in indices[:period].tolist()]
    lengths = np.array([len(word) for word in block], np.int32)
    for one, part in (
        (lengths.tobytes(), lengths[:rest].tobytes()),
        (b"".join(block), b"".join(block[:rest])),
    ):
        check = combine(check, _repeated(one, count), len(one) * count)
        check = zlib.crc32(part, check)
    return check


# ------------------------------------------------------------------------------ arithmetic


def combine(one: int, other: int, length: int) -> int:
    """Return the CRC-32 of two texts, one behind the other, from those of both and the length of
    the second.
    """
    return _times(_shift(length), one) ^ other


def seed_of(check: int, plain: int, length: int) -> int:
    """Return the seed with which a text of some length has the CRC-32 `check`; without one, it has
    `plain`.
    """
    # x to the power of 2**32 - 1 is 1, and so this takes back what the text did to the seed.
    return _times(_shift(_ORDER - length % _ORDER), check ^ plain)


@functools.lru_cache(maxsize=256)
def _repeated(block: bytes, count: int) -> int:
    """Return the CRC-32 of `block`, `count` times."""
    check, one, length = 0, zlib.crc32(block), len(block)
    done = 0
    while count:  # by doubling: `one` stands for 1, 2, 4, ... blocks
        if count & 1:
            check = combine(check, one, length) if done else one
            done += length
        one = combine(one, one, length)
        length *= 2
        count >>= 1
    return check


@functools.lru_cache(maxsize=1024)
def _shift(length: int) -> int:
    """Return x to the power of 8 * `length`, modulo the polynomial."""
    out, power = 1 << 31, 1 << 23  # x to the 0, x to the 8: the highest bit is the lowest power
    while length:
        if length & 1:
            out = _times(out, power)
        power = _times(power, power)
        length >>= 1
    return out


def _times(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2), modulo the polynomial."""
    out = 0
    bit = 1 << 31
    while bit:
        if a & bit:
            out ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return out
