"""Multisets of points, kept as 128 bits each: some in memory, of many most in a temporary file.

What lies in the file is ordered by ranges of hashes, so that several multisets can be compared a
range at a time, in memory that does not grow with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from eventlog.columns import numbers, present
from replayers.target import image_schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Hashes: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_HASH = [("a", "u8"), ("b", "u8")]
#: The columns that say which point it is, whatever its value.
PLACE = ("kind", "key", "step")
_MASK = (1 << 64) - 1
#: So many hashes of a multiset are held in memory at most.
MOST_HELD = 2**19
#: The first bits of a hash say in which range it lies.
_BITS = 6


def hashes(table: pa.Table, columns: Sequence[str] | None = None) -> Hashes:
    """Return 128 bits a row of a table of `replayers.target.image_schema`: equal for equal rows.

    Returns
    -------
    numpy array of shape (rows,), of the structured type ``[("a", uint64), ("b", uint64)]``.
    """
    import numpy as np

    out = np.zeros(table.num_rows, _HASH)
    if not table.num_rows:
        return out
    with np.errstate(over="ignore"):
        for name in columns or image_schema().names:
            for half, words in zip("ab", _words(table.column(name)), strict=True):
                out[half] = _mixed(out[half] * np.uint64(0x9E3779B97F4A7C15) + words)
    return out


def _words(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """Return two words of 64 bits a value, others for null than for any value."""
    import numpy as np
    import pyarrow as pa

    column = column.combine_chunks()
    null = ~present(column)
    if pa.types.is_integer(column.type):
        first = numbers(column).astype(np.int64)
        a = first.view(np.uint64)
        b = a ^ np.uint64(0x5851F42D4C957F2D)
    else:
        coded = column.dictionary_encode()
        digests = [
            hashlib.blake2b(t.encode(), digest_size=16).digest()
            for t in coded.dictionary.to_pylist()
        ]
        known = np.frombuffer(b"".join(digests) or bytes(16), np.uint64).reshape(-1, 2)
        at = numbers(coded.indices)
        a, b = known[at, 0].copy(), known[at, 1].copy()
    return _mixed(np.where(null, 1, a) + null), _mixed(np.where(null, 2, b) + np.uint64(3) * null)


def _mixed(words: Any) -> Any:
    """Return words whose every bit depends on every bit of those given (splitmix64)."""
    import numpy as np

    words = words.astype(np.uint64)
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Multiset:
    """How often each hash occurs. Add first, ask then."""

    def __init__(self) -> None:
        self._parts: list[Hashes] = []
        self._held = self._rows = 0
        self._file: IO[bytes] | None = None
        self._blocks: list[Any] = []

    def add(self, found: Hashes) -> None:
        """Count these. Raises `OSError` if a temporary file is needed and cannot be written."""
        self._parts.append(found)
        self._held += len(found)
        self._rows += len(found)
        if self._held > MOST_HELD:
            self._spill()

    def __len__(self) -> int:
        return self._rows

    def counted(self, *, once: bool = False) -> Counted:
        """Return what was added, all of it in memory; with `once` each hash counts 1."""
        import numpy as np

        if self._file is not None:
            self._spill()
            self._file.seek(0)
            return Counted.of(np.frombuffer(self._file.read(), _HASH), once=once)
        whole = np.concatenate(self._parts) if self._parts else np.zeros(0, _HASH)
        return Counted.of(whole, once=once)

    @property
    def in_file(self) -> bool:
        """Whether a part of it lies in a temporary file."""
        return self._file is not None

    def _spill(self) -> None:
        """Put what is held into the file, ordered by range."""
        import numpy as np

        if not self._parts:
            return
        whole = np.concatenate(self._parts)
        ranges = (whole["a"] >> np.uint64(64 - _BITS)).astype(np.uint8)
        if self._file is None:
            import tempfile  # only a large run comes here

            self._file = tempfile.TemporaryFile(prefix="eventlog-")
        start = self._file.seek(0, 2) // whole.itemsize
        self._file.write(whole[np.argsort(ranges, kind="stable")].tobytes())
        counts = np.bincount(ranges, minlength=1 << _BITS)
        self._blocks.append(start + np.concatenate([[0], np.cumsum(counts)]))
        self._parts, self._held = [], 0

    def _range(self, number: int) -> Counted:
        """Return what lies in one range of hashes."""
        import numpy as np

        parts = [np.zeros(0, _HASH)]
        for ends in self._blocks:
            assert self._file is not None
            start, stop = int(ends[number]), int(ends[number + 1])
            self._file.seek(start * parts[0].itemsize)
            data = self._file.read((stop - start) * parts[0].itemsize)
            parts.append(np.frombuffer(data, _HASH))
        return Counted.of(np.concatenate(parts))


def side_by_side(*sets: Multiset) -> Iterator[tuple[Counted, ...]]:
    """Yield what several multisets hold, the same ranges of hashes of each, in ascending order."""
    if not any(one.in_file for one in sets):
        yield tuple(one.counted() for one in sets)
        return
    for one in sets:
        one._spill()
    for number in range(1 << _BITS):
        yield tuple(one._range(number) for one in sets)


class Counted:
    """Distinct hashes, sorted, and how often each occurs."""

    def __init__(self, keys: Hashes, counts: Any) -> None:
        self.keys = keys
        self.counts = counts

    @classmethod
    def joined(cls, parts: Sequence[Counted]) -> Counted:
        """Return several, each with higher hashes than the one before, as one."""
        import numpy as np

        return cls(
            np.concatenate([np.zeros(0, _HASH), *(one.keys for one in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(one.counts for one in parts)]),
        )

    @classmethod
    def of(cls, whole: Hashes, counts: Any = None, *, once: bool = False) -> Counted:
        """Return the sum of hashes that may repeat, each `counts` times (once if it is None)."""
        import numpy as np

        order = np.lexsort((whole["b"], whole["a"]))
        whole = whole[order]
        weights = np.ones(len(whole), np.int64) if counts is None else counts[order]
        new = np.ones(len(whole), bool)
        new[1:] = (whole["a"][1:] != whole["a"][:-1]) | (whole["b"][1:] != whole["b"][:-1])
        starts = np.flatnonzero(new)
        sums = np.add.reduceat(weights, starts) if len(starts) else weights[:0]
        return cls(whole[starts], np.ones(len(starts), np.int64) if once else sums)

    def total(self) -> int:
        """Return the sum of all counts."""
        return int(self.counts.sum())

    def once(self) -> Counted:
        """Return these, each once."""
        import numpy as np

        return Counted(self.keys, np.ones(len(self.keys), np.int64))

    def minus(self, other: Counted) -> Counted:
        """Return by how much each count exceeds that of `other`."""
        import numpy as np

        if np.array_equal(self.keys, other.keys) and np.array_equal(self.counts, other.counts):
            return Counted.joined([])  # as it should be, and costs little
        both = Counted.of(
            np.concatenate([self.keys, other.keys]), np.concatenate([self.counts, -other.counts])
        )
        left = both.counts > 0
        return Counted(both.keys[left], both.counts[left])

    def take(self, found: Hashes) -> Any:
        """Return which of these occur, each only as often as is left; it is used up by that."""
        import numpy as np

        mask = np.zeros(len(found), bool)
        if not len(self.keys):
            return mask
        at = np.searchsorted(self.keys["a"], found["a"])
        at = np.minimum(at, len(self.keys) - 1)
        for row in np.flatnonzero(self.keys["a"][at] == found["a"]):
            place = int(at[row])
            while place < len(self.keys) and self.keys["a"][place] == found["a"][row]:
                if self.keys["b"][place] == found["b"][row]:
                    if self.counts[place] > 0:
                        self.counts[place] -= 1
                        mask[row] = True
                    break
                place += 1
        return mask
