"""Runs that are followed while they are written, into real backends: side by side, and exactly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eventlog
from eventlog.catalog import find_all
from replayers.compare import compare
from replayers.registry import target_of
from replayers.replay import run_info
from tests.targets.mlflow_server import MlflowServer, make_database
from tests.targets.wandb_loopback import (
    WandbLoopback,
    client_environment,
    wandb_loopback,
)

__all__ = ["wandb_loopback"]  # a fixture is used by its name

WAITS = {"EVENTLOG_WANDB_SETTLE": "0.3", "EVENTLOG_WANDB_PATIENCE": "2.5"}
RUN = """
from eventlog.cli import main
from replayers.commands import exec_
main.group.add_command(exec_)
main.main()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is so, or the process has ended and can change nothing any more."""
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def exact(journal: Path, spec: str, runs: int) -> None:
    """Every run is in the target, point by point."""
    found, _bad = find_all([str(journal)])
    assert len(found) == runs
    target = target_of(spec, lambda: found, [])
    for item in found:
        result = compare(item.folder, target, target.open(run_info(item, None)))
        assert result.equal, result
        assert result.held
    target.close()


@pytest.mark.long
def test_two_live_runs_and_one_server_that_dies_and_comes_back(
    tmp_path: Path, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_database(tmp_path / "m.db", tmp_path_factory)
    server = MlflowServer(tmp_path, f"sqlite:///{tmp_path / 'm.db'}")
    server.start()
    folder = tmp_path / "t"
    to = ["--to", f"mlflow:{server.uri}", "--to", f"trackio:{folder}"]
    follow = ["--watch", "--until-finished", "--grace", 0, "--interval", 0.1]
    runs = [
        eventlog.init("p", name, id=name, dir=tmp_path / "j", quiet=True) for name in ("a", "b")
    ]
    process = start("sync", tmp_path / "j", *to, *follow, MLFLOW_HTTP_REQUEST_TIMEOUT="5")
    try:
        for step in range(60):
            for run in runs:
                run.log({"loss": step / 7, "n": step}, step=step)
            if step == 20:
                until(lambda: (folder / "p.db").exists(), process)
                server.kill()
            if step == 40:
                before = (folder / "p.db").stat().st_mtime_ns
                until(lambda: _moved(folder, before), process)
                server.start()
        for run in runs:
            run.finish()
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.count("ok") == 4
        exact(tmp_path / "j", f"mlflow:{server.uri}", 2)
        exact(tmp_path / "j", f"trackio:{folder}", 2)
    finally:
        server.kill()


def _moved(folder: Path, before: int) -> bool:
    """Whether Trackio's files have been written to since."""
    return any(path.stat().st_mtime_ns > before for path in folder.glob("p.db*"))


@pytest.mark.long
def test_two_live_runs_have_a_child_each_in_wandb(
    tmp_path: Path, start: Start, wandb_loopback: WandbLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (client_environment(wandb_loopback.url, tmp_path) | WAITS).items():
        monkeypatch.setenv(name, value)
    spec = f"wandb:{wandb_loopback.url}"
    runs = [
        eventlog.init("lab", name, id=name, dir=tmp_path / "j", quiet=True) for name in ("a", "b")
    ]
    process = start(
        "sync", tmp_path / "j", "--to", spec, "--watch", "--until-finished", "--grace", 0,
        "--interval", 0.1, "--jobs", 2,
    )  # fmt: skip

    def lines() -> list[int]:
        reports = [wandb_loopback.run(run["run"]) for run in wandb_loopback.state()["runs"]]
        return [len(report["rows"]) for report in reports]

    for step in range(40):
        for run in runs:
            run.log({"loss": step / 7}, step=step)
        if step in (10, 25):
            until(lambda: len(lines()) == 2 and min(lines()) > step - 10, process)
    for run in runs:
        run.finish()
    _out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert lines() == [40, 40]
    exact(tmp_path / "j", spec, 2)


def test_exec_brings_a_run_into_wandb(
    tmp_path: Path, start: Start, wandb_loopback: WandbLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (client_environment(wandb_loopback.url, tmp_path) | WAITS).items():
        monkeypatch.setenv(name, value)
    code = """
import eventlog, sys
with eventlog.init("lab", "x", quiet=True) as run:
    for step in range(30):
        run.log({"loss": step / 7}, step=step)
sys.exit(4)
"""
    spec = f"wandb:{wandb_loopback.url}"
    process = start("exec", "--to", spec, "--", sys.executable, "-c", code)
    _out, err = process.communicate(timeout=240)
    assert process.returncode == 4, err
    assert "32 events of 1 runs sent" in err
    exact(tmp_path / "eventlog-data", spec, 1)
