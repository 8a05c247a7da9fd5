"""SIGKILL of ``eventlog sync``, again and again, and what the target holds in the end.

A run is logged, and synced by processes that are killed: after a random time, drawn over the whole
duration of a sync that nobody kills or over its beginning, or at a call of the loop, before it,
behind it or in the middle of a batch; the process alone, or all that it started. Now and then more
is logged meanwhile, or the state folder is lost. When a sync ends, and all is logged, what the
backend shows is compared, as a multiset, with the effective view worked out here from the plain list
of what was logged; and the next run begins. A kill counts if it struck a sync that had begun to work
and had not ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eventlog
from tests import warm
from tests.targets.killed import BEGINNING, CALLS, Board, kill_worker
from tests.targets.read_back import PREFIX, Point, bits

#: Hard values, now and then.
SPECIAL = [float("nan"), 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e22, 1 / 3, -1.0, 2.0**60]
KEYS = 6
#: How often a state folder is lost behind a kill, and how often more is logged.
FORGETS, LOGS = 0.08, 0.25
#: Seconds after which a sync is taken for stuck, and how often one may say "try later" in a row.
STUCK, PATIENCE = 240.0, 30


@dataclasses.dataclass(frozen=True)
class Place:
    """A backend, and how it is read.

    Attributes
    ----------
    spec:
        What follows ``--to``.
    read:
        Returns what it holds of a project, and what is wrong beside.
    steps, batch:
        How long a run is, and how many points are sent at once.
    imports, worker:
        What its processes import first; see `tests.warm` and `tests.targets.killed`.
    env:
        More variables.
    """

    spec: str
    read: Callable[[str], tuple[Counter[Point], list[str]]]
    steps: int
    batch: int
    imports: str = ""
    worker: str = ""
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Figures:
    """What a series gave."""

    kills: int = 0
    alone: int = 0
    early: int = 0
    syncs: int = 0
    later: int = 0
    forgotten: int = 0
    runs: int = 0
    points: int = 0
    lost: int = 0
    double: int = 0
    stayed: int = 0
    during: Counter[str] = dataclasses.field(default_factory=Counter)
    violations: list[str] = dataclasses.field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield what is to be shown: a name and a number."""
        yield "SIGKILLs of a sync at work", self.kills
        for name in CALLS[BEGINNING + 1 :]:
            if self.during[name]:
                yield f"  {name}", self.during[name]
        yield "  of the process alone", self.alone
        yield "  with all that it started", self.kills - self.alone
        yield "kills before it was at work", self.early
        yield "state folders lost behind a kill", self.forgotten
        yield "syncs", self.syncs
        yield "  that said: try later", self.later
        yield "runs compared", self.runs
        yield "points", self.points
        yield "of them lost", self.lost
        yield "double, or never logged", self.double
        yield "superseded, held as was chosen", self.stayed
        yield "violations", len(self.violations)


