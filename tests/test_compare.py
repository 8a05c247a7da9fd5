"""Every point against the read-back: what differs, why, and that repair sends that and no more."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.errors import UsageError
from eventlog.views import All, AsOf, open_view
from replayers import multiset
from replayers.compare import Comparer, Difference
from replayers.diff_command import parse_view
from replayers.multiset import Counted, Multiset, hashes, side_by_side
from replayers.replay import Settings, delivery_of, replay, run_info
from replayers.target import Rejected, RunInfo, image_schema
from replayers.to_memory import MemorySession, MemoryTarget
from tests.model import keep, rows_of

QUICK = Settings(batch_rows=7, tries=2, backoff=(0.0, 0.001))
REPAIR = dataclasses.replace(QUICK, repair=True)


@pytest.fixture
def found(tmp_path: Path) -> Found:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", config={"a": 1}, quiet=True) as run:
        for step in range(30):
            run.log({"loss": step / 7, "nan": float("nan"), "text": f"t{step}"}, step=step)
        run.summary["best"] = 0.5
    (item,), _bad = find_all([str(tmp_path / "j")])
    return item


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def difference(found: Found, target: MemoryTarget, state: str, view: Any = None) -> Difference:
    cursor, _known = delivery_of(found, target, state).load()
    session = target.open(run_info(found, None))
    view = view or open_view(found.folder)
    return Comparer(found.folder, target, session, view, cursor=cursor).run()


def kinds(found: Difference) -> dict[tuple[str, str | None], int]:
    return {(c.kind, c.cause): c.count for c in found.causes}


def synced(found: Found, state: str) -> MemoryTarget:
    target = MemoryTarget()
    replay(found, target, state, settings=QUICK)
    return target


def test_what_was_delivered_is_equal_and_explained(found: Found, state: str) -> None:
    result = difference(found, synced(found, state), state)
    assert result.explained
    assert (result.equal, result.missing, result.extra) == (92, 0, 0)
    assert result.points == result.expected == result.held == 92


def lose(target: MemoryTarget, chosen: Callable[[int, str], bool]) -> int:
    """Delete points behind the target's back; it still says that it holds their events."""
    rows = rows_of(target.runs["x"])
    gone = [place for place, row in rows.items() if chosen(place[1], row[1])]
    for place in gone:
        del rows[place]
    keep(target.runs["x"], rows)
    return len(gone)


def test_missing_points_are_found_and_repaired_and_only_they_are_sent(
    found: Found, state: str
) -> None:
    target = synced(found, state)
    assert lose(target, lambda seq, key: seq in (4, 9, 10) and key != "text") == 6
    result = difference(found, target, state)
    assert kinds(result) == {("missing", None): 6}
    assert (len(result.positions), result.explained) == (3, False)
    assert [row["seq"] for row in result.examples["missing"]] == [4, 4, 9, 9, 10]
    outcome = replay(found, target, state, settings=REPAIR)
    assert (outcome.repaired, outcome.sent, outcome.unexplained) == (3, 3, 0)
    assert difference(found, target, state).explained
    told = [e for e in delivery_of(found, target, state).ledger() if e.get("how") == "repaired"]
    assert sum(entry["events"] for entry in told) == 3
    again = replay(found, target, state, settings=REPAIR)
    assert (again.repaired, again.sent) == (0, 0)


def test_altered_and_strange_points_are_told_and_not_mended_by_sending(
    found: Found, state: str
) -> None:
    target = synced(found, state)
    rows = rows_of(target.runs["x"])
    place = next(p for p, row in rows.items() if row[1] == "loss" and p[1] == 7)
    rows[place] = (*rows[place][:4], 5, None)
    rows["w", 10**6, 0] = ("metric", "stranger", 3, 4, 5, None)
    keep(target.runs["x"], rows)
    result = difference(found, target, state)
    assert kinds(result) == {("altered", None): 1, ("extra", None): 1}
    assert result.examples["altered"][0]["key"] == "loss"
    assert not result.positions
    outcome = replay(found, target, state, settings=REPAIR)
    assert (outcome.repaired, outcome.unexplained) == (0, 2)
    assert "2 differences" in outcome.notes[0]


def test_a_target_that_was_emptied_is_repaired(found: Found, state: str) -> None:
    target = synced(found, state)
    target.runs.clear()
    outcome = replay(found, target, state, settings=REPAIR)
    assert outcome.repaired == 32
    assert difference(found, target, state).explained


def test_what_was_not_sent_yet_is_missing_for_that_reason(tmp_path: Path, state: str) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"a": 1.0}, step=1)
        (found,), _bad = find_all([str(tmp_path / "j")])
        target = synced(found, state)
        run.log({"a": 2.0}, step=2)
        result = difference(found, target, state)
    assert kinds(result) == {("missing", "not-sent"): 1}
    assert not result.explained


