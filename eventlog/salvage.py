"""Salvage: what is provably good of a damaged run, copied into a new journal.

Good are frames whose checksum holds, those behind damage too, and row groups whose fingerprint
holds. They keep their seqs, because positions are cursors. The new journal has a sealed file for
each stretch of events without a gap; what is missing between two of them, or behind the last, is
recorded in the file beside it as lost for good (``eventlog.lost``, `eventlog.sealed`), with the
reason. Readers go on behind what is recorded as lost, and `verify` names it without calling it a
failure; a reader of an older version still sees the gap.

The old journal is only read. Everything is written whole and durable, so a salvage that was killed
goes on when it is called again, and a second one finds nothing to do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eventlog import blobs, runfile
from eventlog.columns import numbers
from eventlog.errors import FormatError, IntegrityError, UsageError
from eventlog.files import LOCAL, Files
from eventlog.layout import BLOBS, RUN_FILE, SEALED, SealedName, is_blob
from eventlog.reader import listing, of_writer, span_columns
from eventlog.seal import clear, make_place, remembered
from eventlog.sealed import (
    WORDS,
    Lost,
    SealedFile,
    SealedSegment,
    SealedWriter,
    check_sealed,
    with_origin,
)
from eventlog.segment import SegmentReader

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


@dataclasses.dataclass(frozen=True)
class WriterSalvage:
    """One writer: how much was copied, what of it lay behind damage, what is lost, what was bad."""

    writer: str
    events: int
    rows: int
    files: tuple[str, ...]
    behind_damage: tuple[tuple[int, int], ...]
    lost: tuple[Lost, ...]
    bad: tuple[Bad, ...]


@dataclasses.dataclass(frozen=True)
class Salvaged:
    """One run: where it is now, its writers, its blobs, and whether anything new was written."""

    folder: str
    target: str
    writers: tuple[WriterSalvage, ...]
    blobs: int
    bad_blobs: tuple[str, ...]
    changed: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is lost that is known to have been there."""
        lost = any(w.lost for w in self.writers)
        # Of a segment that cannot be read at all nobody knows how many events it had.
        unknown = any(
            b.offset < 0 and b.name.endswith(".arrows") for w in self.writers for b in w.bad
        )
        return not (lost or unknown or self.bad_blobs)


def salvage(folder: str, target: str, files: Files = LOCAL) -> Salvaged:
    """Copy what is provably good of a run.

    Parameters
    ----------
    folder:
        The run's folder; it is only read.
    target:
        The run's folder in the new journal; made if it is not there.

    Raises
    ------
    UsageError
        If one of the two folders lies in the other.
    IntegrityError
        If `target` holds another run.
    FormatError
        If nothing says which run this is.
    OSError
        If something cannot be written.
    """
    here, there = os.path.realpath(folder), os.path.realpath(target)
    if os.path.commonpath([here, there]) in (here, there):
        raise UsageError("a run cannot be salvaged into itself", on=target)
    run = identify(folder, files)
    files.make_folder(target)
    changed = not files.exists(os.path.join(target, RUN_FILE))
    runfile.claim(target, run, files)
    good, copied, bad = _copy_blobs(folder, target, files)
    writers = []
    for writer in listing(folder, files).writers:
        one, wrote = _Writer(folder, target, writer, run.id, files).copy()
        writers.append(one)
        changed |= wrote
    return Salvaged(folder, target, tuple(writers), good, bad, changed or copied > 0)


