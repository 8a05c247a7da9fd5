"""Histories of a run's folder for the simulator: random, small, the same for the same seed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from eventlog import runfile
from eventlog.archiving import archive
from eventlog.backlog import Pending
from eventlog.compact import compact
from eventlog.errors import JournalError
from eventlog.event import GAP, Event, Row, make_rows
from eventlog.journal import Options, Writer
from eventlog.reader import listing
from eventlog.seal import seal
from eventlog.segment import Header
from eventlog.value import Stored, dumps
from tests.faults.simulator import (
    SECTOR,
    Disk,
    Judge,
    Killed,
    Operation,
    Recorder,
    State,
    remembering,
)
from tests.helpers import NOW, segment_bytes, series

RUN = runfile.RunFile("run-1", "p", "n")
FOLDER = "run=run-1"


class Told(Writer):
    """A writer that commits when it is told to, whose name and header are the history's."""

    def __init__(self, folder: str, name: str, files: Recorder, **options: Any) -> None:
        self._told = name
        self.expected: list[Event] = []
        super().__init__(
            folder,
            RUN.id,
            {"project": "p", "name": "n"},
            options=Options(group_seconds=60.0, **options),
            files=files,
        )

    def _reset(self, name: str, parent: str | None) -> None:
        super()._reset(self._told, parent)
        self._identity.clear()
        self._identity.update({"project": "p", "name": "n", "attempt": {"ordinal": 1}})

    def _arm(self) -> None:
        self._armed = True

    def write(self, event: Pending) -> int | None:
        """Tell the oracle of a gap, which is the writer's own, before it is written."""
        if event.rows[0].kind != GAP:
            return super().write(event)
        event, at = event._replace(time=NOW), self.seq
        self.expected.insert(at, Event(at, *event))
        self._number()
        try:
            return super().write(event)
        except OSError:
            del self.expected[at]
            self._number()
            raise

    def _number(self) -> None:
        self.expected[:] = [e._replace(seq=n) for n, e in enumerate(self.expected)]