def test_superseded_points_are_explained_in_every_view(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    for steps in (range(30), range(20, 50)):
        with eventlog.init("p", "n", id="from-name", dir=tmp_path / "j", quiet=True) as run:
            for step in steps:
                run.log({"a": float(step)}, step=step)
        (found,), _bad = find_all([str(tmp_path / "j")])
        replay(found, target, state, settings=QUICK)
    result = difference(found, target, state)
    assert kinds(result) == {("superseded", "superseded"): 10}
    assert result.explained
    assert kinds(difference(found, target, state, All())) == {}
    some = difference(found, target, state, AsOf(0))
    assert kinds(some) == {("superseded", "later"): 60}


def test_an_event_in_quarantine_is_missing_for_that_reason(found: Found, state: str) -> None:
    class Picky(MemoryTarget):
        picky = True

        def open(self, run: RunInfo) -> MemorySession:
            session = super().open(run)
            plain = session.send

            def send(batch: Any) -> Any:
                bad = {5, 17} & set(batch.column("seq").to_pylist())
                if bad and self.picky:
                    raise Rejected("poison", seqs=bad)
                return plain(batch)

            session.send = send  # type: ignore[method-assign]
            return session

    target = Picky()
    assert replay(found, target, state, settings=QUICK).quarantined == 2
    result = difference(found, target, state)
    assert kinds(result) == {("missing", "quarantined"): 6}
    assert result.explained
    retry = dataclasses.replace(QUICK, retry_quarantined=True)
    assert replay(found, target, state, settings=retry).quarantined == 2
    target.picky = False
    outcome = replay(found, target, state, settings=retry)
    assert (outcome.quarantined, outcome.sent) == (0, 2)
    assert kinds(difference(found, target, state)) == {}


def test_settings_of_which_the_newest_is_not_held_are_missing(found: Found, state: str) -> None:
    target = synced(found, state)
    stored = target.runs["x"].settings
    there = stored["config", "a"]
    row = there.row.set_column(4, "bits", pa.array([77]))
    stored["config", "a"] = dataclasses.replace(there, row=row)
    del stored["summary", "best"]
    result = difference(found, target, state)
    assert kinds(result) == {("altered", None): 1, ("missing", None): 1}


# ------------------------------------------------------------------------------ hashes


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 6
    arrays = [pa.array(c, f.type) for c, f in zip(columns, image_schema(), strict=True)]
    return pa.Table.from_arrays(arrays, schema=image_schema())


def test_rows_have_equal_hashes_if_and_only_if_they_are_equal() -> None:
    chance = random.Random(1)
    pick = [None, 0, 1, -1, 2, 2**63 - 1, -(2**63), struct.unpack("<q", struct.pack("<d", 1.0))[0]]
    words = [None, "", "a", "b", "ab", "é", "\0"]
    rows = [
        (
            chance.choice(["metric", "system"]),
            chance.choice(words[1:]),
            chance.choice(pick),
            chance.choice(pick),
            chance.choice(pick),
            chance.choice(words),
        )
        for _ in range(20_000)
    ]
    found = [h.tobytes() for h in hashes(table(rows))]
    assert len(set(found)) == len(set(rows))
    assert len(set(zip(found, rows, strict=True))) == len(set(rows))
    # However the rows lie in memory.
    whole = table(rows)
    parts = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 9000), whole.slice(9007)])
    assert (hashes(parts) == hashes(whole)).all()


def test_a_multiset_counts() -> None:
    a = Counted.of(
        hashes(table([("m", "a", 1, None, 5, None)] * 3 + [("m", "b", 1, None, 5, None)]))
    )
    b = Counted.of(hashes(table([("m", "a", 1, None, 5, None)])))
    assert a.minus(b).total() == 3
    assert b.minus(a).total() == 0
    found = hashes(table([("m", "a", 1, None, 5, None)] * 5))
    assert a.take(found).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("time", ["99999999999999999999", "0001-01-01", "yesterday"])
def test_a_time_that_no_event_can_have_is_wrong_usage(time: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        parse_view(f"as-of:{time}", ".")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiset, "MOST_HELD", 10)


@pytest.mark.usefixtures("little_memory")
def test_multisets_that_lie_in_a_file_differ_as_they_do_in_memory() -> None:
    chance = random.Random(5)
    lists = [
        [("metric", chance.choice("abc"), chance.randrange(40), 1, 2, None) for _ in range(200)]
        for _ in range(3)
    ]
    sets = [Multiset(), Multiset(), Multiset(), Multiset()]
    for one, rows in zip(sets, lists, strict=False):
        for start in range(0, 200, 7):
            one.add(hashes(table(rows[start : start + 7])))
    assert all(one.in_file for one in sets[:3])
    assert not sets[3].in_file
    a, b, c = map(Counter, lists)
    parts = list(side_by_side(*sets))
    left = Counted.joined([one.minus(two) for one, two, _c, _none in parts])
    assert left.total() == (a - b).total() == sum((a - b).values())
    assert sum(left.take(hashes(table(lists[0])))) == (a - b).total()
    assert (
        Counted.joined([two.minus(three) for _a, two, three, _n in parts]).total()
        == (b - c).total()
    )
    assert sum(none.total() for *_others, none in parts) == 0
    assert sets[0].counted().total() == len(sets[0]) == 200


@pytest.mark.usefixtures("little_memory")
def test_a_run_that_is_compared_with_a_file_is_told_the_same(found: Found, state: str) -> None:
    target = synced(found, state)
    assert difference(found, target, state).equal == 92
    lose(target, lambda seq, key: seq in (4, 9, 10) and key != "text")
    result = difference(found, target, state)
    assert kinds(result) == {("missing", None): 6}
    assert (len(result.positions), result.explained) == (3, False)
    assert replay(found, target, state, settings=REPAIR).repaired == 3
    target.runs.clear()
    assert replay(found, target, state, settings=REPAIR).repaired == 32
