"""Pages of a Parquet file: how much a row group unpacks to, known before it is unpacked.

A hostile file of some kilobytes can unpack to many gigabytes, and what its footer says of that may
be a lie. Each page begins with a header that says how large the page is unpacked, which is what the
library believes, and so what is to be bounded. Footer and headers are Thrift structs in the compact
protocol. They are read here because the library can end the process over a damaged statistic when
it is asked for a column's place.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, TypeAlias

#: The first bytes of a page that are looked at for its header: enough for nearly all, and for all.
_OFTEN, _LOOKED_AT = 512, 2**16
_DEEPEST = 16
_MOST_VALUES = 5_000_000

_DICTIONARY = 2
#: Encodings of pages that hold nothing but places in the dictionary.
_CODED = (2, 8)
#: Compressions by Parquet's number for them.
_CODECS: dict[int, str | None] = {0: None, 1: "snappy", 6: "zstd"}
#: A dictionary of more bytes is not read here. (A writer that lets one grow to a megabyte goes on
#: without it.)
_MOST_WORDS = 2**19
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


#: What of a footer is kept, by the numbers of fields: of each row group its number of rows (3), and
#: of its columns (1), in what is told of them (3), path (3), compression (4), packed size (7), and
#: where pages (9) and dictionary (11) begin.
_Wanted: TypeAlias = "dict[int, _Wanted | None]"
_FOOTER: _Wanted = {4: {1: {3: {3: None, 4: None, 7: None, 9: None, 11: None}}, 3: None}}

#: And of the header of a page: what is told of data (5) and of a dictionary (7).
_HEADER: _Wanted = {5: {}, 7: {}}


class Column(NamedTuple):
    """Where a column of a row group lies, in bytes, and the number of its compression."""

    start: int
    stop: int
    codec: int = 0


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
        fields = _Reader(file.read(length)).struct(wanted=_FOOTER)
        return [Group(int(g[3]), dict(map(_column, g[1]))) for g in fields[4]]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer is none of Parquet ({error!r})") from None


def _column(chunk: dict[int, Any]) -> tuple[str, Column]:
    meta = chunk[3]
    start = min(int(meta[at]) for at in (9, 11) if meta.get(at))
    return b".".join(meta[3]).decode(), Column(start, start + int(meta[7]), int(meta[4]))


def unpacked(file: BinaryIO, column: Column) -> Unpacked:
    """Return how large a column of a row group is when it is unpacked.

    Raises
    ------
    ValueError
        If its pages are not what the footer says.
    """
    total = largest = 0
    for page in _pages(file, column):
        total += page.size
        largest = max(largest, page.size if page.kind == _DICTIONARY else 0)
    return Unpacked(total, largest)


def words(file: BinaryIO, column: Column) -> list[bytes] | None:
    """Return every text that a column of a row group can have, as its dictionary says, whose
    checksum holds.

    Returns
    -------
    list of bytes, or None
        None if the column may have other texts, or the dictionary cannot be read here.

    Raises
    ------
    ValueError
        If its pages are not what the footer says.
    """
    found = list(_pages(file, column))
    coded = all(page.encoding in _CODED for page in found[1:])
    if len(found) < 2 or found[0].kind != _DICTIONARY or not coded:
        return None
    first = found[0]
    if max(first.size, first.packed) > _MOST_WORDS or column.codec not in _CODECS:
        return None
    file.seek(first.at)
    raw = file.read(first.packed)
    if first.crc is None or zlib.crc32(raw) != first.crc & 0xFFFF_FFFF:
        return None
    codec = _CODECS[column.codec]
    if codec is not None:
        import pyarrow as pa

        try:
            raw = pa.decompress(raw, first.size, codec=codec, asbytes=True)
        except (pa.ArrowException, OSError):
            return None
    return _texts(raw) if len(raw) == first.size else None


def _texts(raw: bytes) -> list[bytes] | None:
    """Return the texts of a dictionary page: each behind its length."""
    out, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at) if at + 4 <= len(raw) else (len(raw),)
        at += 4 + length
        if at > len(raw):
            return None
        out.append(raw[at - length : at])
    return out


class _Page(NamedTuple):
    """A page: where its bytes begin, behind the header, and what the header says."""

    at: int
    kind: int
    size: int
    packed: int
    crc: int | None
    encoding: int


def _pages(file: BinaryIO, column: Column) -> Iterator[_Page]:
    """Yield the pages of a column. Raises `ValueError` if they are not what the footer says."""
    at = column.start
    while 0 < at < column.stop:
        fields, at = _header(file, at, column.stop)
        try:
            size, packed, crc = int(fields[2]), int(fields[3]), fields.get(4)
            data = fields.get(5) or fields.get(7) or {}
            page = _Page(at, int(fields[1]), size, packed, crc, int(data.get(2, -1)))
        except (KeyError, TypeError, AttributeError):
            raise ValueError("a page has no header") from None
        if size < 0 or packed < 0:
            raise ValueError("a page has a negative size")
        yield page
        at += packed
    if at != column.stop:
        raise ValueError("its pages do not end where the footer says")


def _header(file: BinaryIO, at: int, stop: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the header of a page, and where the page's bytes begin."""
    for most in (_OFTEN, _LOOKED_AT):
        file.seek(at)
        reader = _Reader(file.read(min(most, stop - at)))
        try:
            return reader.struct(wanted=_HEADER), at + reader.at
        except (IndexError, TypeError):
            continue
    raise ValueError("a page has no header")


