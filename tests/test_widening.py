"""Another view than the one that was sent: what it left out is sent, or named as superseded."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.views import AsOf, open_view
from replayers.compare import Comparer, Difference
from replayers.plan import plan
from replayers.replay import Settings, delivery_of, replay, run_info
from replayers.target import Target
from replayers.to_memory import MemoryTarget
from replayers.to_mlflow import MlflowTarget
from replayers.to_trackio import TrackioTarget
from tests import warm

EFFECTIVE = Settings(batch_rows=7, tries=2, backoff=(0.0, 0.001))
ALL = dataclasses.replace(EFFECTIVE, view="all")


def attempt(top: Path, steps: range, *keys: str) -> Found:
    with eventlog.init("p", "n", id="from-name", dir=top / "j", quiet=True) as run:
        for step in steps:
            run.log(dict.fromkeys(keys or ("a",), step / 7), step=step)
    (found,), _bad = find_all([str(top / "j")])
    return found


@pytest.fixture
def twice(tmp_path: Path) -> Found:
    """A run of 60 points, 10 of them superseded."""
    attempt(tmp_path, range(30))
    return attempt(tmp_path, range(20, 50))


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def difference(
    found: Found, target: Target, state: str, view: str = "all", *, sent: bool = True
) -> Difference:
    cursor, _known = delivery_of(found, target, state).load()
    session = target.open(run_info(found, cursor.known_as))
    narrow = open_view(found.folder) if sent else None
    opened = open_view(found.folder, view)
    return Comparer(found.folder, target, session, opened, cursor=cursor, sent=narrow).run()


def kinds(found: Difference) -> dict[tuple[str, str | None], int]:
    return {(c.kind, c.cause): c.count for c in found.causes if c.kind != "equal"}


def test_what_was_superseded_before_it_was_sent_is_not_missing(twice: Found, state: str) -> None:
    target = MemoryTarget()
    replay(twice, target, state, settings=EFFECTIVE)
    result = difference(twice, target, state)
    assert kinds(result) == {("superseded", "never-sent"): 10}
    assert (result.explained, result.equal, result.missing, result.never_sent) == (True, 50, 0, 10)
    assert not result.positions
    assert kinds(difference(twice, target, state, sent=False)) == {("missing", None): 10}
    session = target.open(run_info(twice, None))
    soon = Comparer(twice.folder, target, session, AsOf(2**62), sent=open_view(twice.folder)).run()
    assert kinds(soon) == {("superseded", "never-sent"): 10}


def test_what_is_really_missing_is_told_beside_what_was_never_sent(
    twice: Found, state: str
) -> None:
    target = MemoryTarget()
    replay(twice, target, state, settings=EFFECTIVE)
    for tables in target.runs[twice.run.id].points.values():
        tables[0] = tables[0].slice(2)
    result = difference(twice, target, state)
    assert kinds(result) == {("superseded", "never-sent"): 10, ("missing", None): 4}
    assert {row["step"] for row in result.examples["missing"]} == {0, 1, 20, 21}


MAKERS: dict[str, Callable[[Path], Target]] = {
    "memory": lambda _top: MemoryTarget(),
    "mlflow": lambda top: MlflowTarget(f"sqlite:///{top}/m.db"),
    "trackio": lambda top: TrackioTarget(str(top / "trackio")),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_wider_view_sends_what_the_narrower_one_left_out_and_once(
    kind: str, twice: Found, state: str, tmp_path: Path
) -> None:
    if kind == "mlflow":
        pytest.importorskip("mlflow")
    target = MAKERS[kind](tmp_path)
    try:
        replay(twice, target, state, settings=EFFECTIVE)
        assert plan(twice, target, state, ALL).points == 10
        outcome = replay(twice, target, state, settings=ALL)
        assert (outcome.repaired, outcome.unexplained) == (10, 0)
        assert kinds(difference(twice, target, state, sent=False)) == {}
        again = replay(twice, target, state, settings=ALL)
        assert (again.contacted, again.sent) == (False, 0)
        told = list(delivery_of(twice, target, state).ledger())
        assert sum(e["events"] for e in told if e.get("how") == "left out before") == 10
        assert any((e.get("before"), e.get("view")) == ("effective", "all") for e in told)
        # The state is lost: only the target knows which view it holds.
        shutil.rmtree(state)
        assert replay(twice, target, state, settings=ALL).unexplained == 0
        assert kinds(difference(twice, target, state, sent=False)) == {}
        # Back again: what is there stays, and is named.
        back = replay(twice, target, state, settings=EFFECTIVE)
        assert back.sent == 0
        assert "superseded points that it holds stay" in " ".join(back.notes)
        result = difference(twice, target, state, "effective")
        assert kinds(result) == {("superseded", "superseded"): 10}
        assert replay(twice, target, state, settings=EFFECTIVE).notes == []
    finally:
        target.close()


def test_a_lost_state_and_a_wider_view_send_what_mlflow_was_never_sent(
    twice: Found, state: str, tmp_path: Path
) -> None:
    """Its tag says up to which event it holds a writer, and not what was left out before that."""
    pytest.importorskip("mlflow")
    target = MlflowTarget(f"sqlite:///{tmp_path}/m.db")
    try:
        replay(twice, target, state, settings=EFFECTIVE)
        shutil.rmtree(state)
        assert replay(twice, target, state, settings=ALL).repaired == 10
        assert kinds(difference(twice, target, state, sent=False)) == {}
    finally:
        target.close()


def test_repair_under_all_sends_superseded_points_too(twice: Found, state: str) -> None:
    target = MemoryTarget()
    replay(twice, target, state, settings=EFFECTIVE)
    for tables in target.runs[twice.run.id].points.values():
        tables[0] = tables[0].slice(2)
    outcome = replay(twice, target, state, settings=dataclasses.replace(ALL, repair=True))
    assert (outcome.repaired, outcome.unexplained) == (14, 0)
    assert kinds(difference(twice, target, state, sent=False)) == {}


def test_a_run_of_one_attempt_is_the_same_in_both_views(tmp_path: Path, state: str) -> None:
    found = attempt(tmp_path, range(30))
    target = MemoryTarget()
    replay(found, target, state, settings=EFFECTIVE)
    for settings in (ALL, EFFECTIVE, ALL):
        outcome = replay(found, target, state, settings=settings)
        assert (outcome.contacted, outcome.sent, outcome.notes) == (False, 0, [])
    assert delivery_of(found, target, state).load()[0].view == "all"


class Sharing(MemoryTarget):
    shares_tags = True


@pytest.mark.parametrize("make", [MemoryTarget, Sharing])
def test_a_tag_is_of_others_only_where_others_may_set_one(
    make: type[MemoryTarget], tmp_path: Path, state: str
) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", tags=["ours"], quiet=True) as run:
        run.log({"a": 1.0}, step=1)
    (found,), _bad = find_all([str(tmp_path / "j")])
    target = make()
    replay(found, target, state, settings=EFFECTIVE)
    settings = target.runs["x"].settings
    (place,) = [place for place in settings if place[0] == "tag"]
    row = settings[place].row
    other = row.set_column(1, "key", [["theirs"]])
    settings["tag", "theirs"] = dataclasses.replace(settings[place], row=other)
    result = difference(found, target, state, "effective")
    cause = "tag-of-others" if make is Sharing else None
    assert kinds(result) == {("extra", cause): 1}
    assert result.explained is (make is Sharing)


def _command(top: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return warm.run([*args], cwd=top, env=dict(os.environ))


def test_diff_says_never_sent_and_prints_values(twice: Found, tmp_path: Path) -> None:
    where = f"trackio:{tmp_path / 'trackio'}"
    command = functools.partial(_command, tmp_path)
    journal = str(tmp_path / "j")
    assert command("sync", journal, "--to", where).returncode == 0
    told = command("diff", "n", "--to", where, "--journal", journal, "--view", "all")
    assert (told.returncode, "never-sent" in told.stdout) == (0, True)
    attempt(tmp_path, range(40, 60))
    told = command("diff", "n", "--to", where, "--journal", journal, "--view", "all")
    assert told.returncode == 4
    assert "bits=" not in told.stdout
    assert f"value={40 / 7!r}" in told.stdout
    whole = command("diff", "n", "--to", where, "--journal", journal, "--view", "all", "--json")
    row = json.loads(whole.stdout)["examples"]["missing"][0]
    assert (row["value"], row["key"]) == (repr(40 / 7), "a")
    assert isinstance(row["bits"], int)
