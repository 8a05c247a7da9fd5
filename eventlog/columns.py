"""Columns: Arrow's arrays to and from numpy's, by their buffers.

pyarrow imports pandas, where that is installed, with the first value that it takes from Python or
numpy or gives to numpy: 37 MB and a quarter of a second, for nothing, and in the trainer's process
when a run is sealed as it finishes. What is here imports nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
    Column: TypeAlias = pa.Array | pa.ChunkedArray

#: What the values of an Arrow type are to numpy, by its width in bits and whether it is a float.
_DTYPES = {(64, False): "<i8", (32, False): "<i4", (64, True): "<f8", (32, True): "<f4"}


def numbers(column: Column) -> Any:
    """Return the values of a column of numbers or times as a numpy array, 0 where they are null;
    without a copy if none is and the column is one piece.

    Raises
    ------
    TypeError
        If the column is of another type.
    """
    import numpy as np

    parts = [_numbers(chunk) for chunk in _chunks(column)]
    return parts[0] if len(parts) == 1 else np.concatenate([_numbers(_none(column.type)), *parts])


def _numbers(array: pa.Array) -> Any:
    import numpy as np
    import pyarrow as pa

    kind = array.type
    if not pa.types.is_primitive(kind) or pa.types.is_boolean(kind):
        raise TypeError(f"a column of {kind} has no numbers")
    dtype = np.dtype(_DTYPES[kind.bit_width, pa.types.is_floating(kind)])
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.empty(0, dtype)
    values = np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)
    return np.where(present(array), values, dtype.type(0)) if array.null_count else values


def present(column: Column) -> Bools:
    """Return for each value whether it is there, and not null."""
    return truths(column.is_valid())


def truths(column: Column) -> Bools:
    """Return a column of booleans as a numpy array; a null is False."""
    import numpy as np

    parts = [np.empty(0, bool), *(_bits(chunk) for chunk in _chunks(column))]
    return np.concatenate(parts)


def _bits(array: pa.Array) -> Bools:
    import numpy as np

    out: Bools | None = None
    for buffer in array.buffers():
        if buffer is not None and len(array):
            bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
            there: Bools = bits[array.offset : array.offset + len(array)].view(np.bool_)
            out = there if out is None else out & there
    return np.empty(0, bool) if out is None else out


def _chunks(column: Column) -> list[pa.Array]:
    import pyarrow as pa

    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def _none(kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return pa.nulls(0, kind)


# ------------------------------------------------------------------------------ to Arrow


def integers(values: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """Return an array of int64."""
    import numpy as np
    import pyarrow as pa

    data = pa.py_buffer(np.ascontiguousarray(values, np.int64))
    return pa.Array.from_buffers(pa.int64(), len(values), [None, data])


def booleans(values: Bools) -> pa.Array:
    """Return an array of booleans: a mask to filter by."""
    import numpy as np
    import pyarrow as pa

    data = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, data])


def texts(words: Sequence[str], errors: str = "strict") -> pa.Array:
    """Return an array of text. Raises `UnicodeEncodeError` for what is none, with ``strict``."""
    import numpy as np
    import pyarrow as pa

    raw = [word.encode(errors=errors) for word in words]
    ends = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    data = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))]
    return pa.Array.from_buffers(pa.utf8(), len(raw), data)


def repeated(word: str, count: int, *, dictionary: bool = False) -> pa.Array:
    """Return an array of one text, `count` times."""
    import numpy as np
    import pyarrow as pa

    raw = word.encode()
    if not dictionary and len(raw) * count < 2**31:
        ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(raw))
        parts = [None, pa.py_buffer(ends), pa.py_buffer(raw * count)]
        return pa.Array.from_buffers(pa.utf8(), count, parts)
    data = pa.py_buffer(np.zeros(count, np.int32))
    indices = pa.Array.from_buffers(pa.int32(), count, [None, data])
    array = pa.DictionaryArray.from_arrays(indices, texts([word]))
    return array if dictionary else array.cast(pa.utf8())


def picked(column: pa.ChunkedArray, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Column:
    """Return the values at some rows of a column."""
    import pyarrow as pa

    kind = column.type
    plain = pa.types.is_primitive(kind) and not pa.types.is_boolean(kind)
    if column.null_count == len(column):
        return pa.nulls(len(rows), kind)
    if column.null_count or not plain:
        return column.take(integers(rows))
    data = pa.py_buffer(numbers(column)[rows])
    return pa.Array.from_buffers(kind, len(rows), [None, data])


def is_word(column: Column, *words: str) -> Any:
    """Return Arrow's booleans of where a column of text, dictionary or not, has one of some words;
    null is none.
    """
    import pyarrow.compute as pc

    return pc.is_in(column, value_set=texts(words, "surrogatepass"))
