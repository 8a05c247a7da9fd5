"""Sealing: closed segments of a writer become one Parquet file of the same rows.

A segment may be sealed when nothing can be appended to it any more: it has an end of stream, or a
successor, or its writer is provably gone (`eventlog.identity.provably_gone`), or the caller says
so. The Parquet file is put in place whole and read back before a segment is removed; a segment
with anything but whole frames is kept beside it, bytes and all. Killed at any moment, sealing
leaves a folder that reads the same, and goes on when it is called again.

Sealed files hold the columns ``run_id`` and ``writer`` behind the journal's own, so that files
of many runs can be read, or compacted, as one table. The key-value metadata has

================  =============================================================================
eventlog.format   ``1.0``
eventlog.segments what each segment's header and verdict were: a JSON array
eventlog.groups   a JSON array, per row group [rows, first seq, last seq, `fingerprint`]
eventlog.crc32    the CRC-32 of the text of the two before, eight hexadecimal digits
================  =============================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from eventlog import frame as frames
from eventlog.errors import FormatError, IntegrityError
from eventlog.files import LOCAL, TEMPORARY, Files, Store
from eventlog.identity import provably_gone
from eventlog.layout import SEALED, SealedName, SegmentName
from eventlog.reader import (
    SealedSegment,
    listing,
    open_parquet,
    sealed_groups,
    sealed_segments,
    span_table,
)
from eventlog.segment import FORMAT, OPEN, WHOLE, SegmentReader

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a row group: about 20,000 events of six metrics, some megabytes in memory.
GROUP_ROWS = 131_072
#: A row group of large values ends when it has grown beyond so many bytes.
GROUP_BYTES = 64 * 2**20
#: A temporary file untouched for so many seconds was left by a process that died.
STALE_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Sealed:
    """What one call did: files made, events in them, segments removed and kept."""

    files: tuple[str, ...] = ()
    events: int = 0
    rows: int = 0
    removed: int = 0
    kept: tuple[str, ...] = ()


def seal(
    folder: str,
    *,
    writer: str | None = None,
    abandoned: bool = False,
    limit_bytes: int | None = None,
    files: Files = LOCAL,
) -> Sealed:
    """Seal what can be sealed of a run.

    Parameters
    ----------
    folder:
        The run's folder.
    writer:
        Only this writer's segments.
    abandoned:
        The caller knows that no process writes to the run any more, on any machine.
    limit_bytes:
        Leave writers alone whose segments are larger than this in sum, so that a short call
        stays short.

    Raises
    ------
    OSError
        If a file cannot be written; nothing was removed then.
    """
    out = Sealed()
    for name, segments in listing(folder, files).segments.items():
        if writer is not None and name != writer:
            continue
        closed = _closed(folder, segments, abandoned, files)
        if limit_bytes is not None and _size(folder, closed, files) > limit_bytes:
            continue
        done = _sealed_parts(folder, name, files)
        for group in _consecutive(folder, [n for n in closed if n not in done], files):
            try:
                out = _add(out, _seal_group(folder, group, files))
            except FileNotFoundError:
                # Another process seals the same segments, and was quicker: all is well.
                if all(files.exists(scanned.path) for scanned in group):
                    raise
        repeated = [segment for segment in closed if segment in done]
        if repeated:
            _settle(folder, name, files)
        for segment in repeated:
            out = _add(out, _remove_sealed(folder, segment, done[segment], files))
    return out


def _add(a: Sealed, b: Sealed) -> Sealed:
    values = (x + y for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True))
    return Sealed(*values)


def _size(folder: str, segments: list[SegmentName], files: Files) -> int:
    total = 0
    for name in segments:
        with contextlib.suppress(OSError):
            total += files.size(os.path.join(folder, str(name)))
    return total


def _closed(
    folder: str, segments: tuple[SegmentName, ...], abandoned: bool, files: Files
) -> list[SegmentName]:
    """Return the segments of one writer to which nothing can be appended any more."""
    if abandoned:
        return list(segments)
    *earlier, last = segments
    return list(segments) if _is_closed(os.path.join(folder, str(last)), files) else earlier


def _is_closed(path: str, files: Files) -> bool:
    try:
        with SegmentReader(path, files) as reader:
            if provably_gone(reader.header.identity):
                return True
        with files.open(path) as file:
            file.seek(-len(frames.END_OF_STREAM), os.SEEK_END)
            if file.read() != frames.END_OF_STREAM:
                return False
    except (OSError, FormatError):
        return False
    # A live segment whose last value ends in the same bytes must not be taken for a closed one.
    scanned = _scan(path, files)
    return scanned is not None and scanned.part.verdict == WHOLE


@dataclasses.dataclass(frozen=True)
class _Scanned:
    path: str
    part: SealedSegment


def _consecutive(folder: str, closed: list[SegmentName], files: Files) -> list[list[_Scanned]]:
    """Scan closed segments and group those whose events follow each other without a gap."""
    groups: list[list[_Scanned]] = []
    for name in closed:
        scanned = _scan(os.path.join(folder, str(name)), files)
        if scanned is None or scanned.part.next_seq == scanned.part.header.first_seq:
            continue
        if groups and groups[-1][-1].part.next_seq >= scanned.part.header.first_seq:
            groups[-1].append(scanned)
        else:
            groups.append([scanned])
    return groups


def _scan(path: str, files: Files) -> _Scanned | None:
    try:
        with SegmentReader(path, files) as reader:
            for _ in reader.spans():
                pass
            verdict = reader.verdict
            if verdict is None:
                return None
            return _Scanned(
                path,
                SealedSegment(
                    reader.header,
                    verdict.next_seq,
                    verdict.word,
                    verdict.durable,
                    verdict.lost_bytes,
                    verdict.detail,
                ),
            )
    except (OSError, FormatError):
        return None


def _seal_group(folder: str, group: list[_Scanned], files: Files) -> Sealed:
    writer = group[0].part.header.writer
    first = _first_unsealed(folder, writer, group[0].part.header.first_seq, files)
    last = max(scanned.part.next_seq for scanned in group) - 1
    if first > last or not _agree(group, files):
        return Sealed(kept=tuple(os.path.basename(scanned.path) for scanned in group))
    name = SealedName(writer, first, last)
    place = os.path.join(folder, SEALED)
    path = os.path.join(place, str(name))
    made: tuple[str, ...] = ()
    rows = 0
    if not files.exists(path):
        files.make_folder(place)
        _clear(place, files)

        def unsealed() -> bool:
            return _first_unsealed(folder, writer, first, files) == first

        rows = _write(path, group, first, unsealed, files)
        if not rows:  # another process was quicker; the next call goes on from there
            return Sealed()
        made = (str(name),)
    else:
        _settle(folder, writer, files)
    out = Sealed(made, last - first + 1 if made else 0, rows)
    for scanned in group:
        header = scanned.part.header
        segment = SegmentName(header.writer, header.segment)
        out = _add(out, _remove_sealed(folder, segment, scanned.part, files))
    return out


def _first_unsealed(folder: str, writer: str, first: int, files: Files) -> int:
    """Return the first seq from `first` on that no sealed file of the writer holds, so that
    programs which read all of them see no event twice.
    """
    for name in listing(folder, files).sealed.get(writer, ()):
        if name.first <= first <= name.last:
            first = name.last + 1
    return first


def _agree(group: list[_Scanned], files: Files) -> bool:
    """Return whether events that two segments of a group hold are equal: if they differ, both
    segments are evidence.
    """
    end = group[0].part.next_seq
    for one, other in itertools.pairwise(group):
        first = other.part.header.first_seq
        last = min(end, other.part.next_seq)
        if first < last:
            prints = [_fingerprint_of(s, first, last, files) for s in (one, other)]
            if None not in prints and prints[0] != prints[1]:
                return False
        end = max(end, other.part.next_seq)
    return True


def _fingerprint_of(scanned: _Scanned, first: int, last: int, files: Files) -> int | None:
    """Return the fingerprint of some events of a segment; None if it does not hold them all."""
    import numpy as np
    import pyarrow as pa

    if scanned.part.header.first_seq > first or scanned.part.next_seq < last:
        return None
    parts = []
    with SegmentReader(scanned.path, files) as reader:
        for span in reader.spans():
            if span.first_seq < last and span.first_seq + span.count > first:
                table = span_table(span, reader)
                ends = np.searchsorted(table.column(0).to_numpy(), [first, last])
                parts.append(table.slice(int(ends[0]), int(ends[1] - ends[0])))
    return fingerprint(pa.concat_tables(parts).combine_chunks())


def _clear(place: str, files: Files) -> None:
    """Remove what a sealing that was killed left long ago."""
    for name in files.names(place):
        path = os.path.join(place, name)
        with contextlib.suppress(OSError):
            old = time.time() - files.modified(path) > STALE_SECONDS
            if name.startswith(TEMPORARY) and old:
                files.remove(path)


def _sealed_parts(folder: str, writer: str, files: Files) -> dict[SegmentName, SealedSegment]:
    """Return what the sealed files of a writer hold, by segment."""
    parts: dict[SegmentName, SealedSegment] = {}
    for name in listing(folder, files).sealed.get(writer, ()):
        try:
            for part in sealed_segments(os.path.join(folder, SEALED, str(name)), files):
                parts[SegmentName(part.header.writer, part.header.segment)] = part
        except (OSError, FormatError):
            continue
    return parts


def _settle(folder: str, writer: str, files: Files) -> None:
    """Make durable the sealed files that another call put in place: it may have been killed
    before it did so, and the segments that they repeat are to be removed.
    """
    place = os.path.join(folder, SEALED)
    for name in listing(folder, files).sealed.get(writer, ()):
        _sync(os.path.join(place, str(name)), files)
    files.sync_folder(place)
    files.sync_folder(folder)


def _remove_sealed(folder: str, segment: SegmentName, part: SealedSegment, files: Files) -> Sealed:
    """Remove a segment that a sealed file repeats to the last byte; keep it otherwise."""
    path = os.path.join(folder, str(segment))
    again = _scan(path, files)
    if again is None or again.part != part or part.verdict not in (WHOLE, OPEN):
        return Sealed(kept=(str(segment),)) if files.exists(path) else Sealed()
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
        return Sealed(removed=1)
    return Sealed()


def _write(
    path: str, group: list[_Scanned], first: int, wanted: Callable[[], bool], files: Files
) -> int:
    """Write, sync, check and put in place; return the number of rows, 0 if it is not `wanted`
    any more.
    """
    part = os.path.join(os.path.dirname(path), f"{TEMPORARY}{os.urandom(8).hex()}")
    try:
        rows, prints = _write_rows(part, group, first, files)
        _sync(part, files)
        if prints != _groups_in(part, files):
            raise IntegrityError("a sealed file did not read back as it was written", on=path)
        if not wanted():
            files.remove(part)
            return 0
        files.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(part)
        raise
    place = os.path.dirname(path)
    files.sync_folder(place)
    files.sync_folder(os.path.dirname(place))  # its own name, too: segments are removed next
    return rows


def _sync(path: str, files: Files) -> None:
    fd = files.open_again(path)
    try:
        files.sync(fd)
    finally:
        files.close(fd)


def sealed_schema() -> pa.Schema:
    """Return the schema of sealed files, without its metadata."""
    import pyarrow as pa

    # Not `run`: the folder `run=...` already gives readers of hive partitions a column of that name.
    run = pa.field("run_id", pa.utf8(), nullable=False)
    writer = pa.field("writer", pa.utf8(), nullable=False)
    return pa.schema([*frames.schema(), run, writer])


def _write_rows(
    path: str, group: list[_Scanned], first: int, files: Files
) -> tuple[int, list[Group]]:
    """Write the rows; return their number, and what there is to remember of each row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = group[0].part.header
    schema = sealed_schema()
    rows = 0
    prints: list[Group] = []
    fd = files.create(path)
    with os.fdopen(fd, "wb") as file, pq.ParquetWriter(file, schema, **_PARQUET) as out:
        held: list[pa.Table] = []
        for table in itertools.chain(_rows_of(group, first, files), (None,)):
            if table is not None:
                held.append(_with_origin(table, header.run, header.writer, schema))
            if held and (table is None or _is_full(held)):
                whole = pa.concat_tables(held).combine_chunks()
                out.write_table(whole, row_group_size=whole.num_rows)
                prints.append(_group_of(whole))
                rows += whole.num_rows
                held = []
        out.add_key_value_metadata(_metadata(group, prints))
    return rows, prints


