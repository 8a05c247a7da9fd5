"""Beginning and ending: `init`, the run of this process, and what happens at its exit."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from eventlog import event as words
from eventlog import home, identity, resume
from eventlog.errors import EventlogError, JournalError, UsageError
from eventlog.event import make_rows, whole_step
from eventlog.journal import LEVELS, Options
from eventlog.provenance import provenance
from eventlog.recorded import as_mapping
from eventlog.run import Run
from eventlog.seal import seal

DEFAULT_PROJECT = "default"
MODES = ("journal", "disabled")
#: `init` seals what others left behind, but no more bytes than this, to stay short.
SEAL_AT_INIT = 32 * 2**20

_current: Run | None = None
_open: list[Run] = []
_hooked = False


def init(
    project: str | None = None,
    name: str | None = None,
    *,
    id: str | None = None,
    config: Any = None,
    dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    tags: Sequence[str] = (),
    group: str | None = None,
    job_type: str | None = None,
    notes: str | None = None,
    durability: str | None = None,
    mode: str | None = None,
    strict: bool = False,
    quiet: bool = False,
) -> Run:
    """Begin to log to a run, new or continued.

    Parameters
    ----------
    project, name:
        What the run is called (``EVENTLOG_PROJECT``, ``EVENTLOG_NAME``).
    id:
        The run's id (``EVENTLOG_RUN_ID``); ``"from-name"`` makes it of project and name, so that
        restarts meet again on any disk.
    config:
        What to record as its config: a mapping, a Namespace or a dataclass.
    dir:
        The journal's folder (``EVENTLOG_DIR``), by default ``./eventlog-data``.
    resume:
        ``"auto"`` continues what the launcher restarted, ``"allow"`` the latest run of that name,
        ``"must"`` fails without one, ``"never"`` always makes one (``EVENTLOG_RESUME``).
    tags, group, job_type, notes:
        Recorded for people and for backends.
    durability:
        ``"group"`` (default): survives SIGKILL when `log` returns and a power cut about a second
        later; ``"sync"``: a power cut too when `log` returns; ``"os"``: no syncs; ``"memory"``:
        written about twice a second (``EVENTLOG_DURABILITY``).
    mode:
        ``"disabled"`` makes a run that records nothing (``EVENTLOG_MODE``).
    strict:
        Raise `ValueRefused` for what cannot be kept instead of warning.
    quiet:
        Do not print where the journal is, at the start and at the end.

    Raises
    ------
    UsageError
        For arguments that cannot be met.
    JournalError
        If the journal cannot be written.
    IntegrityError
        If the id belongs to another run.
    """
    global _current
    env = os.environ.get
    mode = mode or env("EVENTLOG_MODE") or "journal"
    if mode not in MODES:
        raise UsageError(f"mode={mode!r} is none of {', '.join(MODES)}")
    level = durability or env("EVENTLOG_DURABILITY") or "group"
    if level not in LEVELS:
        raise UsageError(f"durability={level!r} is none of {', '.join(LEVELS)}")
    if mode == "disabled":
        _current = Run(None, None)
        return _current
    asked = _asked(project, name, id, resume)
    journal, advice = home.prepare(os.fspath(dir) if dir is not None else None)
    decision = _decide(journal, asked)
    run = Run(decision, journal, options=Options(durability=level), strict=strict, quiet=quiet)
    _begin(run, decision, config, tags, {"group": group, "job_type": job_type, "notes": notes})
    if not quiet:
        _say(run, decision, advice)
    _seal_left(run)
    _register(run)
    _current = run
    return run


def _asked(project: str | None, name: str | None, id: str | None, how: str | None) -> resume.Asked:
    env = os.environ.get
    return resume.Asked(
        project=str(project or env("EVENTLOG_PROJECT") or DEFAULT_PROJECT),
        name=str(name) if name else env("EVENTLOG_NAME") or None,
        id=str(id) if id else env("EVENTLOG_RUN_ID") or None,
        resume=how or env("EVENTLOG_RESUME") or "auto",
    )


def _decide(journal: str, asked: resume.Asked) -> resume.Decision:
    try:
        return resume.decide(journal, asked, launch=identity.launch())
    except OSError as error:
        raise JournalError(f"the journal cannot be read ({error})", on=journal) from error


def _begin(
    run: Run,
    decision: resume.Decision,
    config: Any,
    tags: Sequence[str],
    notes: Mapping[str, str | None],
) -> None:
    """Append the first events: state, notes, tags, config."""
    assert run._writer is not None
    rows, _ = make_rows(words.STATE, [("state", "running")])
    step = os.environ.get("EVENTLOG_RESUME_STEP")
    if step:
        whole = whole_step(_number(step))
        if whole is None:
            raise UsageError(f"EVENTLOG_RESUME_STEP={step!r} is no whole number")
        rows += make_rows(words.STATE, [("rewind", whole)])[0]
    recorded: dict[str, Any] = {"provenance": provenance()}
    recorded |= {key: value for key, value in notes.items() if value is not None}
    for variable in identity.ELSEWHERE:
        if variable in os.environ:
            recorded[f"env/{variable}"] = os.environ[variable]
    rows += make_rows(words.NOTE, recorded.items())[0]
    rows += make_rows(words.TAG, [(str(tag), True) for tag in tags])[0]
    run._writer.append_rows(rows, None, decision.header["attempt"]["start"])
    if config is not None:
        run.config.update(as_mapping(config))


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return None


def _say(run: Run, decision: resume.Decision, advice: str | None) -> None:
    again = "" if not decision.known else f", attempt {run.attempt}"
    lines = [f"{run.project}/{run.name} (id {run.id}{again}) is logged to {run.folder}"]
    lines += decision.notes
    if advice:
        lines.append(advice)
    for line in lines:
        print(f"eventlog: {line}", file=sys.stderr)


def _seal_left(run: Run) -> None:
    """Seal what earlier attempts left, if that is quick."""
    assert run.folder is not None
    try:
        seal(run.folder, limit_bytes=SEAL_AT_INIT)
    except (OSError, EventlogError) as error:
        run._warn(f"earlier segments were not sealed ({error})")


def current() -> Run:
    """Return the run of the latest `init` in this process."""
    if _current is None:
        raise UsageError("there is no run yet", hint="call eventlog.init(...) first")
    return _current


# ------------------------------------------------------------------------------ the end


def _register(run: Run) -> None:
    global _hooked
    _open.append(run)
    run.at_end.append(_unregister)
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)


def _unregister(run: Run) -> None:
    if run in _open:
        _open.remove(run)


def _at_exit() -> None:
    """Close what was not finished: ``failed`` after an uncaught exception, else ``closed``."""
    failed = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for run in _open.copy():  # each takes itself out of it
        run._end(1 if failed is not None else None, sealing=False)
