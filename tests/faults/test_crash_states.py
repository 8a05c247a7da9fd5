"""Power is cut at any instant of random histories: acked <= recovered <= appended, and nothing
that only a power cut did is called corruption.

`tools/crash` explores as many as one has time for; these are its first.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.backlog import Backlog
from tests.faults.histories import (
    History,
    Plan,
    archived_twice,
    explore,
    judged,
    play,
    sealed_twice,
)
from tests.faults.simulator import Disk, Operation


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.long) for n in range(3, 12))]
)
def test_no_state_that_a_power_cut_leaves_breaks_a_promise(seed):
    figures = explore(Plan.of(seed), 12)
    assert [str(v) for v in figures.violations] == []
    assert figures.states > figures.operations


@pytest.mark.long
def test_the_command_that_explores_more_of_them_runs():
    """Its worker processes import the command's own file, which must not begin anew in each."""
    top = Path(__file__).resolve().parents[2]
    if Path(sys.prefix) != top / ".venv":
        pytest.skip("the command makes an environment of its own, which tools/test has made")
    command = [sys.executable, str(top / "tools" / "crash"), "--seconds", "0.05"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "distinct states" in answer.stdout


@pytest.mark.parametrize(
    "fault",
    [
        "sync",
        "sync_folder",
        "kill",
        *(pytest.param(fault, marks=pytest.mark.long) for fault in ("write", "create", "any")),
    ],
)
def test_nor_with_a_fault_at_each_of_the_first_operations(fault, repeats):
    for at in (1, 2, 3, 5, 8, 13, 21)[: repeats(3, 7)]:
        plan = Plan(at, actions=7, seals=0.15, commits=0.3, fault=fault, fault_at=at)
        figures = explore(plan, 6)
        assert [str(v) for v in figures.violations] == []


def without_files(seed: int) -> Plan:
    """A disk that takes no new files, for a while or for ever, and tables in every other event."""
    rng = random.Random(seed)
    return Plan(
        seed,
        actions=12,
        commits=0.35,
        blobs=0.4,
        durability=rng.choice(["group", "sync", "memory", "os"]),
        segment_bytes=rng.choice([3_000, 10**6]),
        memory_bytes=rng.choice([2**20, 6_000, 3_000]),
        fault="create",
        fault_at=2,
        fault_lasts=rng.choice([2, 10**6]),
    )


def test_nor_if_tables_wait_for_room_or_never_find_any(repeats):
    for seed in range(repeats(3, 150)):
        figures = explore(without_files(seed), 4)
        assert [str(v) for v in figures.violations] == []


def test_a_journal_that_calls_durable_what_waits_for_its_table_is_found(monkeypatch):
    monkeypatch.setattr(Backlog, "bound", lambda _self, seq: seq)
    assert any(explore(without_files(seed), 4).violations for seed in range(10))


def test_nor_if_a_sealing_was_killed_at_any_operation_and_taken_up_again(repeats):
    plan = Plan(5, actions=8, commits=0.4, seals=0.0, segment_bytes=2_600)
    for at in itertools.count(1, repeats(3, 1)):
        history, came = sealed_twice(plan, at)
        figures = judged(history, at, 8)
        assert [str(v) for v in figures.violations] == []
        if not came:
            break
    assert at > 6


def test_nor_if_an_archiving_was_killed_at_any_operation_and_taken_up_again(repeats):
    plan = Plan(5, actions=5, commits=0.4, seals=0.0, segment_bytes=2_600)
    for at in itertools.count(1, repeats(23, 1)):
        history, came = archived_twice(plan, at)
        figures = judged(history, at, repeats(2, 12))
        assert [str(v) for v in figures.violations] == []
        if not came:
            break
    assert at > 20
    assert any("runs-" in done.target for done in history.operations)


def test_nor_does_a_run_that_is_archived_goes_on_and_is_archived_again(repeats):
    for seed in range(repeats(1, 60)):
        plan = Plan(seed, actions=5, commits=0.4, seals=0.2, archives=1.0)
        figures = explore(plan, repeats(3, 12))
        assert [str(v) for v in figures.violations] == []


def states(*operations, limit=10_000):
    disk = Disk()
    for one in operations:
        disk.apply(one)
    return list(disk.states(limit, random.Random(0)))


MADE = [
    Operation("create", "a", file=0),
    Operation("write", file=0, data=b"x" * 1000),
    Operation("sync", file=0),
    Operation("sync_folder", ""),
]


def test_what_was_synced_is_in_every_state():
    assert states(*MADE) == [{"a": b"x" * 1000}]


def test_a_name_that_was_not_synced_may_be_gone():
    found = states(*MADE[:3])
    assert found == [{}, {"a": b"x" * 1000}]


def test_bytes_that_were_not_synced_may_be_there_or_zeros_or_cut_off():
    found = {state["a"] for state in states(*MADE, Operation("write", file=0, data=b"y" * 100))}
    old, new = b"x" * 1000, b"y" * 100
    assert {old, old + new, old + bytes(100), old + new[:24] + bytes(76)} <= found
    assert all(one.startswith(old) for one in found)


def test_what_a_failed_sync_had_in_its_hands_is_never_safe_again():
    again = [Operation("write", file=0, data=b"y" * 24), Operation("lost", file=0)]
    later = [Operation("write", file=0, data=b"z" * 600), Operation("sync", file=0)]
    found = {state["a"] for state in states(*MADE, *again, *later)}
    assert found == {b"x" * 1000 + middle + b"z" * 600 for middle in (b"y" * 24, bytes(24))}


def test_a_file_in_a_folder_whose_name_is_gone_is_gone():
    found = states(
        Operation("make_folder", "f"),
        Operation("create", "f/a", file=0),
        Operation("sync_folder", "f"),
    )
    assert found == [{}, {"f/a": b""}]


def test_a_rename_that_was_not_synced_may_be_undone():
    found = states(*MADE, Operation("replace", "a", "b"))
    assert found == [{"a": b"x" * 1000}, {"b": b"x" * 1000}]


# ---------------------------------------------------------- the simulator finds what it is for


def dropped(history: History, name: str) -> History:
    kept = [done for done in history.operations if done.name != name]
    return History(kept, history.expected)


def test_an_archive_whose_name_is_not_made_durable_is_found():
    history = play(Plan(0, actions=3, commits=0.4, seals=0.2, archives=1.0))
    kept = [d for d in history.operations if (d.name, d.path) != ("sync_folder", "sealed")]
    assert judged(History(kept, history.expected), 0, 6).violations


@pytest.mark.parametrize("name", ["sync", "sync_folder"])
def test_a_journal_whose_syncs_do_nothing_is_found(name):
    found = 0
    for seed in range(3):
        history = play(Plan(seed, actions=8, commits=0.4))
        assert judged(history, seed, 8).violations == []
        found += len(judged(dropped(history, name), seed, 8).violations)
    assert found