def _is_full(tables: list[pa.Table]) -> bool:
    rows, size = sum(t.num_rows for t in tables), sum(t.nbytes for t in tables)
    return bool(rows >= GROUP_ROWS or size >= GROUP_BYTES)


def _metadata(group: list[_Scanned], prints: list[Group]) -> dict[str, str]:
    segments = json.dumps([scanned.part.to_json() for scanned in group], sort_keys=True)
    groups = json.dumps(prints)
    return {
        "eventlog.format": FORMAT,
        "eventlog.segments": segments,
        "eventlog.groups": groups,
        "eventlog.crc32": f"{zlib.crc32((segments + groups).encode()):08x}",
    }


#: Encodings by what they were measured to save; page checksums find flipped bits.
_PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["key", "kind", "type", "run_id", "writer"],
    "column_encoding": {
        "seq": "DELTA_BINARY_PACKED",
        "time": "DELTA_BINARY_PACKED",
        "step": "DELTA_BINARY_PACKED",
        "num": "BYTE_STREAM_SPLIT",
    },
    "write_page_checksum": True,
    # No page index: nothing would notice a flipped bit in it, and other engines skip rows by it.
    "write_page_index": False,
    # What other engines may skip row groups by. No checksum of Parquet covers statistics, and
    # pyarrow can abort the process over damaged ones: none but these, and ours are not read.
    "write_statistics": ["seq", "time", "step", "key", "run_id", "writer"],
    "version": "2.6",
}


