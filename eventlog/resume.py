"""Which run a process belongs to: given, found, or made. Two runs too many can be joined later;
two runs merged by mistake cannot be told apart, so in doubt a new one is made.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from eventlog import identity, runfile
from eventlog.attempts import Attempt, attempts
from eventlog.errors import EventlogError, IntegrityError, UsageError
from eventlog.event import STATE
from eventlog.files import LOCAL, Files
from eventlog.layout import PROJECT_PREFIX, RUN_FILE, RUN_PREFIX, escape, run_folder
from eventlog.reader import WriterReader, headers
from eventlog.runfile import RunFile
from eventlog.segment import Header

RESUMES = ("auto", "allow", "must", "never")
FROM_NAME = "from-name"
#: Set by ``eventlog exec`` and recorded, so that the sync beside a program knows its runs.
EXEC = "EVENTLOG_EXEC"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user asked for, arguments before variables."""

    project: str
    name: str | None = None
    id: str | None = None
    resume: str = "auto"


@dataclasses.dataclass(frozen=True)
class Decision:
    """The run a process writes to, and what its segments' headers say of it.

    `notes` are lines for the user; `known` are the attempts that were there before.
    """

    run: RunFile
    how: str
    header: dict[str, Any]
    known: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()


def decide(
    journal: str,
    asked: Asked,
    *,
    launch: identity.Launch,
    files: Files = LOCAL,
    environ: Mapping[str, str] = os.environ,
) -> Decision:
    """Decide which run this process writes to.

    Raises
    ------
    UsageError
        If the wish cannot be met: no run to resume, one that is there but must not be, several
        processes without a common id.
    IntegrityError
        If the id belongs to somebody else's run.
    """
    if asked.resume not in RESUMES:
        raise UsageError(f"resume={asked.resume!r} is none of {', '.join(RESUMES)}")
    run, how, notes = _choose(journal, asked, launch, files)
    folder = run_folder(journal, run.project, run.id)
    known_headers = headers(folder, files)
    known = attempts(known_headers)
    if asked.id is not None and asked.resume == "never" and known:
        raise UsageError(
            f"the run {run.id} is there already and resume='never'",
            on=folder,
            hint="choose another id, or resume='allow'",
        )
    owner = identity.owner()
    _check_owner(known_headers, owner, folder)
    attempt = _attempt(known, how, launch, environ)
    header = {
        "project": run.project,
        "name": run.name,
        "id_from": how,
        "owner": owner,
        "attempt": attempt,
        "launch": launch.id,
        "rank": launch.rank,
        "world": launch.world,
    }
    if environ.get(EXEC):
        header["exec"] = environ[EXEC]
    return Decision(run, how, header, tuple(known), tuple(notes))


def _choose(
    journal: str, asked: Asked, launch: identity.Launch, files: Files
) -> tuple[RunFile, str, list[str]]:
    if asked.id is not None:
        return (*_given(journal, asked, files), [])
    others = [] if asked.resume == "never" else list(_same_name(journal, asked, launch, files))
    if asked.resume in ("allow", "must"):
        if others:
            return others[-1].run, "resumed", []
        if asked.resume == "must":
            raise UsageError(
                f"there is no run {asked.project}/{asked.name} to resume, and resume='must'",
                on=journal,
                hint="resume='allow' makes one",
            )
    if asked.resume == "auto":
        for other in reversed(others):
            if _restarted(other, launch) and not other.ended():
                return other.run, "found", []
    return _made(journal, asked, launch, others, files)


def _given(journal: str, asked: Asked, files: Files) -> tuple[RunFile, str]:
    run_id, how = str(asked.id), "given"
    if run_id == FROM_NAME:
        if not asked.name:
            raise UsageError('id="from-name" needs a name', hint="give name= or EVENTLOG_NAME")
        run_id, how = identity.id_from_name(asked.project, asked.name), FROM_NAME
    folder = run_folder(journal, asked.project, run_id)
    there = files.exists(os.path.join(folder, RUN_FILE))
    if asked.resume == "must" and not there:
        raise UsageError(
            f"there is no run {run_id} to resume, and resume='must'",
            on=folder,
            hint="resume='allow' makes it",
        )
    if there and asked.name is None:
        return runfile.read(folder, files), how
    return RunFile(run_id, asked.project, asked.name or run_id), how


@dataclasses.dataclass(frozen=True)
class _Other:
    """A run of the same project and name that is there already."""

    run: RunFile
    folder: str
    known: list[Attempt]
    files: Files

    def ended(self) -> bool:
        """Return whether a writer of its last attempt said that the run has ended."""
        for writer in self.known[-1].writers:
            for table in WriterReader(self.folder, writer, store=self.files).tables():
                rows = zip(table.column("kind"), table.column("key"), strict=True)
                if any(k.as_py() == STATE and key.as_py() == "exit_code" for k, key in rows):
                    return True
        return False


