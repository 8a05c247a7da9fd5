"""Cutting tables of events: into batches, by position, by what they hold. Pure, but for reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from eventlog.event import METRIC
from eventlog.reader import WriterReader
from replayers.positions import Positions

if TYPE_CHECKING:
    import pyarrow as pa


def metrics(rows: pa.Table) -> pa.Table:
    """Return the rows of metrics."""
    import pyarrow.compute as pc

    return rows.filter(pc.equal(rows.column("kind"), METRIC))


def last_metric(rows: pa.Table, before: int | None) -> int | None:
    """Return the last event of these rows that has metrics, `before` if there is none."""
    found = metrics(rows).column("seq")
    last: int | None = found[-1].as_py() if len(found) else before
    return last


def points(rows: pa.Table) -> int:
    """Return how many rows of metrics there are."""
    return int(metrics(rows).num_rows)


def start_of_last(table: pa.Table) -> int:
    """Return where the rows of the last event begin."""
    import numpy as np

    seqs = table.column("seq").to_numpy()
    return int(np.searchsorted(seqs, seqs[-1]))


def batches(table: pa.Table, most: int) -> Iterator[pa.Table]:
    """Cut a table into batches of about `most` rows, never within an event."""
    import numpy as np

    seqs = table.column("seq").to_numpy()
    start = 0
    while start < len(seqs):
        stop = min(start + most, len(seqs))
        if stop < len(seqs):
            edge = int(np.searchsorted(seqs, seqs[stop]))
            stop = edge if edge > start else int(np.searchsorted(seqs, seqs[stop], "right"))
        yield table.slice(start, stop - start)
        start = stop


def upto(tables: Iterable[pa.Table], end: int) -> Iterator[pa.Table]:
    """Yield the rows of events before seq `end`."""
    for table in tables:
        if table.column("seq")[0].as_py() >= end:
            return
        yield table.slice(0, int(table.column("seq").to_numpy().searchsorted(end)))


def of_seqs(folder: str, writer: str, seqs: Iterable[int]) -> Iterator[pa.Table]:
    """Yield the rows of these events of a writer, a table an event."""
    for seq in seqs:
        for table in WriterReader(folder, writer, start=seq).tables():
            if table.column("seq")[0].as_py() == seq:
                yield table.slice(0, int(table.column("seq").to_numpy().searchsorted(seq + 1)))
            break


def without(rows: pa.Table, ranges: Sequence[tuple[int, int]]) -> pa.Table:
    """Return the rows of events that lie in none of these ranges of seq."""
    if not rows.num_rows or not ranges:
        return rows
    import numpy as np
    import pyarrow as pa

    seqs = rows.column("seq").to_numpy()
    mask = np.ones(len(seqs), bool)
    for first, last in ranges:
        mask &= (seqs < first) | (seqs > last)
    return rows.filter(pa.array(mask))


def at_positions(folder: str, writer: str, positions: Positions) -> Iterator[pa.Table]:
    """Yield the rows of a writer's events that are in a set of positions, in order."""
    import numpy as np
    import pyarrow as pa

    ranges = positions.ranges(writer)
    reader = WriterReader(folder, writer, start=ranges[0][0], skip_missing=True)
    for table in upto(reader.tables(), ranges[-1][1] + 1):
        seqs = table.column("seq").to_numpy()
        mask = np.zeros(len(seqs), bool)
        for first, last in ranges:
            mask[np.searchsorted(seqs, first) : np.searchsorted(seqs, last, "right")] = True
        if mask.any():
            yield table.filter(pa.array(mask))