def identify(folder: str, files: Files = LOCAL) -> runfile.RunFile:
    """Return which run a folder holds: what its ``run.json`` says, else the header of any segment.

    Raises
    ------
    FormatError
        If none of them can be read.
    """
    try:
        return runfile.read(folder, files)
    except (UsageError, FormatError) as error:
        first = error
    found = listing(folder, files)
    for names in found.segments.values():
        for name in names:
            try:
                with SegmentReader(os.path.join(folder, str(name)), files) as reader:
                    known = _named(reader.header.run, reader.header.identity)
            except (OSError, FormatError):
                continue
            if known is not None:
                return known
    for sealed in found.sealed.values():
        for file in sealed:
            try:
                with SealedFile(os.path.join(folder, SEALED, str(file)), files) as opened:
                    heads = [part.header for part in opened.segments]
            except (OSError, FormatError):
                continue
            for head in heads:
                known = _named(head.run, head.identity)
                if known is not None:
                    return known
    raise FormatError("nothing here says which run this is", on=folder) from first


def _named(run: str, identity: dict[str, object]) -> runfile.RunFile | None:
    project, name = identity.get("project"), identity.get("name")
    if isinstance(project, str) and isinstance(name, str) and run and project and name:
        return runfile.RunFile(run, project, name)
    return None


def _copy_blobs(folder: str, target: str, files: Files) -> tuple[int, int, tuple[str, ...]]:
    """Copy the blobs that are what their names say; return how many are good, how many were
    copied now, and those that are bad.
    """
    good, copied, bad = 0, 0, []
    for name in files.names(os.path.join(folder, BLOBS)):
        if not is_blob(name):
            continue
        there = files.exists(os.path.join(target, BLOBS, name))
        try:
            data = blobs.get(target if there else folder, name, files)
        except IntegrityError:
            bad.append(name)
            continue
        good += 1
        if not there:
            _sha, path = blobs.put(target, data, files)
            blobs.sync([path], files)
            copied += 1
    return good, copied, tuple(bad)


