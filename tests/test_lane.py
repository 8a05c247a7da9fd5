"""Many runs into one target: turns, parallel runs, and failures that stay where they are."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.cli.main import run as run_command
from eventlog.errors import AuthenticationError, IntegrityError, UsageError
from replayers import lane as module
from replayers.compare import compare
from replayers.lane import Lane, work
from replayers.lease import Lease
from replayers.pace import Backoff, Breaker, Pace
from replayers.replay import Settings, run_info
from replayers.stream import Stream
from replayers.target import Change, Down, RunInfo
from replayers.to_memory import MemorySession, MemoryTarget

QUICK = Settings(batch_rows=10, tries=2, backoff=(0.0, 0.001))


def make_runs(folder: Path, count: int, steps: int = 20) -> list[Found]:
    for n in range(count):
        with eventlog.init("p", f"run {n:03}", id=f"r{n:03}", dir=folder, quiet=True) as run:
            for step in range(steps):
                run.log({"loss": step / 7, "n": n}, step=step)
    return find_all([str(folder)])[0]


class Watched(MemoryTarget):
    """Notes who sends when, and does to a send what a test wants."""

    def __init__(self, before: Callable[[str], None] = lambda run: None) -> None:
        super().__init__()
        self.log: list[str] = []
        self.now: set[str] = set()
        self.most = 0
        self.threads: set[int] = set()
        self.lock = threading.Lock()
        self.before = before
        self.closed = 0

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        plain = session.send

        def send(batch: Any) -> list[Change]:
            with self.lock:
                assert run.id not in self.now, "one run, two threads"
                self.now.add(run.id)
                self.most = max(self.most, len(self.now))
                self.log.append(run.id)
                self.threads.add(threading.get_ident())
            try:
                self.before(run.id)
                return plain(batch)
            finally:
                with self.lock:
                    self.now.discard(run.id)

        session.send = send  # type: ignore[method-assign]
        return session

    def close(self) -> None:
        self.closed += 1


def sync(
    found: list[Found], target: MemoryTarget, state: Path, *, jobs: int = 1
) -> tuple[Lane, list[str]]:
    said: list[str] = []
    stop = threading.Event()
    lane = Lane(lambda: target, jobs=jobs, pace=Pace(stop=stop), tell=said.append)
    for item in found:
        lane.add(Stream(item, str(state), QUICK, lane.pace))
    work([lane], stop)
    return lane, said


def check(found: list[Found], target: MemoryTarget) -> None:
    for item in found:
        result = compare(item.folder, target, target.open(run_info(item, None)))
        assert result.equal, result


def test_runs_are_sent_side_by_side_each_in_order_and_once(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 12)
    meet = threading.Barrier(4, timeout=180)
    met = threading.Event()

    def before(run: str) -> None:
        if not met.is_set():
            meet.wait()
            met.set()

    target = Watched(before)
    lane, said = sync(found, target, tmp_path / "state", jobs=4)
    assert target.most == 4
    assert not said
    assert [stream.exit_code for stream in lane.streams()] == [0] * 12
    check(found, target)
    assert target.closed == 1


def test_a_long_run_takes_turns_with_the_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE", 0.0)
    found = make_runs(tmp_path / "j", 1, steps=300) + make_runs(tmp_path / "k", 3)[1:]
    target = Watched()
    lane, _said = sync(found, target, tmp_path / "state")
    last = {run: max(i for i, x in enumerate(target.log) if x == run) for run in set(target.log)}
    assert last["r001"] < last["r000"]
    assert last["r002"] < last["r000"]
    assert [s.outcome.sent for s in lane.streams() if s.outcome] == [303 - 1, 22, 22]
    check(found, target)


@pytest.mark.parametrize(
    ("error", "code"),
    [(IntegrityError("not ours"), 4), (ValueError("a bug"), 1), (OSError(28, "no space"), 75)],
)
def test_a_run_that_fails_stops_no_other(tmp_path: Path, error: Exception, code: int) -> None:
    def before(run: str) -> None:
        if run == "r001":
            raise error

    found = make_runs(tmp_path / "j", 5)
    target = Watched(before)
    lane, said = sync(found, target, tmp_path / "state", jobs=2)
    assert [stream.exit_code for stream in lane.streams()] == [0, code, 0, 0, 0]
    assert len(said) == 1
    assert "p/run 001 -> memory:here: " in said[0]
    check([found[0], *found[2:]], target)


def test_a_target_that_is_down_is_tried_by_a_few_and_the_rest_is_named(tmp_path: Path) -> None:
    tried: set[str] = set()

    def before(run: str) -> None:
        tried.add(run)
        raise Down("nobody answers")

    found = make_runs(tmp_path / "j", 8)
    lane, said = sync(found, Watched(before), tmp_path / "state")
    assert len(tried) == module.LOOKS
    assert [stream.exit_code for stream in lane.streams()] == [75] * 8
    assert said[-1] == "5 more runs not tried: memory:here cannot be reached"


def test_who_is_refused_is_not_asked_again(tmp_path: Path) -> None:
    def before(run: str) -> None:
        raise AuthenticationError("who are you")

    found = make_runs(tmp_path / "j", 4)
    target = Watched(before)
    lane, _said = sync(found, target, tmp_path / "state")
    assert len(target.log) == 1
    assert [stream.exit_code for stream in lane.streams()] == [5] * 4


def test_targets_do_not_wait_for_each_other(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 3)
    stop, free = threading.Event(), threading.Event()
    stuck = Watched(lambda run: free.wait(60) and None)
    stuck.address = "stuck"
    good = Watched()
    lanes = [Lane(lambda t=t: t, pace=Pace(stop=stop)) for t in (stuck, good)]
    for lane in lanes:
        for item in found:
            lane.add(Stream(item, str(tmp_path / "state"), QUICK, lane.pace))

    def tick() -> None:
        if lanes[1].idle():
            free.set()

    work(lanes, stop, tick)
    check(found, good)
    check(found, stuck)


def test_an_interrupt_ends_behind_the_batch_and_the_next_sync_goes_on(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 4, steps=100)
    stop = threading.Event()

    def before(_run: str) -> None:
        if len(target.log) > 6:
            stop.wait(120)  # and not to the end before anybody looked

    target = Watched(before)
    lane = Lane(lambda: target, jobs=2, pace=Pace(stop=stop))
    for item in found:
        lane.add(Stream(item, str(tmp_path / "state"), QUICK, lane.pace))

    def tick() -> None:
        if len(target.log) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work([lane], stop, tick)
    sent = len(target.log)
    whole = Watched()
    sync(found, whole, tmp_path / "other")
    assert sent < len(whole.log)
    assert target.closed == 1
    sync(found, target, tmp_path / "state", jobs=2)
    assert len(target.log) == len(whole.log), "no batch was sent again"
    check(found, target)


def test_a_lease_that_is_held_is_temporary_and_stops_no_other_run(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 3)
    target = MemoryTarget()
    stream = Stream(found[1], str(tmp_path / "state"), QUICK, Pace())
    stream.step(target, lambda: True)  # with nothing left to be done nobody needs the lease
    assert stream.open
    lane, said = sync(found, target, tmp_path / "state")
    assert [s.exit_code for s in lane.streams()] == [0, 75, 0]
    assert "another sync holds this run and target (process " in said[0]
    stream.close()
    lane, _said = sync(found, target, tmp_path / "state")
    assert [s.exit_code for s in lane.streams()] == [0, 0, 0]


def test_a_holder_elsewhere_that_may_be_dead_is_waited_for_while_the_others_go_on(
    tmp_path: Path,
) -> None:
    found = make_runs(tmp_path / "j", 3)
    target = Watched()
    stream = Stream(found[0], str(tmp_path / "state"), QUICK, Pace())
    stream.step(target, lambda: True)
    folder = Path(str(tmp_path / "state"), "memory%3Ahere", "p", "r000")
    stream.close()
    (folder / "lease-9.held").write_text('{"host": "gone", "pid": 7, "period": 0.05}')
    lane, said = sync(found, target, tmp_path / "state")
    assert [s.exit_code for s in lane.streams()] == [0, 0, 0]
    assert target.log[-1] == "r000"
    assert not said
    check(found, target)


# ---------------------------------------------------------------------- lanes that stay


class Staying:
    """A lane that stays, worked on in a thread of its own."""

    def __init__(self, target: MemoryTarget, state: Path, jobs: int = 2) -> None:
        self.said: list[str] = []
        self.stop = threading.Event()
        self.over = threading.Event()
        self.state = state
        pace = Pace(stop=self.stop)
        self.lane = Lane(lambda: target, jobs=jobs, stay=True, pace=pace, tell=self.said.append)
        self.lane.breaker = Breaker(Backoff(0.01, 0.02))
        self.thread = threading.Thread(
            target=work, args=([self.lane], self.stop, self.tick), daemon=True
        )
        self.thread.start()

    def tick(self) -> float | None:
        return None if self.over.is_set() else 0.01

    def add(self, item: Found) -> Stream:
        stream = Stream(item, str(self.state), QUICK, self.lane.pace)
        stream.backoff = Backoff(0.01, 0.02)
        self.lane.add(stream)
        return stream

    def end(self) -> None:
        self.over.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so, for as long as a test may take."""
    while not holds():
        time.sleep(0.005)


