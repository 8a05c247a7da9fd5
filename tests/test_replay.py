"""The loop against the model target: exactly once, whatever happens between send and cursor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import eventlog
from eventlog import blobs
from eventlog.catalog import Found, find_all
from eventlog.delivery import Delivery
from eventlog.errors import AuthenticationError, IntegrityError, TemporaryError
from eventlog.journal import Options, Writer
from eventlog.runfile import RunFile, claim
from eventlog.value import loads
from replayers.compare import compare
from replayers.lease import Lost
from replayers.positions import Positions
from replayers.replay import Outcome, Replayer, Settings, replay, run_info
from replayers.target import Change, Down, Rejected, Retry, RunInfo
from replayers.to_memory import MemorySession, MemoryTarget
from tests.helpers import sliced
from tests.model import rows_of

QUICK = Settings(batch_rows=7, tries=3, backoff=(0.0, 0.001))


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """A run of 30 steps with two metrics each."""
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", config={"a": 1}, quiet=True) as run:
        for step in range(30):
            run.log({"loss": step / 7, "nan": float("nan")}, step=step)
    (item,), _bad = find_all([str(tmp_path / "j")])
    return item


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def sync(found: Found, target: MemoryTarget, state: str) -> Outcome:
    return replay(found, target, state, settings=QUICK)


def check(found: Found, target: MemoryTarget, points: int = 60) -> None:
    """The target holds exactly the effective view."""
    result = compare(found.folder, target, target.open(run_info(found, None)))
    assert result.equal, result
    assert result.held == points


class Failing(MemoryTarget):
    """Raises at one call of send, before or after it stored."""

    def __init__(self, errors: dict[int, tuple[str, Exception]]) -> None:
        super().__init__()
        self.errors = errors
        self.calls = 0

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        plain = session.send

        def send(batch: Any) -> list[Change]:
            self.calls += 1
            when, error = self.errors.get(self.calls, ("", None))
            if when == "half":
                middle = batch.column("seq")[batch.num_rows // 2].as_py()
                plain(batch.filter(pc.less(batch.column("seq"), middle)))
            if when == "after":
                plain(batch)
            if error is not None:
                raise error
            return plain(batch)

        session.send = send  # type: ignore[method-assign]
        return session


def test_everything_arrives_once_and_a_second_sync_asks_nothing(found: Found, state: str) -> None:
    target = MemoryTarget()
    first = sync(found, target, state)
    assert (first.sent, first.points, first.settled) == (33, 60, 33)
    check(found, target)
    assert target.runs["x"].state is not None
    assert target.runs["x"].state.status == "finished"
    second = sync(found, target, state)
    assert (second.sent, second.contacted) == (0, False)


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("call", sliced(range(1, 12), 3))
def test_a_failure_at_any_send_is_tried_again(
    found: Found, state: str, when: str, call: int
) -> None:
    target = Failing({call: (when, Retry("not now")), call + 1: (when, Down("gone"))})
    sync(found, target, state)
    check(found, target)


class Dead(BaseException):
    """Ends a sync as a SIGKILL would: nobody catches it."""


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("call", sliced(range(1, 12), 3))
def test_death_at_any_send_and_a_second_sync_ends_exact(
    found: Found, state: str, when: str, call: int
) -> None:
    target = Failing({call: (when, Dead())})  # type: ignore[dict-item]
    with pytest.raises(Dead):
        sync(found, target, state)
    sync(found, target, state)
    check(found, target)


@pytest.mark.parametrize("operation", sliced(range(1, 40), 4))
def test_death_at_any_write_of_the_state_ends_exact(
    found: Found, state: str, operation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    plain = Delivery.save
    count = 0

    def save(self: Delivery, cursor: Any) -> None:
        nonlocal count
        count += 1
        if count == operation:
            raise Dead
        plain(self, cursor)

    monkeypatch.setattr(Delivery, "save", save)
    try:
        sync(found, target, state)
    except Dead:
        monkeypatch.setattr(Delivery, "save", plain)
        sync(found, target, state)
    check(found, target)


def test_a_lost_cursor_is_rebuilt_from_what_the_target_holds(found: Found, state: str) -> None:
    target = MemoryTarget()
    sync(found, target, state)
    sends = target.runs["x"].sends
    shutil.rmtree(state)
    again = sync(found, target, state)
    assert (again.sent, target.runs["x"].sends) == (0, sends)
    check(found, target)


def test_every_flip_in_the_cursor_file_is_harmless(
    found: Found, state: str, repeats: Callable[[int, int], int]
) -> None:
    target = MemoryTarget()
    sync(found, target, state)
    (path,) = Path(state).rglob("cursor.json")
    content = path.read_bytes()
    for at in range(0, len(content), repeats(37, 1)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        sync(found, target, state)
        check(found, target)


def test_a_target_that_answers_and_does_not_store_is_not_believed(found: Found, state: str) -> None:
    class Liar(MemoryTarget):
        def open(self, run: RunInfo) -> MemorySession:
            session = super().open(run)
            session.send = lambda batch: []  # type: ignore[method-assign, assignment]
            return session

    with pytest.raises(TemporaryError, match="does not hold it"):
        sync(found, Liar(), state)
    delivery = Delivery(state, kind="memory", address="here", project="p", run="x")
    cursor, _known = delivery.load()
    assert all(mark.acked == 0 for mark in cursor.writers.values())


def test_a_refused_event_goes_into_quarantine_and_holds_up_nothing(
    found: Found, state: str
) -> None:
    class Picky(MemoryTarget):
        def open(self, run: RunInfo) -> MemorySession:
            session = super().open(run)
            plain = session.send

            def send(batch: Any) -> list[Change]:
                bad = {5, 17} & set(batch.column("seq").to_pylist())
                if bad:
                    raise Rejected("poison", seqs=bad)
                return plain(batch)

            session.send = send  # type: ignore[method-assign]
            return session

    target = Picky()
    outcome = sync(found, target, state)
    assert (outcome.quarantined, outcome.settled, outcome.events) == (2, 33, 33)
    delivery = Delivery(state, kind="memory", address="here", project="p", run="x")
    refused = [entry for entry in delivery.ledger() if entry["kind"] == "quarantine"]
    assert [entry["seqs"] for entry in refused] == [[5], [17]]
    assert {entry["reason"] for entry in refused} == {"poison"}


def test_an_event_whose_blob_comes_later_is_sent_then(tmp_path: Path, state: str) -> None:
    """A copy brings files in any order, and may be synced while it goes on."""
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        for step in range(4):
            run.log({"t": eventlog.Table(["a"], [[step]]), "loss": step}, step=step)
    (item,), _bad = find_all([str(tmp_path / "j")])
    place = Path(item.folder) / "blobs"
    there = {path.name: path.read_bytes() for path in place.iterdir()}

    class Reading(MemoryTarget):
        """Needs the content of tables, as real targets do."""

        def open(self, run: RunInfo) -> MemorySession:
            session = super().open(run)
            plain = session.send

            def send(batch: Any) -> list[Change]:
                for row in batch.to_pylist():
                    if row["type"] == "table":
                        try:
                            blobs.get(item.folder, loads(row["data"])["sha256"])
                        except IntegrityError as error:
                            raise Rejected(str(error), seqs=[row["seq"]]) from error
                return plain(batch)

            session.send = send  # type: ignore[method-assign]
            return session

    first, second, *_others = sorted(there)
    (place / first).unlink()
    (place / second).write_bytes(there[second][:-1])  # half of it has come
    target = Reading()
    outcome = sync(item, target, state)
    assert (outcome.quarantined, outcome.settled) == (2, outcome.events)
    assert "2 events wait" in " ".join(outcome.notes)
    assert not sync(item, target, state).contacted, "nothing has come: nobody is asked"
    (place / first).write_bytes(there[first])
    outcome = sync(item, target, state)
    assert (outcome.sent, outcome.quarantined) == (1, 1)
    (place / second).write_bytes(there[second])
    outcome = sync(item, target, state)
    assert (outcome.sent, outcome.quarantined, outcome.notes) == (1, 0, [])
    assert not sync(item, target, state).contacted
    check(item, target, 8)


def test_the_ledger_tells_every_delivery(found: Found, state: str) -> None:
    sync(found, MemoryTarget(), state)
    delivery = Delivery(state, kind="memory", address="here", project="p", run="x")
    told = [entry for entry in delivery.ledger() if entry["kind"] == "delivery"]
    covered = Positions({"w": [(e["first_seq"], e["last_seq"]) for e in told]})
    assert covered.ranges("w") == ((0, 32),)
    assert sum(entry["points"] for entry in told) == 60
    assert (Path(delivery.folder).stat().st_mode & 0o077) == 0


def test_a_journal_that_lost_delivered_events_is_refused(
    found: Found, state: str, tmp_path: Path
) -> None:
    target = MemoryTarget()
    with eventlog.init("p", "live", id="live", dir=tmp_path / "j", quiet=True) as run:
        for step in range(20):
            run.log({"a": step}, step=step)
        items, _bad = find_all([str(tmp_path / "j")], ["live"])
        backup = tmp_path / "backup"
        shutil.copytree(items[0].folder, backup)
        for step in range(20, 30):
            run.log({"a": step}, step=step)
        sync(items[0], target, state)
    shutil.rmtree(items[0].folder)
    shutil.copytree(backup, items[0].folder)
    with pytest.raises(IntegrityError, match="restored or copied in part"):
        sync(items[0], target, state)


def test_a_journal_that_was_changed_is_refused(found: Found, state: str, tmp_path: Path) -> None:
    target = MemoryTarget()
    sync(found, target, state)
    other = tmp_path / "other"
    with eventlog.init("p", "n", id="x", dir=other, quiet=True) as run:
        for step in range(40):
            run.log({"loss": 0.0}, step=step)
    # The same writer's name over other events: what a restored and continued copy looks like.
    (mine,) = Path(found.folder, "sealed").iterdir()
    (theirs,) = Path(str(run.folder), "sealed").iterdir()
    writer = mine.name.partition("-")[0]
    content = theirs.read_bytes().replace(theirs.name.partition("-")[0].encode(), writer.encode())
    mine.unlink()
    (mine.parent / f"{writer}-0-{theirs.name.split('-')[-1]}").write_bytes(content)
    with pytest.raises(IntegrityError):
        sync(found, target, state)


def test_a_missing_segment_stops_the_loop_in_front_of_it(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "j" / "project=p" / "run=x"
    folder.mkdir(parents=True)
    claim(str(folder), RunFile("x", "p", "n"))
    writer = Writer(str(folder), "x", {}, options=Options(segment_bytes=5000))
    for step in range(30):
        writer.append("metric", {"a": float(step)}, step)
    writer.close()
    segments = sorted(folder.glob("*.arrows"), key=lambda p: int(p.stem.split("-")[1]))
    assert len(segments) > 3
    segments[1].unlink()
    (found,), _bad = find_all([str(folder)])
    target = MemoryTarget()
    outcome = sync(found, target, state)
    (gaps,) = outcome.missing.values()
    assert gaps[0].first == outcome.settled == len(rows_of(target.runs["x"]))
    assert outcome.settled < 30


def test_a_restarted_run_is_one_history(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    for steps in (range(30), range(20, 50)):
        with eventlog.init("p", "n", id="from-name", dir=tmp_path / "j", quiet=True) as run:
            for step in steps:
                run.log({"a": float(step)}, step=step)
    (found,), _bad = find_all([str(tmp_path / "j")])
    sync(found, target, state)
    check(found, target, points=50)


def test_points_delivered_before_they_were_superseded_are_named(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    for steps in (range(30), range(20, 50)):
        with eventlog.init("p", "n", id="from-name", dir=tmp_path / "j", quiet=True) as run:
            for step in steps:
                run.log({"a": float(step)}, step=step)
        (found,), _bad = find_all([str(tmp_path / "j")])
        sync(found, target, state)
    result = compare(found.folder, target, target.open(run_info(found, None)))
    assert (result.missing, result.superseded, result.extra) == (0, 10, 0)
    assert result.held == 60


def test_a_live_run_is_followed_to_its_end(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"a": 1.0}, step=1)
        (found,), _bad = find_all([str(tmp_path / "j")])
        sync(found, target, state)
        assert target.runs["x"].state.status == "running"  # type: ignore[union-attr]
        run.log({"a": 2.0}, step=2)
    outcome = sync(found, target, state)
    assert outcome.points == 1
    assert target.runs["x"].state.status == "finished"  # type: ignore[union-attr]
    check(found, target, points=2)


def test_wrong_credentials_are_not_tried_again(found: Found, state: str) -> None:
    target = Failing({1: ("before", AuthenticationError("no"))})
    with pytest.raises(AuthenticationError):
        sync(found, target, state)
    assert target.calls == 1


def test_what_init_recorded_for_other_places_reaches_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True):
        pass
    (found,), _bad = find_all([str(tmp_path / "j")])
    assert run_info(found, None).elsewhere == {"MLFLOW_RUN_ID": "0123"}


def test_events_behind_a_loss_of_delivered_ones_are_sent(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "j" / "project=p" / "run=x"
    folder.mkdir(parents=True)
    claim(str(folder), RunFile("x", "p", "n"))
    writer = Writer(str(folder), "x", {}, options=Options(segment_bytes=5000))
    for step in range(30):
        writer.append("metric", {"a": float(step)}, step)
    (found,), _bad = find_all([str(folder)])
    target = MemoryTarget()
    sync(found, target, state)
    min(folder.glob("*.arrows"), key=lambda p: int(p.stem.split("-")[1])).unlink()
    for step in range(30, 33):
        writer.append("metric", {"a": float(step)}, step)
    writer.close()
    outcome = sync(found, target, state)
    assert (outcome.sent, outcome.settled, outcome.events) == (3, 33, 33)
    assert len(rows_of(target.runs["x"])) == 33


@pytest.mark.parametrize("lost", ["all", "the last"])
def test_a_target_that_lost_what_it_held_is_refused_and_sent_nothing(
    tmp_path: Path, state: str, lost: str
) -> None:
    target = MemoryTarget()
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        for step in range(10):
            run.log({"a": float(step)}, step=step)
        (found,), _bad = find_all([str(tmp_path / "j")])
        sync(found, target, state)
        held = target.runs["x"].held
        (writer,) = held.writers()
        target.runs.clear()
        if lost == "the last":  # a backup from the day before
            target.open(run_info(found, None))
            target.runs["x"].held = Positions.upto(writer, 5)
        run.log({"a": 10.0}, step=10)
        for _ in range(2):
            with pytest.raises(IntegrityError, match="holds it no more"):
                sync(found, target, state)
        assert not rows_of(target.runs["x"])
    shutil.rmtree(state)
    target.runs.clear()
    sync(found, target, state)
    check(found, target, points=11)


def test_a_point_that_was_delivered_and_then_superseded_is_no_loss(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    for _ in range(3):
        with eventlog.init("p", "n", id="from-name", dir=tmp_path / "j", quiet=True) as run:
            for step in range(5):
                run.log({"a": float(step)}, step=step)
        (found,), _bad = find_all([str(tmp_path / "j")])
        assert sync(found, target, state).points == 5


def test_journals_of_one_run_on_several_disks_share_a_state_folder(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    runs = []
    for disk in ("one", "two"):
        with eventlog.init("p", "n", id="x", dir=tmp_path / disk, quiet=True) as run:
            for step in range(10):
                run.log({"a": float(step)}, step=step)
        runs += find_all([str(tmp_path / disk)])[0]
    for found, points in [*zip(runs, (10, 10), strict=True), *zip(runs, (0, 0), strict=True)]:
        assert sync(found, target, state).points == points
    assert len(rows_of(target.runs["x"])) == 20


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def test_a_call_ends_between_two_batches_when_it_is_enough_and_goes_on_later(
    found: Found, state: str
) -> None:
    target = MemoryTarget()
    with Replayer(found, target, state, settings=QUICK) as replayer:
        calls = 0
        while (outcome := replayer.run(enough=lambda: True)).more:
            calls += 1
            assert outcome.sent > 0
        assert calls > 3
    check(found, target)


def test_one_session_follows_a_run_while_it_is_written(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    opened = []
    plain = target.open
    target.open = lambda run: opened.append(run) or plain(run)  # type: ignore[func-returns-value, method-assign, assignment]
    run = eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True)
    (item,), _bad = find_all([str(tmp_path / "j")])
    with Replayer(item, target, state, settings=QUICK) as replayer:
        for step in range(30):
            run.log({"loss": step / 7, "nan": float("nan")}, step=step)
            assert replayer.run().sent >= 1
            assert replayer.run().sent == 0
        assert len(opened) <= 2  # once more behind the news that it runs
        run.finish()
        replayer.run()
    assert target.runs["x"].state is not None
    assert target.runs["x"].state.status == "finished"
    check(item, target)


def test_a_holder_that_lost_its_lease_sends_nothing_more(found: Found, state: str) -> None:
    target = Failing({})
    with Replayer(found, target, state, settings=QUICK) as replayer:
        replayer.run(enough=lambda: True)
        sends = target.runs["x"].sends
        (Path(replayer.delivery.folder) / "lease-99.held").write_text('{"host": "b", "pid": 7}')
        cursor = (Path(replayer.delivery.folder) / "cursor.json").read_bytes()
        with pytest.raises(Lost, match="process 7 on b"):
            replayer.run()
        assert target.runs["x"].sends == sends
        assert (Path(replayer.delivery.folder) / "cursor.json").read_bytes() == cursor


def test_a_target_that_asks_for_a_long_time_is_left_alone_and_the_call_ends(
    found: Found, state: str
) -> None:
    target = Failing({2: ("before", Retry("slow down", after=3600.0))})
    with pytest.raises(Retry, match="slow down"):
        sync(found, target, state)
    sync(found, target, state)
    check(found, target)
