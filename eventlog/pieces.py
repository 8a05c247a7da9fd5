"""Pieces: what is provably good of one writer's files, whatever else they hold.

Frames whose checksum holds, those behind damage too, and in segments whose header is destroyed
(`eventlog.headless`); row groups whose fingerprint holds. What is not is said.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eventlog.archive import open_sealed
from eventlog.errors import FormatError
from eventlog.files import Files
from eventlog.footer import SealedSegment
from eventlog.headless import HeadlessReader, is_headless
from eventlog.layout import segment_name
from eventlog.listing import listing
from eventlog.reader import headers, of_writer, span_columns
from eventlog.runfile import RunFile
from eventlog.seal import remembered
from eventlog.sealed import WORDS, SealedFile
from eventlog.sealedwriter import with_origin
from eventlog.segment import Header, SegmentReader

if TYPE_CHECKING:
    import pyarrow as pa

#: So many stretches of good frames behind damage are looked at in one segment.
MOST_PIECES = 100_000


@dataclasses.dataclass(frozen=True)
class Piece:
    """Events `first` to `last` that lie in one place.

    `name` is a file of the run's folder; `at` is a row group of a sealed file, or where the frames
    begin in a segment. `behind` says that the frames lie behind damage.
    """

    first: int
    last: int
    name: str
    at: int
    behind: bool = False


@dataclasses.dataclass(frozen=True)
class Bad:
    """Something that could not be used: the file, where in it (-1: all of it), and what it is."""

    name: str
    offset: int
    what: str


class Pieces:
    """The pieces of one writer; close it in any case.

    Attributes
    ----------
    bad:
        What could not be used.
    parts:
        By file: what is to be remembered of the segments that its pieces are of.
    end:
        The seq behind the last event that is known to have been there.
    """

    def __init__(self, folder: str, writer: str, run: RunFile, files: Files) -> None:
        self.bad: list[Bad] = []
        self.parts: dict[str, list[SealedSegment]] = {}
        self.end = 0
        self._folder, self._name, self._run, self._files = folder, writer, run, files
        self._headless: dict[str, HeadlessReader] = {}

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._headless.values():
            reader.close()

    def found(self) -> Iterator[Piece]:
        """Yield the pieces of all files, in no order; they may overlap."""
        found = listing(self._folder, self._files)
        for sealed in found.parquet(self._name):
            name = sealed.path
            try:
                with self._sealed(name) as file:
                    self.parts[name] = [p for p in file.segments if p.header.writer == self._name]
                    groups = file.groups
            except (OSError, FormatError) as error:
                self.end = max(self.end, sealed.last + 1)
                self.bad.append(Bad(name, -1, _why(error)))
                continue
            for part in self.parts[name]:
                self.end = max(self.end, part.durable)
            for group, (rows, first, last, _crc) in enumerate(groups):
                if rows and 0 <= first <= last:
                    yield Piece(first, last, name, group)
        for segment in found.segments.get(self._name, ()):
            yield from self._in_segment(str(segment))

    def _in_segment(self, name: str) -> Iterator[Piece]:
        try:
            with SegmentReader(os.path.join(self._folder, name), self._files) as reader:
                if reader.header.writer != self._name:
                    raise FormatError(f"its header names the writer {reader.header.writer}")
                start, first = len(reader.header_bytes), reader.header.first_seq
                for _ in reader.spans():
                    pass
                verdict = reader.verdict
                assert verdict is not None
                self.end = max(self.end, verdict.durable)
                self.parts[name] = [remembered(reader, verdict)]
                if verdict.next_seq > first:
                    yield Piece(first, verdict.next_seq - 1, name, start)
                if verdict.detail:
                    self.bad.append(Bad(name, verdict.offset, verdict.detail))
                if verdict.later:
                    yield from self._islands(name, reader)
        except (OSError, FormatError) as error:
            yield from self._without_header(name, error)

    def _without_header(self, name: str, error: Exception) -> Iterator[Piece]:
        """Yield what a segment holds whose header is destroyed."""
        path = os.path.join(self._folder, name)
        try:
            if not is_headless(path, self._files):
                raise error
            reader = HeadlessReader(path, self._may_have_said(name), self._files)
        except (OSError, FormatError) as other:
            self.bad.append(Bad(name, -1, _why(other)))
            return
        self._headless[name] = reader
        verdict = reader.verdict
        assert verdict is not None
        self.end = max(self.end, verdict.durable)
        self.parts[name] = [remembered(reader, verdict)]
        self.bad.append(Bad(name, 0, verdict.detail))
        yield from self._islands(name, reader)

    def _may_have_said(self, name: str) -> list[Header]:
        """Return what the header of a segment may have said: what those of its writer say, else
        what folder and file are called.
        """
        segment = segment_name(name)
        assert segment is not None
        number = segment.number
        before = [p.next_seq for parts in self.parts.values() for p in parts]
        seqs = sorted({0, *before}, reverse=True)
        named = {"project": self._run.project, "name": self._run.name}
        like = [
            *headers(self._folder, self._files).get(self._name, ())[:1],
            Header(self._run.id, self._name, number, 0, named),
        ]
        return [
            dataclasses.replace(header, segment=number, first_seq=seq)
            for header in like
            for seq in seqs
        ]

    def _islands(self, name: str, reader: SegmentReader) -> Iterator[Piece]:
        held: Piece | None = None
        behind, count = 0, 0
        for offset, span in reader.islands():
            last = span.first_seq + span.count - 1
            if held is not None and (held.last + 1, behind) == (span.first_seq, offset):
                held = dataclasses.replace(held, last=last)
            else:
                if held is not None:
                    yield held
                held = Piece(span.first_seq, last, name, offset, behind=True)
                count += 1
                if count > MOST_PIECES:
                    self.bad.append(Bad(name, offset, "what lies behind was not looked at"))
                    return
            behind = offset + len(span.data)
        if held is not None:
            yield held

    def holds(self, piece: Piece) -> bool:
        """Return whether a piece is what it says; of frames the checksums have said so."""
        if not piece.name.endswith(".parquet"):
            return True
        try:
            with self._sealed(piece.name) as file:
                rows = of_writer(file.checked(piece.at), self._name)
            if not rows.num_rows:
                raise FormatError("it holds no events of its writer")
        except (OSError, FormatError) as error:
            self.bad.append(Bad(piece.name, -1, _why(error)))
            return False
        return True

    def _sealed(self, name: str) -> SealedFile:
        return open_sealed(os.path.join(self._folder, name), self._files, WORDS)

    def rows(self, piece: Piece) -> Iterator[pa.Table]:
        """Yield the rows of what a piece lies in, from where it begins."""
        if piece.name.endswith(".parquet"):
            with self._sealed(piece.name) as file:
                yield of_writer(file.checked(piece.at), self._name)
            return
        headless = self._headless.get(piece.name)
        if headless is not None:
            yield from self._in_frames(piece, headless)
            return
        with SegmentReader(os.path.join(self._folder, piece.name), self._files) as reader:
            yield from self._in_frames(piece, reader)

    def _in_frames(self, piece: Piece, reader: SegmentReader) -> Iterator[pa.Table]:
        seq = reader.seq_at(piece.at)
        for span in reader.spans_from(piece.at, seq):
            if span.first_seq > piece.last:
                return
            columns = span_columns(span, reader, dictionaries=True)
            yield with_origin(columns, self._run.id, self._name)


def _why(error: Exception) -> str:
    return error.what if isinstance(error, FormatError) else str(error)
