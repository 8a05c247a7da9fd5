"""The ledger: small files are merged, and nothing is told twice or not at all, killed anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eventlog.files import Files
from eventlog.ledger import MANY, Ledger
from tests.helpers import Failing


def ledger(folder: Path, files: Files | None = None) -> Ledger:
    return Ledger(str(folder), "run-1", {"project": "p"}, files or Files())


def told(folder: Path) -> list[Any]:
    return [entry["n"] for entry in ledger(folder).entries()]


def a_night(folder: Path, n: int) -> None:
    one = ledger(folder)
    one.record("delivery", {"n": n})
    one.close()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_sync_a_night_for_a_year_leaves_few_files(tmp_path: Path) -> None:
    most = 0
    for n in range(365):
        a_night(tmp_path, n)
        most = max(most, len(files_in(tmp_path)))
    assert most <= MANY
    assert told(tmp_path) == list(range(365))


def test_times_and_kinds_are_kept_when_files_are_merged(tmp_path: Path) -> None:
    for n in range(MANY - 1):
        a_night(tmp_path, n)
    before = list(ledger(tmp_path).entries())
    a_night(tmp_path, MANY - 1)
    assert len(files_in(tmp_path)) == 1
    assert list(ledger(tmp_path).entries())[:-1] == before


class Killed(BaseException):
    pass


def test_killed_at_any_operation_of_a_merge_the_ledger_tells_all_once(tmp_path: Path) -> None:
    operation = 0
    while True:
        operation += 1
        folder = tmp_path / str(operation)
        folder.mkdir()
        for n in range(5):
            a_night(folder, n)

        def fails(count: int, name: str, at: int = operation) -> BaseException | None:
            return Killed() if count == at else None

        files = Failing(fails)
        try:
            ledger(folder, files).merge(5)
        except Killed:
            assert told(folder) == list(range(5)), operation
            ledger(folder).merge(1)
            assert told(folder) == list(range(5)), operation
            continue
        break
    assert operation > 10
    assert len(files_in(folder)) == 1


def test_an_error_of_the_disk_while_merging_leaves_the_ledger_as_it_is(tmp_path: Path) -> None:
    for n in range(MANY - 1):
        a_night(tmp_path, n)

    def fails(count: int, name: str) -> BaseException | None:
        return OSError(28, "full") if name == "create" and count > 3 else None

    one = ledger(tmp_path, Failing(fails))
    one.record("delivery", {"n": MANY - 1})
    one.close()
    assert told(tmp_path) == list(range(MANY))


def test_a_large_file_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventlog.ledger.SMALL_BYTES", 3000)
    big = ledger(tmp_path)
    for n in range(30):
        big.record("delivery", {"n": n})
    big.close()
    (large,) = files_in(tmp_path)
    for n in range(30, 30 + MANY):
        a_night(tmp_path, n)
    assert large in files_in(tmp_path)
    assert told(tmp_path) == list(range(30 + MANY))
    assert os.path.getsize(large) > 3000
