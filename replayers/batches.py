"""Cutting tables of events: into batches, by position, by what they hold. Pure, but for reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from eventlog.columns import booleans, integers, is_word, numbers, truths
from eventlog.event import METRIC
from replayers.positions import Positions

if TYPE_CHECKING:
    import pyarrow as pa

#: Small tables are put together up to so many bytes.
MOST_BYTES = 32 * 2**20


def of_kinds(rows: pa.Table, kinds: Sequence[str]) -> pa.Table:
    """Return the rows of these kinds."""
    import pyarrow.compute as pc

    mask = is_word(rows.column("kind"), *kinds)
    # Most often that is all of them, and nothing is copied.
    return rows if pc.all(mask, min_count=0).as_py() else rows.filter(mask)


def metrics(rows: pa.Table) -> pa.Table:
    """Return the rows of metrics."""
    return of_kinds(rows, (METRIC,))


def last_metric(rows: pa.Table, before: int | None) -> int | None:
    """Return the last event of these rows that has metrics, `before` if there is none."""
    import numpy as np

    found = np.flatnonzero(truths(is_word(rows.column("kind"), METRIC)))
    last: int | None = rows.column("seq")[int(found[-1])].as_py() if len(found) else before
    return last


def points(rows: pa.Table) -> int:
    """Return how many rows of metrics there are."""
    return int(truths(is_word(rows.column("kind"), METRIC)).sum())


def events(rows: pa.Table) -> int:
    """Return how many events these rows in the order of seq belong to."""
    import numpy as np

    seqs = numbers(rows.column("seq"))
    return int(np.count_nonzero(np.diff(seqs))) + 1 if len(seqs) else 0


def newest(rows: pa.Table) -> pa.Table:
    """Return the last row of each kind and key, in order."""
    import numpy as np

    if not rows.num_rows:
        return rows
    kinds, keys = (
        rows.column(name).combine_chunks().dictionary_encode() for name in ("kind", "key")
    )
    codes = numbers(kinds.indices).astype(np.int64) * len(keys.dictionary)
    codes += numbers(keys.indices)
    _codes, last = np.unique(codes[::-1], return_index=True)
    return rows.take(integers(np.sort(len(codes) - 1 - last)))


def start_of_last(table: pa.Table) -> int:
    """Return where the rows of the last event begin."""
    import numpy as np

    seqs = numbers(table.column("seq"))
    return int(np.searchsorted(seqs, seqs[-1]))


def gathered(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """Put small tables together, as long as they have at most `most` rows and `MOST_BYTES`."""
    import pyarrow as pa

    held: list[pa.Table] = []
    rows = size = 0
    try:
        for table in tables:
            if held and (rows + table.num_rows > most or size + table.nbytes > MOST_BYTES):
                whole, held, rows, size = pa.concat_tables(held), [], 0, 0
                yield whole
            held.append(table)
            rows += table.num_rows
            size += table.nbytes
    except Exception:
        # What was read before that is as good as if nothing had happened.
        if held:
            yield pa.concat_tables(held)
        raise
    if held:
        yield pa.concat_tables(held)


def batches(table: pa.Table, most: int) -> Iterator[pa.Table]:
    """Cut a table into batches of about `most` rows, never within an event."""
    import numpy as np

    seqs = numbers(table.column("seq"))
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
        yield table.slice(0, int(numbers(table.column("seq")).searchsorted(end)))


def without(rows: pa.Table, ranges: Sequence[tuple[int, int]]) -> pa.Table:
    """Return the rows of events that lie in none of these ranges of seq."""
    if not rows.num_rows or not ranges:
        return rows
    import numpy as np

    seqs = numbers(rows.column("seq"))
    mask = np.ones(len(seqs), bool)
    for first, last in ranges:
        mask &= (seqs < first) | (seqs > last)
    return rows.filter(booleans(mask))


def at_seqs(folder: str, writer: str, seqs: Sequence[int]) -> Iterator[pa.Table]:
    """Yield the rows of these events of a writer, in order."""
    if seqs:
        yield from at_positions(folder, writer, Positions.of(writer, seqs))


def at_positions(folder: str, writer: str, positions: Positions) -> Iterator[pa.Table]:
    """Yield the rows of a writer's events that are in a set of positions, in order."""
    import numpy as np

    from eventlog.reader import WriterReader

    ranges = positions.ranges(writer)
    reader = WriterReader(folder, writer, start=ranges[0][0], skip_missing=True)
    for table in upto(reader.tables(), ranges[-1][1] + 1):
        seqs = numbers(table.column("seq"))
        mask = np.zeros(len(seqs), bool)
        for first, last in ranges:
            mask[np.searchsorted(seqs, first) : np.searchsorted(seqs, last, "right")] = True
        if mask.any():
            yield table.filter(booleans(mask))
