"""Where an attempt starts again, while it is written and delivered: recorded, and no more moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog import views
from eventlog.catalog import Found, find_all
from eventlog.delivery import Delivery
from eventlog.event import METRIC
from replayers.compare import Comparer
from replayers.replay import Settings, replay, run_info
from replayers.sent_view import recorded_restarts
from replayers.to_memory import MemoryTarget
from tests.helpers import NOW, run_in, writer
from tests.model import rows_of

HOUR = 3600 * 10**9


class Live:
    """A run whose attempts are written and delivered in turns."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = run_in(tmp_path / "j")
        self.state = str(tmp_path / "state")
        self.target = MemoryTarget()
        (self.found,) = find_all([str(tmp_path / "j")])[0]

    def attempt(self, number: int, rank: int = 0) -> Any:
        start = NOW + number * HOUR
        identity = {
            "key": f"job#{number}",
            "launch": "job",
            "restart": [number],
            "start": start,
            "writer_start": start + rank,
            "evidence": "restart" if number else "first",
        }
        return writer(self.folder, identity={"attempt": identity, "project": "p", "name": "n"})

    def sync(self, view: str = "effective") -> None:
        replay(self.found, self.target, self.state, settings=Settings(view=view))

    def held(self, key: str = "loss") -> list[int | None]:
        rows = rows_of(self.target.runs["run-1"]).values()
        return sorted(row[2] for row in rows if row[0] == METRIC and row[1] == key)

    def recorded(self) -> dict[str, views.Restart]:
        delivery = Delivery(self.state, kind="memory", address="here", project="p", run="run-1")
        return recorded_restarts(delivery.load()[0])

    def difference(self) -> Any:
        view = views.effective(self.folder, recorded=self.recorded(), ripe=True)
        session = self.target.open(run_info(self.found, None))
        return Comparer(self.folder, self.target, session, view, settings=False).run()


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def log(one: Any, step: int, *keys: str) -> None:
    one.append("metric", dict.fromkeys(keys, float(step)), step, NOW + 9 * HOUR + one.seq)


def past(live: Live, last: int = 10) -> None:
    one = live.attempt(0)
    for step in range(1, last + 1):
        one.append("metric", {"loss": float(step)}, step, NOW + step)
    one.close()


def test_a_finding_that_may_still_move_leaves_nothing_out(live: Live) -> None:
    """The second step shows a sparse key first: nobody knows yet where training went on."""
    past(live)
    again = live.attempt(1)
    log(again, 5, "val")
    log(again, 9, "val")
    live.sync()
    assert live.held() == list(range(1, 11)), "6 to 8 would be lost if 5 were taken for true"
    assert live.recorded() == {}
    for step in (9, 10, 11):
        log(again, step, "loss")
    assert views.effective(live.folder).restarts["job#1"] == views.Restart(9, "data")
    live.sync()
    assert live.recorded() == {"job#1": views.Restart(9, "data")}
    again.close()
    assert live.difference().explained


def test_what_was_delivered_on_stays_when_more_data_would_move_it(live: Live) -> None:
    past(live)
    again = live.attempt(1)
    for step in (6, 7, 8):
        log(again, step, "loss")
    live.sync()
    assert live.recorded() == {"job#1": views.Restart(6, "data")}
    assert live.held() == [1, 2, 3, 4, 5, 6, 7, 8]
    late = live.attempt(1, rank=1)
    for step in (3, 4, 5):
        log(late, step, "other")
    assert views.effective(live.folder).restarts["job#1"] == views.Restart(3, "data")
    live.sync()
    assert live.recorded() == {"job#1": views.Restart(6, "data")}
    assert live.held() == [1, 2, 3, 4, 5, 6, 7, 8]
    for one in (again, late):
        one.close()
    assert live.difference().explained
    assert not live.difference().missing


def test_what_is_said_outright_later_and_lower_counts(live: Live) -> None:
    past(live)
    again = live.attempt(1)
    for step in (6, 7, 8):
        log(again, step, "loss")
    live.sync()
    again.append_rows(eventlog.event.make_rows("state", [("rewind", 2)])[0], None)
    for step in (3, 4):
        log(again, step, "loss")
    live.sync()
    assert live.recorded()["job#1"] == views.Restart(2, "stated")


def test_an_attempt_of_two_steps_is_ripe_once_it_has_ended_or_was_followed(live: Live) -> None:
    past(live)
    again = live.attempt(1)
    for step in (6, 7):
        log(again, step, "loss")
    assert views.effective(live.folder, ripe=True).restarts["job#1"].step is None
    third = live.attempt(2)
    third.append("config", {"lr": 1}, None)
    assert views.effective(live.folder, ripe=True).restarts["job#1"].step == 6
    third.close()
    again.append_rows(eventlog.event.make_rows("state", [("exit_code", 0)])[0], None)
    again.close()
    assert views.effective(live.folder, ripe=True).restarts["job#1"].step == 6


def test_a_state_folder_that_is_lost_finds_it_anew(live: Live) -> None:
    past(live)
    again = live.attempt(1)
    for step in (6, 7, 8):
        log(again, step, "loss")
    live.sync()
    live.state += "-new"
    assert live.recorded() == {}
    log(again, 9, "loss")
    live.sync()
    assert live.recorded() == {"job#1": views.Restart(6, "data")}


def test_damaged_records_of_it_count_as_none(live: Live) -> None:
    cursor = Delivery(live.state, kind="m", address="a", project="p", run="r").load()[0]
    for bad in ({"k": 5}, {"k": ["x", "data"]}, {"k": [1]}, {"k": None}):
        assert recorded_restarts(type(cursor)(**{**vars(cursor), "restarts": bad})) == {}


# ---------------------------------------------------------------------- from init to show


def begun(journal: Path, steps: range, *, rewind: int | None = None) -> Found:
    with eventlog.init("p", "n", id="x", dir=journal, quiet=True) as run:
        if rewind is not None:
            run.rewind(rewind)
        for step in steps:
            run.log({"loss": float(step)}, step=step)
    (found,) = find_all([str(journal)])[0]
    return found


def shown(journal: Path, *more: str) -> str:
    command = [sys.executable, "-m", "eventlog.cli.main", "show", "x", "--journal", str(journal)]
    done = subprocess.run(
        [*command, *more], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_show_tells_what_was_found_and_what_was_delivered_on(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    begun(journal, range(20))
    found = begun(journal, range(12, 15))
    assert "starts again at step 12 (data)" in shown(journal)
    assert "delivered" not in shown(journal)
    replay(found, MemoryTarget(), str(journal / "_replay"))
    line = "delivered   memory:here: with attempt 2 starting again at step 12 (data)"
    assert line in shown(journal)
    told = json.loads(shown(journal, "--json"))["recorded"]
    assert told == {"memory:here": {"2": [12, "data"]}}


@pytest.mark.parametrize("how", ["rewind", "variable"])
def test_a_step_that_is_said_outright_is_shown_and_delivered(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "j"
    begun(journal, range(20))
    if how == "variable":
        monkeypatch.setenv("EVENTLOG_RESUME_STEP", "7")
    found = begun(journal, range(10, 13), rewind=7 if how == "rewind" else None)
    monkeypatch.delenv("EVENTLOG_RESUME_STEP", raising=False)
    assert "starts again at step 7 (stated)" in shown(journal)
    target = MemoryTarget()
    replay(found, target, str(journal / "_replay"))
    steps = sorted(row[2] for row in rows_of(target.runs["x"]).values())
    assert steps == [*range(8), 10, 11, 12]
