"""A sync that is interrupted says what it did, as one valid report, and leaves a safe cursor."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import find_all
from replayers.registry import target_of
from replayers.replay import delivery_of
from tests import warm

Long = pytest.mark.long


def make_journal(folder: Path, sizes: dict[str, int]) -> None:
    for name, events in sizes.items():
        with eventlog.init("p", name, id=name, dir=folder, quiet=True) as run:
            for step in range(events):
                run.log({"loss": step / 7}, step=step)


def acked(folder: Path, id: str, to: str) -> int:
    """Return how many events of a run the cursor says are there."""
    (found,), _bad = find_all([str(folder)], [id])
    target = target_of(to, lambda: [found], [str(folder)])
    cursor, _known = delivery_of(found, target, str(folder / "_replay")).load()
    target.close()
    return sum(mark.acked for mark in cursor.writers.values())


def start(folder: Path, to: str, *options: object) -> warm.Process:
    env = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
    return warm.start(["sync", str(folder), "--to", to, *map(str, options)], env=env, cwd=folder)


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.02)


def by_id(reports: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {report["id"]: report for report in reports}


@pytest.mark.parametrize(
    ("names", "to"),
    [
        (["SIGINT"], "memory:here"),
        pytest.param(["SIGTERM"], "memory:here", marks=Long),
        pytest.param(["SIGINT", "SIGTERM"], "memory:here", marks=Long),
        pytest.param(["SIGINT"], "trackio:t", marks=Long),
        pytest.param(["SIGTERM"], "mlflow:sqlite:///m.db", marks=Long),
    ],
)
def test_an_interrupted_sync_reports_what_it_did(
    tmp_path: Path, names: list[str], to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_journal(tmp_path, {"a": 1, "b": 2000, "c": 2000})
    process = start(tmp_path, to, "--json", "--batch", 5, "--rate", 100, "--jobs", 1)
    until(lambda: acked(tmp_path, "a", to) == 3)
    before = max(5, acked(tmp_path, "b", to))  # runs take turns
    until(lambda: acked(tmp_path, "b", to) > before)
    for name in names:
        process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; what was done is kept" in err
    told = by_id(json.loads(out))
    assert sorted(told) == ["a", "b", "c"]
    whole, part, last = told["a"], told["b"], told["c"]
    assert (whole["exit_code"], whole["error"], whole["settled"]) == (0, None, whole["events"])
    assert (part["exit_code"], last["exit_code"]) == (130, 130)
    assert part["error"] == last["error"] == "interrupted; the next sync goes on"
    there = acked(tmp_path, "b", to)
    if len(names) > 1:  # the second one waits for nothing: what is under way is not told yet
        assert part.get("settled", 0) <= there
    else:
        assert 5 < part["settled"] == part["sent"] == there < part["events"]
    if to.startswith("memory"):  # that ended with its process
        return
    after = start(tmp_path, to, "--json")
    out, err = after.communicate(timeout=120)
    assert after.returncode == 0, err
    again = by_id(json.loads(out))
    assert again["b"]["sent"] + part["sent"] == again["b"]["events"] == again["b"]["settled"]
    assert again["a"]["sent"] == 0


def test_a_watch_that_is_interrupted_ends_with_its_reports(tmp_path: Path) -> None:
    make_journal(tmp_path, {"a": 2000})
    process = start(tmp_path, "memory:here", "--watch", "--json", "--batch", 5, "--rate", 100)
    until(lambda: acked(tmp_path, "a", "memory:here") > 0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    *lines, last = map(json.loads, out.splitlines())
    assert all("target" in line for line in lines)
    (report,) = last["reports"]
    assert (report["exit_code"], report["settled"]) == (130, acked(tmp_path, "a", "memory:here"))


def test_for_people_the_table_says_it_and_a_run_that_was_not_begun_is_not_ok(
    tmp_path: Path,
) -> None:
    make_journal(tmp_path, {"a": 2000, "b": 1})
    process = start(tmp_path, "memory:here", "--batch", 5, "--rate", 1)
    until(lambda: acked(tmp_path, "a", "memory:here") > 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["interrupted"] * 2, out
