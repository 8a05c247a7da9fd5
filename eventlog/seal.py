"""Sealing: closed segments of a writer become one Parquet file of the same rows.

A segment may be sealed when nothing can be appended to it any more: it has an end of stream, or a
successor, or its writer is provably gone (`eventlog.identity.provably_gone`), or the caller says
so. Each segment is read once, on its way into the file (`eventlog.sealed`), which is put in place
whole and read back before a segment is removed; a segment with anything but whole frames is kept
beside it, bytes and all. Killed at any moment, sealing leaves a folder that reads the same, and
goes on when it is called again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eventlog import frame as frames
from eventlog.archive import sealed_segments
from eventlog.columns import numbers
from eventlog.errors import FormatError
from eventlog.files import LOCAL, TEMPORARY, Files
from eventlog.fingerprint import fingerprint
from eventlog.footer import SealedSegment
from eventlog.identity import provably_gone
from eventlog.layout import SEALED, SealedName, SegmentName, archived_path
from eventlog.listing import listing
from eventlog.reader import span_columns, span_table
from eventlog.sealedwriter import SealedWriter, sync, with_origin
from eventlog.segment import OPEN, WHOLE, SegmentReader, Verdict

if TYPE_CHECKING:
    import pyarrow as pa

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
        Look at no more bytes of segments than this, so that a short call stays short: a writer
        that has more than is left of it is passed over.

    Raises
    ------
    OSError
        If a file cannot be written; nothing was removed then.
    """
    out = Sealed()
    for name, segments in listing(folder, files).segments.items():
        if writer is not None and name != writer:
            continue
        if limit_bytes is not None:  # to tell what is closed takes reading it
            size = _size(folder, segments, files)
            if size > limit_bytes:
                continue
            limit_bytes -= size
        closed = _closed(folder, segments, abandoned, files)
        done = _sealed_parts(folder, name, files)
        todo = [segment for segment in closed if segment not in done]
        while todo:
            before = len(todo)
            try:
                with _Group(folder, name, files) as group:
                    todo = group.take(todo)
                    out = _add(out, group.finish())
            except FileNotFoundError:
                # Another process seals the same segments, and was quicker: all is well.
                if all(files.exists(os.path.join(folder, str(segment))) for segment in todo):
                    raise
                todo = [n for n in todo if files.exists(os.path.join(folder, str(n)))]
            assert len(todo) < before
        repeated = [segment for segment in closed if segment in done]
        if repeated:
            settle(folder, name, files)
        for segment in repeated:
            out = _add(out, _remove_sealed(folder, segment, done[segment], files))
    return out


def _add(a: Sealed, b: Sealed) -> Sealed:
    values = (x + y for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True))
    return Sealed(*values)


def _size(folder: str, segments: Sequence[SegmentName], files: Files) -> int:
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
    part = _scan(path, files)
    return part is not None and part.verdict == WHOLE


def _scan(path: str, files: Files) -> SealedSegment | None:
    """Read a segment to its end; None if it is none."""
    try:
        with SegmentReader(path, files) as reader:
            for _ in reader.spans():
                pass
            return None if reader.verdict is None else remembered(reader, reader.verdict)
    except (OSError, FormatError):
        return None


