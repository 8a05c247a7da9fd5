"""Sealed files: the rows of closed segments as Parquet, with what each segment's header said.

Sealed files hold the columns ``run_id`` and ``writer`` behind the journal's own, so that files
of many runs can be read, or compacted, as one table. What the key-value metadata tell is in
`eventlog.footer`.

They are written by `eventlog.sealedwriter`.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from eventlog import frame as frames
from eventlog import pages, tally
from eventlog.columns import numbers
from eventlog.errors import FormatError
from eventlog.files import LOCAL, Store
from eventlog.fingerprint import fingerprint
from eventlog.footer import Group, Lost, SealedSegment, groups_of, lost_in, segments_of

if TYPE_CHECKING:
    import pyarrow as pa

#: So many bytes at the end of a sealed file are its whole footer, nearly always.
_TAIL = 2**15
#: No row group that was sealed here has more rows, or more bytes when unpacked.
MOST_ROWS, MOST_BYTES = 2**21, 2**28

#: The columns of words that repeat.
WORDS = ("key", "kind", "type", "run_id", "writer")


def sealed_schema(*, dictionaries: bool = False) -> pa.Schema:
    """Return the schema of sealed files; `dictionaries` gives that of what is handed to Parquet."""
    import pyarrow as pa

    # Not `run`: the folder `run=...` already gives readers of hive partitions a column of that name.
    run = pa.field("run_id", pa.utf8(), nullable=False)
    writer = pa.field("writer", pa.utf8(), nullable=False)
    fields = [*frames.schema(), run, writer]
    if dictionaries:
        words = pa.dictionary(pa.int32(), pa.utf8())
        fields = [f.with_type(words) if f.name in WORDS else f for f in fields]
    return pa.schema(fields)


class SealedFile:
    """A sealed file that is open, its metadata checked.

    `words` are the columns of text to be read as dictionaries, beside `run_id` and `writer`.

    Attributes
    ----------
    segments, groups, lost:
        What the metadata say.
    """

    segments: Sequence[SealedSegment]
    groups: Sequence[Group]
    lost: Sequence[Lost]

    def __init__(self, path: str, store: Store = LOCAL, words: Sequence[str] = ()) -> None:
        """Open and read the metadata.

        Raises
        ------
        OSError
            If the file cannot be opened.
        FormatError
            If it is no sealed file of a version this package reads, or damaged.
        """
        self.path = path
        self._words = {"run_id", "writer", *words}
        self._first = 0  # the row group of the Parquet file that is its first
        self._layout: list[pages.Group] | None = None
        self._asked = -1, ""  # of which column of a row group the dictionary was read last
        self._words_there: list[bytes] | None = None
        self._store, self._place = store, self.path  # where the Parquet file is
        self._open(store)

    def _open(self, store: Store) -> None:
        self._file = store.open(self.path)
        self._parquet = open_parquet(self.path, self._file)
        try:
            meta = self._parquet.metadata.metadata or {}
            self.segments = segments_of(meta, self.path)
            self.lost = lost_in(meta, self.path)
            self.groups = groups_of(meta, self._parquet.num_row_groups, self.path)
            check_columns(self._parquet, self.path)
        except BaseException:
            self.close()
            raise

    def tally(self) -> dict[str, Any] | None:
        """Return what the file tells that its events add up to (`eventlog.tally`), if it does."""
        return tally.in_metadata(self._parquet.metadata.metadata or {})

    def again(self) -> SealedFile:
        """Return the file opened once more, for another thread; what is known of it is shared.

        Raises
        ------
        OSError
            If it cannot be opened, any more say.
        FormatError
            If it is no Parquet file any more.
        """
        self._places()
        other = copy.copy(self)
        other._file = self._store.open(self._place)
        other._parquet = open_parquet(self.path, other._file, self._parquet.metadata)
        return other

    def close(self) -> None:
        """Let go of the file."""
        self._parquet.close(force=True)

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return columns of a row group, its pages checked.

        Raises
        ------
        FormatError
            If they cannot be read.
        """
        import pyarrow as pa

        names = self._parquet.schema_arrow.names if columns is None else list(columns)
        self.unpacked(group, names)
        try:
            at = self._first + group
            found = self._parquet.read_row_group(at, columns=names, use_threads=False)
            for at, name in enumerate(found.schema.names):
                column = found.column(at)
                if pa.types.is_dictionary(column.type):
                    _in_bounds(column)  # nothing else looks
                    if name not in self._words:
                        field = found.schema.field(at).with_type(column.type.value_type)
                        found = found.set_column(at, field, _spelled_out(column))
            return found
        except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, and not Arrow's
            raise FormatError(f"a sealed file cannot be read ({error})", on=self.path) from error

    def _places(self) -> list[pages.Group]:
        if self._layout is None:
            self._layout = pages.groups(self._file)
        return self._layout

    def unpacked(self, group: int, columns: Sequence[str]) -> int:
        """Return how many bytes columns of a row group take when they are unpacked.

        Raises
        ------
        FormatError
            If that is more than any that was sealed takes, or the file's pages are not what its
            footer says.
        """
        with self._damage():
            rows, places = self._places()[self._first + group]
            total = 0
            for name in columns:
                size = pages.unpacked(self._file, places[name])
                total += size.total
                if name not in WORDS:
                    total += size.dictionary * (rows if name == "data" else 1)
            if rows > MOST_ROWS or total > MOST_BYTES:
                raise ValueError(f"row group {group} has {rows} rows and unpacks to {total} bytes")
            return total

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Raise `FormatError` for what damage raises where pages are looked at."""
        try:
            yield
        except (ValueError, KeyError, IndexError) as error:
            raise FormatError(f"a sealed file cannot be read ({error})", on=self.path) from error

    def may_have(self, group: int, column: str, word: str) -> bool:
        """Return whether a column of a row group may have a text; False is certain: of words that
        repeat, Parquet keeps a dictionary, with a checksum, in front of the rows.

        Raises
        ------
        FormatError
            If the file's pages are not what its footer says.
        """
        found = self._dictionary(group, column)
        return found is None or word.encode("utf8", "surrogatepass") in found

    def only_word(self, group: int, column: str) -> str | None:
        """Return the text that all rows of a row group have in a column; None if they may have
        several, or none. It is as certain as `may_have`.

        Raises
        ------
        FormatError
            If the file's pages are not what its footer says.
        """
        found = self._dictionary(group, column)
        if found is None or len(found) != 1:
            return None
        if column not in self._without_null:
            return None
        try:
            return found[0].decode()
        except UnicodeDecodeError:
            return None  # who reads the column says so

    @functools.cached_property
    def _without_null(self) -> set[str]:
        columns = map(self._parquet.schema.column, range(len(self._parquet.schema)))
        return {column.path for column in columns if not column.max_definition_level}

    def _dictionary(self, group: int, column: str) -> list[bytes] | None:
        if self._asked != (group, column):
            with self._damage():
                place = self._places()[self._first + group].columns[column]
                self._words_there = pages.words(self._file, place)
            self._asked = group, column
        return self._words_there

    def checked(self, group: int) -> pa.Table:
        """Return a row group.

        Raises
        ------
        FormatError
            If its rows are not those that were sealed.
        """
        rows = self.rows(group)
        if group_of(rows) != self.groups[group]:
            raise FormatError(
                f"the rows of row group {group} of a sealed file are not those that were sealed",
                on=self.path,
            )
        return rows


def open_parquet(path: str, file: BinaryIO, metadata: Any = None) -> Any:
    """Return an open Parquet file, which closes `file`; `metadata` is what its footer was read as.

    Raises
    ------
    FormatError
        If it is none.
    OSError
        If the disk does not give it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.read(4) != b"PAR1":  # libraries look at the one at the end only
            raise ValueError("its first bytes are not those of a Parquet file")
        # Without threads of Arrow: one that is left over by a failed read aborts the interpreter.
        return pq.ParquetFile(
            file,
            metadata=metadata,
            page_checksum_verification=True,
            pre_buffer=False,
            read_dictionary=list(WORDS),  # a word that repeats a million times is one word
        )
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        file.close()
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's: the file may be good
        raise FormatError(f"a sealed file cannot be read ({error})", on=path) from error


