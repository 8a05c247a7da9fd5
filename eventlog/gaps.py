"""What a writer recorded as dropped, because a disk had no room for too long: events that have no
seq, values that are null, and blobs that were never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventlog.columns import is_word
from eventlog.errors import FormatError
from eventlog.event import GAP
from eventlog.files import LOCAL, Store
from eventlog.layout import is_blob
from eventlog.reader import WriterReader
from eventlog.value import decode

if TYPE_CHECKING:
    import pyarrow as pa

#: The row of a gap that names blobs, each of which is never to come.
BLOBS = "blobs"


def gaps(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the fields of each gap that is recorded among these rows; ``seq`` is its own place."""
    import pyarrow.compute as pc

    rows = table.filter(is_word(table.column("kind"), GAP))
    for seq in pc.unique(rows.column("seq")).to_pylist():
        fields: dict[str, Any] = {}
        for row in rows.filter(pc.equal(rows.column("seq"), seq)).to_pylist():
            try:
                fields[row["key"]] = decode(row["type"], row["num"], row["data"])
            except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
                continue  # made by a stranger
        yield {**fields, "seq": seq}


def told(gap: dict[str, Any]) -> str:
    """Return a sentence that says what of a gap is lost."""
    what = [f"{gap[key]} {key}" for key in ("events", "values") if gap.get(key)]
    between = ""
    if gap.get("first_step") is not None:
        between = f" between the steps {gap['first_step']} and {gap.get('last_step')}"
    why = f" ({gap['reason']})" if gap.get("reason") else ""
    lost = " and ".join(what) or "something"
    return f"event {gap['seq']} records that {lost}{between} found no room and were dropped{why}"


def named(gap: dict[str, Any]) -> set[str]:
    """Return the blobs of a gap."""
    found = gap.get(BLOBS)
    # A stranger's may name anything.
    several = found if isinstance(found, list) else []
    return {sha for sha in several if isinstance(sha, str) and is_blob(sha)}


def never_written(
    folder: str, writer: str, store: Store = LOCAL, *, start: int = 0
) -> frozenset[str]:
    """Return the blobs that events of a writer name, and of which it recorded at or behind seq
    `start` (which is behind the events that name them) that they are never to come. Raises OSError.
    """
    columns = ["seq", "kind", "key", "type", "num", "data"]
    reader = WriterReader(
        folder, writer, start=start, skip_missing=True, store=store, columns=columns, key=BLOBS
    )
    out: set[str] = set()
    try:
        for table in reader.tables():
            for gap in gaps(table):
                out |= named(gap)
    except FormatError:  # said with the writer
        pass
    return frozenset(out)
