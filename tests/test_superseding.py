"""What becomes of superseded points that a target holds: nothing is lost, nothing foreign touched,
no run is made twice, wherever a sync is killed.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.errors import IntegrityError, UsageError
from eventlog.views import open_view
from replayers.compare import Comparer
from replayers.conformance_death import Dead, Interposed
from replayers.replay import Settings, delivery_of, replay, run_info
from replayers.superseding import check_choice
from replayers.target import RunInfo, Target
from replayers.to_memory import MemorySession, MemoryTarget

QUICK = Settings(batch_rows=7, tries=2, backoff=(0.0, 0.001))
NEW_RUN = dataclasses.replace(QUICK, superseded="new-run")
REBUILD = dataclasses.replace(QUICK, superseded="rebuild")


def attempt(top: Path, steps: range) -> Found:
    with eventlog.init("p", "n", id="from-name", dir=top / "j", config={"c": 1}, quiet=True) as run:
        for step in steps:
            run.log({"a": step / 7}, step=step)
    (found,), _bad = find_all([str(top / "j")])
    return found


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def kinds(found: Found, target: Target, state: str) -> dict[tuple[str, str | None], int]:
    """Return how what is held in the run that is written to now differs from the view."""
    cursor, _known = delivery_of(found, target, state).load()
    info = run_info(found, cursor.known_as, create=False, generation=cursor.generation)
    session = target.open(info)
    result = Comparer(found.folder, target, session, open_view(found.folder), cursor=cursor).run()
    assert result.equal == result.expected
    return {(c.kind, c.cause): c.count for c in result.causes if c.kind != "equal"}


def quiet(found: Found, target: Target, state: str, settings: Settings) -> None:
    again = replay(found, target, state, settings=settings)
    assert (again.contacted, again.sent, again.notes) == (False, 0, [])


@pytest.mark.parametrize("choice", ["new-run", "rebuild"])
def test_a_chain_of_attempts_ends_in_the_effective_view(
    choice: str, tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    settings = dataclasses.replace(QUICK, superseded=choice)
    first = replay(attempt(tmp_path, range(30)), target, state, settings=settings)
    found = attempt(tmp_path, range(20, 50))
    second = replay(found, target, state, settings=settings)
    assert kinds(found, target, state) == {}
    assert second.points == 50
    quiet(found, target, state, settings)
    assert (second.known_as == first.known_as) is (choice == "rebuild")
    # A third attempt; and again with the state lost, which finds the same run.
    found = attempt(tmp_path, range(40, 60))
    third = replay(found, target, state, settings=settings)
    assert kinds(found, target, state) == {}
    shutil.rmtree(state)
    lost = replay(found, target, state, settings=settings)
    assert (lost.known_as, lost.points) == (third.known_as, 0)
    assert kinds(found, target, state) == {}
    quiet(found, target, state, settings)


def test_append_is_the_default_and_its_runs_have_one_identity(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    replay(attempt(tmp_path, range(30)), target, state, settings=QUICK)
    found = attempt(tmp_path, range(20, 50))
    replay(found, target, state, settings=QUICK)
    assert kinds(found, target, state) == {("superseded", "superseded"): 10}
    # Chosen later, it is done then.
    replay(found, target, state, settings=NEW_RUN)
    assert kinds(found, target, state) == {}
    assert len(target.runs) == 2


def test_what_was_superseded_before_it_was_sent_makes_no_new_run(
    tmp_path: Path, state: str
) -> None:
    attempt(tmp_path, range(30))
    found = attempt(tmp_path, range(20, 50))
    target = MemoryTarget()
    replay(found, target, state, settings=NEW_RUN)
    assert kinds(found, target, state) == {}
    assert len(target.runs) == 1


def test_the_runs_name_each_other(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    one = replay(attempt(tmp_path, range(30)), target, state, settings=NEW_RUN)
    two = replay(attempt(tmp_path, range(20, 50)), target, state, settings=NEW_RUN)
    old, new = target.runs.values()
    assert (old.replaced_by, new.info.replaces) == (two.known_as, one.known_as)
    told = list(delivery_of(attempt(tmp_path, range(0)), target, state).ledger())
    assert any(e.get("superseded") == "new-run" and e.get("points") == 10 for e in told)


class Named(MemoryTarget):
    """People call its runs otherwise."""

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        session.shown_as = "better"  # type: ignore[attr-defined]
        return session


@pytest.mark.parametrize("choice", ["new-run", "rebuild"])
def test_a_target_is_told_what_a_run_was_called_that_is_rebuilt(
    choice: str, tmp_path: Path, state: str
) -> None:
    target, settings = Named(), dataclasses.replace(QUICK, superseded=choice)
    for steps in (range(10), range(5, 15)):
        found = attempt(tmp_path, steps)
        replay(found, target, state, settings=settings)
    names = [run.info.shown_as for run in target.runs.values()]
    assert names == (["", ""] if choice == "new-run" else ["better"])


@pytest.mark.parametrize("settings", [NEW_RUN, REBUILD], ids=["new-run", "rebuild"])
@pytest.mark.parametrize("keep", [True, False], ids=["", "state-lost"])
def test_killed_at_every_call_the_next_sync_finishes_it(
    settings: Settings, keep: bool, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    first = attempt(tmp_path, range(10))
    whole = tmp_path / "whole"
    targets = []
    shutil.copytree(tmp_path / "j", tmp_path / "before")
    found = attempt(tmp_path, range(5, 15))
    every = itertools.product(range(1, 40), ("before", "half", "after"))
    for at, when in itertools.islice(every, 0, None, repeats(23, 1)):
        target, deadly = MemoryTarget(), Deadly(at, when)
        state = str(whole / f"{at}{when}")
        (before,), _bad = find_all([str(tmp_path / "before")])
        replay(before, target, state, settings=settings)
        try:
            replay(found, Interposed(target, deadly), state, settings=settings)
        except Dead:
            pass
        else:
            assert deadly.calls < at
            break
        if not keep:
            shutil.rmtree(state)
        outcome = replay(found, target, state, settings=settings)
        assert not outcome.more
        assert kinds(found, target, state) == {}, (at, when)
        assert len(target.runs) == (2 if settings is NEW_RUN else 1)
        quiet(found, target, state, settings)
        targets.append(target)
    assert targets
    assert first.run.id == found.run.id


class Deadly:
    """Dies at one call, deleting and marking among them."""

    def __init__(self, at: int, when: str) -> None:
        self.at, self.when, self.calls = at, when, 0

    def __call__(self, number: int, _name: str) -> Any:
        self.calls = number
        return (self.when, Dead()) if number == self.at else None


def test_nothing_foreign_is_deleted(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    replay(attempt(tmp_path, range(30)), target, state, settings=QUICK)
    (stored,) = target.runs.values()
    (tables,) = stored.points.values()
    tables.append(tables[0].slice(0, 1).set_column(2, "key", [["strange"]]))
    found = attempt(tmp_path, range(20, 50))
    before = sum(table.num_rows for table in tables)
    with pytest.raises(IntegrityError, match="nothing was deleted"):
        replay(found, target, state, settings=REBUILD)
    assert sum(table.num_rows for table in tables) == before
    assert target.runs


def test_a_fresh_start_is_replaced_once_it_has_ended(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    replay(attempt(tmp_path, range(30)), target, state, settings=NEW_RUN)
    with eventlog.init("p", "n", id="from-name", dir=tmp_path / "j", quiet=True) as run:
        for step in range(10):
            run.log({"a": step / 3}, step=step)
        (found,), _bad = find_all([str(tmp_path / "j")])
        replay(found, target, state, settings=NEW_RUN)
        assert len(target.runs) == 1
    replay(found, target, state, settings=NEW_RUN)
    assert len(target.runs) == 2
    assert kinds(found, target, state) == {}
    quiet(found, target, state, NEW_RUN)


def test_a_target_that_cannot_says_so() -> None:
    class Plain:
        kind = "plain"

    for choice in ("new-run", "rebuild"):
        with pytest.raises(UsageError, match="cannot be done"):
            check_choice(choice, Plain(), "plain:x", "effective")
        with pytest.raises(UsageError, match="view effective"):
            check_choice(choice, MemoryTarget(), "memory:x", "all")
    check_choice("append", Plain(), "plain:x", "all")
