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

A file is written beside its place, made durable, read back to the last byte, and then put in place
whole: nobody ever sees a part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from eventlog import frame as frames
from eventlog import pages
from eventlog.columns import numbers, repeated
from eventlog.errors import FormatError, IntegrityError
from eventlog.files import LOCAL, TEMPORARY, Files, Store
from eventlog.fingerprint import fingerprint
from eventlog.segment import FORMAT, Header, check_format

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a row group: about 6,500 events of twenty metrics, some megabytes in memory.
GROUP_ROWS = 131_072
#: A row group of large values ends when it has grown beyond so many bytes.
GROUP_BYTES = 16 * 2**20
#: No row group that was sealed here has more rows, or more bytes when unpacked.
MOST_ROWS, MOST_BYTES = 2**21, 2**28

#: Rows, first seq, last seq and fingerprint of a row group.
Group = tuple[int, int, int, int]

#: Encodings by what they were measured to save; page checksums find flipped bits.
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["key", "kind", "type", "run_id", "writer"],
    "column_encoding": {
        "seq": "DELTA_BINARY_PACKED",
        "time": "DELTA_BINARY_PACKED",
        "step": "DELTA_BINARY_PACKED",
        "num": "BYTE_STREAM_SPLIT",
    },
    "write_page_checksum": True,
    # One page of numbers to a row group: zstd finds a tenth more in it than in many small ones.
    "data_page_size": 2 * 2**20,
    "max_rows_per_page": MOST_ROWS,
    # No page index: nothing would notice a flipped bit in it, and other engines skip rows by it.
    "write_page_index": False,
    # What other engines may skip row groups by. No checksum of Parquet covers statistics, and
    # pyarrow can abort the process over damaged ones: none but these, and ours are not read.
    "write_statistics": ["seq", "time", "step", "key", "run_id", "writer"],
    "version": "2.6",
    # Text is handed over as dictionaries, which is an order of magnitude cheaper; readers shall
    # see the plain types that Parquet itself has.
    "store_schema": False,
}


def options() -> dict[str, Any]:
    """Return how sealed files are written, as far as this version of pyarrow knows it."""
    import inspect

    import pyarrow.parquet as pq

    # Versions that cannot be told bound a page by its bytes alone.
    told = "max_rows_per_page" in inspect.signature(pq.ParquetWriter).parameters
    return {k: v for k, v in _PARQUET.items() if told or k != "max_rows_per_page"}


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


# ------------------------------------------------------------------------------ reading


class SealedFile:
    """A sealed file that is open, its metadata checked.

    `words` are the columns of text to be read as dictionaries, beside `run_id` and `writer`.

    Attributes
    ----------
    segments, groups, lost:
        What the metadata say.
    """

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
        self._layout: list[pages.Group] | None = None
        self._file = store.open(path)
        self._parquet = _open_parquet(path, self._file)
        try:
            meta = self._parquet.metadata.metadata or {}
            self.segments = _segments(meta, path)
            self.lost = _lost(meta, path)
            self.groups = _groups(meta, self._parquet, path)
            missing = set(sealed_schema().names) - set(self._parquet.schema_arrow.names)
            if missing:
                raise FormatError(f"a sealed file lacks the columns {sorted(missing)}", on=path)
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
            found = self._parquet.read_row_group(group, columns=names, use_threads=False)
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
        rows, columns = self._places()[group]
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
            found = pages.words(self._file, self._places()[group].columns[column])
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
        if _group_of(rows) != self.groups[group]:
            raise FormatError(
                f"the rows of row group {group} of a sealed file are not those that were sealed",
                on=self.path,
            )
        return rows


def sealed_segments(path: str, store: Store = LOCAL) -> list[SealedSegment]:
    """Return what a sealed file says of the segments it was made of.

    Raises
    ------
    FormatError
        If it is no sealed file of a version this package reads, or damaged.
    """
    with SealedFile(path, store) as file:
        return file.segments


def check_sealed(path: str, store: Store = LOCAL) -> None:
    """Read every byte of a sealed file's rows.

    Raises
    ------
    FormatError
        If they are not those that were sealed.
    """
    with SealedFile(path, store, WORDS) as file:
        for group in range(len(file.groups)):
            file.checked(group)


