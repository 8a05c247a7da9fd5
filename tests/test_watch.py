"""Following runs while they are written: what is noticed, what is not read, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import Found
from eventlog.errors import UsageError
from eventlog.seal import seal
from replayers.changes import Changes
from replayers.compare import compare
from replayers.lane import Lane, work
from replayers.pace import Backoff, Breaker, Pace
from replayers.replay import Settings, run_info
from replayers.sending import stream_of
from replayers.target import Down, RunInfo
from replayers.to_memory import MemorySession, MemoryTarget
from replayers.watch import Watch, lag

QUICK = Settings(batch_rows=50, tries=1)


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.01)


def ids(found: list[Found]) -> list[str]:
    return sorted(item.run.id for item in found)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_grows_is_noticed_and_new_runs_too(tmp_path: Path, clock: Clock) -> None:
    changes = Changes([str(tmp_path / "j")], clock=clock)
    assert changes.poll() == [], "a journal that is not there yet is waited for"
    a = eventlog.init("p", "a", id="a", dir=tmp_path / "j", quiet=True)
    assert ids(changes.poll()) == ["a"]
    assert changes.poll() == []
    for _ in range(3):
        clock.now += 10
        assert changes.poll() == []
        a.log({"x": 1})
        assert ids(changes.poll()) == ["a"]
    b = eventlog.init("q", "b", id="b", dir=tmp_path / "j", quiet=True)
    assert ids(changes.poll()) == ["b"]
    clock.now += 100
    assert changes.poll() == []
    a.finish()
    b.log({"x": 1})
    assert ids(changes.poll()) == ["a", "b"]
    b.finish()
    assert ids(changes.poll()) == ["b"]
    clock.now += 100
    changes.poll()
    assert changes.poll() == []
    assert ids(changes.runs()) == ["a", "b"]


def test_files_that_a_copy_brings_are_noticed(tmp_path: Path, clock: Clock) -> None:
    with eventlog.init("p", "a", id="a", dir=tmp_path / "j", quiet=True) as run:
        run.log({"x": 1})
    changes = Changes([str(tmp_path / "copy")], clock=clock)
    (tmp_path / "copy").mkdir()
    assert changes.poll() == []
    assert changes.waiting == [str(tmp_path / "copy")]
    whole = Path(str(run.folder))
    there = tmp_path / "copy" / whole.parent.name / whole.name
    (there / "sealed").mkdir(parents=True)
    (there / "run.json").write_bytes((whole / "run.json").read_bytes())
    assert ids(changes.poll()) == ["a"]
    clock.now += 100
    changes.poll()
    assert changes.poll() == []
    (file,) = (whole / "sealed").iterdir()
    (there / "sealed" / file.name).write_bytes(file.read_bytes())
    assert ids(changes.poll()) == ["a"]


def test_the_end_of_a_process_that_said_nothing_is_noticed(tmp_path: Path, clock: Clock) -> None:
    code = f"""
import eventlog, os
run = eventlog.init("p", "a", id="a", dir={str(tmp_path / "j")!r}, quiet=True)
run.log({{"x": 1}})
print("logged", flush=True)
input()
os.kill(os.getpid(), 9)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "logged\n"
    changes = Changes([str(tmp_path / "j")], clock=clock)
    changes.poll()
    clock.now += 10
    assert changes.poll() == []
    assert not changes.over(0.0)
    child.communicate("now\n")
    clock.now += 10
    assert ids(changes.poll()) == ["a"]
    assert changes.poll() == []
    assert not changes.over(60.0)
    clock.now += 61
    assert changes.over(60.0)


def test_nothing_of_a_quiet_run_is_opened(tmp_path: Path, clock: Clock) -> None:
    for n in range(5):
        eventlog.init("p", f"r{n}", dir=tmp_path / "j", quiet=True).log({"x": 1})
    changes = Changes([str(tmp_path / "j")], clock=clock)
    changes.poll()
    clock.now += 10
    changes.poll()
    opened: list[str] = []
    armed, here = True, threading.get_ident()

    def hook(name: str, args: tuple[Any, ...]) -> None:
        mine = threading.get_ident() == here  # those who write have threads
        if armed and mine and name in ("open", "os.listdir", "os.scandir"):
            opened.extend(str(a) for a in args[:1] if not str(a).startswith("/proc/"))

    sys.addaudithook(hook)
    for _ in range(5):
        clock.now += 1
        changes.poll()
    armed = False
    assert opened == []


def test_runs_that_do_not_belong_are_left_alone(tmp_path: Path, clock: Clock) -> None:
    for name in ("mine", "yours"):
        eventlog.init("p", name, id=name, dir=tmp_path / "j", quiet=True).finish()
    mine = Changes([str(tmp_path / "j")], belongs=lambda f: f.run.id == "mine", clock=clock)
    assert ids(mine.poll()) == ["mine"]
    named = Changes([str(tmp_path / "j")], ["you*"], clock=clock)
    assert ids(named.poll()) == ["yours"]


# ---------------------------------------------------------------------- lanes


