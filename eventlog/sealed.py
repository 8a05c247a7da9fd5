"""Sealed files: the rows of closed segments as Parquet, with what each segment's header said.

Sealed files hold the columns ``run_id`` and ``writer`` behind the journal's own, so that files
of many runs can be read, or compacted, as one table. The key-value metadata has

================  =============================================================================
eventlog.format   ``1.0``
eventlog.segments what each segment's header and verdict were: a JSON array
eventlog.groups   a JSON array, per row group [rows, first seq, last seq, fingerprint]
                  (`eventlog.fingerprint`)
eventlog.crc32    the CRC-32 of the text of the two before, eight hexadecimal digits
eventlog.lost     only where a salvage left events behind: a JSON array of [first seq, last seq,
                  reason]; and ``eventlog.lost_crc32``, the CRC-32 of that text
================  =============================================================================

They are written by `eventlog.sealedwriter`.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from eventlog import frame as frames
from eventlog import pages
from eventlog.columns import numbers
from eventlog.errors import FormatError
from eventlog.files import LOCAL, Store
from eventlog.fingerprint import fingerprint
from eventlog.formats import check_format
from eventlog.segment import Header

if TYPE_CHECKING:
    import pyarrow as pa

#: No row group that was sealed here has more rows, or more bytes when unpacked.
MOST_ROWS, MOST_BYTES = 2**21, 2**28

#: Rows, first seq, last seq and fingerprint of a row group.
Group = tuple[int, int, int, int]

#: The columns of words that repeat.
WORDS = ("key", "kind", "type", "run_id", "writer")


@dataclasses.dataclass(frozen=True)
class SealedSegment:
    """What a sealed file remembers of a segment it was made of."""

    header: Header
    next_seq: int
    verdict: str
    durable: int
    lost_bytes: int = 0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SealedSegment:
        """Read what `to_json` gave; unknown fields are ignored."""
        names = {field.name for field in dataclasses.fields(Header)}
        header = Header(**{k: v for k, v in fields["header"].items() if k in names})
        known = {field.name for field in dataclasses.fields(cls)} - {"header"}
        return cls(header, **{k: v for k, v in fields.items() if k in known})


@dataclasses.dataclass(frozen=True)
class Lost:
    """Events `first` to `last` of a writer that a salvage could not bring back, and why."""

    first: int
    last: int
    reason: str


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
        self._open(store)

    def _open(self, store: Store) -> None:
        self._file = store.open(self.path)
        self._parquet = open_parquet(self.path, self._file)
        try:
            meta = self._parquet.metadata.metadata or {}
            self.segments = _segments(meta, self.path)
            self.lost = _lost(meta, self.path)
            self.groups = groups_of(meta, self._parquet.num_row_groups, self.path)
            check_columns(self._parquet, self.path)
        except BaseException:
            self.close()
            raise

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

        try:
            names = self._parquet.schema_arrow.names if columns is None else list(columns)
            self._bound(group, names)
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

    def _bound(self, group: int, names: Sequence[str]) -> None:
        """Raise `ValueError` if columns of a row group would take more memory than any that was
        sealed.
        """
        rows, columns = self._places()[self._first + group]
        total = 0
        for name in names:
            size = pages.unpacked(self._file, columns[name])
            total += size.total
            if name not in WORDS:
                total += size.dictionary * (rows if name == "data" else 1)
        if rows > MOST_ROWS or total > MOST_BYTES:
            raise ValueError(f"row group {group} has {rows} rows and unpacks to {total} bytes")

    def may_have(self, group: int, column: str, word: str) -> bool:
        """Return whether a column of a row group may have a text; False is certain: of words that
        repeat, Parquet keeps a dictionary, with a checksum, in front of the rows.

        Raises
        ------
        FormatError
            If the file's pages are not what its footer says.
        """
        try:
            found = pages.words(self._file, self._places()[self._first + group].columns[column])
        except (ValueError, KeyError, IndexError) as error:
            raise FormatError(f"a sealed file cannot be read ({error})", on=self.path) from error
        return found is None or word.encode("utf8", "surrogatepass") in found

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
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.read(4) != b"PAR1":  # libraries look at the one at the end only
            raise OSError(22, "its first bytes are not those of a Parquet file")
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


def _segments(meta: dict[bytes, bytes], path: str) -> list[SealedSegment]:
    try:
        check_format(meta[b"eventlog.format"].decode())
        if meta.get(b"eventlog.needs"):
            raise FormatError(
                f"a sealed file needs {meta[b'eventlog.needs']!r}, which this version does not know",
                hint="install a newer eventlog-journal",
            )
        check_sum(meta[b"eventlog.segments"] + meta[b"eventlog.groups"], meta[b"eventlog.crc32"])
        return [SealedSegment.from_json(x) for x in json.loads(meta[b"eventlog.segments"])]
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def check_columns(parquet: Any, path: str) -> None:
    """Raise `FormatError` if a Parquet file has not the columns of sealed files."""
    missing = set(sealed_schema().names) - set(parquet.schema_arrow.names)
    if missing:
        raise FormatError(f"a sealed file lacks the columns {sorted(missing)}", on=path)


def check_sum(text: bytes, digits: bytes) -> None:
    """Raise `FormatError` if a text of the metadata has not the CRC-32 that is noted of it."""
    if f"{zlib.crc32(text):08x}".encode() != digits:
        raise FormatError("the metadata of a sealed file is damaged: its checksum does not hold")


def _lost(meta: dict[bytes, bytes], path: str) -> list[Lost]:
    text = meta.get(b"eventlog.lost")
    if text is None:
        return []
    try:
        check_sum(text, meta.get(b"eventlog.lost_crc32", b""))
        return lost_of(json.loads(text))
    except FormatError as error:
        raise FormatError(error.what, on=path) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def lost_of(told: Any) -> list[Lost]:
    """Return what metadata tell of events that are lost. Raises `ValueError`, `TypeError`."""
    found = [Lost(int(first), int(last), str(why)) for first, last, why in told]
    return [one for one in found if 0 <= one.first <= one.last]


def groups_of(meta: dict[bytes, bytes], count: int, path: str) -> list[Group]:
    """Return what the metadata tell of the row groups, of which the file has `count`.

    Raises
    ------
    FormatError
        If they do not tell of so many.
    """
    try:
        groups = json.loads(meta[b"eventlog.groups"])
        found = [(int(n), int(first), int(last), int(crc)) for n, first, last, crc in groups]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error
    if len(found) != count:
        raise FormatError("a sealed file has not the row groups that were sealed", on=path)
    return found


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