class _Reader:
    """Reads Thrift's compact protocol. Raises `IndexError` at the end, `ValueError` for nonsense.

    Ten thousand headers are read for a long run: the common kinds are read where they are met.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._left = _MOST_VALUES
        self.at = 0

    def struct(self, depth: int = 0, wanted: _Wanted | None = None) -> dict[int, Any]:
        """Read a struct; return its fields by number: integers, bytes, lists and structs; those
        that are `wanted` only, if that is told (any integer aside).
        """
        raw = self._raw
        fields: dict[int, Any] = {}
        last = 0
        while head := raw[self.at]:
            self.at += 1
            self._left -= 1
            if self._left < 0:
                raise ValueError("it is too large")
            delta, kind = head >> 4, head & 15
            last = last + delta if delta else self._number()
            if _I16 <= kind <= _I64:
                byte = raw[self.at]
                if byte < 128:
                    self.at += 1
                    fields[last] = (byte >> 1) ^ -(byte & 1)
                else:
                    fields[last] = self._number()
            elif kind <= _FALSE:
                fields[last] = kind
            elif wanted is None:
                fields[last] = self._value(kind, depth + 1)
            elif last in wanted:
                fields[last] = self._value(kind, depth + 1, wanted[last])
            else:
                self._pass(kind, depth + 1)
        self.at += 1
        return fields

    def _pass(self, kind: int, depth: int) -> None:
        """Read a value that nobody wants: three in four of a footer, statistics above all."""
        raw = self._raw
        if depth > _DEEPEST:
            raise ValueError("it is too deep or too large")
        if kind == _STRUCT:
            while head := raw[self.at]:
                self.at += 1
                self._left -= 1
                if self._left < 0:
                    raise ValueError("it is too deep or too large")
                if not head >> 4:
                    self._varint()
                inner = head & 15
                if _I16 <= inner <= _I64:
                    while raw[self.at] > 127:
                        self.at += 1
                    self.at += 1
                elif inner > _FALSE:
                    self._pass(inner, depth + 1)
            self.at += 1
        elif kind == _BINARY:
            length = raw[self.at]
            if length < 128:
                self.at += 1 + length
            else:
                length = self._varint()
                self.at += length
        elif kind in (_LIST, _SET):
            head = raw[self.at]
            self.at += 1
            inner = head & 15
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._pass(inner, depth + 1)
        else:
            self._value(kind, depth)

    def _value(self, kind: int, depth: int, wanted: _Wanted | None = None) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise ValueError("it is too deep or too large")
        if _I16 <= kind <= _I64:
            return self._number()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth, wanted)
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._bytes(1)[0]
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind in (_LIST, _SET):
            head = self._bytes(1)[0]
            count = self._varint() if head >> 4 == 15 else head >> 4
            if wanted is None:
                return [self._value(head & 15, depth + 1) for _ in range(count)]
            return [self._value(head & 15, depth + 1, wanted) for _ in range(count)]
        raise ValueError("it has a field of no known type")

    def _bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self._raw):
            raise IndexError("it ends too early")
        return self._raw[self.at - count : self.at]

    def _varint(self) -> int:
        raw = self._raw
        value = shift = 0
        while True:
            byte = raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("it has a number without an end")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