def _same_name(
    journal: str, asked: Asked, launch: identity.Launch, files: Files
) -> Iterator[_Other]:
    """Yield the runs of this project, name and owner, the latest last; without a name only the
    one whose id this launch makes.
    """
    project = os.path.join(journal, PROJECT_PREFIX + escape(asked.project))
    found: list[tuple[int, str, _Other]] = []
    names = files.names(project)
    if asked.name is None:
        if launch.id is None:
            return
        made = identity.id_from_launch(asked.project, "", launch.id)
        names = [n for n in names if n == RUN_PREFIX + made]
    for name in names:
        folder = os.path.join(project, name)
        if not name.startswith(RUN_PREFIX) or not files.is_folder(folder):
            continue
        try:
            run = runfile.read(folder, files)
        except EventlogError:
            continue
        if run.name != (asked.name or run.id) or run.project != asked.project:
            continue
        parts = headers(folder, files)
        known = attempts(parts)
        if known and identity.owner() in _owners(parts):
            found.append((known[-1].start, run.id, _Other(run, folder, known, files)))
    for _start, _id, other in sorted(found, key=lambda f: f[:2]):
        yield other


def _restarted(other: _Other, launch: identity.Launch) -> bool:
    if launch.id is None:
        return False
    return any(a.launch == launch.id and a.restart < launch.restart for a in other.known)


def _made(
    journal: str, asked: Asked, launch: identity.Launch, others: list[_Other], files: Files
) -> tuple[RunFile, str, list[str]]:
    notes: list[str] = []
    run_id, how = identity.random_id(), "random"
    # Who has no name in a Ray job may be one of a hundred trials: each is a run of its own.
    if launch.id is not None and (asked.name or not launch.session):
        made = identity.id_from_launch(asked.project, asked.name or "", launch.id)
        known = attempts(headers(run_folder(journal, asked.project, made), files))
        # A second process of a launch of one is another run: a script that trains twice.
        if launch.world > 1 or not known:
            run_id, how = made, "launch"
    elif launch.world > 1:
        _told(launch)
        notes.append(
            f"this launch has {launch.world} processes and no id of its own: rank 0 makes a new "
            "run; to log from other ranks too, set EVENTLOG_RUN_ID to the same text in all"
        )
    if others and how == "random" and asked.resume == "auto":
        last = others[-1].run.id
        notes.append(
            f"a new run was made beside {len(others)} of the same name; to continue the last one "
            f'instead use resume="allow" or EVENTLOG_RUN_ID={last}'
        )
    return RunFile(run_id, asked.project, asked.name or run_id), how, notes


def _told(launch: identity.Launch) -> None:
    if launch.rank > 0:
        raise UsageError(
            f"rank {launch.rank} of {launch.world} cannot know which run it belongs to: the "
            "launcher gives no id that all ranks share",
            hint="set EVENTLOG_RUN_ID to the same text in all ranks, or call init on rank 0 only",
        )


def _owners(known: Mapping[str, list[Header]]) -> set[str]:
    return {str(part.identity.get("owner", "")) for parts in known.values() for part in parts}


def _check_owner(known: Mapping[str, list[Header]], owner: str, folder: str) -> None:
    others = _owners(known) - {owner}
    if others:
        raise IntegrityError(
            f"this run belongs to {', '.join(sorted(others))}, and nothing was merged; you are "
            f"{owner}",
            on=folder,
            hint="choose another id or name, or set EVENTLOG_OWNER to the same text for both",
        )


def _attempt(
    known: list[Attempt], how: str, launch: identity.Launch, environ: Mapping[str, str]
) -> dict[str, Any]:
    now = time.time_ns()
    key = f"{launch.id}#{'.'.join(map(str, launch.restart))}" if launch.id else None
    if key is not None and launch.session is not None:
        key = f"{key}@{launch.session}"  # all processes of this start, and of no other
    alone = launch.world == 1 and launch.session is None
    if key is None or (alone and any(a.key == key for a in known)):
        key = "p" + os.urandom(6).hex()
    before = [a for a in known if a.key != key]
    evidence = "first"
    if any(a.launch == launch.id and a.restart < launch.restart for a in before if launch.id):
        evidence = "restart"
    elif before:
        evidence = "explicit" if how in ("given", FROM_NAME, "resumed") else "joined"
    told = environ.get("EVENTLOG_ATTEMPT", "")
    ordinal = int(told) if told.isdecimal() else len(before) + 1
    return {
        "key": key,
        "ordinal": ordinal,
        "evidence": evidence,
        "launch": launch.id,
        "restart": list(launch.restart),
        "start": now,
        "writer_start": now,
    }
