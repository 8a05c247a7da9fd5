"""What verl's users were promised, each against the real backends: names make the run, a restart
is the same run, nothing is lost and nothing is double, generations arrive everywhere.

verl's loggers are the genuine ones, loaded by path; ``tools/verl`` does the same with the whole
package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlog.catalog import find_all
from eventlog.frame import to_events
from eventlog.reader import WriterReader, headers
from eventlog.views import open_view
from tests.integrations import verl_source
from tests.integrations.verl_trainer import NAME, PROJECT, Plan, generations, points
from tests.targets.mlflow_server import make_database
from tests.targets.wandb_loopback import WandbLoopback, client_environment

pytestmark = pytest.mark.skipif(
    verl_source.find() is None, reason="verl's source is not there (tools/test brings it)"
)

TRAINER = Path(__file__).with_name("verl_trainer.py")
ID = hashlib.md5(f"{PROJECT}/{NAME}".encode()).hexdigest()[:16]
WAITS = {"EVENTLOG_WANDB_SETTLE": "0.3", "EVENTLOG_WANDB_PATIENCE": "2.5"}
TABLE = "val/generations"


# ------------------------------------------------------------------------------ launches


@dataclasses.dataclass
class Node:
    """A machine with a disk of its own; checkpoints lie on a shared one."""

    disk: Path
    shared: Path

    @property
    def journal(self) -> Path:
        return self.disk / "journal"

    def plan(self, who: int, last: int = 0, **more: Any) -> Plan:
        return Plan(who, str(self.journal), str(self.shared / "checkpoints"), last, **more)

    def start(self, plan: Plan, **environ: str) -> subprocess.Popen[str]:
        self.disk.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, str(TRAINER), json.dumps(dataclasses.asdict(plan))],
            cwd=self.disk,
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, plan: Plan, **environ: str) -> str:
        """Run a launch to its end, and return what it said."""
        process = self.start(plan, **environ)
        _out, said = process.communicate(timeout=120)
        expected = -signal.SIGKILL if plan.die is not None else 0
        assert process.returncode == expected, said
        return said


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "a", tmp_path)


def effective(journal: Path) -> Counter[tuple[Any, ...]]:
    """Return the points of the journal's one run that count, read with its own reader."""
    (found,), bad = find_all((str(journal),))
    assert not bad
    assert found.run.id == ID
    view = open_view(found.folder)
    out: Counter[tuple[Any, ...]] = Counter()
    for writer in headers(found.folder):
        for table in WriterReader(found.folder, writer).tables():
            for event in to_events(view.rows(writer, table)):
                for key, value in event.values().items():
                    shown = "table" if key == TABLE else float(value)
                    out[key, event.step, shown] += 1
    return out


def with_tables(history: list[tuple[Any, ...]], steps: list[int]) -> Counter[tuple[Any, ...]]:
    return Counter([*history, *((TABLE, step, "table") for step in steps)])


#: Killed behind step 13, the checkpoint of step 8, 21 steps in all.
KILLED, LAST = 13, 21
EXPECTED = [p for p in points(1, 0, KILLED) if p[1] <= 8 and not (p[1] == 8 and "val" in p[0])]
EXPECTED += points(2, 8, LAST)
TABLES = [0, 4, 8, 12, 16, 20]
BY = {0: 1, 4: 1}  # who made the generations of a step, else the second launch


# ------------------------------------------------------------------------------ backends


