"""Sets of positions: which events of which writers, as ranges of seq."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping


class Positions:
    """An immutable set of (writer, seq), kept as sorted, disjoint, inclusive ranges per writer."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Mapping[str, Iterable[tuple[int, int]]] | None = None) -> None:
        self._ranges = {
            writer: joined
            for writer, pairs in sorted((ranges or {}).items())
            if (joined := _joined(pairs))
        }

    @classmethod
    def of(cls, writer: str, seqs: Iterable[int]) -> Positions:
        """Return the set of these seqs of one writer."""
        import numpy as np

        values = seqs if isinstance(seqs, np.ndarray) else np.fromiter(seqs, np.int64)
        if (values[1:] < values[:-1]).any():
            values = np.sort(values)
        breaks = np.flatnonzero(np.diff(values) > 1)
        firsts = values[np.concatenate([[0], breaks + 1])] if len(values) else values
        lasts = values[np.concatenate([breaks, [-1]])] if len(values) else values
        return cls({writer: zip(firsts.tolist(), lasts.tolist(), strict=True)})

    @classmethod
    def upto(cls, writer: str, seq: int) -> Positions:
        """Return every position of a writer from 0 to `seq` inclusive (none if it is negative)."""
        return cls({writer: [(0, seq)]} if seq >= 0 else None)

    def writers(self) -> list[str]:
        """Return the writers that occur."""
        return list(self._ranges)

    def ranges(self, writer: str) -> tuple[tuple[int, int], ...]:
        """Return the inclusive ranges of one writer."""
        return self._ranges.get(writer, ())

    def prefix(self, writer: str) -> int:
        """Return how many events of a writer, counted from seq 0, are in the set without a gap."""
        ranges = self.ranges(writer)
        return ranges[0][1] + 1 if ranges and ranges[0][0] == 0 else 0

    def __contains__(self, position: tuple[str, int]) -> bool:
        writer, seq = position
        ranges = self.ranges(writer)
        at = bisect_right(ranges, (seq, 2**63)) - 1
        return at >= 0 and ranges[at][0] <= seq <= ranges[at][1]

    def __or__(self, other: Positions) -> Positions:
        return Positions(
            {w: [*self.ranges(w), *other.ranges(w)] for w in {*self._ranges, *other._ranges}}
        )

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for writer, ranges in self._ranges.items():
            for first, last in ranges:
                for seq in range(first, last + 1):
                    yield writer, seq

    def __len__(self) -> int:
        return sum(last - first + 1 for pairs in self._ranges.values() for first, last in pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positions) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(self._ranges.items()))

    def __repr__(self) -> str:
        return f"Positions({self._ranges!r})"


def _joined(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if first > last:
            continue
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return tuple(out)