class Content:
    """A value that lies in a blob."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eventlog__(self, put: Any) -> Stored:
        return Stored("blob", None, dumps({"sha256": put(self.data), "size": len(self.data)}))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What may happen in a history, and how often."""

    seed: int
    actions: int = 14
    writers: int = 1
    durability: str = "group"
    segment_bytes: int = 3_000
    memory_bytes: int = 2**20
    blobs: float = 0.08
    commits: float = 0.2
    seals: float = 0.05
    compacts: float = 0.3  # how many sealings are followed by a compaction
    archives: float = (
        0.0  # how often the run is archived at its end, goes on, and is archived again
    )
    fault: str = ""  # the operation that fails, or "kill"
    fault_at: int = 0
    fault_lasts: int = 1

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Return a random plan."""
        rng = random.Random(seed)
        fault = rng.choice(
            ["", "", "sync", "sync", "sync_folder", "write", "create", "kill", "any"]
        )
        return cls(
            seed,
            actions=rng.randint(4, 16),
            writers=rng.choice([1, 1, 1, 2]),
            durability=rng.choice(["group", "group", "sync", "memory", "os"]),
            segment_bytes=rng.choice([2_600, 3_500, 5_000, 10_000, 10**6]),
            memory_bytes=rng.choice([2**20, 2**20, 6_000]),
            blobs=rng.choice([0.0, 0.1, 0.3]),
            commits=rng.choice([0.1, 0.25, 0.5]),
            seals=rng.choice([0.0, 0.1, 0.25]),
            compacts=rng.choice([0.0, 0.5]),
            fault=fault,
            fault_at=rng.randint(1, 60) if fault in ("any", "write", "kill") else rng.randint(1, 9),
            fault_lasts=rng.choice([1, 1, 2, 5]),
            archives=rng.choice([0.0, 0.0, 0.6]),
        )._with_outage(rng)

    def _with_outage(self, rng: random.Random) -> Plan:
        """Return a plan in which a disk has no room for a long time, one time in five."""
        if rng.random() > 0.2:
            return self
        return dataclasses.replace(
            self,
            actions=rng.randint(8, 16),
            memory_bytes=rng.choice([2**20, 6_000, 3_000]),
            blobs=0.4,
            fault=rng.choice(["create", "create", "write", "room"]),
            fault_at=rng.randint(1, 12),
            fault_lasts=rng.choice([5, 15, 40, 10**6]),
        )


@dataclasses.dataclass
class History:
    """What was done, and what each writer was given, in order."""

    operations: list[Operation]
    expected: dict[str, list[Event]]


class Play:
    """Plays a plan in a folder."""

    def __init__(self, plan: Plan, folder: str) -> None:
        self.plan = plan
        self.root = folder
        self.folder = os.path.join(folder, FOLDER)
        self.others: list[str] = []
        self.rng = random.Random(plan.seed * 7919 + 1)
        self.files = Recorder(folder)
        self.files.make_folder(self.folder)
        self.files.fault = self._fault
        self.files.progress = self._progress
        self.writers: dict[str, Told] = {}
        self.expected: dict[str, list[Event]] = {}
        self.said: dict[str, int] = {}
        self._seen = 0

    def _fault(self, n: int, name: str) -> Any:
        plan = self.plan
        if not plan.fault:
            return None
        both = plan.fault == "room" and name in ("create", "write")
        if not both and plan.fault not in ("any", "kill", name):
            return None
        self._seen += 1
        if not plan.fault_at <= self._seen < plan.fault_at + plan.fault_lasts:
            return None
        if plan.fault == "kill":
            return Killed()
        if name == "write" and self.rng.random() < 0.5:
            return self.rng.randint(0, 700)
        return OSError(self.rng.choice([errno.EIO, errno.ENOSPC]), "injected")

    def _progress(self) -> tuple[dict[str, int], dict[str, int]]:
        acked = {name: one.durable for name, one in self.writers.items()}
        given = {name: len(events) for name, events in self.expected.items()}
        return {**self.said, **acked}, given

    def play(self) -> History:
        """Play the plan to its end, killed or not, and what comes after it."""
        with contextlib.suppress(Killed):
            self._lives()
        self.files.fault = lambda n, name: None
        # Whoever comes later on the same machine: nothing of it lives, all of it is to be sealed.
        self.said.update({name: one.durable for name, one in self.writers.items()})
        for one in self.writers.values():
            one._background.stop()
            one._closed = True
            one._chain.abandon()
        self.writers.clear()
        if self.plan.seals and self.rng.random() < 0.7:
            self._seal(abandoned=True)
        if self.rng.random() < self.plan.archives:
            self.archive()
            if self.rng.random() < 0.5:
                self.go_on()
                self.archive()
        self.files.end()
        return History(self.files.operations, self.expected)

    def _lives(self) -> None:
        plan, rng = self.plan, self.rng
        if rng.random() < 0.3:
            with contextlib.suppress(OSError):
                runfile.claim(self.folder, RUN, self.files)
        for n in range(plan.writers):
            name = f"w{n}"
            self.expected[name] = []
            self.writers[name] = Told(
                self.folder,
                name,
                self.files,
                durability=plan.durability,
                segment_bytes=plan.segment_bytes,
                memory_bytes=plan.memory_bytes,
            )
            self.writers[name].expected = self.expected[name]
        for _ in range(plan.actions):
            name = rng.choice(list(self.writers))
            self._act(name, self.writers[name])
        for name, one in self.writers.items():
            if rng.random() < 0.6:
                time = NOW + len(self.expected[name])
                one.close(self._last_words(name, time) if rng.random() < 0.5 else None, time)
        if rng.random() < plan.seals * 3:
            self._seal()

    def _act(self, name: str, one: Told) -> None:
        plan, rng = self.plan, self.rng
        draw = rng.random()
        if draw < plan.commits:
            try:
                one.commit()
            except JournalError:
                if not plan.fault:
                    raise
        elif draw < plan.commits + plan.seals:
            self._seal()
        elif draw < plan.commits + plan.seals + plan.blobs:
            data = rng.choice([b"same", rng.randbytes(rng.randint(1, 1500))])
            self._append(name, one, {"image": Content(data)})
        elif draw < 0.75:
            self._append(name, one, {"loss": rng.random(), "n": rng.randrange(9)})
        else:
            text = "é" * rng.randint(0, 400)
            self._append(name, one, {"t": text, "x": rng.random(), "none": None})

    def _last_words(self, name: str, time: int) -> Callable[[int, bool], list[Row]]:
        known: dict[str, int | None] = dict.fromkeys(listing(self.folder).writers)

        def rows(seq: int, named: bool) -> list[Row]:
            told = {**known, name: seq + 1 if named else None}
            found, _ = make_rows("state", [("writers", told)])
            expected = self.expected[name]
            expected.append(Event(len(expected), time, None, tuple(found)))
            return found

        return rows

    def _append(self, name: str, one: Told, data: dict[str, Any]) -> None:
        step = self.rng.choice([None, self.rng.randrange(100)])
        given = {k: self._stored(one, v) if isinstance(v, Content) else v for k, v in data.items()}
        rows, refused = make_rows("metric", given.items())
        assert not refused, refused
        expected = self.expected[name]
        time = NOW + len(expected)
        # The oracle is told before: an event may be on the disk before its append returns.
        expected.append(Event(len(expected), time, step, tuple(rows)))
        lost = one.health().dropped
        one.append("metric", given, step, time)
        if one.health().dropped > lost:
            expected.pop()

    def _stored(self, one: Told, value: Content) -> Stored:
        try:
            return value.__eventlog__(one.put_blob)
        except OSError:
            return Stored("null", None, None)

    def _seal(self, *, abandoned: bool = False) -> None:
        with contextlib.suppress(OSError, Killed):
            seal(self.folder, abandoned=abandoned, files=self.files)
            if self.rng.random() < self.plan.compacts:
                compact(self.folder, files=self.files)

    def archive(self) -> None:
        """Seal what is there, and archive it with another run, made for that."""
        self._seal(abandoned=True)
        with contextlib.suppress(OSError, Killed):
            self.others.append(self._other(f"o{len(self.others)}"))
            runfile.claim(self.folder, RUN, self.files)
            folders = [self.folder, *self.others]
            archive(self.root, folders, unchanged=0, files=self.files)

    def _other(self, name: str) -> str:
        folder = os.path.join(self.root, f"run={name}")
        self.files.make_folder(folder)
        runfile.claim(folder, runfile.RunFile(name, "p", name), self.files)
        data = segment_bytes(series(2), Header(name, name, 0, 0, {}), end=True)[0]
        fd = self.files.create(os.path.join(folder, f"{name}-0.arrows"))
        self.files.write(fd, data)
        self.files.close(fd)
        seal(folder, files=self.files)
        return folder

    def go_on(self) -> None:
        """Log with a new writer, as a run does that is resumed."""
        name = f"w{len(self.expected)}"
        self.expected[name] = []
        one = self.writers[name] = Told(self.folder, name, self.files, durability="group")
        for _ in range(3):
            self._append(name, one, {"loss": self.rng.random()})
        one.commit()
        self._append(name, one, {"loss": self.rng.random()})
        one.close()
        self.said[name] = one.durable
        del self.writers[name]


def archived_twice(plan: Plan, killed_at: int) -> tuple[History, bool]:
    """Play a plan, archive it with a kill at one operation of that, then archive it again; return
    whether the kill came.
    """
    with tempfile.TemporaryDirectory(prefix="eventlog-crash-", dir=_fast()) as folder:
        one = Play(plan, os.path.realpath(folder))
        one.play()
        one.files.operations.pop()
        first = one.files.count
        one.files.fault = lambda n, name: Killed() if n == first + killed_at else None
        one.archive()
        came = one.files.count >= first + killed_at
        one.files.fault = lambda n, name: None
        one.archive()
        one.files.end()
        return History(one.files.operations, one.expected), came


def sealed_twice(plan: Plan, killed_at: int) -> tuple[History, bool]:
    """Play a plan, seal it with a kill at one operation of the sealing, then seal it again; return
    whether the kill came.
    """
    with tempfile.TemporaryDirectory(prefix="eventlog-crash-", dir=_fast()) as folder:
        one = Play(plan, os.path.realpath(folder))
        one.play()
        one.files.operations.pop()
        first = one.files.count
        one.files.fault = lambda n, name: Killed() if n == first + killed_at else None
        one._seal(abandoned=True)
        came = one.files.count >= first + killed_at
        one.files.fault = lambda n, name: None
        one._seal(abandoned=True)
        one.files.end()
        return History(one.files.operations, one.expected), came


def play(plan: Plan) -> History:
    """Play a plan in a folder of its own and remove it."""
    with tempfile.TemporaryDirectory(prefix="eventlog-crash-", dir=_fast()) as folder:
        return Play(plan, os.path.realpath(folder)).play()


def _fast() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclasses.dataclass(frozen=True)
class Violation:
    """A state that breaks a promise, and what makes it again: `number` counts the states of the
    history of that seed.
    """

    seed: int
    number: int
    at: int
    operation: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        where = f"--seed {self.seed} --state {self.number}"
        return f"{where}: before operation {self.at} ({self.operation}): {'; '.join(self.faults)}"


@dataclasses.dataclass
class Figures:
    """What one history gave."""

    states: int = 0
    distinct: int = 0
    operations: int = 0
    violations: list[Violation] = dataclasses.field(default_factory=list)


def explore(plan: Plan, limit: int, *, most: int = 3) -> Figures:
    """Check up to `limit` states after each operation of a plan."""
    history = play(plan)
    return judged(history, plan.seed, limit, most=most)


def states(history: History, seed: int, limit: int) -> Iterator[tuple[int, Operation, State]]:
    """Yield up to `limit` states before each operation of a history, with its place."""
    rng, disk = random.Random(seed), Disk()
    for at, done in enumerate(history.operations):
        with remembering():
            for state in disk.states(limit, rng):
                yield at, done, state
        disk.apply(done)


def judged(history: History, seed: int, limit: int, *, most: int = 3) -> Figures:
    """Check up to `limit` states after each operation of a history."""
    out = Figures(operations=len(history.operations))
    judge = Judge("/p", FOLDER, history.expected)
    for number, (at, done, state) in enumerate(states(history, seed, limit)):
        faults = judge.check(state, done)
        if faults and len(out.violations) < most:
            out.violations.append(Violation(seed, number, at, done.name, tuple(faults)))
    out.states, out.distinct = judge.states, judge.distinct
    return out


def told(seed: int, limit: int, number: int) -> Iterator[str]:
    """Yield in words the history of a seed up to one of its states, the state, and what is wrong
    with it.
    """
    plan = Plan.of(seed)
    history = play(plan)
    yield str(plan)
    found = next(itertools.islice(states(history, seed, limit), number, None), None)
    if found is None:
        yield f"the history of seed {seed} has no state {number}"
        return
    place, done, state = found
    for at, one in enumerate(history.operations[:place]):
        what = f"{one.path} {one.target}".strip() or f"file {one.file}"
        size = f", {len(one.data)} bytes" if one.data else ""
        yield f"{at:>4} {one.name:12}{what}{size}; durable {dict(one.acked)}"
    yield f"the power is cut before operation {place} ({done.name}); it leaves:"
    for path, data in sorted(state.items()):
        holes = [n for n in range(0, len(data), SECTOR) if not any(data[n : n + SECTOR])]
        yield f"     {path}: {len(data)} bytes{f', zeros at {holes}' if holes else ''}"
    with remembering():
        faults = Judge("/p", FOLDER, history.expected).check(state, done)
    yield from faults or ["no promise is broken"]


def kept(seed: int, limit: int, number: int, folder: str) -> None:
    """Write the files of a state into a folder."""
    history = play(Plan.of(seed))
    _at, _done, state = next(itertools.islice(states(history, seed, limit), number, None))
    for path, data in state.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(data)