def test_a_target_that_is_down_is_tried_again_and_catches_up_in_order(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 4)
    down = True

    def before(run: str) -> None:
        if down:
            raise Down("nobody answers")

    target = Watched(before)
    staying = Staying(target, tmp_path / "state")
    for item in found:
        staying.add(item)
    until(lambda: len(target.log) > 6)
    assert staying.lane.breaker.open
    down = False
    until(staying.lane.idle)
    staying.end()
    check(found, target)
    down_lines = [line for line in staying.said if "nobody answers; tried again in" in line]
    assert len(down_lines) == 1, "an outage is one line"
    assert staying.said[-1] == "memory:here: answers again"


def test_a_run_that_fails_is_tried_again_by_its_own_back_off(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 3)
    left = 3

    def before(run: str) -> None:
        nonlocal left
        if run == "r001" and left:
            left -= 1
            raise IntegrityError("not now")

    target = Watched(before)
    staying = Staying(target, tmp_path / "state", jobs=1)
    for item in found:
        staying.add(item)
    until(lambda: left == 0 and staying.lane.idle())
    staying.end()
    check(found, target)
    assert len(staying.said) == 1, "a failure that lasts is one line"
    assert "p/run 001 -> memory:here: not now; tried again in" in staying.said[0]


def test_a_run_that_fails_for_another_reason_says_so(tmp_path: Path) -> None:
    found = make_runs(tmp_path / "j", 1)
    reasons = ["one", "one", "another", "another", "one"]

    def before(_run: str) -> None:
        if reasons:
            raise IntegrityError(reasons.pop(0))

    staying = Staying(Watched(before), tmp_path / "state", jobs=1)
    staying.add(found[0])
    until(lambda: not reasons and staying.lane.idle())
    staying.end()
    said = [line.split(": ")[1].split(";")[0] for line in staying.said]
    assert said == ["one", "another", "one"]