def remembered(reader: SegmentReader, verdict: Verdict) -> SealedSegment:
    """Return what a sealed file is to remember of a segment that was read to its end."""
    return SealedSegment(
        reader.header,
        verdict.next_seq,
        verdict.word,
        verdict.durable,
        verdict.lost_bytes,
        verdict.detail,
    )


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A segment whose rows are in the file: what was read, and of which state of the file."""

    path: str
    part: SealedSegment
    state: tuple[int, float]


class _Group:
    """Segments of a writer whose events follow each other without a gap: one sealed file."""

    def __init__(self, folder: str, writer: str, files: Files) -> None:
        self._folder, self._writer, self._files = folder, writer, files
        self._place = os.path.join(folder, SEALED)
        self._taken: list[_Taken] = []
        self._disagree = self._writing = False
        self._out: SealedWriter | None = None
        self._first = 0  # the first seq of the file
        self._next = 0  # the seq behind what the group holds

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()

    def take(self, names: list[SegmentName]) -> list[SegmentName]:
        """Put the rows of as many segments as follow each other into a file; return the others."""
        for i, name in enumerate(names):
            path = os.path.join(self._folder, str(name))
            try:
                state = self._files.size(path), self._files.modified(path)
                with SegmentReader(path, self._files) as reader:
                    if self._taken and reader.header.first_seq > self._next:
                        return names[i:]
                    part = self._read(path, reader)
            except FormatError:
                continue
            except OSError as error:
                if isinstance(error, FileNotFoundError) or self._writing:
                    raise
                continue
            if part.next_seq > part.header.first_seq:
                self._taken.append(_Taken(path, part, state))
        return []

    def _read(self, path: str, reader: SegmentReader) -> SealedSegment:
        first = reader.header.first_seq
        if self._taken and first < self._next:
            again = _scan(path, self._files)
            last = self._next if again is None else min(self._next, again.next_seq)
            self._disagree |= not self._agrees(path, first, last)
        if not self._taken:
            self._first = _first_unsealed(self._folder, self._writer, first, self._files)
            self._next = first
        seq = max(self._first, self._next)
        for span in reader.spans():
            self._next = max(self._next, span.first_seq + span.count)
            if self._next <= seq or self._disagree:
                continue
            columns = span_columns(span, reader, dictionaries=True)
            table = with_origin(columns, reader.header.run, self._writer)
            if span.first_seq < seq:
                table = table.slice(_at(table, seq))
            self._writing = True  # an error is the file's from here, and not the segment's
            self._file().add(table)
            self._writing = False
            seq = self._next
        assert reader.verdict is not None
        return remembered(reader, reader.verdict)

    def _file(self) -> SealedWriter:
        if self._out is None:
            make_place(self._place, self._files)
            clear(self._place, self._files)
            self._out = SealedWriter(self._place, self._files)
        return self._out

    def _agrees(self, path: str, first: int, last: int) -> bool:
        """Return whether events that the segment before this one holds too are equal: if they
        differ, both segments are evidence.
        """
        if first >= last:
            return True
        prints = [
            _fingerprint_of(p, first, last, self._files) for p in (self._taken[-1].path, path)
        ]
        return None in prints or prints[0] == prints[1]

    def finish(self) -> Sealed:
        """Put the file in place, then remove the segments that it repeats to the last byte."""
        kept = tuple(os.path.basename(taken.path) for taken in self._taken)
        first, last = self._first, self._next - 1
        if not self._taken or first > last or self._disagree:
            return Sealed(kept=kept)
        name = SealedName(self._writer, first, last)
        path = os.path.join(self._place, str(name))
        if self._files.exists(path):
            settle(self._folder, self._writer, self._files)
            out = Sealed()
        else:
            parts = [taken.part for taken in self._taken]
            if not self._file().finish(path, parts, wanted=self._still_unsealed):
                return Sealed()  # another process was quicker; the next call goes on from there
            out = Sealed((str(name),), last - first + 1, self._file().rows)
        for taken in self._taken:
            out = _add(out, self._remove(taken))
        return out

    def _still_unsealed(self) -> bool:
        first = self._first
        return _first_unsealed(self._folder, self._writer, first, self._files) == first

    def _remove(self, taken: _Taken) -> Sealed:
        header = taken.part.header
        name = SegmentName(header.writer, header.segment)
        with contextlib.suppress(OSError):
            state = self._files.size(taken.path), self._files.modified(taken.path)
            if state == taken.state and os.path.basename(taken.path) == str(name):
                return _remove(taken.path, taken.part, self._files)
        return _remove_sealed(self._folder, name, taken.part, self._files)


def _at(table: pa.Table, seq: int) -> int:
    """Return the first row of an event."""
    import numpy as np

    return int(np.searchsorted(numbers(table.column("seq")), seq))


def _first_unsealed(folder: str, writer: str, first: int, files: Files) -> int:
    """Return the first seq from `first` on that no sealed file of the writer holds, so that
    programs which read all of them see no event twice.
    """
    for name in listing(folder, files).parquet(writer):
        if name.first <= first <= name.last:
            first = name.last + 1
    return first


def _fingerprint_of(path: str, first: int, last: int, files: Files) -> int | None:
    """Return the fingerprint of some events of a segment; None if it does not hold them all."""
    import pyarrow as pa

    parts = []
    with SegmentReader(path, files) as reader:
        if reader.header.first_seq > first:
            return None
        for span in reader.spans():
            if span.first_seq < last and span.first_seq + span.count > first:
                table = span_table(span, reader)
                start = _at(table, first)
                parts.append(table.slice(start, _at(table, last) - start))
        if reader.verdict is None or reader.verdict.next_seq < last:
            return None
    return fingerprint(pa.concat_tables(parts).combine_chunks())


def make_place(place: str, files: Files) -> None:
    """Make the folder of sealed files. Raises `OSError` if a link to elsewhere has its name."""
    files.make_folder(place)
    if not files.is_folder(place):
        raise OSError(errno.ENOTDIR, "the folder of sealed files is none", place)


def clear(place: str, files: Files) -> None:
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
    for name in listing(folder, files).parquet(writer):
        try:
            for part in sealed_segments(os.path.join(folder, name.path), files):
                parts[SegmentName(part.header.writer, part.header.segment)] = part
        except (OSError, FormatError):
            continue
    return parts


def settle(folder: str, writer: str, files: Files) -> None:
    """Make durable the sealed files that another call put in place: it may have been killed
    before it did so, and the segments that they repeat are to be removed.
    """
    found = listing(folder, files)
    paths = [os.path.join(folder, str(name.path)) for name in found.sealed.get(writer, ())]
    for name in found.archived.get(writer, ()):
        where = archived_path(os.path.join(folder, name.path))
        assert where is not None
        paths.append(where.archive)
    for path in paths:
        sync(path, files)
    for place in dict.fromkeys(map(os.path.dirname, paths)):
        files.sync_folder(place)
        files.sync_folder(os.path.dirname(place))


def _remove_sealed(folder: str, segment: SegmentName, part: SealedSegment, files: Files) -> Sealed:
    """Remove a segment that a sealed file repeats to the last byte; keep it otherwise."""
    path = os.path.join(folder, str(segment))
    if _scan(path, files) != part:
        return Sealed(kept=(str(segment),)) if files.exists(path) else Sealed()
    return _remove(path, part, files)


def _remove(path: str, part: SealedSegment, files: Files) -> Sealed:
    if part.verdict not in (WHOLE, OPEN):
        return Sealed(kept=(os.path.basename(path),))
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
        return Sealed(removed=1)
    return Sealed()
