"""What a user holds: a run to log to.

Nothing here raises into training once `init` has returned (``strict=True`` aside): what cannot be
kept is left out with one warning, and a disk that fails is waited for.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any

from eventlog import event as words
from eventlog import home, identity, resume, runfile
from eventlog.errors import EventlogError, JournalError, UsageError, ValueRefused
from eventlog.event import make_rows, whole_step
from eventlog.files import LOCAL
from eventlog.journal import LEVELS, Health, Options, Writer
from eventlog.layout import run_folder
from eventlog.reader import listing
from eventlog.seal import seal
from eventlog.value import Stored, dumps

log = logging.getLogger("eventlog")

DEFAULT_PROJECT = "default"
MODES = ("journal", "disabled")
#: `init` seals what others left behind, but no writer of more bytes than this, to stay short.
SEAL_AT_INIT = 32 * 2**20
_MOST_WARNINGS = 1000


class Recorded(MutableMapping[str, Any]):
    """A mapping whose every change is an event: a run's config or summary.

    Keys are text; values are anything that can be logged, nested mappings and lists included. A
    top-level key is replaced as a whole. Keys cannot be deleted: what was logged stays.
    """

    def __init__(self, run: Run, kind: str) -> None:
        self._run = run
        self._kind = kind
        self._values: dict[str, Any] = {}

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several keys as one event. Takes mappings, argparse's Namespace and dataclasses."""
        values: dict[str, Any] = {}
        for arg in args:
            values.update(_mapping(arg))
        values.update(kwargs)
        if values:
            self._run._record(self._kind, values)
            self._values.update(values)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __delitem__(self, key: str) -> None:
        raise UsageError(f"{self._kind} key {key!r} cannot be deleted: what was logged stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{self._kind}({self._values!r})"


class Run:
    """One process's access to a run. Made by `init`; safe to use from many threads.

    Attributes
    ----------
    id, project, name:
        The run's identity.
    folder:
        The absolute path of the run's folder; None if disabled.
    attempt:
        Which launch of the run this is, from 1.
    config, summary:
        Mappings whose changes are recorded.
    """

    def __init__(
        self,
        decision: resume.Decision | None,
        journal: str | None,
        *,
        options: Options | None = None,
        strict: bool = False,
        quiet: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._quiet = quiet
        self._strict = strict
        self._warned: set[str] = set()
        self._finished = False
        self.config = Recorded(self, words.CONFIG)
        self.summary = Recorded(self, words.SUMMARY)
        self._writer: Writer | None = None
        self.folder: str | None = None
        if decision is None or journal is None:
            self.id, self.project, self.name, self.attempt = "", "", "", 0
            return
        run = decision.run
        self.id, self.project, self.name = run.id, run.project, run.name
        self.attempt = int(decision.header["attempt"]["ordinal"])
        self.folder = run_folder(journal, run.project, run.id)
        try:
            LOCAL.make_folder(self.folder)
            runfile.claim(self.folder, run)
        except OSError as error:
            raise JournalError(
                f"the run's folder cannot be written ({error.strerror})",
                on=self.folder,
                hint="give dir= or EVENTLOG_DIR a folder that this user can write",
            ) from error
        self._writer = Writer(
            self.folder, run.id, decision.header, options=options, warn=self._warn
        )

    # ---------------------------------------------------------------- logging

    def log(self, data: Mapping[str, Any], step: Any = None) -> int | None:
        """Record one event.

        Parameters
        ----------
        data:
            Keys and values: Python, numpy, torch and jax scalars, text, None, lists, tables;
            nested mappings are flattened with ``/``. The types are kept.
        step:
            A whole number, or none. It is data: it may repeat, go back and come late.

        Returns
        -------
        The seq of the event; None if nothing was recorded yet (the run is disabled, or a disk
        that fails makes the event wait in memory).

        Raises
        ------
        ValueRefused
            With ``strict=True`` only: for a value that cannot be kept. The others were kept.
        """
        writer = self._writer
        if writer is None:
            return None
        try:
            plain = type(step) is int and words.STEP_MIN <= step <= words.STEP_MAX
            if step is not None and not plain:
                step = self._step(step)
            return writer.append(words.METRIC, data, step)
        except EventlogError as error:
            self._trouble(error)
        except Exception as error:  # a hostile value must not end a training run
            self._trouble(ValueRefused(f"log() could not keep {type(data).__name__}: {error!r}"))
        return None

    def define_metric(
        self, name: str, step_metric: str | None = None, summary: str | None = None
    ) -> None:
        """Say how a metric is to be shown.

        `name` may end in ``*``; `step_metric` is the key on its x-axis; `summary` is what of it
        belongs into the summary: ``min``, ``max``, ``mean``, ``last`` or ``none``.
        """
        fields = {"step_metric": step_metric, "summary": summary}
        stored = Stored("json", None, dumps({k: v for k, v in fields.items() if v is not None}))
        self._record(words.DEFINITION, {name: stored})

    def tag(self, *tags: str) -> None:
        """Give the run tags."""
        self._record(words.TAG, {str(tag): True for tag in tags})

    def untag(self, *tags: str) -> None:
        """Take tags away."""
        self._record(words.TAG, {str(tag): False for tag in tags})

    def rewind(self, step: int) -> None:
        """Say that training starts again at the checkpoint of `step`: what was logged before for
        later steps is superseded. It stays in the journal.
        """
        whole = whole_step(step)
        if whole is None:
            raise UsageError(f"rewind({step!r}): a step is a whole number")
        self._record(words.STATE, {"rewind": whole})

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append rows of another kind than metrics: keys are not flattened."""
        writer = self._writer
        if writer is None:
            return
        try:
            rows, refused = make_rows(kind, ((str(k), _plain(v)) for k, v in values.items()))
            if refused:
                again = [(k, _readable(_plain(v))) for k, v in values.items()]
                rows, _ = make_rows(kind, ((str(k), v) for k, v in again))
                self._warn(f"{kind}: kept as text what has no other form: {'; '.join(refused[:5])}")
            writer.append_rows(rows, None)
        except EventlogError as error:
            self._trouble(error)
        except Exception as error:
            self._trouble(ValueRefused(f"{kind} could not be kept: {error!r}"))

    def _step(self, step: Any) -> int | None:
        whole = whole_step(step)
        if whole is None:
            self._warn(
                f"step {_short(step)} is no whole number of 64 bits; the event was kept without "
                "a step"
            )
        return whole

    # ---------------------------------------------------------------- state

    @property
    def health(self) -> Health:
        """How the journal is: appended, durable, waiting and lost events, the last error."""
        if self._writer is None:
            return Health("disabled", 0, 0, 0, 0, None)
        return self._writer.health()

    def flush(self) -> None:
        """Return when everything logged so far survives a power cut.

        Raises
        ------
        JournalError
            If the system says that it could not.
        """
        if self._writer is not None:
            self._writer.commit()

    def finish(self, exit_code: int | None = 0) -> None:
        """End the run: record how it ended, make it durable, seal it. Idempotent.

        `exit_code` 0 means finished, another number failed, None that the process ends without
        knowing. Sealing is left out inside a signal's handler, where time is short.
        """
        self._end(exit_code, sealing=not _in_signal_handler())

    def _end(self, exit_code: int | None, *, sealing: bool) -> None:
        writer = self._writer
        if writer is None or self._finished:
            return
        self._finished = True
        if os.getpid() == self._pid:
            status = {None: "closed", 0: "finished"}.get(exit_code, "failed")
            known: dict[str, int | None] = dict.fromkeys(listing(writer.folder).writers)
            known[writer.name] = writer.seq + 1  # this very event is the last one
            self._record(words.STATE, {"state": status, "exit_code": exit_code, "writers": known})
        writer.close()
        _unregister(self)
        if sealing and os.getpid() == self._pid:
            try:
                seal(writer.folder, writer=writer.name)
            except (OSError, EventlogError, MemoryError) as error:
                self._warn(f"the run was not sealed ({error}); eventlog seal can do it later")
        if os.getpid() == self._pid and not self._quiet:
            print(
                f"eventlog: {self.name} {self._ended_as(exit_code)}, {writer.seq} events in "
                f"{self.folder}",
                file=sys.stderr,
            )

    @staticmethod
    def _ended_as(exit_code: int | None) -> str:
        return {None: "closed", 0: "finished"}.get(exit_code, f"failed ({exit_code})")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(0 if kind is None else 1)

    def __repr__(self) -> str:
        return f"<Run {self.project}/{self.name} {self.id} attempt {self.attempt}>"

    # ---------------------------------------------------------------- warnings

    def _trouble(self, error: EventlogError) -> None:
        if self._strict:
            raise error
        self._warn(str(error))

    def _warn(self, text: str) -> None:
        """Say something once."""
        if text not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(text)
            log.warning("eventlog: %s", text)


# ------------------------------------------------------------------------------ init

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
    recorded: dict[str, Any] = {"provenance": identity.provenance()}
    recorded |= {key: value for key, value in notes.items() if value is not None}
    for variable in identity.ELSEWHERE:
        if variable in os.environ:
            recorded[f"env/{variable}"] = os.environ[variable]
    rows += make_rows(words.NOTE, recorded.items())[0]
    rows += make_rows(words.TAG, [(str(tag), True) for tag in tags])[0]
    run._writer.append_rows(rows, None, decision.header["attempt"]["start"])
    if config is not None:
        run.config.update(config)


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
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)


def _unregister(run: Run) -> None:
    if run in _open:
        _open.remove(run)


def _at_exit() -> None:
    """Close what was not finished: ``failed`` after an uncaught exception, else ``closed``."""
    failed = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for run in _open:
        run._end(1 if failed is not None else None, sealing=False)


def _in_signal_handler() -> bool:
    """Return whether this call comes from the handler of a signal that ends a job."""
    codes = []
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        code = getattr(handler, "__code__", None)
        if code is None:
            code = getattr(getattr(handler, "__func__", None), "__code__", None)
        if code is not None:
            codes.append(code)
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


# ------------------------------------------------------------------------------ values


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if hasattr(value, "items"):
        return {str(k): v for k, v in value.items()}
    raise UsageError(f"a {type(value).__qualname__} is no mapping")


def _plain(value: Any) -> Any:
    """Return other mappings (OmegaConf's, say) as dicts, at any depth of mappings."""
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _readable(value: Any, depth: int = 0) -> Any:
    """Return `value` with what cannot be kept replaced by its text."""
    if depth > 32:
        return _short(value)
    if isinstance(value, dict):
        return {str(k): _readable(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(v, depth + 1) for v in value]
    rows, refused = make_rows(words.CONFIG, [("x", value)])
    return _short(value) if refused else value if rows else None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 200 else text[:197] + "..."