class _Writer:
    """Salvages one writer."""

    def __init__(self, folder: str, target: str, writer: str, run: str, files: Files) -> None:
        self._folder, self._target = folder, target
        self._name, self._run, self._files = writer, run, files
        self._bad: list[Bad] = []
        self._parts: dict[str, list[SealedSegment]] = {}
        self._end = 0  # the seq behind the last event that is known to have been there

    def copy(self) -> tuple[WriterSalvage, bool]:
        """Copy what is good; return what was done, and whether anything was written."""
        stretches = self._stretches()
        lost = self._lost(stretches)
        place = os.path.join(self._target, SEALED)
        made, rows, wrote = [], 0, False
        if stretches:
            make_place(place, self._files)
            clear(place, self._files)
        for number, stretch in enumerate(stretches):
            name = SealedName(self._name, stretch[0].first, stretch[-1].last)
            last = number == len(stretches) - 1
            beside = [
                gap
                for gap in lost
                if gap.last + 1 == name.first or (last and gap.first > name.last)
            ]
            count, new = self._write(os.path.join(place, str(name)), stretch, beside)
            made.append(str(name))
            rows += count
            wrote |= new
        out = WriterSalvage(
            self._name,
            sum(stretch[-1].last - stretch[0].first + 1 for stretch in stretches),
            rows,
            tuple(made),
            tuple((p.first, p.last) for stretch in stretches for p in stretch if p.behind),
            tuple(lost),
            tuple(self._bad),
        )
        return out, wrote

    # ---------------------------------------------------------------- what there is

    def _stretches(self) -> list[list[Piece]]:
        """Return good pieces that hold every event once, cut where one is missing."""
        out: list[list[Piece]] = []
        seq = -1
        for piece in sorted(self._pieces(), key=lambda p: (p.first, -p.last)):
            self._end = max(self._end, piece.last + 1)
            if piece.last < seq or not self._holds(piece):
                continue
            if not out or piece.first > seq:
                out.append([])
            out[-1].append(dataclasses.replace(piece, first=max(piece.first, seq)))
            seq = piece.last + 1
        return out

    def _pieces(self) -> Iterator[Piece]:
        found = listing(self._folder, self._files)
        for sealed in found.sealed.get(self._name, ()):
            name = f"{SEALED}/{sealed}"
            try:
                with self._sealed(name) as file:
                    self._parts[name] = [p for p in file.segments if p.header.writer == self._name]
                    groups = file.groups
            except (OSError, FormatError) as error:
                self._end = max(self._end, sealed.last + 1)
                self._bad.append(Bad(name, -1, _why(error)))
                continue
            for part in self._parts[name]:
                self._end = max(self._end, part.durable)
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
                self._end = max(self._end, verdict.durable)
                self._parts[name] = [remembered(reader, verdict)]
                if verdict.next_seq > first:
                    yield Piece(first, verdict.next_seq - 1, name, start)
                if verdict.detail:
                    self._bad.append(Bad(name, verdict.offset, verdict.detail))
                if verdict.later:
                    yield from self._islands(name, reader)
        except (OSError, FormatError) as error:
            self._bad.append(Bad(name, -1, _why(error)))

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
                    self._bad.append(Bad(name, offset, "what lies behind was not looked at"))
                    return
            behind = offset + len(span.data)
        if held is not None:
            yield held

    def _holds(self, piece: Piece) -> bool:
        """Return whether a piece is what it says; of frames the checksums have said so."""
        if not piece.name.startswith(SEALED):
            return True
        try:
            with self._sealed(piece.name) as file:
                rows = of_writer(file.checked(piece.at), self._name)
            if not rows.num_rows:
                raise FormatError("it holds no events of its writer")
        except (OSError, FormatError) as error:
            self._bad.append(Bad(piece.name, -1, _why(error)))
            return False
        return True

    def _sealed(self, name: str) -> SealedFile:
        return SealedFile(os.path.join(self._folder, name), self._files, WORDS)

    def _lost(self, stretches: list[list[Piece]]) -> list[Lost]:
        """Return the events that no good piece holds, each with what is known of the reason."""
        gaps, seq = [], 0
        for stretch in stretches:
            if stretch[0].first > seq:
                gaps.append((seq, stretch[0].first - 1))
            seq = stretch[-1].last + 1
        if self._end > seq:
            gaps.append((seq, self._end - 1))
        why = "; ".join(f"{bad.name}: {bad.what}" for bad in self._bad[:4]) or "no file holds them"
        return [Lost(first, last, why) for first, last in gaps]

    # ---------------------------------------------------------------- writing

    def _write(self, path: str, stretch: list[Piece], lost: list[Lost]) -> tuple[int, bool]:
        """Write the file of a stretch, if it is not there; return its rows, and whether it was."""
        if self._files.exists(path):
            check_sealed(path, self._files)
            with SealedFile(path, self._files) as file:
                return sum(group[0] for group in file.groups), False
        segments: dict[int, SealedSegment] = {}
        for piece in stretch:
            for part in self._parts[piece.name]:
                there = segments.get(part.header.segment, part)
                latest = max(there, part, key=lambda p: p.next_seq)
                segments[part.header.segment] = latest
        with SealedWriter(os.path.dirname(path), self._files) as out:
            for piece in stretch:
                for table in self._rows(piece):
                    out.add(_between(table, piece.first, piece.last))
            out.finish(path, [segments[n] for n in sorted(segments)], lost)
            return out.rows, True

    def _rows(self, piece: Piece) -> Iterator[pa.Table]:
        if piece.name.startswith(SEALED):
            with self._sealed(piece.name) as file:
                yield of_writer(file.checked(piece.at), self._name)
            return
        with SegmentReader(os.path.join(self._folder, piece.name), self._files) as reader:
            seq = reader.seq_at(piece.at)
            for span in reader.spans_from(piece.at, seq):
                if span.first_seq > piece.last:
                    return
                columns = span_columns(span, reader, dictionaries=True)
                yield with_origin(columns, self._run, self._name)


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    import numpy as np

    seqs = numbers(table.column("seq"))
    start, stop = np.searchsorted(seqs, first), np.searchsorted(seqs, last, "right")
    return table.slice(int(start), int(stop - start))


def _why(error: Exception) -> str:
    return error.what if isinstance(error, FormatError) else str(error)
