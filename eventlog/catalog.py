"""Finding runs: all of a path, or the one that a user means."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Iterator, Sequence

from eventlog import runfile
from eventlog.errors import EventlogError, FormatError, IntegrityError, UsageError
from eventlog.files import LOCAL, TEMPORARY, Files
from eventlog.layout import PROJECT_PREFIX, RUN_FILE, RUN_PREFIX, default_journal, escape
from eventlog.runfile import RunFile


@dataclasses.dataclass(frozen=True)
class Found:
    """A run and its folder. `journal` is the folder above its project."""

    run: RunFile
    folder: str
    journal: str

    @property
    def label(self) -> str:
        """``project/name``, as users write it."""
        return f"{self.run.project}/{self.run.name}"


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A run's folder whose ``run.json`` cannot be read, or a project's that cannot."""

    folder: str
    error: EventlogError


def find(path: str, files: Files = LOCAL) -> Iterator[Found | Unreadable]:
    """Yield the runs of a journal, a project's folder or a run's folder, sorted by folder.

    Raises
    ------
    UsageError
        If there is no such folder, or it holds no journal.
    """
    path = os.path.abspath(path)
    if not os.path.isdir(path):
        what = "this is a file, not a journal" if os.path.exists(path) else "there is no journal"
        raise UsageError(what, on=path, hint="give the folder that init printed, or a run's folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError("this folder may not be read", on=path)
    if files.exists(os.path.join(path, RUN_FILE)):
        above = os.path.dirname(path)
        inside = os.path.basename(above).startswith(PROJECT_PREFIX)
        # Of a run that was copied by itself, the folder it lies in.
        yield _open(path, os.path.dirname(above) if inside else above, files)
        return
    names = files.names(path)
    if os.path.basename(path).startswith(PROJECT_PREFIX):
        yield from _project(path, os.path.dirname(path), files)
        return
    projects = [n for n in names if n.startswith(PROJECT_PREFIX)]
    if not projects and not _is_journal(names):
        raise UsageError(
            "there is no journal here", on=path, hint="give the folder that init printed"
        )
    for name in projects:
        yield from _project(os.path.join(path, name), path, files)


def is_place(text: str) -> bool:
    """Return whether a user who may mean a path or a run means a path: it leads to runs, or is
    none that a name, an id or ``project/name`` could be.
    """
    if os.path.isabs(text) or text.rstrip("/").count("/") > 1 or text.startswith("."):
        return True
    try:
        names = os.listdir(text)
    except OSError:
        return False
    inside = os.path.basename(os.path.abspath(text)).startswith(PROJECT_PREFIX)
    return inside or RUN_FILE in names or _holds_projects(names) or _is_journal(names)


def _holds_projects(names: Sequence[str]) -> bool:
    return any(name.startswith(PROJECT_PREFIX) for name in names)


def _is_journal(names: Sequence[str]) -> bool:
    return "README.txt" in names and ".gitignore" in names


def _project(path: str, journal: str, files: Files) -> Iterator[Found | Unreadable]:
    if not files.is_folder(path):
        return
    try:
        names = files.names(path)
    except OSError as error:
        why = f"this project cannot be read ({error.strerror})"
        yield Unreadable(path, UsageError(why, on=path))
        return
    for name in names:
        folder = os.path.join(path, name)
        if name.startswith(RUN_PREFIX) and files.is_folder(folder):
            item = _open(folder, journal, files)
            if isinstance(item, Unreadable) and isinstance(item.error, UsageError):
                if _is_being_made(folder, files):
                    continue
                item = _open(folder, journal, files)  # it was being made a moment ago
            yield item


def _is_being_made(folder: str, files: Files) -> bool:
    """Return whether a folder is that of a run in whose `init` some process is: it has nothing."""
    try:
        return all(name.startswith(TEMPORARY) for name in files.names(folder))
    except OSError:
        return False


def _open(folder: str, journal: str, files: Files) -> Found | Unreadable:
    try:
        run, archives = runfile.read_all(folder, files)
        name = os.path.basename(folder)
        if name.startswith(RUN_PREFIX) and name != RUN_PREFIX + escape(run.id):
            text = f"run.json says that this is the run {run.id!r}, and its folder is another's"
            hint = "bring back the run.json of this folder, or the folder's name"
            raise IntegrityError(text, on=folder, hint=hint)
        above = os.path.basename(os.path.dirname(folder))
        if above.startswith(PROJECT_PREFIX) and above != PROJECT_PREFIX + escape(run.project):
            text = f"run.json says that this run is of the project {run.project!r}, and its folder"
            text += " lies in another's"
            hint = "bring back the run.json of this folder, or the project's folder or its name"
            raise IntegrityError(text, on=folder, hint=hint)
        if archives:
            _check_archives(folder, archives, files)
        return Found(run, folder, journal)
    except EventlogError as error:
        return Unreadable(folder, error)


def _check_archives(folder: str, archives: Sequence[str], files: Files) -> None:
    from eventlog.archived import absent  # few journals have any

    for problem in absent(folder, archives, files):
        hint = "copy the project's folder sealed/ as well; eventlog salvage saves the rest"
        raise FormatError(problem, on=folder, hint=hint)


def find_all(
    paths: Sequence[str], patterns: Sequence[str] = (), files: Files = LOCAL
) -> tuple[list[Found], list[Unreadable]]:
    """Return the runs of several paths (the default journal if none), each once.

    `patterns` are globs of which one must match the run's id, name or ``project/name``.
    """
    found: dict[str, Found] = {}
    unreadable: dict[str, Unreadable] = {}
    for path in paths or [default_journal()]:
        for item in find(path, files):
            if isinstance(item, Unreadable):
                unreadable[item.folder] = item
            elif _matches(item, patterns):
                found[item.folder] = item
    return list(found.values()), list(unreadable.values())


def _matches(item: Found, patterns: Sequence[str]) -> bool:
    names = (item.run.id, item.run.name, item.label)
    return not patterns or any(fnmatch.fnmatchcase(n, p) for p in patterns for n in names)


def resolve(text: str, journal: str | None = None, files: Files = LOCAL) -> Found:
    """Return the one run that a user means: a path, the start of an id, a name, project/name.

    Raises
    ------
    UsageError
        If there is none, or more than one: the candidates are named.
    FormatError
        If the run is there and cannot be read.
    """
    here: list[Found | Unreadable] = []
    no_journal: UsageError | None = None
    if os.path.exists(text):
        try:
            here = list(find(text, files))
        except UsageError as error:
            no_journal = error  # a folder of checkpoints, say, that is called like its run
    if not here:
        try:
            here = _called(text, journal or default_journal(), files)
        except UsageError as error:
            raise no_journal or error from None
    if len(here) != 1:
        labels = ", ".join(
            f"{item.run.id} ({item.label})" if isinstance(item, Found) else item.folder
            for item in here[:8]
        )
        raise UsageError(f"{text!r} means {len(here)} runs: {labels}", hint="give more of the id")
    (item,) = here
    if isinstance(item, Unreadable):
        raise FormatError(item.error.what, on=item.error.on, hint=item.error.hint)
    return item


def _called(text: str, journal: str, files: Files) -> list[Found | Unreadable]:
    """Return the runs of a journal that `text` may mean. Raises `UsageError` if there is none."""
    here: list[Found | Unreadable] = [
        item
        for item in find(journal, files)
        if isinstance(item, Found)
        and (item.run.id.startswith(text) or text in (item.run.name, item.label))
    ]
    if not here:
        raise UsageError(
            f"no run is called {text!r}", on=os.path.abspath(journal), hint="eventlog ls"
        )
    exact = [item for item in here if isinstance(item, Found) and item.run.id == text]
    return list(exact) or here
