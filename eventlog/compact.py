"""Compaction: many sealed files of a writer become few, of the same rows.

A run that is sealed while it goes on gathers small files, and listing, opening and planning over
them costs more than reading them. Compaction puts files whose events follow each other into one:

1. each row group of the old files is read and its fingerprint checked, one at a time, and written
   to a file beside them, which is made durable and read back (`eventlog.sealed`);
2. the new file appears under the name of its range of events, whole, beside the old ones;
3. the old ones go.

At every instant each event is in at least one file, and readers take each once. Positions, rows and
what the files say of their segments stay as they were, so cursors and digests hold. Killed at any
moment, it leaves a folder that reads the same; the next call removes what a larger file provably
repeats, and goes on. The result is a sealed file like any other: readers of format 1.0 need to
know nothing. (A program that reads all Parquet files of the folder by itself sees rows twice
between steps 2 and 3.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

from eventlog.errors import FormatError
from eventlog.files import LOCAL, Files
from eventlog.footer import Lost, SealedSegment
from eventlog.forks import first_fork
from eventlog.layout import SEALED, ArchivedName, SealedName
from eventlog.listing import listing
from eventlog.reader import WriterReader
from eventlog.seal import clear, settle
from eventlog.sealed import WORDS, SealedFile
from eventlog.sealedwriter import SealedWriter

#: A file of so many rows is large enough: some 250 MB.
FULL_ROWS = 50_000_000


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What one call did: files made, rows in them, files removed, and files left alone because
    something is wrong with them, each with the reason.
    """

    files: tuple[str, ...] = ()
    rows: int = 0
    removed: int = 0
    kept: tuple[str, ...] = ()

    def __add__(self, other: Compacted) -> Compacted:
        return Compacted(
            self.files + other.files,
            self.rows + other.rows,
            self.removed + other.removed,
            self.kept + other.kept,
        )


def compact(folder: str, *, writer: str | None = None, files: Files = LOCAL) -> Compacted:
    """Put the sealed files of a run together.

    Parameters
    ----------
    folder:
        The run's folder.
    writer:
        Only this writer's files.

    Raises
    ------
    OSError
        If a file cannot be written; nothing was removed then.
    """
    place = os.path.join(folder, SEALED)
    out = Compacted()
    if not files.is_folder(place):  # or a link to somewhere else
        return out
    clear(place, files)
    for name in listing(folder, files).sealed:
        if writer is None or name == writer:
            out += _remove_repeated(folder, name, files)
            for chain in _chains(folder, name, files):
                out += _merge(folder, chain, files)
    return out


def _remove_repeated(folder: str, writer: str, files: Files) -> Compacted:
    """Remove files whose every event a larger one provably holds too: a compaction that was killed
    left them.
    """
    names = sorted(listing(folder, files).sealed.get(writer, ()), key=lambda n: (n.first, -n.last))
    out, large = Compacted(), None
    for name in names:
        if large is None or name.last > large.last:
            large = name
            continue
        why = difference(folder, large, name, files, name.first, name.last)
        if why is not None:
            out += Compacted(kept=(f"{name}: {why}",))
            continue
        settle(folder, writer, files)
        out += _remove(folder, [name], files)
    return out


def difference(
    folder: str,
    large: SealedName | ArchivedName,
    small: SealedName,
    files: Files,
    begin: int,
    end: int,
) -> str | None:
    """Return how events `begin` to `end` of a file differ from those of another; None if they do
    not.
    """
    paths = large.path, small.path
    counts = []
    try:
        for path in paths:
            reader = WriterReader(folder, small.writer, start=begin, store=files, columns=())
            count = 0
            for table in reader.file(os.path.join(folder, path)):
                seqs = table.column("seq")
                if seqs[0].as_py() > end:
                    break
                count += min(seqs[-1].as_py(), end) - seqs[0].as_py() + 1
            counts.append(count)
        if counts[0] != counts[1]:
            return f"{large.path} does not hold all its events"
        # What cannot be compared is not the same: `forks` would leave it to others to report.
        seq = first_fork(folder, small.writer, paths, (begin, end), files)
    except FileNotFoundError:
        return "it vanished"
    except FormatError as error:
        return str(error)
    return None if seq is None else f"event {seq} differs from that of {large.path}"


def _chains(folder: str, writer: str, files: Files) -> list[list[SealedName]]:
    """Return files whose events follow each other without a gap: what can be put together."""
    chains: list[list[SealedName]] = [[]]
    held = 0
    for name in listing(folder, files).sealed.get(writer, ()):
        try:
            with SealedFile(os.path.join(folder, SEALED, str(name)), files) as file:
                rows = sum(count for count, _first, _last, _crc in file.groups)
                # What the name says of its events is what makes them found.
                honest = _is_named(file, name)
        except (FormatError, OSError):
            rows, honest = FULL_ROWS, False
        follows = bool(chains[-1]) and chains[-1][-1].last + 1 == name.first
        if not follows or not honest or held >= FULL_ROWS or rows >= FULL_ROWS:
            chains.append([])
            held = 0
        chains[-1].append(name)
        held += rows
    return chains


def _is_named(file: SealedFile, name: SealedName) -> bool:
    spans = [(first, last) for rows, first, last, _crc in file.groups if rows]
    return bool(spans) and spans[0][0] == name.first and spans[-1][1] == name.last


def _merge(folder: str, names: list[SealedName], files: Files) -> Compacted:
    if len(names) < 2:
        return Compacted()
    place = os.path.join(folder, SEALED)
    name = SealedName(names[0].writer, names[0].first, names[-1].last)
    segments: dict[int, SealedSegment] = {}
    lost: list[Lost] = []
    with SealedWriter(place, files) as out:
        for at, one in enumerate(names):
            try:
                with SealedFile(os.path.join(place, str(one)), files, WORDS) as file:
                    for segment in file.segments:
                        there = segments.get(segment.header.segment, segment)
                        latest = max(there, segment, key=lambda part: part.next_seq)
                        segments[segment.header.segment] = latest
                    lost += [gap for gap in file.lost if gap not in lost]
                    for group in range(len(file.groups)):
                        out.add(file.checked(group))
            except FileNotFoundError:
                return Compacted()  # another process does the same, and was quicker
            except FormatError as error:
                out.close()
                rest = [_merge(folder, part, files) for part in (names[:at], names[at + 1 :])]
                return rest[0] + rest[1] + Compacted(kept=(f"{one}: {error}",))
        parts = [segments[number] for number in sorted(segments)]
        if not out.finish(
            os.path.join(place, str(name)),
            parts,
            lost,
            wanted=lambda: all(files.exists(os.path.join(place, str(one))) for one in names),
        ):
            return Compacted()
        made = Compacted((str(name),), out.rows)
    return made + _remove(folder, names, files)


def _remove(folder: str, names: list[SealedName], files: Files) -> Compacted:
    removed = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            files.remove(os.path.join(folder, SEALED, str(name)))
            removed += 1
    return Compacted(removed=removed)
