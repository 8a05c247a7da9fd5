"""Forks: one position, two contents. Two files of a writer hold the same event, and differ.

Files are compared a window of events at a time, by fingerprint, so that memory does not grow with
what they have in common.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eventlog.columns import numbers
from eventlog.errors import FormatError
from eventlog.event import digest
from eventlog.files import LOCAL, Store
from eventlog.fingerprint import fingerprint
from eventlog.frame import to_events
from eventlog.reader import WriterReader

if TYPE_CHECKING:
    import pyarrow as pa

#: Events of a window.
_WINDOW = 4096

#: A file's path in the run's folder, and the first and last event that it holds.
Held = tuple[str, int, int]


def forks(
    folder: str, writer: str, files: Sequence[Held], store: Store = LOCAL
) -> Iterator[tuple[str, str, int]]:
    """Yield two files and the first event that they hold both and differently, for every two
    files of a writer of which that is so.
    """
    ordered = sorted(files, key=lambda held: held[1:])
    for i, (one, _first, end) in enumerate(ordered):
        for other, first, last in ordered[i + 1 :]:
            if first > end:
                break
            try:
                seq = first_fork(folder, writer, (one, other), (first, min(end, last)), store)
            except (OSError, FormatError):
                continue  # sealed in this moment, or reported with the file
            if seq is not None:
                yield one, other, seq


def first_fork(
    folder: str, writer: str, names: tuple[str, str], common: tuple[int, int], store: Store
) -> int | None:
    """Return the first of the events `common[0]` to `common[1]` that two files of a writer hold both
    and differently, None if there is none.

    Raises
    ------
    FormatError
        If one of them is damaged.
    OSError
        If one cannot be read.
    """
    first, last = common
    sides = []
    for name in names:
        source = WriterReader(folder, writer, start=first, store=store)
        sides.append(_windows(source.file(os.path.join(folder, name)), last))
    one, other = (next(side, None) for side in sides)
    while one is not None and other is not None:
        if one[0] == other[0]:
            seq = _differing(one[1], other[1])
            if seq is not None:
                return seq
        ahead = one[0] > other[0]
        behind = one[0] < other[0]
        one = one if ahead else next(sides[0], None)
        other = other if behind else next(sides[1], None)
    return None


def _windows(tables: Iterator[pa.Table], last: int) -> Iterator[tuple[int, pa.Table]]:
    """Cut tables at every `_WINDOW`-th event; yield each window with its number, up to `last`."""
    import numpy as np
    import pyarrow as pa

    number = -1
    held: list[pa.Table] = []
    for table in tables:
        seqs = numbers(table.column("seq"))
        table, seqs = table.slice(0, int(np.searchsorted(seqs, last, "right"))), seqs[seqs <= last]
        at = 0
        while at < len(seqs):
            here = int(seqs[at]) // _WINDOW
            stop = int(np.searchsorted(seqs, (here + 1) * _WINDOW))
            if here != number and held:
                yield number, pa.concat_tables(held).combine_chunks()
                held = []
            number = here
            held.append(table.slice(at, stop - at))
            at = stop
    if held:
        yield number, pa.concat_tables(held).combine_chunks()


def _differing(one: pa.Table, other: pa.Table) -> int | None:
    if one.num_rows == other.num_rows and fingerprint(one) == fingerprint(other):
        return None
    digests = [{event.seq: digest(event) for event in to_events(side)} for side in (one, other)]
    common = sorted(digests[0].keys() & digests[1].keys())
    return next((seq for seq in common if digests[0][seq] != digests[1][seq]), None)
