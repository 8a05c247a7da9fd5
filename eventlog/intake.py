"""The intake: what a call of `log` gave, made into the rows of an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eventlog import blobs
from eventlog.event import Row, flatten, make_rows
from eventlog.table import as_table
from eventlog.value import SCALARS, Stored, dumps

#: Keeps bytes beside the segments and returns their SHA-256; raises `blobs.NoRoom`.
PutBlob = Callable[[bytes], str]


class Taken(NamedTuple):
    """What of a call can be kept.

    `values` by flat key; their `rows`; keys that were given `twice`; why something was `refused`.
    """

    values: dict[str, Any]
    rows: list[Row]
    twice: list[str]
    refused: list[str]


def take(kind: str, data: Mapping[Any, Any], put_blob: PutBlob) -> Taken:
    """Return the rows of what a call gave: flattened, tables and large values as blobs."""
    values, twice, refused = flatten(data)
    for key, value in values.items():
        if type(value) in SCALARS:
            continue
        try:
            value = as_table(value)
            if hasattr(type(value), "__eventlog__"):  # a value that keeps itself, such as a Table
                values[key] = value.__eventlog__(put_blob)
        except blobs.NoRoom:  # a full disk: who counted it tells of it
            values[key] = Stored("null", None, None)
        except Exception as error:  # a cell that is no value, a frame that breaks
            values[key] = Stored("null", None, None)
            refused.append(f"{key!r}: {error}; null was kept in its place")
    rows, more = make_rows(kind, values.items())
    if any(row.data is not None and len(row.data) > blobs.INLINE for row in rows):
        rows = [_outlined(row, put_blob) for row in rows]
    return Taken(values, rows, twice, refused + more)


def _outlined(row: Row, put_blob: PutBlob) -> Row:
    """Return a row whose large value lies in a blob."""
    if row.data is None or len(row.data) <= blobs.INLINE or row.type in ("table", "blob"):
        return row
    try:
        digest = put_blob(row.data)
    except blobs.NoRoom:
        return Row(row.key, row.kind, "null", None, None)
    reference = {"sha256": digest, "size": len(row.data), "type": row.type}
    return Row(row.key, row.kind, "blob", None, dumps(reference))
