"""A dry run: what would be sent, and no target, state or journal touched. Settings and origins."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import find_all
from eventlog.cli import main
from replayers.config_command import masked
from replayers.plan import plan
from replayers.replay import Settings, replay
from replayers.to_memory import MemoryTarget


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the tests' process has its own use for it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        for step in range(10):
            run.log({"loss": step / 7, "inf": float("inf"), "text": "x"}, step=step)
    return tmp_path / "j"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = (p for p in folder.rglob("*"))
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def test_a_dry_run_tells_events_points_and_mappings_and_writes_nothing(
    journal: Path, tmp_path: Path, capsys: Any
) -> None:
    before = snapshot(tmp_path)
    # Nobody listens there, and it makes no difference.
    address = "mlflow:http://127.0.0.1:9"
    assert main.run(["sync", str(journal), "--to", address, "--dry-run", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["events"], told["points"], told["first"]) == (12, 30, True)
    assert told["mappings"]["inf-clamped"] == 10
    assert told["mappings"]["not-a-number"] == 10
    assert told["bytes"] > 0
    assert snapshot(tmp_path) == before


def test_a_plan_is_what_is_new_and_takes_as_long_as_it_took(journal: Path, tmp_path: Path) -> None:
    (found,), _bad = find_all([str(journal)])
    target, state = MemoryTarget(), str(tmp_path / "state")
    first = plan(found, target, state, Settings())
    assert first.seconds is None
    outcome = replay(found, target, state)
    assert (outcome.sent, outcome.points) == (first.events, first.points)
    assert plan(found, target, state, Settings()).events == 0
    with eventlog.init("p", "n", id="x", resume="allow", dir=journal, quiet=True) as run:
        run.log({"loss": 1.0}, step=10)
        again = plan(found, target, state, Settings())
    assert again.points == 1
    assert again.seconds is not None


def test_settings_say_where_they_come_from_and_show_no_secret(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EVENTLOG_DIR", str(tmp_path / "j"))
    monkeypatch.setenv("WANDB_API_KEY", "hush1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hush2@host:5000/?token=hush3")
    (tmp_path / "eventlog.toml").write_text(
        '[targets.lab]\nkind = "mlflow"\naddress = "http://user:hush4@lab:5000"\ntoken = "hush5"\n'
    )
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "eventlog.toml").write_text('[targets.lab]\nkind = "trackio"\n')
    for arguments in (["--origin"], ["--origin", "--json"], []):
        assert main.run(["config", "show", *arguments]) == 0
        text = capsys.readouterr().out
        assert "hush" not in text
    assert main.run(["config", "show", "--origin", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["journal"]["origin"] == "EVENTLOG_DIR"
    assert rows["state"]["origin"] == "default"
    assert rows["targets.lab.kind"]["value"] == "mlflow"  # ours before a stranger's journal
    assert rows["targets.lab.kind"]["origin"] == str(tmp_path / "eventlog.toml")
    assert rows["targets.lab.address"]["value"] == "http://***@lab:5000"
    assert rows["MLFLOW_TRACKING_URI"]["value"] == "http://***@host:5000/?token=***"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", "x", "***"),
        ("TRACKIO_SERVER_URL", "https://h/?write_token=x&a=1", "https://h/?write_token=***&a=1"),
        ("WANDB_ENTITY", "lab", "lab"),
    ],
)
def test_what_is_secret_is_masked(name: str, value: str, shown: str) -> None:
    assert masked(name, value) == shown
