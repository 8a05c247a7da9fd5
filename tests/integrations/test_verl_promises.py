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
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlog.attempts import attempts
from eventlog.catalog import find_all
from eventlog.frame import to_events
from eventlog.reader import WriterReader, headers
from eventlog.views import open_view
from tests import warm
from tests.integrations import verl_source
from tests.integrations.verl_trainer import NAME, PROJECT, Plan, generations, points
from tests.targets.mlflow_server import MlflowServer, make_database
from tests.targets.wandb_loopback import WandbLoopback, client_environment

pytestmark = pytest.mark.skipif(
    verl_source.find() is None, reason="verl's source is not there (tools/test brings it)"
)

TRAINER = Path(__file__).with_name("verl_trainer.py")
ID = hashlib.md5(f"{PROJECT}/{NAME}".encode()).hexdigest()[:16]
WAITS = {"EVENTLOG_WANDB_SETTLE": "0.3", "EVENTLOG_WANDB_PATIENCE": "2.5"}
TABLE = "val/generations"
STEP = "training/global_step"
DATABASE, SERVER = "MLflow database", "MLflow server"
RSYNC = "fresh disks, merged by rsync"


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
        self.disk.mkdir(exist_ok=True)
        done = warm.python(
            f"import runpy; runpy.run_path({str(TRAINER)!r}, run_name='__main__')",
            json.dumps(dataclasses.asdict(plan)),
            cwd=self.disk,
            env={**os.environ, **environ},
        )
        expected = -signal.SIGKILL if plan.die is not None else 0
        assert done.returncode == expected, done.stderr
        return done.stderr


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
    """MLflow, a folder of Trackio and a W&B server, all empty; MLflow is a server over a database,
    or the database alone.
    """

    folder: Path
    wandb: WandbLoopback
    server: MlflowServer | None = None

    @property
    def tracking(self) -> str:
        """The address of MLflow."""
        return self.server.uri if self.server else f"sqlite:///{self.folder}/mlflow.db"

    def sync(self, journal: Path, *options: str, **environ: str) -> str:
        """Bring a journal into all three; return what was said."""
        places = [f"trackio:{self.folder}/trackio", f"wandb:{self.wandb.url}"]
        extra = [part for place in places for part in ("--to", place)]
        return self.sync_mlflow(journal, *extra, *options, **environ)

    def sync_mlflow(self, journal: Path, *options: str, **environ: str) -> str:
        command = ["sync", str(journal), *options, "--to", f"mlflow:{self.tracking}"]
        env = client_environment(self.wandb.url, self.folder) | WAITS | environ
        done = warm.run(command, imports=warm.MLFLOW, env=env, cwd=self.folder, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stderr

    # ---------------------------------------------------------------- what each of them shows

    def mlflow(self, query: str, *args: Any) -> list[Any]:
        return _sql(self.folder / "mlflow.db", query, *args)

    def mlflow_points(self) -> Counter[tuple[Any, ...]]:
        rows = self.mlflow("SELECT key, step, value FROM metrics")
        # MLflow refuses this character of verl's names.
        return Counter((key.replace("_x40_", "@"), step, value) for key, step, value in rows)

    def mlflow_runs(self) -> set[str]:
        """Runs that hold points."""
        return {run for (run,) in self.mlflow("SELECT DISTINCT run_uuid FROM metrics")}

    def make_runs(self, *names: str) -> list[str]:
        """Make runs as somebody else would, in the experiment of that project."""
        code = (
            "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]); c = mlflow.MlflowClient(); "
            "e = mlflow.set_experiment(sys.argv[2]).experiment_id; "
            "print(*(c.create_run(e, run_name=n).info.run_id for n in sys.argv[3:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.tracking, PROJECT, *names],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()[-len(names) :]

    def mlflow_tables(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        ((place,),) = self.mlflow("SELECT artifact_uri FROM runs")
        # A server keeps its clients' files below the folder that it was started with.
        place = place.replace("mlflow-artifacts:", str(self.folder / "artifacts"))
        for path in Path(place.removeprefix("file://")).rglob("step=*.json"):
            step = int(path.name.removeprefix("step=").partition("-")[0])
            assert step not in found
            found[step] = _cells(path.read_bytes())
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
            asked, answered = json.loads(messages)
            assert (asked["role"], answered["role"]) == ("user", "assistant")
            row = (asked["content"], answered["content"], json.loads(metadata)["score"])
            found.setdefault(step, []).append(row)
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
            step = row[STEP]
            logged = "actor/loss" in row
            for key, value in row.items():
                hidden = key.startswith("_") or (key == STEP and not logged)
                if not hidden and isinstance(value, (int, float)) and not key.startswith(TABLE):
                    out[key, step, float(value)] += 1
        return out

    def wandb_tables(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for text in self.wandb_run()["rows"].values():
            row = json.loads(text)
            if TABLE in row:
                assert row[STEP] not in found
                found[row[STEP]] = _cells(self._wandb_file(row[TABLE]["path"]))
                assert (row[TABLE]["ncols"], row[TABLE]["nrows"]) == (3, 3)
        return found

    def _wandb_file(self, name: str) -> bytes:
        """Download a file of the run as W&B's page does."""
        (run,) = self.wandb.state()["runs"]
        answer = self.wandb.graphql(
            "query F($p: String!, $e: String, $r: String!, $n: [String]) { project(name: $p, "
            "entityName: $e) { run(name: $r) { files(names: $n) { edges { node { directUrl }}}}}}",
            p=run["project"],
            e=run["entity"],
            r=run["run"],
            n=[name],
        )
        (edge,) = answer["data"]["project"]["run"]["files"]["edges"]
        with self.wandb.http() as client:
            return client.get(edge["node"]["directUrl"]).raise_for_status().content


def _cells(table: bytes) -> list[tuple[Any, ...]]:
    """Return the rows of a table of generations, as both MLflow and W&B keep it."""
    content = json.loads(table)
    assert content["columns"] == ["input", "output", "score"]
    return [tuple(row) for row in content["data"]]


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
def backends(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Backends]:
    """Backends, with an MLflow server if the parameter says so (it takes many seconds to start)."""
    folder = tmp_path / "backends"
    folder.mkdir()
    make_database(folder / "mlflow.db", tmp_path_factory)
    mlflow = MlflowServer(folder, f"sqlite:///{folder}/mlflow.db")
    served = getattr(request, "param", DATABASE) == SERVER
    with WandbLoopback(folder / "wandb-server") as server:
        try:
            if served:
                mlflow.start()
            yield Backends(folder, server, mlflow if served else None)
        finally:
            mlflow.kill()


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
    assert backends.wandb_tables() == tables


def gather(journal: Path, place: Path) -> None:
    """Bring a journal into another one, as the guide does it."""
    copy = (
        ["rsync", "--archive", f"{journal}/"]
        if shutil.which("rsync")
        else ["cp", "-r", f"{journal}/."]
    )
    subprocess.run([*copy, str(place)], check=True)


# ------------------------------------------------------------------------------ the promises


@pytest.mark.parametrize(
    ("disks", "backends"),
    [
        ("same disk", SERVER),
        pytest.param(RSYNC, DATABASE, marks=pytest.mark.long),
        pytest.param("same disk", DATABASE, marks=pytest.mark.long),
        pytest.param(RSYNC, SERVER, marks=pytest.mark.long),
    ],
    indirect=["backends"],
)
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
            gather(node.journal, journal)
    assert effective(journal) == with_tables(EXPECTED, TABLES)
    backends.sync(journal)
    shows_one_run(backends)
    shows_exactly(backends)
    assert STEP in json.dumps(backends.wandb_run()["config"]["_wandb"]["value"]["m"])


@pytest.mark.long
@pytest.mark.parametrize("backends", [SERVER], indirect=True)
def test_brought_in_before_and_after_the_kill_it_is_the_same_run_and_nothing_is_lost(
    node: Node, backends: Backends
) -> None:
    """What had been delivered when it was superseded stays in a target, once."""
    node.launch(node.plan(1, 99, die=KILLED))
    backends.sync(node.journal)
    node.launch(node.plan(2, LAST))
    said = backends.sync(node.journal)
    shows_one_run(backends)
    everything = Counter([*points(1, 0, KILLED), *points(2, 8, LAST)])
    for held in (backends.mlflow_points(), backends.trackio_points(), backends.wandb_points()):
        assert held == everything
    ((run,),) = backends.mlflow("SELECT run_uuid FROM runs")
    for known_as in (run, ID, f"/{PROJECT}/{ID}"):
        assert f"{known_as}, found by its id" in said  # one line a target says which run it is
    assert said.count("found by") == 3
    # W&B was asked to resume the run of that id, by each sync.
    assert backends.wandb.state()["requests"]["graphql:RunResumeStatus"] >= 2


def test_without_a_word_of_the_config_the_data_tell_where_it_started_again(node: Node) -> None:
    node.launch(node.plan(1, 99, die=KILLED))
    said = node.launch(node.plan(2, LAST, start=8, says=False))
    assert "training starts" not in said
    assert effective(node.journal) == with_tables(EXPECTED, TABLES)


def test_killed_before_its_first_checkpoint_it_starts_afresh_and_is_whole(node: Node) -> None:
    node.launch(node.plan(1, 99, die=5))
    node.launch(node.plan(2, 9))
    assert effective(node.journal) == with_tables(points(2, 0, 9), [0, 4, 8])


def test_killed_three_times_between_two_checkpoints_it_is_still_exact(node: Node) -> None:
    node.launch(node.plan(1, 99, die=10))
    for who, die in ((2, 14), (3, 9), (4, 13)):
        node.launch(node.plan(who, 99, die=die))
    node.launch(node.plan(5, 17))
    expected = [p for p in points(1, 0, 8) if not (p[1] == 8 and "val" in p[0])]
    assert effective(node.journal) == with_tables([*expected, *points(5, 8, 17)], [0, 4, 8, 12, 16])


@pytest.mark.parametrize("disks", ["same disk", "fresh disks"])
@pytest.mark.parametrize("says", [True, False])
def test_a_launch_that_only_validates_supersedes_its_keys_at_that_step_alone(
    node: Node, tmp_path: Path, disks: str, says: bool
) -> None:
    node.launch(node.plan(1, LAST))
    other = node if disks == "same disk" else Node(tmp_path / "b", tmp_path)
    said = other.launch(other.plan(2, start=8, val_only=True, says=says))
    assert ("attempt 2 of qwen 7b, which only validates" in said) == (other is node)
    if other is not node:
        gather(other.journal, node.journal)
    expected = [p for p in points(1, 0, LAST) if not (p[1] == 8 and "val" in p[0])]
    expected += points(2, 8, 8)
    assert effective(node.journal) == with_tables(expected, TABLES)


@pytest.mark.parametrize("disks", ["same disk", "a disk each"])
def test_two_jobs_under_one_name_at_once_supersede_nothing_and_show_says_so(
    node: Node, tmp_path: Path, disks: str
) -> None:
    """The trainer waits in the middle; beside it another job trains, and an evaluator validates."""
    beside = node if disks == "same disk" else Node(tmp_path / "b", tmp_path)
    trainer = node.start(node.plan(1, 10, wait="line"), SLURM_JOB_ID="1")
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "ready\n"
    beside.launch(beside.plan(2, 6, start=0, says=False), SLURM_JOB_ID="2")
    beside.launch(beside.plan(3, start=0, val_only=True, says=False), SLURM_JOB_ID="3")
    trainer.communicate("\n", timeout=120)
    assert trainer.returncode == 0
    if beside is not node:
        gather(beside.journal, node.journal)
    # Of the evaluator and the job that had ended before it began, the later one counts.
    second = [p for p in points(2, 0, 6) if not (p[1] == 0 and "val" in p[0])]
    history = [*points(1, 0, 10), *second, *points(3, 0, 0)]
    assert effective(node.journal) == with_tables(history, [0, 0, 4, 4, 8])
    command = [sys.executable, "-m", "eventlog.cli.main", "show", NAME, "--journal"]
    shown = subprocess.run(
        [*command, str(node.journal)], capture_output=True, text=True, check=True
    ).stdout
    assert shown.count("beside attempt 1: supersedes nothing of it") == 2


def test_a_requeued_slurm_job_is_one_run_with_two_attempts_in_order(node: Node) -> None:
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "ppo"}
    node.launch(node.plan(1, 99, die=KILLED), **job, SLURM_RESTART_COUNT="0")
    node.launch(node.plan(2, LAST), **job, SLURM_RESTART_COUNT="1")
    (found,), _ = find_all((str(node.journal),))
    first, second = attempts(headers(found.folder))
    assert (first.restart, second.restart, second.evidence) == ((0,), (1,), "restart")
    assert effective(node.journal) == with_tables(EXPECTED, TABLES)


@pytest.mark.long
@pytest.mark.parametrize("backends", [SERVER, DATABASE], indirect=True)
def test_mlflow_run_id_comes_first_and_then_the_run_of_that_name_by_consent(
    node: Node, backends: Backends
) -> None:
    """As a platform does that makes the run, and as somebody does who logged without us before."""
    *made, named = backends.make_runs(NAME, NAME, "another")
    node.launch(node.plan(1, 3), MLFLOW_RUN_ID=made[0])
    said = backends.sync_mlflow(node.journal)
    assert f"goes on with the run {made[0]}, found by MLFLOW_RUN_ID" in said
    assert backends.mlflow_runs() == {made[0]}
    other = dataclasses.replace(node, disk=node.disk / "other")
    other.launch(other.plan(2, 3))
    said = backends.sync_mlflow(other.journal, "--adopt-by-name", "--state", str(node.disk / "s"))
    # The tag of the first one comes before the name of the second.
    assert f"goes on with the run {made[0]}, found by its tag eventlog.key" in said
    third = dataclasses.replace(node, disk=node.disk / "third")
    third.launch(third.plan(3, 3, name="another"))
    said = backends.sync_mlflow(third.journal, "--adopt-by-name")
    assert f"goes on with the run {named}, found by its name" in said
    assert backends.mlflow_runs() == {made[0], named}


def test_numpy_at_any_depth_arrives_in_each_backend(node: Node, backends: Backends) -> None:
    """Trackio leaves an array out, takes a numpy step for bytes and breaks when it resumes."""
    code = """
import numpy as np
from tests.integrations import verl_source
one = verl_source.tracking().Tracking("ppo", "qwen 7b", "eventlog")
words = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
one.log({"deep": {"er": {w: np.dtype(w).type(1) for w in words}}, "zero": np.array(1.0)}, np.int64(3))
one.log({"list": [np.float32(0.5), {"x": np.array([1, 2])}], "flag": np.bool_(True)}, np.float64(4))
one.finish()
"""
    for _ in range(2):  # and again, resumed
        warm.python(
            code,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "EVENTLOG_DIR": str(node.journal)},
        ).check_returncode()
    backends.sync(node.journal)
    words = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
    rows = [
        (step, json.loads(text))
        for step, text in backends.trackio("SELECT step, metrics FROM metrics ORDER BY id")
    ]
    assert [step for step, _ in rows] == [3, 4]
    assert rows[0][1] == {f"deep/er/{w}": 1 for w in words} | {"zero": 1.0}
    assert rows[1][1] == {"list": [0.5, {"x": [1, 2]}], "flag": True}
    numbers = {f"deep/er/{w}": 3 for w in words} | {"zero": 3, "flag": 4}
    assert backends.mlflow_points() == {(k, step, 1.0): 1 for k, step in numbers.items()}
    shown = {key: (step, value) for key, step, value in backends.wandb_points()}
    assert shown == {k: (step, 1.0) for k, step in numbers.items()}