class Story:
    """A run that is logged bit by bit, and its effective view.

    Of three stories one has a restart that goes back before the first sync, one has such a restart
    later, which supersedes what the target may hold by then, and one has none.

    Attributes
    ----------
    expected, superseded:
        The points of the effective view so far, and those that a restart took out of it.
    """

    def __init__(self, folder: str, project: str, chance: random.Random, steps: int) -> None:
        self.project = project
        self.journal = os.path.join(folder, "journal")
        self.expected: Counter[Point] = Counter()
        self.superseded: Counter[Point] = Counter()
        self._attempt = 0
        restart = chance.choice(("before", "later", "never"))
        back = int(steps * chance.uniform(0.2, 0.5)) if restart != "never" else 0
        ends = sorted(int(steps * chance.uniform(0.65, 1)) for _ in range(chance.randrange(3)))
        #: Steps, and whether a new attempt logs them.
        self._parts = [
            (range(start, end), start == back)
            for start, end in zip([back, *ends], [*ends, steps], strict=True)
        ]
        if restart != "never":
            self._parts.insert(0, (range(int(steps * chance.uniform(0.5, 0.6))), True))
        for _ in range(2 if restart == "before" else 1):
            self.go_on()

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *_: object) -> None:
        self._run.finish()
        shutil.rmtree(os.path.dirname(self.journal))

    @property
    def whole(self) -> bool:
        """Whether all is logged."""
        return not self._parts

    def go_on(self) -> None:
        """Log the next part; behind the last one the run ends."""
        steps, anew = self._parts.pop(0)
        if anew:
            self._begin(steps.start)
        for step in steps:
            row = {f"{PREFIX}{key}": self._value(step, key) for key in range(KEYS)}
            self._run.log(row, step=step)
            self.expected.update((key, step, bits(value)) for key, value in row.items())
        if self.whole:
            self._run.summary["best"] = 0.25
            self._run.finish()

    def _begin(self, back: int) -> None:
        """Begin an attempt, which supersedes what was logged from there on."""
        if self._attempt:
            self._run.finish()
        gone = Counter({point: n for point, n in self.expected.items() if point[1] >= back})
        self.expected -= gone
        self.superseded += gone
        self._attempt += 1
        self._run = eventlog.init(
            self.project,
            "run",
            id="from-name",
            dir=self.journal,
            config={"lr": 1e-3, "attempt": self._attempt},
            quiet=True,
        )

    def _value(self, step: int, key: int) -> float:
        """Return a value that says where it comes from, now and then a hard one."""
        if (step + key) % 37 == 0:
            return SPECIAL[step % len(SPECIAL)]
        return step + key / 16 + self._attempt / 1024


