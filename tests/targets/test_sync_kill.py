"""SIGKILL of ``eventlog sync`` at random moments, and started again: the target ends exact.

What the target holds is read with the backend's own public interface and compared, bit by bit,
with the effective view worked out here from the plain list of what was logged. Twenty kills each
with ``--long``, two or three in a slice.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import eventlog
from tests import warm
from tests.targets.mlflow_server import MlflowServer, make_database

Repeats = Callable[[int, int], int]
Point = tuple[str, int, bytes]

SPECIAL = [float("nan"), 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e22, 1 / 3, -1.0, 2.0**60]


def value(step: int, key: int, attempt: int) -> float:
    """Return a value that says where it comes from, now and then a hard one."""
    if (step + key) % 37 == 0:
        return SPECIAL[step % len(SPECIAL)]
    return step + key / 16 + attempt / 1024


def expected() -> Counter[Point]:
    """Return the effective view: attempt 1 to its restart at 200, then attempt 2."""
    points: Counter[Point] = Counter()
    for attempt, steps in ((1, range(200)), (2, range(200, 500))):
        for step in steps:
            for key in range(6):
                points[f"k/{key}", step, bits(value(step, key, attempt))] += 1
    return points


def bits(number: float) -> bytes:
    """Return a float64's bits, one NaN for all."""
    return struct.pack("<d", math.nan if number != number else number)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two attempts: the second starts again at step 200 where the first was at 300."""
    path = tmp_path_factory.mktemp("kill") / "journal"
    for attempt, steps in ((1, range(300)), (2, range(200, 500))):
        run = eventlog.init("kill", "run", id="from-name", dir=path, config={"a": 1}, quiet=True)
        for step in steps:
            run.log({f"k/{key}": value(step, key, attempt) for key in range(6)}, step=step)
        run.finish()
    return path


class Process(Protocol):
    """A sync that runs."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def wait(self) -> int: ...


def arguments(journal: Path, spec: str, state: Path) -> list[str]:
    """Return the arguments of a sync in small batches."""
    return ["sync", str(journal), "--to", spec, "--state", str(state), "--batch", "180", "--json"]


def cold(journal: Path, spec: str, state: Path) -> Process:
    """Start a sync as a user would."""
    command = [sys.executable, "-m", "eventlog.cli.main", *arguments(journal, spec, state)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def sync(journal: Path, spec: str, state: Path) -> warm.Process:
    """Start one that has imported what it needs: MLflow takes seconds."""
    imports = warm.MLFLOW if spec.startswith("mlflow:") else ""
    return warm.start(arguments(journal, spec, state), imports=imports)


def changed(state: Path, before: float, process: Process) -> float:
    """Wait until the cursor moves or the process ends; return when it moved."""
    while process.poll() is None:
        for path in state.rglob("cursor.json"):
            try:
                if (now := path.stat().st_mtime) > before:
                    return now
            except FileNotFoundError:
                continue
        time.sleep(0.002)
    return before


def kill_at_random(journal: Path, spec: str, state: Path, seed: str, kills: int) -> None:
    """Kill syncs: most right after a mark was made, some at any time of their lives."""
    chance = random.Random(seed)
    for kill in range(kills):
        before = max((p.stat().st_mtime for p in state.rglob("cursor.json")), default=0.0)
        process = (sync if kill % 5 else cold)(journal, spec, state)
        if kill % 4:
            changed(state, before, process)
            time.sleep(chance.uniform(0, 0.12))
        else:
            time.sleep(chance.uniform(0, 0.4) if kill % 5 else chance.uniform(0.3, 2.5))
        process.send_signal(signal.SIGKILL)
        process.wait()


def finish(journal: Path, spec: str, state: Path) -> list[dict[str, Any]]:
    """Sync to the end, twice; return the second report."""
    for _ in range(2):
        process = sync(journal, spec, state)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    report: list[dict[str, Any]] = json.loads(out)
    return report


def of_mlflow(uri: str) -> Counter[Point]:
    """Read everything with MLflow's own client."""
    code = """
import json, os, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
assert len(runs) == 1 and runs[0].info.status == "FINISHED", runs
rows = []
for key in runs[0].data.metrics:
    for m in client.get_metric_history(runs[0].info.run_id, key):
        rows.append([m.key, m.step, m.value.hex()])
print(json.dumps(rows))
"""
    return read(code, uri)


def of_trackio(folder: str) -> Counter[Point]:
    """Read everything with Trackio's own storage class."""
    code = """
import json, os, sys
os.environ["TRACKIO_DIR"] = sys.argv[1]
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_run_records("kill") if hasattr(SQLiteStorage, "get_run_records") else None
names = SQLiteStorage.get_runs("kill")
assert len(names) == 1, names
rows = []
for log in SQLiteStorage.get_logs("kill", names[0]):
    for key, value in log.items():
        if key.startswith("k/"):
            rows.append([key, log["step"], float(value).hex()])
print(json.dumps(rows))
"""
    return read(code, folder)


def read(code: str, place: str) -> Counter[Point]:
    """Run a reader in a process of its own and count the points it prints."""
    environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, place],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    return Counter((key, step, bits(float.fromhex(number))) for key, step, number in rows)


def exact(got: Counter[Point]) -> None:
    """Fail with a few differences if a target does not hold exactly the effective view."""
    want = expected()
    assert sum(got.values()) == sum(want.values()), (sum(got.values()), sum(want.values()))
    assert got == want, (list((want - got).items())[:5], list((got - want).items())[:5])


@pytest.fixture
def mlflow_database(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_database(tmp_path / "m.db", tmp_path_factory)
    return tmp_path / "m.db"


@pytest.fixture
def mlflow_server(mlflow_database: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(mlflow_database.parent, f"sqlite:///{mlflow_database}")
    server.start()
    yield server
    server.kill()


def run_case(
    journal: Path, tmp_path: Path, spec: str, reader: Callable[[], Counter[Point]], kills: int
) -> None:
    state = tmp_path / "state"
    kill_at_random(journal, spec, state, spec.partition(":")[0], kills)
    (report,) = finish(journal, spec, state)
    assert (report["sent"], report["contacted"]) == (0, False)
    exact(reader())


def test_sync_into_an_mlflow_database_killed_again_and_again_ends_exact(
    journal: Path, tmp_path: Path, mlflow_database: Path, repeats: Repeats
) -> None:
    uri = f"sqlite:///{mlflow_database}"
    run_case(journal, tmp_path, f"mlflow:{uri}", lambda: of_mlflow(uri), repeats(2, 20))


@pytest.mark.long
def test_sync_into_an_mlflow_server_killed_again_and_again_ends_exact(
    journal: Path, tmp_path: Path, mlflow_server: MlflowServer, repeats: Repeats
) -> None:
    uri = mlflow_server.uri
    run_case(journal, tmp_path, f"mlflow:{uri}", lambda: of_mlflow(uri), repeats(2, 20))


def test_sync_into_a_trackio_folder_killed_again_and_again_ends_exact(
    journal: Path, tmp_path: Path, repeats: Repeats
) -> None:
    folder = str(tmp_path / "trackio")
    run_case(journal, tmp_path, f"trackio:{folder}", lambda: of_trackio(folder), repeats(3, 20))
