"""Pages of a Parquet file: how much a row group unpacks to, known before it is unpacked.

A hostile file of some kilobytes can unpack to many gigabytes, and what its footer says of that may
be a lie. Each page begins with a header that says how large the page is unpacked, which is what the
library believes, and so what is to be bounded. Footer and headers are Thrift structs in the compact
protocol. They are read here because the library can end the process over a damaged statistic when
it is asked for a column's place.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NamedTuple

#: The first bytes of a page that are looked at for its header.
_LOOKED_AT = 2**16
_DEEPEST = 16
_MOST_VALUES = 5_000_000

_DICTIONARY = 2
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class Column(NamedTuple):
    """Where a column of a row group lies, in bytes."""

    start: int
    stop: int


class Group(NamedTuple):
    """A row group: how many rows it has, and its columns by name."""

    rows: int
    columns: dict[str, Column]


class Unpacked(NamedTuple):
    """A column of a row group: all its pages unpacked, and the largest dictionary, in bytes."""

    total: int
    dictionary: int


def groups(file: BinaryIO) -> list[Group]:
    """Return what a Parquet file's footer says of its row groups.

    Raises
    ------
    ValueError
        If it is none.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    (length,) = struct.unpack("<I", tail[:4]) if len(tail) == 8 else (0,)
    if tail[4:] != b"PAR1" or not 0 < length <= size - 12:
        raise ValueError("it has no footer of Parquet")
    file.seek(size - 8 - length)
    try:
        fields = _Reader(file.read(length)).struct()
        return [Group(int(g[3]), dict(map(_column, g[1]))) for g in fields[4]]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer is none of Parquet ({error!r})") from None


def _column(chunk: dict[int, Any]) -> tuple[str, Column]:
    meta = chunk[3]
    start = min(int(meta[at]) for at in (9, 11) if meta.get(at))
    return b".".join(meta[3]).decode(), Column(start, start + int(meta[7]))


def unpacked(file: BinaryIO, column: Column) -> Unpacked:
    """Return how large a column of a row group is when it is unpacked.

    Raises
    ------
    ValueError
        If its pages are not what the footer says.
    """
    at = column.start
    total = largest = 0
    while 0 < at < column.stop:
        file.seek(at)
        reader = _Reader(file.read(min(_LOOKED_AT, column.stop - at)))
        try:
            fields = reader.struct()
            kind, size, packed = int(fields[1]), int(fields[2]), int(fields[3])
        except (IndexError, KeyError, TypeError):
            raise ValueError("a page has no header") from None
        if size < 0 or packed < 0:
            raise ValueError("a page has a negative size")
        total += size
        largest = max(largest, size if kind == _DICTIONARY else 0)
        at += reader.at + packed
    if at != column.stop:
        raise ValueError("its pages do not end where the footer says")
    return Unpacked(total, largest)


class _Reader:
    """Reads Thrift's compact protocol. Raises `IndexError` at the end, `ValueError` for nonsense."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._values = 0
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct; return its fields by number: integers, bytes, lists and structs."""
        fields: dict[int, Any] = {}
        last = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            last = last + delta if delta else self._number()
            fields[last] = kind if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES:
            raise ValueError("it is too deep or too large")
        if kind in (_I16, _I32, _I64):
            return self._number()
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._byte()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_LIST, _SET):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        raise ValueError("it has a field of no known type")

    def _bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self._raw):
            raise IndexError("it ends too early")
        return self._raw[self.at - count : self.at]

    def _byte(self) -> int:
        self.at += 1
        return self._raw[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("it has a number without an end")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
