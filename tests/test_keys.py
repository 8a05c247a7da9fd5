"""A target that gets some metrics only: those exactly, and no other choice afterwards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.cli.main import run as run_command
from eventlog.delivery import Delivery
from eventlog.errors import UsageError
from replayers.keys import keys_of
from replayers.plan import plan
from replayers.replay import Outcome, Settings, delivery_of, replay, run_info
from replayers.target import Target
from replayers.to_memory import MemoryTarget
from replayers.to_mlflow import MlflowTarget
from replayers.to_trackio import TrackioTarget

EVERYTHING = Settings(batch_rows=7, tries=2, backoff=(0.0, 0.001))
SOME = dataclasses.replace(EVERYTHING, keys=("loss", "val/*"))


def attempt(top: Path, steps: range) -> Found:
    with eventlog.init(
        "p", "n", id="from-name", dir=top / "j", config={"lr": 1.0}, tags=["t"], quiet=True
    ) as run:
        for step in steps:
            run.log({"loss": step / 7, "grad": step / 3}, step=step)
            run.log({"only/left": 1.0}, step=step)
            if step % 5 == 0:
                table = eventlog.Table(["text"], [[str(step)]])
                run.log({"val/score": step / 2, "val/rows": table, "rows": table}, step=step)
        run.summary["best"] = 3.0
    (found,), _bad = find_all([str(top / "j")])
    return found


@pytest.fixture
def found(tmp_path: Path) -> Found:
    return attempt(tmp_path, range(20))


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def places(found: Found, target: Target) -> dict[tuple[str, str], int]:
    """Return how many rows a target holds of each kind and key."""
    counts: dict[tuple[str, str], int] = {}
    for table in target.open(run_info(found, None, create=False)).read_back():
        for kind, key in zip(*(table.column(c).to_pylist() for c in ("kind", "key")), strict=True):
            counts[kind, key] = counts.get((kind, key), 0) + 1
    return counts


def points(found: Found, target: Target) -> dict[str, int]:
    kinds = ("metric", "table")
    return {key: count for (kind, key), count in places(found, target).items() if kind in kinds}


TARGETS: dict[str, Callable[[Path], Target]] = {
    "memory": lambda _top: MemoryTarget(),
    "mlflow": lambda top: MlflowTarget(f"sqlite:///{top}/m.db"),
    "trackio": lambda top: TrackioTarget(str(top / "t")),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_only_the_chosen_metrics_arrive_and_everything_else_of_the_run(
    tmp_path: Path, found: Found, state: str, kind: str
) -> None:
    target = TARGETS[kind](tmp_path)
    first = replay(found, target, state, settings=SOME)
    assert first.settled == first.events
    there = places(found, target)
    tables = {"val/rows"}  # MLflow has them as artifacts
    assert set(points(found, target)) | tables == {"loss", "val/score", "val/rows"}
    assert there["metric", "loss"] == 20
    assert there["metric", "val/score"] == 4
    assert {("config", "lr"), ("summary", "best"), ("tag", "t")} & set(there)
    again = replay(found, target, state, settings=SOME)
    assert (again.contacted, again.sent) == (False, 0)
    target.close()


def test_a_sync_that_names_no_keys_goes_on_with_those_of_the_first(
    tmp_path: Path, found: Found, state: str
) -> None:
    target = MemoryTarget()
    replay(found, target, state, settings=SOME)
    assert not replay(found, target, state, settings=EVERYTHING).contacted
    more = attempt(tmp_path, range(15, 30))
    replay(more, target, state, settings=EVERYTHING)
    assert set(points(more, target)) == {"loss", "val/score", "val/rows"}
    assert points(more, target)["loss"] == 35  # 15 to 19 twice: the first ones had arrived
    repaired = replay(more, target, state, settings=dataclasses.replace(EVERYTHING, repair=True))
    assert (repaired.repaired, repaired.unexplained) == (0, 0)


def test_a_choice_that_no_metric_matches_is_said(found: Found, state: str) -> None:
    target = MemoryTarget()
    none = dataclasses.replace(EVERYTHING, keys=("los", "lr"))  # "lr" is a config's
    outcome = replay(found, target, state, settings=none)
    said = "no metric of it so far matches the keys that are sent (los, lr)"
    assert (outcome.settled, outcome.notes) == (outcome.events, [said])
    assert replay(found, MemoryTarget(), state + "2", settings=SOME).notes == []


def test_a_wider_view_sends_no_more_keys(tmp_path: Path, found: Found, state: str) -> None:
    more = attempt(tmp_path, range(15, 30))
    target = MemoryTarget()
    replay(more, target, state, settings=SOME)
    assert points(more, target)["loss"] == 30
    replay(more, target, state, settings=dataclasses.replace(EVERYTHING, view="all"))
    assert points(more, target)["loss"] == 35
    assert set(points(more, target)) == {"loss", "val/score", "val/rows"}


@pytest.mark.parametrize("superseded", ["new-run", "rebuild"])
def test_a_run_that_replaces_another_gets_the_same_keys(
    tmp_path: Path, found: Found, state: str, superseded: str
) -> None:
    target = MemoryTarget()
    replay(found, target, state, settings=SOME)
    more = attempt(tmp_path, range(15, 30))
    replay(more, target, state, settings=dataclasses.replace(EVERYTHING, superseded=superseded))
    cursor, _known = delivery_of(more, target, state).load()
    info = run_info(more, cursor.known_as, create=False, generation=cursor.generation)
    rows = [row for t in target.open(info).read_back() for row in t.to_pylist()]
    losses = [row for row in rows if row["kind"] == "metric" and row["key"] == "loss"]
    assert len(losses) == 30
    assert {r["key"] for r in rows if r["kind"] == "metric"} == {"loss", "val/score", "val/rows"}


@pytest.mark.parametrize("keys", [(), ("grad",), ("loss",)])
def test_another_choice_is_refused_and_changes_nothing(
    found: Found, state: str, keys: tuple[str, ...]
) -> None:
    target = MemoryTarget()
    replay(found, target, state, settings=SOME)
    before = delivery_of(found, target, state).load()
    other = dataclasses.replace(EVERYTHING, keys=keys)
    for call in (replay, plan):
        arguments: dict[str, Any] = {"settings": other} if call is replay else {}
        with pytest.raises(UsageError, match="other keys"):
            call(found, target, state, *([] if arguments else [other]), **arguments)
    assert delivery_of(found, target, state).load() == before
    assert set(points(found, target)) == {"loss", "val/score", "val/rows"}


def test_what_was_sent_whole_stays_whole(found: Found, state: str) -> None:
    target = MemoryTarget()
    replay(found, target, state, settings=EVERYTHING)
    with pytest.raises(UsageError, match=r"other keys \(all keys\)"):
        replay(found, target, state, settings=SOME)


def test_a_plan_counts_the_chosen_metrics_only(found: Found, state: str) -> None:
    target = MemoryTarget()
    planned = plan(found, target, state, SOME)
    done = replay(found, target, state, settings=SOME)
    assert (planned.keys, planned.points, planned.events) == (SOME.keys, done.points, done.sent)
    assert plan(found, target, state, EVERYTHING).keys == SOME.keys


def test_killed_at_every_save_the_keys_are_those_of_the_first(
    found: Found,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    repeats: Callable[[int, int], int],
) -> None:
    class Dead(BaseException):
        pass

    plain = Delivery.save
    for kill in range(1, 40, repeats(3, 1)):
        target, saves = MemoryTarget(), []

        def save(self: Delivery, cursor: Any, kill: int = kill, saves: Any = saves) -> None:
            plain(self, cursor)
            saves.append(1)
            if len(saves) == kill:
                raise Dead

        monkeypatch.setattr(Delivery, "save", save)
        try:
            replay(found, target, f"{state}{kill}", settings=SOME)
            break
        except Dead:
            monkeypatch.setattr(Delivery, "save", plain)
        replay(found, target, f"{state}{kill}", settings=EVERYTHING)
        assert points(found, target) == {"loss": 20, "val/score": 4, "val/rows": 4}
    assert kill > 5


def test_a_target_is_asked_again_until_a_sync_without_a_cursor_came_through(
    found: Found,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    repeats: Callable[[int, int], int],
) -> None:
    class Dead(BaseException):
        pass

    plain = Delivery.save
    for kill in range(1, 5):
        target, saves = MemoryTarget(), []
        replay(found, target, state, settings=EVERYTHING)
        shutil.rmtree(state)

        def save(self: Delivery, cursor: Any, kill: int = kill, saves: Any = saves) -> None:
            plain(self, cursor)
            saves.append(1)
            if len(saves) == kill:
                raise Dead

        monkeypatch.setattr(Delivery, "save", save)
        with pytest.raises(Dead):
            replay(found, target, state, settings=EVERYTHING)
        monkeypatch.setattr(Delivery, "save", plain)
        again: Outcome = replay(found, target, state, settings=EVERYTHING)
        assert (again.sent, again.settled) == (0, again.events)
        shutil.rmtree(state)


def test_globs() -> None:
    assert keys_of(["b", "a", "b"]) == ("a", "b")
    assert keys_of(["a", "*"]) == ()
    with pytest.raises(UsageError, match="no glob"):
        keys_of([""])


def test_the_command_line(
    tmp_path: Path,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eventlog.toml").write_text(
        '[targets.few]\nkind = "trackio"\naddress = "t"\nkeys = ["loss", "val/*"]\n'
        '[targets.bad]\nkind = "trackio"\naddress = "t"\nkeys = "loss"\n'
    )
    assert run_command(["sync", "j", "--to", "few", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["settled"] == report["events"]
    assert run_command(["diff", "n", "--to", "few", "--journal", "j"]) == 0
    out = capsys.readouterr()
    assert "metrics of loss, val/*" in out.out + out.err
    assert run_command(["diff", "n", "--to", "trackio:t", "--journal", "j", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"] == ["loss", "val/*"]
    assert run_command(["sync", "j", "--to", "trackio:t", "--key", "grad"]) == 2
    assert "other keys (loss, val/*)" in capsys.readouterr().err
    assert run_command(["sync", "j", "--to", "bad"]) == 2
    assert "no list of texts" in capsys.readouterr().err
    assert run_command(["sync", "j", "--to", "trackio:u", "--key", "", "--dry-run"]) == 2
    assert "no glob" in capsys.readouterr().err
    assert run_command(["config", "show", "j"]) == 0
    assert "['loss', 'val/*']" in capsys.readouterr().out
