"""Steps: a set of steps in little memory, for runs of any length.

Training logs steps in even strides, so a set is kept as stretches of one stride; a set that is no
such thing is kept as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.int64]]

#: So many additions are gathered before they are merged.
_GATHERED = 16


class Steps:
    """A set of int64."""

    __slots__ = ("_counts", "_new", "_starts", "_stride")

    def __init__(self) -> None:
        self._new: list[Numbers] = []
        self._starts: Numbers | None = None
        self._counts: Numbers | None = None
        self._stride = 1

    def add(self, values: Numbers) -> None:
        """Add numbers, in any order."""
        import numpy as np

        if len(values):
            self._new.append(np.unique(values))
            if len(self._new) >= _GATHERED:
                self._merge()

    def __bool__(self) -> bool:
        return self._starts is not None or bool(self._new)

    def span(self) -> tuple[int, int]:
        """Return the lowest and the highest; there is one."""
        starts, counts = self._merged()
        return int(starts[0]), int(starts[-1] + (counts[-1] - 1) * self._stride)

    def contains(self, values: Numbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return for each number whether it is in the set."""
        import numpy as np

        starts, counts = self._merged()
        if not len(starts):
            return np.zeros(len(values), bool)
        at = np.searchsorted(starts, values, "right") - 1
        below = at < 0
        at = np.maximum(at, 0)
        # As unsigned numbers, so that no distance is too large.
        away = values.view(np.uint64) - starts[at].view(np.uint64)
        stride = np.uint64(self._stride)
        inside = (away // stride < counts[at].view(np.uint64)) & (away % stride == 0)
        found: np.ndarray[Any, np.dtype[np.bool_]] = inside & ~below
        return found

    def between(self, low: int, high: int) -> Numbers:
        """Return the numbers above `low` and below `high`, sorted."""
        import numpy as np

        values = self._values()
        first, last = np.searchsorted(values, low, "right"), np.searchsorted(values, high, "left")
        return values[first:last]

    def _merged(self) -> tuple[Numbers, Numbers]:
        import numpy as np

        if self._new:
            self._merge()
        empty = np.empty(0, np.int64)
        return (
            empty if self._starts is None else self._starts,
            empty if self._counts is None else self._counts,
        )

    def _values(self) -> Numbers:
        """Return all numbers, sorted."""
        import numpy as np

        starts, counts = self._merged()
        before = np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(starts, counts) + (np.arange(len(before)) - before) * self._stride

    def _merge(self) -> None:
        import numpy as np

        new = np.unique(np.concatenate(self._new))
        self._new = []
        if self._starts is not None and self._counts is not None:
            _low, high = self.span()
            if int(new[0]) > high:  # as training goes: what is there need not be unfolded
                starts, counts = _stretches(new, self._stride)
                if int(starts[0]) == high + self._stride:
                    self._counts[-1] += counts[0]
                    starts, counts = starts[1:], counts[1:]
                self._starts = np.concatenate([self._starts, starts])
                self._counts = np.concatenate([self._counts, counts])
                return
            new = np.union1d(self._values(), new)
        distances = np.diff(new.view(np.uint64))
        self._stride = 1
        if len(distances):
            words, often = np.unique(distances, return_counts=True)
            stride = int(words[often.argmax()])
            self._stride = stride if stride < 2**62 else 1
        self._starts, self._counts = _stretches(new, self._stride)


def _stretches(values: Numbers, stride: int) -> tuple[Numbers, Numbers]:
    """Return where stretches of one stride start in sorted numbers, and how long each is."""
    import numpy as np

    breaks = np.flatnonzero(np.diff(values.view(np.uint64)) != np.uint64(stride))
    first = np.concatenate([[0], breaks + 1])
    return values[first], np.diff(np.concatenate([first, [len(values)]])).astype(np.int64)
