"""Archiving: the sealed files of many small runs of a project become one archive.

A run may be archived when nothing writes to it: all its segments are sealed, and nothing in its
folder changed for a time. Then

1. an archive with the rows of many runs (`eventlog.archive`) is written, made durable, read back and
   put in place, whole, while the runs' own files stay where they are;
2. each run's ``run.json`` names the archive, durable;
3. the run's own sealed files go, if they are those that were read.

At every instant each event is in at least one file, and readers take each once. Positions, rows and
what is remembered of segments stay as they were. Killed at any moment, it leaves a project that
reads the same; the next call removes what an archive provably repeats, and goes on. A run that goes
on after it was archived writes to its folder as ever, and may be archived again.

It must never: remove a file whose every event it has not read back or compared; touch segments,
blobs, or an archive that is there; wait for another process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence

from eventlog import runfile
from eventlog.archivewriter import ArchiveWriter, Own, Ready
from eventlog.compact import compact, difference
from eventlog.errors import EventlogError, FormatError, TemporaryError
from eventlog.files import LOCAL, Files
from eventlog.layout import SEALED, ArchivedName, SealedName
from eventlog.listing import Listing, listing
from eventlog.seal import clear, make_place, settle
from eventlog.sealed import WORDS, SealedFile

#: A run of more rows is large enough for files of its own: some 5 MB.
LARGE_ROWS = 1_000_000
#: A run in whose folder nothing changed for so many seconds may be archived.
UNCHANGED_SECONDS = 24 * 3600.0

_ALONE, _CHANGES = "there is no other to put it together with", "it changes"


@dataclasses.dataclass(frozen=True)
class Archived:
    """What one call did, or would do.

    Attributes
    ----------
    archives:
        The names of the files made.
    runs:
        The ids of the runs in them.
    rows, bytes:
        In those files.
    removed:
        How many files went.
    left:
        Runs that were left alone, by id, and why.
    wrong:
        Those of them in which something is wrong.
    """

    archives: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    rows: int = 0
    bytes: int = 0
    removed: int = 0
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def __add__(self, other: Archived) -> Archived:
        return Archived(
            self.archives + other.archives,
            self.runs + other.runs,
            self.rows + other.rows,
            self.bytes + other.bytes,
            self.removed + other.removed,
            {**self.left, **other.left},
            self.wrong + other.wrong,
        )


class _Unfit(Exception):
    """Why a run is left alone; `wrong` if something is wrong with it."""

    def __init__(self, why: str, *, wrong: bool = False) -> None:
        super().__init__(why)
        self.wrong = wrong


def archive(
    project: str,
    folders: Sequence[str],
    *,
    unchanged: float = UNCHANGED_SECONDS,
    dry_run: bool = False,
    files: Files = LOCAL,
) -> Archived:
    """Put the sealed files of many runs of a project into archives.

    Parameters
    ----------
    project:
        The project's folder.
    folders:
        The runs' folders.
    unchanged:
        Leave a run alone in whose folder something changed in so many seconds.
    dry_run:
        Change nothing; tell which runs would be archived.

    Raises
    ------
    TemporaryError
        If another process archives runs of this project.
    OSError
        If a file cannot be written; no run's own files were removed for it.
    """
    place = os.path.join(project, SEALED)
    if dry_run:
        return _Archiving(place, unchanged, files).plan(folders)
    with _locked(project, files):
        clear(place, files)
        return _Archiving(place, unchanged, files).run(folders)


@contextlib.contextmanager
def _locked(project: str, files: Files) -> Iterator[None]:
    try:
        fd = files.lock_folder(project)
    except BlockingIOError:
        raise TemporaryError("another process archives runs of this project", on=project) from None
    try:
        yield
    finally:
        if fd >= 0:
            files.close(fd)


class _Archiving:
    """One call, of one project."""

    def __init__(self, place: str, unchanged: float, files: Files) -> None:
        self._place, self._unchanged, self._files = place, unchanged, files
        self._out = Archived()

    def plan(self, folders: Sequence[str]) -> Archived:
        """Tell what would be done."""
        ready = [one for folder in sorted(folders) if (one := self._fit(folder)) is not None]
        if len(ready) == 1:
            self._leave(ready.pop().run.id, _ALONE)
        runs = tuple(one.run.id for one in ready)
        self._out += Archived(runs=runs, removed=sum(len(one.files) for one in ready))
        return self._out

    def run(self, folders: Sequence[str]) -> Archived:
        """Do it."""
        ready = []
        for folder in sorted(folders):
            one = self._fit(folder, acting=True)
            ready += [] if one is None else [one]
        while len(ready) > 1:
            ready = self._make(ready)
        for one in ready:
            self._leave(one.run.id, _ALONE)
        return self._out

    # ---------------------------------------------------------------- which runs

    def _fit(self, folder: str, *, acting: bool = False) -> Ready | None:
        """Return a run if it may be archived; note why not, otherwise. `acting` allows to remove
        what a call before this one left.
        """
        name = os.path.basename(folder)
        try:
            run = runfile.read(folder, self._files)
            name = run.id
            if acting:
                self._take_up(folder)
            found = self._own(folder)
            if acting and len(found) > 1:
                kept = compact(folder, files=self._files).kept
                if kept:
                    raise _Unfit("; ".join(kept), wrong=True)
                found = self._own(folder, compacted=True)
            if found:
                return Ready(run, folder, found)
            if not listing(folder, self._files).archived:
                raise _Unfit("it has no events")
        except _Unfit as why:
            self._leave(name, str(why), wrong=why.wrong)
        except FileNotFoundError:
            self._leave(name, _CHANGES)
        except (EventlogError, PermissionError) as error:
            self._leave(name, str(error), wrong=True)
        return None

    def _leave(self, run: str, why: str, *, wrong: bool = False) -> None:
        self._out += Archived(left={run: why}, wrong=(run,) if wrong else ())

    def _own(self, folder: str, *, compacted: bool = False) -> tuple[Own, ...]:
        """Return the sealed files of a run's own; raise `_Unfit` if it is not to be archived."""
        found = listing(folder, self._files)
        if found.segments:
            raise _Unfit("it has segments that are not sealed: eventlog seal")
        out, rows = [], 0
        for name in (name for names in found.sealed.values() for name in names):
            if _overlapping(found, name):
                raise _Unfit(f"an archive holds events of {name}, too")
            path = os.path.join(folder, name.path)
            one = Own(name, path, self._files.size(path), self._files.modified(path))
            # What was put together a moment ago was not touched by the run.
            if not compacted and time.time() - one.modified < self._unchanged:
                raise _Unfit("it changed not long ago")
            with SealedFile(path, self._files) as file:
                rows += sum(group[0] for group in file.groups)
            out.append(one)
        if rows > LARGE_ROWS:
            raise _Unfit("it is large enough for files of its own")
        return tuple(out)

    # ---------------------------------------------------------------- one archive

    def _make(self, ready: list[Ready]) -> list[Ready]:
        """Put the first of the runs into an archive; return those that are still to be archived."""
        taken: list[Ready] = []
        seen = 0
        make_place(self._place, self._files)
        with contextlib.closing(ArchiveWriter(self._place, self._files)) as out:
            for one in ready:
                if len(taken) > 1 and out.full:
                    break
                seen += 1
                try:
                    _check(one, self._files)
                except (FormatError, OSError) as error:
                    gone = isinstance(error, FileNotFoundError)
                    self._leave(one.run.id, _CHANGES if gone else str(error), wrong=not gone)
                    continue
                try:
                    out.take(one)
                except (FormatError, FileNotFoundError):
                    self._leave(one.run.id, _CHANGES)
                    return [other for other in ready if other is not one]  # all anew, without it
                taken.append(one)
            rest = ready[seen:]
            if len(taken) < 2:
                return [*taken, *rest]
            name = out.put(lambda: all(map(self._is_same, taken)))
            if name is None:
                same = [one for one in taken if self._is_same(one)]
                for one in taken:
                    if one not in same:
                        self._leave(one.run.id, _CHANGES)
                return [*same, *rest]
            size = self._files.size(os.path.join(self._place, name))
            runs = tuple(one.run.id for one in taken)
            self._out += Archived((name,), runs, out.rows, size)
        for one in taken:
            try:
                runfile.add_archive(one.folder, name, self._files)
                for file in one.files:
                    if self._is_file(file):
                        self._remove(file.path)
            except (EventlogError, PermissionError) as error:  # another user's
                self._leave(one.run.id, str(error), wrong=True)
            self._tidy(one.folder)
        return rest

    def _is_same(self, one: Ready) -> bool:
        return all(map(self._is_file, one.files))

    def _is_file(self, file: Own) -> bool:
        try:
            now = self._files.size(file.path), self._files.modified(file.path)
        except FileNotFoundError:
            return False
        return now == (file.size, file.modified)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.remove(path)
            self._out += Archived(removed=1)

    def _tidy(self, folder: str) -> None:
        """Remove the run's folder of sealed files if it is empty."""
        with contextlib.suppress(OSError):
            self._files.remove_folder(os.path.join(folder, SEALED))

    # ---------------------------------------------------------------- what a kill left

    def _take_up(self, folder: str) -> None:
        """Remove a run's own files that archives provably repeat; raise `_Unfit` if one holds
        some of their events, and not all, or others.
        """
        found = listing(folder, self._files)
        for name in (name for names in found.sealed.values() for name in names):
            held = _overlapping(found, name)
            if not held:
                continue
            seq = name.first
            for part in held:
                if part.first > seq:
                    break
                last = min(part.last, name.last)
                why = difference(folder, part, name, self._files, max(part.first, name.first), last)
                if why is not None:
                    raise _Unfit(f"{name}: {why}", wrong=True)
                seq = max(seq, last + 1)
            if seq <= name.last:
                raise _Unfit(f"{name}: an archive holds some of its events", wrong=True)
            settle(folder, name.writer, self._files)
            for archive in dict.fromkeys(part.archive for part in held):
                runfile.add_archive(folder, archive, self._files)
            self._remove(os.path.join(folder, name.path))
            self._tidy(folder)


def _overlapping(found: Listing, name: SealedName) -> list[ArchivedName]:
    """Return what archives hold of a sealed file's events."""
    held = found.archived.get(name.writer, ())
    return [part for part in held if part.first <= name.last and name.first <= part.last]


def _check(one: Ready, files: Files) -> None:
    """Read every byte of a run's sealed files.

    Raises
    ------
    FormatError
        If one is not what it is called.
    OSError
        If one cannot be read.
    """
    for own in one.files:
        with SealedFile(own.path, files, WORDS) as file:
            for group in range(len(file.groups)):
                rows = file.checked(group)
                for column, word in (("run_id", one.run.id), ("writer", own.name.writer)):
                    if rows.column(column).unique().to_pylist() != [word]:
                        raise FormatError(f"it has another {column} in it", on=own.path)
            ends = [(first, last) for _rows, first, last, _crc in file.groups]
        if not ends or (ends[0][0], ends[-1][1]) != (own.name.first, own.name.last):
            raise FormatError("it has other events than its name says", on=own.path)
