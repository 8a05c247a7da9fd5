"""Writing a sealed file (`eventlog.sealed`): beside its place, made durable, read back to the last
byte, and then put in place whole. Nobody ever sees a part of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.columns import repeated
from eventlog.errors import IntegrityError
from eventlog.files import LOCAL, TEMPORARY, Files
from eventlog.footer import Group, Lost, SealedSegment
from eventlog.formats import FORMAT
from eventlog.sealed import (
    MOST_ROWS,
    WORDS,
    SealedFile,
    group_of,
    sealed_schema,
)
from eventlog.tally import summed, to_metadata

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a row group: about 6,500 events of twenty metrics, some megabytes in memory.
GROUP_ROWS = 131_072
#: A row group of large values ends when it has grown beyond so many bytes.
GROUP_BYTES = 16 * 2**20

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
        self.groups: list[Group] = []
        self._tally: dict[str, Any] | None = None
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
            self.cut()

    def cut(self) -> None:
        """End the row group: what is added next begins another one."""
        import pyarrow as pa

        if self._held:
            whole = pa.concat_tables(self._held).combine_chunks()
            self._held = []
            self._out.write_table(whole, row_group_size=whole.num_rows)
            self.groups.append(group_of(whole))
            self._tally = summed(whole, self._tally)
            self.rows += whole.num_rows

    def finish(
        self,
        path: str,
        segments: Sequence[SealedSegment],
        lost: Sequence[Lost] = (),
        wanted: Callable[[], bool] = lambda: True,
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
        self.cut()
        told = _metadata(segments, self.groups, lost)
        if self._tally is not None and not lost:
            told |= to_metadata(self._tally, told["eventlog.crc32"])
        return self._put(path, told, wanted)

    def _put(self, path: str, told: dict[str, str], wanted: Callable[[], bool]) -> bool:
        assert self._part is not None
        self._out.add_key_value_metadata(told)
        self._out.close()
        self._file.close()
        sync(self._part, self._files)
        if not self._reads_back(self._part):
            raise IntegrityError("a sealed file did not read back as it was written", on=path)
        if not wanted():
            return False
        self._files.replace(self._part, path)
        self._part = None
        place = os.path.dirname(path)
        self._files.sync_folder(place)
        self._files.sync_folder(os.path.dirname(place))  # its own name, too
        return True

    def _reads_back(self, path: str) -> bool:
        with SealedFile(path, self._files, WORDS) as again:
            same = again.groups == self.groups
            for group in range(len(again.groups) if same else 0):
                again.checked(group)
            return same

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