@dataclasses.dataclass
class Backends:
    """MLflow's database, a folder of Trackio and a W&B server, all empty."""

    folder: Path
    wandb: WandbLoopback

    def sync(self, journal: Path, *options: str, **environ: str) -> str:
        """Bring a journal into all three; return what was said."""
        targets = [f"mlflow:sqlite:///{self.folder}/mlflow.db", f"trackio:{self.folder}/trackio"]
        command = [sys.executable, "-m", "eventlog.cli.main", "sync", str(journal), *options]
        for target in [*targets, f"wandb:{self.wandb.url}"]:
            command += ["--to", target]
        env = client_environment(self.wandb.url, self.folder) | WAITS | environ
        done = subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    # ---------------------------------------------------------------- what each of them shows

    def mlflow(self, query: str, *args: Any) -> list[Any]:
        return _sql(self.folder / "mlflow.db", query, *args)

    def mlflow_points(self) -> Counter[tuple[Any, ...]]:
        rows = self.mlflow("SELECT key, step, value FROM metrics")
        # MLflow refuses this character of verl's names.
        return Counter((key.replace("_x40_", "@"), step, value) for key, step, value in rows)

    def mlflow_tables(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        ((place,),) = self.mlflow("SELECT artifact_uri FROM runs")
        for path in Path(place.removeprefix("file://")).rglob("step=*.json"):
            step = int(path.name.removeprefix("step=").partition("-")[0])
            assert step not in found
            found[step] = [tuple(row) for row in json.loads(path.read_text())["data"]]
        return found

    def trackio(self, query: str) -> list[Any]:
        return _sql(self.folder / "trackio" / f"{PROJECT}.db", query)

    def trackio_points(self) -> Counter[tuple[Any, ...]]:
        out: Counter[tuple[Any, ...]] = Counter()
        for step, text in self.trackio("SELECT step, metrics FROM metrics"):
            for key, value in json.loads(text).items():
                out[key, step, value] += isinstance(value, (int, float))
        return +out

    def trackio_tables(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        query = "SELECT step, messages, metadata FROM traces ORDER BY step, trace_index"
        for step, messages, metadata in self.trackio(query):
            said = [m["content"] for m in json.loads(messages)]
            found.setdefault(step, []).append((*said, json.loads(metadata)["score"]))
        return found

    def wandb_run(self) -> dict[str, Any]:
        (run,) = self.wandb.state()["runs"]
        report = self.wandb.run(run["run"])
        assert report["gaps"] == []
        assert report["duplicate_steps"] == {}
        return report

    def wandb_points(self) -> Counter[tuple[Any, ...]]:
        out: Counter[tuple[Any, ...]] = Counter()
        for text in self.wandb_run()["rows"].values():
            row = _flat(json.loads(text))
            step = row["training/global_step"]
            logged = "actor/loss" in row
            for key, value in row.items():
                hidden = key.startswith("_") or (key == "training/global_step" and not logged)
                if not hidden and isinstance(value, (int, float)) and not key.startswith(TABLE):
                    out[key, step, float(value)] += 1
        return out

    def wandb_tables(self) -> list[int]:
        rows = [json.loads(text) for text in self.wandb_run()["rows"].values()]
        return sorted(row["training/global_step"] for row in rows if TABLE in row)


def _sql(path: Path, query: str, *args: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query, args).fetchall()


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "_type" not in value:
            out |= _flat(value, f"{prefix}{key}/")
        else:
            out[prefix + key] = value
    return out


@pytest.fixture
def backends(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    folder = tmp_path / "backends"
    folder.mkdir()
    make_database(folder / "mlflow.db", tmp_path_factory)
    with WandbLoopback(folder / "wandb-server") as server:
        yield Backends(folder, server)


def shows_one_run(backends: Backends) -> None:
    """One run in each, whose id is what the names make it."""
    ((run, name),) = backends.mlflow("SELECT run_uuid, name FROM runs")
    tags = dict(backends.mlflow("SELECT key, value FROM tags WHERE run_uuid = ?", run))
    assert (name, tags["eventlog.run"]) == (NAME, ID)
    rows = backends.trackio("SELECT DISTINCT run_id, run_name FROM metrics")
    assert rows == [(ID, NAME)]
    report = backends.wandb_run()
    assert (report["run"], report["project"]) == (ID, PROJECT)
    assert report["display_name"] == NAME


def shows_exactly(backends: Backends) -> None:
    """The effective view, exact, and the generations of each validation, in all three."""
    expected = Counter(EXPECTED)
    assert backends.mlflow_points() == expected
    assert backends.trackio_points() == expected
    assert backends.wandb_points() == expected
    tables = {step: generations(step, BY.get(step, 2)) for step in TABLES}
    assert backends.mlflow_tables() == tables
    assert backends.trackio_tables() == tables
    assert backends.wandb_tables() == TABLES


# ------------------------------------------------------------------------------ the promises


@pytest.mark.apart
@pytest.mark.parametrize("disks", ["same disk", "fresh disks, merged by rsync"])
def test_killed_and_started_again_is_one_run_in_each_backend_and_exact(
    disks: str, tmp_path: Path, backends: Backends
) -> None:
    first = Node(tmp_path / "a", tmp_path)
    second = first if disks == "same disk" else Node(tmp_path / "b", tmp_path)
    first.launch(first.plan(1, 99, die=KILLED))
    said = second.launch(second.plan(2, LAST))
    assert "training starts at step 8" in said
    journal = second.journal
    if second is not first:
        journal = tmp_path / "gathered"
        for node in (second, first):  # in no order that would help
            subprocess.run(["cp", "-r", f"{node.journal}/.", journal], check=True)
    assert effective(journal) == with_tables(EXPECTED, TABLES)
    backends.sync(journal)
    shows_one_run(backends)
    shows_exactly(backends)
    assert "_wandb" in backends.wandb_run()["config"]