def _in_bounds(column: pa.ChunkedArray) -> None:
    """Raise `ValueError` or one of Arrow's if an index of a dictionary is none, or a word is no
    text.
    """
    import numpy as np

    for chunk in column.chunks:
        if chunk.null_count:
            chunk.validate(full=True)
            continue
        chunk.dictionary.validate(full=True)
        indices = numbers(chunk.indices).view(np.uint32)  # and so none is below zero
        if len(indices) and indices.max() >= len(chunk.dictionary):
            raise ValueError("it has a word that is in no dictionary")


def _spelled_out(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of dictionaries as plain text. Raises `ValueError` if that is too much."""
    import numpy as np
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        lengths = numbers(pc.binary_length(chunk.dictionary))
        indices = chunk.indices.drop_null() if chunk.null_count else chunk.indices
        often = np.bincount(numbers(indices), minlength=len(lengths))
        total += int((often * lengths).sum()) if len(lengths) else 0
    if total > MOST_BYTES:
        raise ValueError(f"a column of words takes {total} bytes")
    return column.cast(column.type.value_type)


def footer_of(path: str, store: Store = LOCAL) -> tuple[list[SealedSegment], dict[str, Any] | None]:
    """Return what the footer of a sealed file in a run's own folder says of the segments it was
    made of, and what its events add up to (`eventlog.tally`), None if it does not say that. No more
    of the file is read, or looked at.

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        If it is no sealed file of a version this package reads, or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with store.open(path) as file:
        magic, size = file.read(4), file.seek(0, os.SEEK_END)
        end = _end(file, size, _TAIL)
        length = int.from_bytes(end[-8:-4], "little") + 8
        if len(end) < length <= min(size, MOST_BYTES):
            end = _end(file, size, length)
    try:
        if magic != b"PAR1":
            raise OSError(22, "its first bytes are not those of a Parquet file")
        meta = pq.read_metadata(pa.BufferReader(end)).metadata or {}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise FormatError(f"a sealed file cannot be read ({error})", on=path) from error
    told = None if lost_in(meta, path) else tally.in_metadata(meta)
    return segments_of(meta, path), told


def _end(file: BinaryIO, size: int, most: int) -> bytes:
    file.seek(max(0, size - most))
    return file.read(most)


def check_columns(parquet: Any, path: str) -> None:
    """Raise `FormatError` if a Parquet file has not the columns of sealed files."""
    missing = set(sealed_schema().names) - set(parquet.schema_arrow.names)
    if missing:
        raise FormatError(f"a sealed file lacks the columns {sorted(missing)}", on=path)


def group_of(table: pa.Table) -> Group:
    """Return what the metadata tell of a row group of these rows."""
    seqs = table.column("seq")
    if not table.num_rows:
        return 0, -1, -1, fingerprint(table)
    return table.num_rows, seqs[0].as_py(), seqs[-1].as_py(), fingerprint(table)


def whole_events(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables with the event that one of them begins and the next one ends put together:
    other programs may cut row groups where they like.
    """
    import numpy as np
    import pyarrow as pa

    held: pa.Table | None = None
    for table in tables:
        whole = table if held is None or not held.num_rows else pa.concat_tables([held, table])
        whole = whole.combine_chunks()
        seqs = numbers(whole.column("seq"))
        at = int(np.searchsorted(seqs, seqs[-1])) if len(seqs) else 0
        if at:
            yield whole.slice(0, at)
        held = whole.slice(at)
    if held is not None and held.num_rows:
        yield held