def _open_parquet(path: str, file: BinaryIO) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.read(4) != b"PAR1":  # libraries look at the one at the end only
            raise OSError(22, "its first bytes are not those of a Parquet file")
        # Without threads of Arrow: one that is left over by a failed read aborts the interpreter.
        return pq.ParquetFile(
            file,
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
        _check(meta[b"eventlog.segments"] + meta[b"eventlog.groups"], meta[b"eventlog.crc32"])
        return [SealedSegment.from_json(x) for x in json.loads(meta[b"eventlog.segments"])]
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def _check(text: bytes, digits: bytes) -> None:
    if f"{zlib.crc32(text):08x}".encode() != digits:
        raise FormatError("the metadata of a sealed file is damaged: its checksum does not hold")


def _lost(meta: dict[bytes, bytes], path: str) -> list[Lost]:
    text = meta.get(b"eventlog.lost")
    if text is None:
        return []
    try:
        _check(text, meta.get(b"eventlog.lost_crc32", b""))
        found = [Lost(int(first), int(last), str(why)) for first, last, why in json.loads(text)]
    except FormatError as error:
        raise FormatError(error.what, on=path) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error
    return [one for one in found if 0 <= one.first <= one.last]


def _groups(meta: dict[bytes, bytes], parquet: Any, path: str) -> list[Group]:
    try:
        groups = json.loads(meta[b"eventlog.groups"])
        found = [(int(n), int(first), int(last), int(crc)) for n, first, last, crc in groups]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error
    if len(found) != parquet.num_row_groups:
        raise FormatError("a sealed file has not the row groups that were sealed", on=path)
    return found


def _group_of(table: pa.Table) -> Group:
    seqs = table.column("seq")
    if not table.num_rows:
        return 0, -1, -1, fingerprint(table)
    return table.num_rows, seqs[0].as_py(), seqs[-1].as_py(), fingerprint(table)


# ------------------------------------------------------------------------------ writing


class SealedWriter:
    """Writes one sealed file, and puts it in place when it is proven; close it in any case.

    Tables have the columns of `sealed_schema`, in the order of the file, whole events each.
    """

    def __init__(self, folder: str, files: Files = LOCAL) -> None:
        """Begin a file that will lie in `folder`. Raises `OSError`."""
        import pyarrow.parquet as pq

        self.rows = 0
        self._files = files
        self._part: str | None = os.path.join(folder, f"{TEMPORARY}{os.urandom(8).hex()}")
        self._schema = sealed_schema(dictionaries=True)
        self._held: list[pa.Table] = []
        self._prints: list[Group] = []
        self._file = os.fdopen(files.create(self._part), "wb")
        try:
            self._out = pq.ParquetWriter(self._file, self._schema, **options())
        except BaseException:
            self.close()
            raise

    def add(self, table: pa.Table) -> None:
        """Add rows; text may be dictionaries or not."""
        if not table.num_rows:
            return
        self._held.append(_encoded(table, self._schema))
        rows = sum(t.num_rows for t in self._held)
        size = sum(t.nbytes for t in self._held)
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self._held:
            whole = pa.concat_tables(self._held).combine_chunks()
            self._held = []
            self._out.write_table(whole, row_group_size=whole.num_rows)
            self._prints.append(_group_of(whole))
            self.rows += whole.num_rows

    def finish(
        self,
        path: str,
        segments: Sequence[SealedSegment],
        lost: Sequence[Lost] = (),
        wanted: Any = lambda: True,
    ) -> bool:
        """Sync, check and put in place; return False, and leave nothing, if the file is not
        `wanted` any more.

        Raises
        ------
        OSError
            If it cannot be written.
        IntegrityError
            If it does not read back as it was written.
        """
        assert self._part is not None
        self._write()
        self._out.add_key_value_metadata(_metadata(segments, self._prints, lost))
        self._out.close()
        self._file.close()
        sync(self._part, self._files)
        with SealedFile(self._part, self._files, WORDS) as again:
            if again.groups != self._prints:
                raise IntegrityError("a sealed file did not read back as it was written", on=path)
            for group in range(len(again.groups)):
                again.checked(group)
        if not wanted():
            return False
        self._files.replace(self._part, path)
        self._part = None
        place = os.path.dirname(path)
        self._files.sync_folder(place)
        self._files.sync_folder(os.path.dirname(place))  # its own name, too
        return True

    def close(self) -> None:
        """Remove what was not put in place."""
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._out.close()
        with contextlib.suppress(OSError):
            self._file.close()
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._files.remove(self._part)
            self._part = None

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_origin(columns: Sequence[Any], run: str, writer: str) -> pa.Table:
    """Return the columns of a segment's rows with those of a sealed file's behind them."""
    import pyarrow as pa

    origin = [repeated(text, len(columns[0]), dictionary=True) for text in (run, writer)]
    names = [field.name for field in sealed_schema()]
    return pa.Table.from_arrays([*columns, *origin], names=names)


def _encoded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with its words as dictionaries."""
    import pyarrow as pa

    columns = []
    for field in schema:
        column = table.column(field.name)
        if field.name in WORDS and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _metadata(
    segments: Sequence[SealedSegment], prints: Sequence[Group], lost: Sequence[Lost]
) -> dict[str, str]:
    told = json.dumps([segment.to_json() for segment in segments], sort_keys=True)
    groups = json.dumps(prints)
    out = {
        "eventlog.format": FORMAT,
        "eventlog.segments": told,
        "eventlog.groups": groups,
        "eventlog.crc32": f"{zlib.crc32((told + groups).encode()):08x}",
    }
    if lost:
        text = json.dumps([[one.first, one.last, one.reason] for one in lost])
        out |= {"eventlog.lost": text, "eventlog.lost_crc32": f"{zlib.crc32(text.encode()):08x}"}
    return out


def sync(path: str, files: Files) -> None:
    """Make a file that is there survive a power cut. Raises `OSError`."""
    fd = files.open_again(path)
    try:
        files.sync(fd)
    finally:
        files.close(fd)


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