class Target(MemoryTarget):
    """A model that can be down."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.down = False
        self.tried = 0

    def open(self, run: RunInfo) -> MemorySession:
        self._look()
        session = super().open(run)
        plain = session.send
        session.send = lambda batch: self._look() or plain(batch)  # type: ignore[func-returns-value, method-assign]
        return session

    def _look(self) -> None:
        self.tried += 1
        if self.down:
            raise Down("nobody answers")


class Following:
    """A watch of this process, in a thread."""

    def __init__(self, journal: Path, state: Path, targets: list[Target], **options: Any) -> None:
        self.stop = threading.Event()
        self.over = False
        self.said: list[str] = []
        self.changes = Changes([str(journal)])
        self.lanes = []
        for target in targets:
            lane = Lane(
                lambda target=target: target,  # type: ignore[misc]
                jobs=2,
                stay=True,
                pace=Pace(stop=self.stop),
                tell=self.said.append,
            )
            lane.breaker = Breaker(Backoff(0.05, 0.1))
            self.lanes.append(lane)
        self.watch = Watch(
            self.changes,
            self.lanes,
            lambda found, lane: stream_of(found, lane, str(state), QUICK),
            interval=0.05,
            **options,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        work(self.lanes, self.stop, lambda: None if self.over else self.watch.tick())

    def end(self) -> None:
        self.over = True
        self.join()

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


def check(journal: Path, target: MemoryTarget) -> None:
    for item in Changes([str(journal)]).poll():
        result = compare(item.folder, target, target.open(run_info(item, None)))
        assert result.equal, result
        assert result.held


def test_a_target_that_is_down_holds_up_no_other_and_catches_up(tmp_path: Path) -> None:
    good, bad = Target("good"), Target("bad")
    bad.down = True
    following = Following(tmp_path / "j", tmp_path / "state", [good, bad])
    runs = [eventlog.init("p", f"r{n}", dir=tmp_path / "j", quiet=True) for n in range(3)]
    for step in range(60):
        for run in runs:
            run.log({"loss": step / 7}, step=step)
        if step == 30:
            until(lambda: len(good.runs) == 3 and bad.tried > 3)
            late = lag(following.lanes[1])
            assert late.down
            assert late.seconds > 0
            assert late.unread + late.events > 0
    for run in runs:
        run.finish()

    def delivered(target: Target) -> bool:
        states = [stored.state for stored in target.runs.values()]
        return len(states) == 3 and all(s is not None and s.status == "finished" for s in states)

    until(lambda: delivered(good))
    assert not bad.runs
    bad.down = False
    until(lambda: delivered(bad) and following.watch.delivered())
    assert lag(following.lanes[1]).seconds == 0
    assert lag(following.lanes[1]).events == 0
    following.end()
    check(tmp_path / "j", good)
    check(tmp_path / "j", bad)
    assert len([x for x in following.said if "nobody answers" in x]) == 1
    assert following.said[-1] == "memory:bad: answers again"


def test_it_ends_once_all_has_ended_and_was_delivered(tmp_path: Path) -> None:
    target = Target("here")
    following = Following(
        tmp_path / "j", tmp_path / "state", [target], until_finished=True, grace=0.3
    )
    run = eventlog.init("p", "r", id="x", dir=tmp_path / "j", quiet=True)
    until(lambda: "x" in target.runs)
    assert following.thread.is_alive()
    run.log({"loss": 1.0}, step=1)
    run.finish()
    following.join()
    state = target.runs["x"].state
    assert state is not None
    assert state.status == "finished"
    check(tmp_path / "j", target)


def test_a_target_that_stays_down_is_given_up_when_the_drain_is_over(tmp_path: Path) -> None:
    good, bad = Target("good"), Target("bad")
    bad.down = True
    with eventlog.init("p", "r", dir=tmp_path / "j", quiet=True) as run:
        run.log({"loss": 1.0}, step=1)
    following = Following(
        tmp_path / "j",
        tmp_path / "state",
        [good, bad],
        until_finished=True,
        grace=0.0,
        drain=0.3,
    )
    following.join()
    check(tmp_path / "j", good)
    codes = [stream.exit_code for lane in following.lanes for stream in lane.streams()]
    assert codes == [0, 75]


def test_one_id_of_a_target_cannot_be_that_of_a_second_run_that_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    changes = Changes([str(tmp_path / "j")])
    watch = Watch(changes, [], lambda found, lane: pytest.fail("no lane"))
    eventlog.init("p", "a", dir=tmp_path / "j", quiet=True).finish()
    watch.look()
    eventlog.init("p", "b", dir=tmp_path / "j", quiet=True).finish()
    with pytest.raises(UsageError, match="names one run, and 2 are selected"):
        watch.look()


# ---------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "eventlog.cli.main", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def points(folder: Path) -> int:
    """Return how many rows of metrics a Trackio folder holds."""
    import sqlite3

    found = 0
    for path in folder.glob("*.db"):
        with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
            try:
                found += connection.execute("SELECT count(*) FROM metrics").fetchone()[0]
            except sqlite3.OperationalError:
                continue
    return found


def test_the_command_follows_into_trackio_and_an_interrupt_leaves_a_safe_cursor(
    tmp_path: Path, command: Callable[..., subprocess.Popen[str]]
) -> None:
    to = ["--to", f"trackio:{tmp_path / 't'}"]
    process = command("sync", tmp_path / "j", *to, "--watch", "--interval", 0.1)
    run = eventlog.init("p", "r", id="x", dir=tmp_path / "j", quiet=True)
    for step in range(40):
        run.log({"loss": step / 7}, step=step)
        if step in (10, 20, 30):
            until(lambda: points(tmp_path / "t") >= step)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    run.finish()
    seal(str(run.folder))
    last = command(
        "sync", tmp_path / "j", *to, "--watch", "--until-finished", "--grace", 0, "--json"
    )
    out, err = last.communicate(timeout=180)
    assert last.returncode == 0, err
    (report,) = json.loads(out.splitlines()[-1])["reports"]
    assert (report["settled"], report["events"]) == (42, 42)
    assert report["sent"] <= 2 + 10
    assert points(tmp_path / "t") == 40
