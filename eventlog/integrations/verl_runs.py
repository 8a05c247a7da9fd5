"""The runs that verl's loggers of one process log to: opened once, shared, never in the way.

`Tracking`, `ValidationGenerationsLogger` and `DapoFilteredRewardTableLogger` of one process that
have the same project and name share one run. In another actor the same names make the same run,
by another writer. Nothing here raises: a run that cannot be opened costs one warning, and if the
disk was the reason it is tried again, with what was logged meanwhile kept back in memory.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from eventlog import start
from eventlog.errors import EventlogError, JournalError
from eventlog.integrations.verl_config import MARK, resolved
from eventlog.integrations.verl_settings import fleeting, only_validates, restart, settings
from eventlog.recorded import plain, readable
from eventlog.resume import FROM_NAME
from eventlog.run import Run
from eventlog.table import Table

log = logging.getLogger("eventlog")

GENERATIONS = "val/generations"
FILTERED_REWARDS = "training/filter_groups/filtered_reward_counts"
#: A run that could not be opened because of the disk is tried again at most this often.
RETRY_SECONDS = 30.0
#: So many calls of log() are kept back meanwhile; of more, the oldest are lost, and counted.
KEPT_BACK = 10_000

_ELSEWHERE = "give +trainer.eventlog.dir a folder that this user can write"
_OWNER = "EVENTLOG_OWNER"
_COLUMNS = ("input", "output", "score")
_PLAIN = frozenset((str, float, int, bool, type(None)))

_lock = threading.RLock()  # a destructor may come in the middle of anything
_shared: dict[tuple[Any, Any], SharedRun] = {}


class SharedRun:
    """A run of this process; `users` are the `Tracking` objects that have not ended."""

    def __init__(self, project: Any, name: Any, config: Any) -> None:
        self.users = 0
        self.run: Run | None = None
        self._names = (project, name)
        self._config: Any = None
        self._begun = False
        self._settings = settings(config)
        self._waiting: deque[tuple[Any, Any]] = deque(maxlen=KEPT_BACK)
        self._dropped = 0
        self._again_at: float | None = 0.0
        self._said = False
        for problem in self._settings.problems:
            log.warning("eventlog: %s", problem)
        self._open()

    def log(self, data: Mapping[str, Any], step: Any = None) -> None:
        """Record one event; see `Run.log`."""
        run = self.run
        if run is None:
            run = self._late(data, step)
        if run is not None:
            run.log(data, step)

    def begin(self, config: Any) -> None:
        """Record the resolved config of a `Tracking`, and where training starts by it."""
        self._config = self._config if config is None else config
        run = self.run
        if run is None or run.folder is None:  # later, or never
            return
        try:
            if config is not None:
                self._record_config(run, config)
            if not self._begun:  # a later logger of this process starts no training anew
                self._begun = config is not None
                self._state_restart(run, config)
        except Exception as error:
            log.warning("eventlog: the config was not recorded: %s", error)

    def _record_config(self, run: Run, config: Any) -> None:
        values, broken = resolved(config)
        run.config.update(values)
        told = [key for key in broken if not key.startswith("trainer.eventlog")]  # by `settings`
        if told:
            more = f" and {len(told) - 5} more" if len(told) > 5 else ""
            run._warn(
                f"the config has {len(told)} values that cannot be resolved; each is recorded as "
                f"it is written, behind '{MARK}': {', '.join(told[:5])}{more}"
            )

    def _state_restart(self, run: Run, config: Any) -> None:
        step, told_by = self._settings.resume_step, "trainer.eventlog.resume_step"
        found = restart(config)
        if step is None and found is not None and not os.environ.get("EVENTLOG_RESUME_STEP"):
            step, told_by = found.step, found.told_by
        if step is not None:
            run.rewind(step)
            print(f"eventlog: training starts at step {step} ({told_by})", file=sys.stderr)
        elif run.attempt > 1 and only_validates(config):
            print(
                f"eventlog: this is attempt {run.attempt} of {run.name}, which only validates: of "
                "what is there it replaces nothing but its own keys at its step",
                file=sys.stderr,
            )
        elif run.attempt > 1:
            print(
                f"eventlog: this is attempt {run.attempt} of {run.name}, and verl's config names "
                "no checkpoint that it starts from; if it is another run, give it another "
                "trainer.experiment_name or +trainer.eventlog.run_id",
                file=sys.stderr,
            )

    def end(self, exit_code: int | None) -> None:
        """End the run; None where the outcome is not known, in a destructor."""
        if self.run is None and self._waiting and self._again_at is not None:
            self._again_at = 0.0
            self._late_open()
        if self.run is None:
            if self._waiting:
                lost = len(self._waiting) + self._dropped
                log.warning("eventlog: %d calls of log() are lost", lost)
        elif exit_code is None:
            self.run._end(None, sealing=False)  # the next start seals; a destructor is short
        else:
            self.run.finish(exit_code)

    # ---------------------------------------------------------------- opening

    def _open(self) -> None:
        asked = self._settings
        project, name = self._names
        name = asked.name or (None if name is None else str(name))
        id = asked.run_id or os.environ.get("EVENTLOG_RUN_ID")
        try:
            with _owned_by(asked.owner):
                run = start.init(
                    asked.project or (None if project is None else str(project)),
                    name,
                    id=id or (FROM_NAME if name else None),
                    dir=asked.dir,
                    tags=asked.tags,
                    group=asked.group,
                    job_type=asked.job_type,
                    notes=asked.notes,
                    durability=asked.durability,
                    mode=asked.mode,
                )
        except (JournalError, OSError) as error:
            self._again_at = time.monotonic() + RETRY_SECONDS
            if isinstance(error, JournalError):
                error = JournalError(error.what, on=error.on, hint=_ELSEWHERE)
            self._say(
                f"nothing is recorded yet; it is tried again every {RETRY_SECONDS:g} s, up to "
                f"{KEPT_BACK:,} calls of log() wait: {error}"
            )
        except EventlogError as error:
            self._again_at = None
            self._say(f"this run is not recorded: {error}")
        except Exception as error:
            self._again_at = None
            self._say(f"this run is not recorded: {type(error).__name__}: {error}")
        else:
            self.run = run
            if run.folder is not None and fleeting(run.folder):
                log.warning(
                    "eventlog: Ray deletes %s when its job ends: give +trainer.eventlog.dir a "
                    "folder that stays",
                    run.folder,
                )

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            log.warning("eventlog: %s", text)

    # ---------------------------------------------------------------- a late start

    def _late(self, data: Mapping[str, Any], step: Any) -> Run | None:
        """Open the run if it is time to; else keep a call back."""
        if self._again_at is None:
            return None
        with _lock:
            if self.run is None and time.monotonic() >= self._again_at:
                self._late_open()
            if self.run is None:
                self._keep_back(data, step)
            return self.run

    def _keep_back(self, data: Mapping[str, Any], step: Any) -> None:
        try:
            kept = dict(data)  # whoever logs may change it
        except Exception as error:
            log.warning("eventlog: log() could not keep %s: %r", type(data).__name__, error)
            return
        self._dropped += len(self._waiting) == KEPT_BACK
        self._waiting.append((kept, step))

    def _late_open(self) -> None:
        self._open()
        run = self.run
        if run is None:
            return
        self.begin(self._config)
        log.warning(
            "eventlog: recording has begun, with %d calls of log() that waited; %d are lost",
            len(self._waiting),
            self._dropped,
        )
        while self._waiting:
            run.log(*self._waiting.popleft())


@contextlib.contextmanager
def _owned_by(owner: str | None) -> Iterator[None]:
    """Have the variable say who owns the run; the next one of this process may be another's."""
    before = os.environ.get(_OWNER)
    try:
        if owner:
            os.environ[_OWNER] = owner
        yield
    finally:
        if owner and before is None:
            os.environ.pop(_OWNER, None)
        elif owner and before is not None:
            os.environ[_OWNER] = before


