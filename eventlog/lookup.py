"""The rows of one key in a sealed file, read by column and by several threads.

Of a row group that lacks the key nothing is unpacked, and of one that has it no column whose
dictionary has a single word: all rows have that one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from eventlog.ahead import cores, in_order
from eventlog.columns import is_word, numbers, picked, repeated, truths
from eventlog.errors import FormatError
from eventlog.sealed import MOST_BYTES, SealedFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Truths: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

#: More threads than this gain nothing: what holds the interpreter's lock is a third of the work.
_MOST_THREADS = 4
#: Fewer row groups are not worth a thread.
_FEW = 4
#: Columns of which a row group often has one word only.
_CONSTANT = ("key", "kind", "type", "writer")


def rows_of_key(
    file: SealedFile, writer: str, key: str, schema: pa.Schema, start: int
) -> Iterator[pa.Table]:
    """Yield the rows of a key, in order, a table for each row group that has any.

    Parameters
    ----------
    file:
        Opened so that `key`, `kind`, `type` are read as dictionaries.
    writer:
        Rows of others are left out.
    schema:
        Columns and their types, of `eventlog.frame.schema`.
    start:
        Row groups that end before this seq are left out.

    Raises
    ------
    FormatError
        For a file that cannot be what its name says.
    OSError
        If it cannot be read.
    """
    groups = [n for n, (_rows, _first, last, _crc) in enumerate(file.groups) if last >= start]
    with contextlib.ExitStack() as opened:
        jobs = _jobs(file, groups, writer, key, schema)
        for found in in_order(jobs, _hands(file, len(groups), opened), MOST_BYTES):
            if found is not None:
                yield found


def _hands(file: SealedFile, groups: int, opened: contextlib.ExitStack) -> list[SealedFile]:
    """Return the file as often as threads are to read it."""
    hands: list[SealedFile] = []
    threads = min(_MOST_THREADS, cores())
    if threads > 1 and groups >= _FEW:
        # It may have gone in this moment, or be one file too many: one is open.
        with contextlib.suppress(OSError, FormatError):
            while len(hands) < threads:
                hands.append(opened.enter_context(file.again()))
    return hands or [file]


def _jobs(
    file: SealedFile, groups: list[int], writer: str, key: str, schema: pa.Schema
) -> Iterator[tuple[int, Callable[[SealedFile], pa.Table | None]]]:
    for group in groups:
        if not file.may_have(group, "key", key):
            continue
        words = {name: file.only_word(group, name) for name in _CONSTANT}
        known = {name: word for name, word in words.items() if word is not None}
        if known.get("writer", writer) != writer:
            continue
        names = [*dict.fromkeys((*schema.names, "key", "writer"))]
        names = [name for name in names if name not in known]
        work = functools.partial(
            _found, group, names, {"key": key, "writer": writer}, known, schema
        )
        yield file.unpacked(group, names), work


def _found(
    group: int,
    names: list[str],
    wanted: dict[str, str],
    known: dict[str, str],
    schema: pa.Schema,
    file: SealedFile,
) -> pa.Table | None:
    """Return the rows of a row group that have the wanted words, None if none has; `known` are the
    columns in which all its rows have the same word, and `names` the others.
    """
    import numpy as np
    import pyarrow as pa

    found = file.rows(group, names)
    try:
        if any(found.column(name).null_count for name in wanted if name in names):
            raise ValueError("a key or a writer is null")
        masks = [holds(found.column(name), wanted[name]) for name in wanted if name in names]
        rows = np.flatnonzero(np.logical_and.reduce(masks)) if masks else None
        count = found.num_rows if rows is None else len(rows)
        known = {**known, **wanted}
        columns = []
        for field in schema:
            if field.name in known:
                column = repeated(known[field.name], count)
            else:
                whole = found.column(field.name)
                column = whole if rows is None else picked(whole, rows)
            if column.type != field.type:
                column = column.cast(field.type)
            if column.null_count and not field.nullable:
                raise ValueError(f"the column {field.name} has nulls")
            columns.append(column)
    except (pa.ArrowException, ValueError, TypeError) as error:
        text = f"a sealed file's columns have other types ({error})"
        raise FormatError(text, on=file.path) from error
    return pa.Table.from_arrays(columns, schema=schema) if count else None


def holds(column: pa.ChunkedArray, word: str) -> Truths:
    """Return where a column of dictionaries, none of them null, holds a word."""
    import numpy as np

    parts: list[Truths] = [np.empty(0, bool)]
    for chunk in column.chunks:
        places = np.flatnonzero(truths(is_word(chunk.dictionary, word)))
        if len(places) == len(chunk.dictionary):
            parts.append(np.ones(len(chunk), bool))
            continue
        found = np.zeros(len(chunk), bool)
        for place in places.tolist():
            found |= numbers(chunk.indices) == place
        parts.append(found)
    return np.concatenate(parts)
