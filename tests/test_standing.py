"""Status: what cursors and folders tell, without network and without reading what is known."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.cli.main import run as cli
from eventlog.reader import WriterReader
from replayers import replay


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the tests' process has its own use for it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    for n in range(3):
        with eventlog.init("p", f'a "b\\{n}\n', id=f"id{n}", dir=tmp_path / "j", quiet=True) as run:
            for step in range(10):
                run.log({"loss": step / 7}, step=step)
    return tmp_path / "j"


def status(capsys: Any, *arguments: object) -> str:
    capsys.readouterr()
    assert cli(["status", *map(str, arguments)]) == 0
    return str(capsys.readouterr().out)


def rows(capsys: Any, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(status(capsys, *arguments, "--json"))
    return found


SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def parsed(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Read the text format: each family once, with help and type, then its samples."""
    assert text.endswith("\n")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in found
            assert lines[at + 1] == f"# TYPE {name} gauge"
            found[name] = []
        elif not line.startswith("# TYPE "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            plain = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
            labels = {
                key: re.sub(r"\\.", lambda m: plain[m[0]], value)
                for key, value in LABEL.findall(match[2])
            }
            found[match[1]].append((labels, float(match[3])))
    return found


def test_runs_that_are_settled_are_not_opened(
    journal: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row["behind"] for row in rows(capsys, journal)} == {12}
    assert cli(["sync", str(journal), "--to", "memory:standing"]) == 0
    monkeypatch.setattr(WriterReader, "tables", lambda self: pytest.fail("it was read"))
    monkeypatch.setattr("replayers.standing.headers", lambda folder: pytest.fail("it was read"))
    found = rows(capsys, journal)
    assert {(r["state"], r["events"], r["behind"], r["last_step"]) for r in found} == {
        ("finished", 12, 0, 9)
    }


def test_a_live_run_is_behind_by_what_is_new(tmp_path: Path, capsys: Any) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"a": 1.0}, step=1)
        assert cli(["sync", str(tmp_path / "j"), "--to", "memory:standing2"]) == 0
        (quiet,) = rows(capsys, tmp_path / "j")
        run.log({"a": 1.0}, step=2)
        run.log({"a": 1.0}, step=3)
        (row,) = rows(capsys, tmp_path / "j")
    assert (quiet["state"], quiet["behind"]) == ("running", 0)
    assert (row["state"], row["events"], row["behind"], row["last_step"]) == ("running", 4, 2, 1)


def test_prometheus_reads_what_is_printed(journal: Path, capsys: Any) -> None:
    assert cli(["sync", str(journal), "--to", "memory:standing3"]) == 0
    text = status(capsys, journal, "--prometheus")
    families = parsed(text)
    behind = families["eventlog_target_behind_events"]
    assert {(labels["run"], labels["name"], value) for labels, value in behind} == {
        (f"id{n}", f'a "b\\{n}\n', 0.0) for n in range(3)
    }
    assert {value for _labels, value in families["eventlog_target_last_step"]} == {9.0}
    assert len(families["eventlog_run_state"]) == 3
    assert cli(["status", str(journal), "--prometheus", "--json"]) == 2


def test_what_was_chosen_for_superseded_points_is_shown(tmp_path: Path, capsys: Any) -> None:
    journal, to = tmp_path / "j", ["--to", "memory:standing7"]
    for steps in (range(30), range(20, 50)):
        with eventlog.init("p", "n", id="from-name", dir=journal, quiet=True) as run:
            for step in steps:
                run.log({"a": step / 7}, step=step)
        assert cli(["sync", str(journal), *to]) == 0
    (row,) = rows(capsys, journal)
    first = row["known_as"]
    assert (row["superseded_choice"], row["replaced"]) == ("append", [])
    assert cli(["sync", str(journal), *to, "--superseded", "new-run"]) == 0
    (row,) = rows(capsys, journal)
    assert (row["superseded_choice"], row["replaced"]) == ("new-run", [first])
    families = parsed(status(capsys, journal, "--prometheus"))
    ((labels, value),) = families["eventlog_target_superseded_choice"]
    assert (labels["choice"], value) == ("new-run", 1.0)
    assert cli(["diff", run.id, "--journal", str(journal), *to, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["superseded_choice"], found["replaced"]) == ("new-run", [first])
    assert found["superseded"] == 0


def test_the_ledger_is_shown_of_a_run_by_name(
    journal: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTLOG_DIR", str(journal))
    assert cli(["sync", "--to", "memory:standing4"]) == 0
    told = json.loads(status(capsys, "id1", "--ledger", "--json"))
    deliveries = [entry for entry in told if entry["kind"] == "delivery"]
    assert {entry["id"] for entry in deliveries} == {"id1"}
    assert sum(entry["events"] for entry in deliveries) == 12
    assert sum(entry["points"] for entry in deliveries) == 10
    table = status(capsys, "id1", "--ledger")
    assert "points, read back" in table


def test_a_sync_with_nothing_to_do_looks_at_each_run_once(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = ["sync", str(journal), "--to", "memory:once", "--json"]
    assert cli(sync) == 0
    looked: list[str] = []

    def footprint(folder: str) -> str:
        looked.append(folder)
        return plain(folder)

    plain = replay.footprint
    monkeypatch.setattr(replay, "footprint", footprint)
    assert cli(sync) == 0
    assert len(looked) == len(set(looked)) == 3