def test_quiet_runs_are_let_go_of_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    found = make_runs(tmp_path / "j", 6)
    target = Watched()
    staying = Staying(target, tmp_path / "state")
    added = [staying.add(item) for item in found]
    until(lambda: staying.lane.idle() and sum(s.open for s in added) <= 2)
    closed = next(s for s in added if not s.open)
    with Lease(str(tmp_path / "state" / "memory%3Ahere" / "p" / closed.found.run.id), wait=False):
        pass
    target.runs.clear()
    shutil.rmtree(closed.state)
    for stream in added:
        staying.lane.add(stream)
    until(staying.lane.idle)
    staying.end()
    # Those that were open believe their cursor and send nothing; the others ask.
    assert closed.found.run.id in target.runs
    assert not any(s.open for s in added)


def test_a_target_that_cannot_be_made_again_ends_no_thread(tmp_path: Path) -> None:
    """Of a target of one run at a time another one is made for each run: its configuration may have
    gone since.
    """
    found = make_runs(tmp_path / "j", 3)
    made: list[MemoryTarget] = []

    def make() -> MemoryTarget:
        if len(made) > 1:
            raise UsageError("the configuration has gone")
        made.append(Watched())
        made[-1].one_run = True  # type: ignore[attr-defined]
        return made[-1]

    lane = Lane(make)
    for item in found:
        lane.add(Stream(item, str(tmp_path / "state"), QUICK, lane.pace))
    worker = threading.Thread(target=work, args=([lane], threading.Event()), daemon=True)
    worker.start()
    worker.join(120)
    assert not worker.is_alive()
    assert [stream.exit_code for stream in lane.streams()] == [0, 2, 2]


def test_a_run_whose_sealing_breaks_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: str) -> None:
        raise LookupError("of a kind that nobody thought of")

    for name in ("a", "b"):
        with eventlog.init("p", name, id=name, dir=tmp_path / "j", quiet=True) as run:
            run.log({"x": 1.0}, step=0)
    monkeypatch.setattr("eventlog.seal.seal", broken)
    assert run_command(["sync", str(tmp_path / "j"), "--to", "memory"]) == 0
    told = capsys.readouterr()
    assert told.err.count("not sealed; this is a bug: LookupError") == 2
    assert "Traceback" not in told.err