def _rows_of(group: list[_Scanned], seq: int, files: Files) -> Iterator[pa.Table]:
    """Yield the rows of all segments from `seq` on in order, each event once."""
    import numpy as np

    for scanned in group:
        with SegmentReader(scanned.path, files) as reader:
            for span in reader.spans():
                if span.first_seq + span.count <= seq:
                    continue
                table = span_table(span, reader)
                yield table.slice(int(np.searchsorted(table.column(0).to_numpy(), seq)))
                seq = span.first_seq + span.count


def _with_origin(table: pa.Table, run: str, writer: str, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    count = table.num_rows
    columns = [
        *table.columns,
        pa.repeat(pa.scalar(run), count),
        pa.repeat(pa.scalar(writer), count),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def fingerprint(table: pa.Table) -> int:
    """Return the CRC-32 of a row group, the same for equal rows however they lie in memory.

    It covers, one after the other: the number of rows in decimal; then for each column in the
    schema's order which rows are null (one bit a row, the first row the highest bit of the first
    byte), and for numbers the 64 bits of each (0 where null), for text and bytes the length of
    each as int32 (-1 where null) and all bytes; little-endian.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    check = zlib.crc32(str(table.num_rows).encode())
    for column in table.combine_chunks().columns:
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        missing = array.is_null().to_numpy(zero_copy_only=False)
        check = zlib.crc32(np.packbits(missing).tobytes(), check)
        if pa.types.is_primitive(array.type):
            numbers = np.frombuffer(array.buffers()[1], dtype=np.uint64)
            bits = numbers[array.offset : array.offset + len(array)]
            check = zlib.crc32(np.where(missing, np.uint64(0), bits).tobytes(), check)
        else:
            lengths = pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False)
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)
            start, stop = offsets[array.offset], offsets[array.offset + len(array)]
            data = array.buffers()[2]
            text = b"" if data is None else memoryview(data)[start:stop]
            check = zlib.crc32(text, zlib.crc32(lengths.tobytes(), check))
    return check


#: Rows, first seq, last seq and fingerprint of a row group.
Group = tuple[int, int, int, int]


def _group_of(table: pa.Table) -> Group:
    seqs = table.column("seq")
    return table.num_rows, seqs[0].as_py(), seqs[-1].as_py(), fingerprint(table)


def _groups_in(path: str, store: Store) -> list[Group]:
    """Read a sealed file back, with its page checksums."""
    with open_parquet(path, store) as parquet:
        count = parquet.num_row_groups
        return [
            _group_of(parquet.read_row_group(group, use_threads=False)) for group in range(count)
        ]


def check_sealed(path: str, store: Store = LOCAL) -> None:
    """Read every byte of a sealed file's rows.

    Raises
    ------
    FormatError
        If they are not those that were sealed.
    """
    import pyarrow as pa

    try:
        with open_parquet(path, store) as parquet:
            told = sealed_groups(parquet, path)
        found = _groups_in(path, store)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise FormatError(f"a sealed file cannot be read ({error})", on=path) from error
    if found != told:
        raise FormatError("the rows of a sealed file are not those that were sealed", on=path)
