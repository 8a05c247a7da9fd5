"""What a writer recorded as dropped, because a disk had no room for too long: events that have no
seq, values that are null, and blobs that were never written.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
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
    """Yield the fields of each gap that is recorded among these rows."""
    rows = table.filter(is_word(table.column("kind"), GAP)).to_pylist()
    for _seq, group in itertools.groupby(rows, operator.itemgetter("seq")):
        fields: dict[str, Any] = {}
        for row in group:
            try:
                fields[row["key"]] = decode(row["type"], row["num"], row["data"])
            except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
                continue  # made by a stranger
        yield fields


def blobs_of(gap: dict[str, Any]) -> set[str]:
    """Return the blobs of a gap."""
    found = gap.get(BLOBS)
    if not isinstance(found, list):
        return set()
    return {sha for sha in found if isinstance(sha, str) and is_blob(sha)}


@dataclasses.dataclass
class Losses:
    """What all gaps of a writer add up to."""

    events: int = 0
    values: int = 0
    steps: list[int] = dataclasses.field(default_factory=list)
    reasons: set[str] = dataclasses.field(default_factory=set)

    def add(self, gap: dict[str, Any]) -> None:
        """Count one more gap; a journal from a stranger may say anything in it."""
        self.events += _whole(gap.get("events")) or 0
        self.values += _whole(gap.get("values")) or 0
        ends = (_whole(gap.get(key)) for key in ("first_step", "last_step"))
        steps = [*self.steps, *(step for step in ends if step is not None)]
        self.steps = [min(steps), max(steps)] if steps else []
        reason = gap.get("reason")
        if isinstance(reason, str) and len(self.reasons) < 3:
            self.reasons.add(reason[:100])

    def told(self) -> list[str]:
        """Return a sentence that says what is lost; none if nothing is."""
        counts = {"events": self.events, "tables or large values": self.values}
        lost = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
        if not lost:
            return []
        between = f" between the steps {self.steps[0]} and {self.steps[1]}" if self.steps else ""
        why = f" ({', '.join(sorted(self.reasons))})" if self.reasons else ""
        return [f"{lost}{between} found no room and were dropped, as recorded{why}"]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


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
                out |= blobs_of(gap)
    except FormatError:  # said with the writer
        pass
    return frozenset(out)