class Series:
    """Kills of syncs into one place.

    Parameters
    ----------
    folder:
        For journals, state folders and the board.
    tell:
        Called with the figures after each run.
    superseded:
        What becomes of superseded points that the target holds (`replayers.superseding`).
    """

    def __init__(
        self,
        place: Place,
        folder: str,
        seed: int,
        tell: Callable[[Figures], None] = lambda figures: None,
        superseded: str = "append",
    ) -> None:
        self.figures = Figures()
        self._place = place
        self._folder = folder
        self._chance = random.Random(seed)
        self._seed = seed
        self._tell = tell
        self._superseded = superseded
        self._board_file = os.path.join(folder, "board")
        self._board = Board(self._board_file)
        #: Of a whole sync that nobody killed: seconds, and calls of the loop.
        self._seconds, self._calls = 0.0, 0

    def run(self, kills: int) -> Figures:
        """Kill so many syncs, and bring the last run to its end."""
        self._one(0, 0)  # to see how long a sync takes
        number = 1
        while self._calls and self.figures.kills < kills:
            self._one(number, kills)
            number += 1
        return self.figures

    def _one(self, number: int, kills: int) -> None:
        folder = os.path.join(self._folder, str(number))
        project = f"kills-{self._seed}-{number}"
        with Story(folder, project, self._chance, self._place.steps) as story:
            while not (number or story.whole):
                story.go_on()
            state = os.path.join(folder, "state")
            failed = self._bring(story, state, kills)
            if failed:
                self._violation(number, failed)
                return
            if not number:
                self._seconds = max(0.01, (self._board.ended - self._board.begun) / 1e9)
                self._calls = self._board.calls
            again = self._sync(story.journal, state, kills=False)
            report = json.loads(again[1]) if again is not None and again[0] == 0 else [{}]
            if [(r.get("sent"), r.get("contacted")) for r in report] != [(0, False)]:
                self._violation(number, f"a sync with nothing to do: {again}")
            self._judge(number, story)
            self._tell(self.figures)

    def _bring(self, story: Story, state: str, kills: int) -> str:
        """Sync until all is logged and there; return what went wrong."""
        figures, chance = self.figures, self._chance
        told_later = 0
        while True:
            ended = self._sync(story.journal, state, kills=figures.kills < kills)
            if ended is None:
                if chance.random() < FORGETS:
                    shutil.rmtree(state, ignore_errors=True)
                    figures.forgotten += 1
                if not story.whole and chance.random() < LOGS:
                    story.go_on()
                continue
            code, text = ended
            told_later = told_later + 1 if code == 75 else 0
            if code == 75 and told_later < PATIENCE:
                figures.later += 1
                time.sleep(0.1)
            elif code:
                return f"exit code {code}: {text[-2000:]}"
            elif story.whole:
                return ""
            else:
                story.go_on()

    def _judge(self, number: int, story: Story) -> None:
        figures = self.figures
        got, wrong = self._place.read(story.project)
        lost, more = story.expected - got, got - story.expected
        if self._superseded == "append":  # those stay that were delivered before
            figures.stayed += (more & story.superseded).total()
            more -= story.superseded
        figures.runs += 1
        figures.points += story.expected.total()
        figures.lost += lost.total()
        figures.double += more.total()
        for name, which in (("lost", lost), ("double or never logged", more)):
            if which:
                some = sorted(which.items())[:3]
                self._violation(number, f"{which.total()} points {name}, such as {some}")
        for text in wrong:
            self._violation(number, text)

    def _violation(self, number: int, text: str) -> None:
        self.figures.violations.append(f"run {number} (seed {self._seed}): {text}")

    # ---------------------------------------------------------------- one sync

    def _sync(self, journal: str, state: str, *, kills: bool) -> tuple[int, str] | None:
        """Sync once; return exit code and what was said, None if it was killed."""
        plan, seconds = self._plan() if kills else ({}, None)
        self._board.clear()
        place, group = self._place, bool(plan.get("group"))
        told = json.dumps({**plan, "board": self._board_file, "worker": place.worker})
        command = ["sync", journal, "--to", place.spec, "--state", state]
        command += ["--superseded", self._superseded]
        process = warm.start(
            [told, *command, "--batch", str(place.batch), "--json"],
            call="tests.targets.killed:live",
            imports=place.imports,
            env={**os.environ, **place.env},
        )
        self.figures.syncs += 1
        if seconds is not None:
            self._kill(process, seconds, group=group)
        try:
            out, err = process.communicate(STUCK)
        except subprocess.TimeoutExpired:
            return -1, f"it did not end in {STUCK} seconds"
        code = process.wait()
        if code != -9:
            return code, out if code == 0 else err + out
        if self._board.at in (BEGINNING, CALLS.index("ended")):
            self.figures.early += 1
        else:
            self.figures.kills += 1
            self.figures.alone += not group
            self.figures.during[CALLS[self._board.at]] += 1
        return None

    def _plan(self) -> tuple[dict[str, Any], float | None]:
        """Draw how a sync is killed: at a call, or after so many seconds."""
        chance = self._chance
        plan: dict[str, Any] = {"group": chance.random() < 0.5}
        drawn = chance.random()
        if drawn < 0.25:
            return plan, chance.uniform(0, self._seconds)
        if drawn < 0.6:
            return plan, chance.uniform(0, self._seconds / 8)
        most = self._calls if drawn < 0.7 else min(30, self._calls)
        when = chance.choice(("before", "half", "after"))
        return {**plan, "at": chance.randint(1, most), "when": when}, None

    def _kill(self, process: warm.Process, seconds: float, *, group: bool) -> None:
        while not self._board.begun and process.poll() is None:
            time.sleep(0.0005)
        left = self._board.begun / 1e9 + seconds - time.monotonic()
        while left > 0 and process.poll() is None:
            time.sleep(min(left, 0.02))
            left = self._board.begun / 1e9 + seconds - time.monotonic()
        if not group:
            process.kill()
            return
        kill_worker(self._board)
        process.kill_group()


def series(
    place: Place,
    kills: int,
    seed: int = 1,
    tell: Callable[[Figures], None] = lambda figures: None,
    superseded: str = "append",
) -> Figures:
    """Kill so many syncs into a place; return what came of it."""
    with tempfile.TemporaryDirectory(prefix="eventlog-kill-", ignore_cleanup_errors=True) as folder:
        return Series(place, str(Path(folder)), seed, tell, superseded).run(kills)