# ------------------------------------------------------------------------------ sharing


def share(project: Any, name: Any, config: Any) -> SharedRun:
    """Return the run of these names of this process; open it, with the settings of that config,
    if there is none yet.
    """
    with _lock:
        there = _shared.get((project, name))
        if there is None and project is None and name is None and len(_shared) == 1:
            (there,) = _shared.values()
        if there is None:
            there = _shared[project, name] = SharedRun(project, name, config)
        return there


class Tracked:
    """What `Tracking.logger` holds: verl calls `log(data=, step=)` and `finish`."""

    def __init__(self, project: Any, name: Any, config: Any) -> None:
        with _lock:
            shared = share(project, name, config)
            shared.users += 1
        shared.begin(config)
        self._shared: SharedRun | None = shared
        self._log = shared.log

    def log(self, data: Mapping[str, Any], step: Any = None) -> None:
        """Record one event."""
        self._log(data, step)

    def finish(self, exit_code: int | None = 0) -> None:
        """Let go of the run; the last of a process ends it."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is None:
                return
            shared.users -= 1
            if shared.users > 0:
                return
            for names in [names for names, one in _shared.items() if one is shared]:
                del _shared[names]
        shared.end(exit_code)


def log_generations(shared: SharedRun, samples: Any, step: Any) -> None:
    """Record validation generations: (input, output, score) of each, as rows, once."""
    rows = [
        [cell if type(cell) in _PLAIN else readable(plain(cell)) for cell in _row(sample)]
        for sample in samples
    ]
    width = max([len(_COLUMNS), *map(len, rows)])
    columns = [*_COLUMNS, *(f"extra_{i}" for i in range(1, width - len(_COLUMNS) + 1))]
    table = Table(columns, ([*row, *[None] * (width - len(row))] for row in rows))
    shared.log({GENERATIONS: table}, step)


def _row(sample: Any) -> list[Any]:
    return list(sample) if isinstance(sample, (list, tuple)) else [sample]


def log_filtered_rewards(shared: SharedRun, counts: Mapping[Any, Any], step: Any) -> None:
    """Record how many groups DAPO left out, by their reward."""
    rows = sorted([float(reward), int(count)] for reward, count in counts.items())
    shared.log({FILTERED_REWARDS: Table(["reward", "count"], rows)}, step)


@atexit.register
def _at_exit() -> None:
    """Try the disk a last time for what waits: destructors that Python calls later do nothing."""
    for shared in list(_shared.values()):
        if shared.run is None:
            shared.end(None)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
