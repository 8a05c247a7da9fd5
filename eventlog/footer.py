"""What the key-value metadata in the footer of a sealed file tell.

================  =============================================================================
eventlog.format   ``1.0``
eventlog.segments what each segment's header and verdict were: a JSON array
eventlog.groups   a JSON array, per row group [rows, first seq, last seq, fingerprint]
                  (`eventlog.fingerprint`)
eventlog.crc32    the CRC-32 of the text of the two before, eight hexadecimal digits
eventlog.lost     only where a salvage left events behind: a JSON array of [first seq, last seq,
                  reason]; and ``eventlog.lost_crc32``, the CRC-32 of that text
================  =============================================================================
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from typing import Any

from eventlog.errors import FormatError
from eventlog.formats import check_format
from eventlog.segment import Header

#: Rows, first seq, last seq and fingerprint of a row group.
Group = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class SealedSegment:
    """What a sealed file remembers of a segment it was made of."""

    header: Header
    next_seq: int
    verdict: str
    durable: int
    lost_bytes: int = 0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SealedSegment:
        """Read what `to_json` gave; unknown fields are ignored."""
        names = {field.name for field in dataclasses.fields(Header)}
        header = Header(**{k: v for k, v in fields["header"].items() if k in names})
        known = {field.name for field in dataclasses.fields(cls)} - {"header"}
        return cls(header, **{k: v for k, v in fields.items() if k in known})


@dataclasses.dataclass(frozen=True)
class Lost:
    """Events `first` to `last` of a writer that a salvage could not bring back, and why."""

    first: int
    last: int
    reason: str


def segments_of(meta: dict[bytes, bytes], path: str) -> list[SealedSegment]:
    """Return what the metadata tell of the segments that a file was made of.

    Raises
    ------
    FormatError
        If they are no sealed file's of a version this package reads, or damaged.
    """
    try:
        check_format(meta[b"eventlog.format"].decode())
        if meta.get(b"eventlog.needs"):
            raise FormatError(
                f"a sealed file needs {meta[b'eventlog.needs']!r}, which this version does not know",
                hint="install a newer eventlog-journal",
            )
        check_sum(meta[b"eventlog.segments"] + meta[b"eventlog.groups"], meta[b"eventlog.crc32"])
        return [SealedSegment.from_json(x) for x in json.loads(meta[b"eventlog.segments"])]
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def check_sum(text: bytes, digits: bytes) -> None:
    """Raise `FormatError` if a text of the metadata has not the CRC-32 that is noted of it."""
    if f"{zlib.crc32(text):08x}".encode() != digits:
        raise FormatError("the metadata of a sealed file is damaged: its checksum does not hold")


def lost_in(meta: dict[bytes, bytes], path: str) -> list[Lost]:
    """Return what the metadata tell of events that are lost. Raises `FormatError`."""
    text = meta.get(b"eventlog.lost")
    if text is None:
        return []
    try:
        check_sum(text, meta.get(b"eventlog.lost_crc32", b""))
        return lost_of(json.loads(text))
    except FormatError as error:
        raise FormatError(error.what, on=path) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def lost_of(told: Any) -> list[Lost]:
    """Return what metadata tell of events that are lost. Raises `ValueError`, `TypeError`."""
    found = [Lost(int(first), int(last), str(why)) for first, last, why in told]
    return [one for one in found if 0 <= one.first <= one.last]


def groups_of(meta: dict[bytes, bytes], count: int, path: str) -> list[Group]:
    """Return what the metadata tell of the row groups, of which the file has `count`.

    Raises
    ------
    FormatError
        If they do not tell of so many.
    """
    try:
        groups = json.loads(meta[b"eventlog.groups"])
        found = [(int(n), int(first), int(last), int(crc)) for n, first, last, crc in groups]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error
    if len(found) != count:
        raise FormatError("a sealed file has not the row groups that were sealed", on=path)
    return found
