"""Salvage: what is provably good of a damaged run, copied into a new journal.

Good are frames whose checksum holds, those behind damage too, in a segment whose header is
destroyed as well (`eventlog.headless`), and row groups whose fingerprint holds. They keep their seqs, because positions are cursors. The new journal has a sealed file for
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
from typing import TYPE_CHECKING

from eventlog import blobs, runfile
from eventlog.archive import check_sealed, open_sealed
from eventlog.archived import absent
from eventlog.columns import numbers
from eventlog.errors import FormatError, IntegrityError, UsageError
from eventlog.files import LOCAL, Files
from eventlog.footer import Lost, SealedSegment
from eventlog.layout import BLOBS, RUN_FILE, SEALED, SealedName, is_blob
from eventlog.listing import listing
from eventlog.pieces import Bad, Piece, Pieces
from eventlog.seal import clear, make_place
from eventlog.sealedwriter import SealedWriter
from eventlog.segment import SegmentReader

if TYPE_CHECKING:
    import pyarrow as pa


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
    """One run: where it is now, its writers, its blobs, the archives of it that could not be used,
    and whether anything new was written.
    """

    folder: str
    target: str
    writers: tuple[WriterSalvage, ...]
    blobs: int
    bad_blobs: tuple[str, ...]
    bad_archives: tuple[str, ...]
    changed: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is lost that is known to have been there."""
        lost = any(w.lost for w in self.writers)
        # Of a segment that cannot be read at all nobody knows how many events it had.
        unknown = any(
            b.offset < 0 and b.name.endswith(".arrows") for w in self.writers for b in w.bad
        )
        return not (lost or unknown or self.bad_blobs or self.bad_archives)


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
        with Pieces(folder, writer, run, files) as pieces:
            one, wrote = _Writer(target, writer, pieces, files).copy()
        writers.append(one)
        changed |= wrote
    changed |= copied > 0
    return Salvaged(folder, target, tuple(writers), good, bad, _absent(folder, files), changed)


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
    for writer in found.writers:
        for file in found.parquet(writer):
            try:
                with open_sealed(os.path.join(folder, file.path), files) as opened:
                    heads = [part.header for part in opened.segments]
            except (OSError, FormatError):
                continue
            for head in heads:
                known = _named(head.run, head.identity)
                if known is not None:
                    return known
    raise FormatError("nothing here says which run this is", on=folder) from first


def _absent(folder: str, files: Files) -> tuple[str, ...]:
    try:
        archives = runfile.read_all(folder, files)[1]
    except (UsageError, FormatError):
        return ()
    return tuple(absent(folder, archives, files))


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
            data = blobs.get(target if there else folder, name, files, most=None)
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

    def __init__(self, target: str, writer: str, pieces: Pieces, files: Files) -> None:
        self._target, self._name = target, writer
        self._pieces, self._files = pieces, files

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
            tuple(self._pieces.bad),
        )
        return out, wrote

    # ---------------------------------------------------------------- what there is

    def _stretches(self) -> list[list[Piece]]:
        """Return good pieces that hold every event once, cut where one is missing."""
        out: list[list[Piece]] = []
        seq = -1
        for piece in sorted(self._pieces.found(), key=lambda p: (p.first, -p.last)):
            self._pieces.end = max(self._pieces.end, piece.last + 1)
            if piece.last < seq or not self._pieces.holds(piece):
                continue
            if not out or piece.first > seq:
                out.append([])
            out[-1].append(dataclasses.replace(piece, first=max(piece.first, seq)))
            seq = piece.last + 1
        return out

    def _lost(self, stretches: list[list[Piece]]) -> list[Lost]:
        """Return the events that no good piece holds, each with what is known of the reason."""
        gaps, seq = [], 0
        for stretch in stretches:
            if stretch[0].first > seq:
                gaps.append((seq, stretch[0].first - 1))
            seq = stretch[-1].last + 1
        if self._pieces.end > seq:
            gaps.append((seq, self._pieces.end - 1))
        why = (
            "; ".join(f"{bad.name}: {bad.what}" for bad in self._pieces.bad[:4])
            or "no file holds them"
        )
        return [Lost(first, last, why) for first, last in gaps]

    # ---------------------------------------------------------------- writing

    def _write(self, path: str, stretch: list[Piece], lost: list[Lost]) -> tuple[int, bool]:
        """Write the file of a stretch, if it is not there; return its rows, and whether it was."""
        if self._files.exists(path):
            check_sealed(path, self._files)
            with open_sealed(path, self._files) as file:
                return sum(group[0] for group in file.groups), False
        segments: dict[int, SealedSegment] = {}
        for piece in stretch:
            for part in self._pieces.parts[piece.name]:
                there = segments.get(part.header.segment, part)
                latest = max(there, part, key=lambda p: p.next_seq)
                segments[part.header.segment] = latest
        with SealedWriter(os.path.dirname(path), self._files) as out:
            for piece in stretch:
                for table in self._pieces.rows(piece):
                    out.add(_between(table, piece.first, piece.last))
            out.finish(path, [segments[n] for n in sorted(segments)], lost)
            return out.rows, True


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    import numpy as np

    seqs = numbers(table.column("seq"))
    start, stop = np.searchsorted(seqs, first), np.searchsorted(seqs, last, "right")
    return table.slice(int(start), int(stop - start))
