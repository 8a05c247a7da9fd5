"""The guide's scripts, run as they stand: preempted, requeued, killed, gathered, synced at night.

What is stood in for: SLURM (its variables are set, and its signals sent), verl's command line (the
genuine loggers in `verl_trainer`), and rsync where it is not installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eventlog.integrations.verl_settings import _READERS
from tests.integrations import verl_source
from tests.integrations.test_verl_promises import effective, with_tables
from tests.integrations.verl_trainer import points

pytestmark = pytest.mark.skipif(
    verl_source.find() is None, reason="verl's source is not there (tools/test brings it)"
)
TOP = Path(__file__).resolve().parents[2]
GUIDE = (TOP / "eventlog" / "integrations" / "VERL.md").read_text()
NAME = "qwen-7b"

PYTHON = f"""#!{sys.executable}
import json, os, sys
sys.path.insert(0, {str(TOP)!r})
from tests.integrations.verl_trainer import Plan, run
assert sys.argv[1:3] == ["-m", "verl.trainer.main_ppo"], sys.argv
given = dict(argument.split("=", 1) for argument in sys.argv[3:])
assert given["trainer.project_name"] == "ppo"
assert given["trainer.resume_mode"] == "auto"
run(Plan(
    journal=given["+trainer.eventlog.dir"],
    checkpoints=given["trainer.default_local_dir"],
    logger=json.loads(given["trainer.logger"])[1:],
    name=given["trainer.experiment_name"],
    **json.loads(os.environ["PLAN"]),
))
"""
EVENTLOG = f"""#!/bin/sh
PYTHONPATH={TOP} exec {sys.executable} -m eventlog.cli.main "$@"
"""
#: As much of rsync --archive as the guide uses: a copy that never deletes.
RSYNC = """#!/bin/sh
[ "$1" = --archive ] || exit 2
exec cp -a "$2." "$3"
"""
#: Only root may be another user.
RUNUSER = """#!/bin/sh
[ "$1 $2 $3" = "-u alice --" ] || exit 2
shift 3
exec "$@"
"""


def script(title: str) -> str:
    """Return the guide's script of that name: the first block of bash behind it."""
    behind = GUIDE.partition(f"`{title}`")[2]
    found = re.search(r"```bash\n(.*?)```", behind, flags=re.DOTALL)
    assert found is not None, title
    return found[1]


@dataclasses.dataclass
class Cluster:
    """A shared disk, nodes with a disk each, and what the scripts call."""

    folder: Path

    def __post_init__(self) -> None:
        self.shared = self.folder / "shared"
        self.programs = self.folder / "programs"
        for place in (self.shared, self.programs):
            place.mkdir()
        told = {"python3": PYTHON, "eventlog": EVENTLOG, "runuser": RUNUSER}
        for name, text in (
            told.items() if shutil.which("rsync") else (told | {"rsync": RSYNC}).items()
        ):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def start(self, title: str, node: str, **environ: str) -> subprocess.Popen[str]:
        """Start a script on a node."""
        (self.folder / node).mkdir(exist_ok=True)
        (self.folder / node / "script").write_text(script(title))
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        job = {"SLURM_JOB_ID": "7", "SLURM_TMPDIR": str(self.folder / node)}
        job["SLURM_JOB_USER"] = "alice"
        given = {"PATH": path, "SHARED": str(self.shared), "GATHER_SECONDS": "0.2"}
        return subprocess.Popen(
            ["bash", "script"],
            env={**os.environ, **given, **job, **environ},
            cwd=self.folder / node,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def run(self, title: str, node: str, **environ: str) -> tuple[int, str]:
        process = self.start(title, node, **environ)
        _out, said = process.communicate(timeout=120)
        return process.returncode, said


def plan(who: int, last: int, **more: Any) -> str:
    return json.dumps({"who": who, "last": last, **more})


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def expected(killed: int, last: int) -> Counter[tuple[Any, ...]]:
    """The history of a launch that was killed behind the checkpoint of step 8, and of the next."""
    first = [p for p in points(1, 0, killed) if p[1] <= 8 and not (p[1] == 8 and "val" in p[0])]
    return with_tables([*first, *points(2, 8, last)], [0, 4, 8, 12, 16])


def id_is_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from eventlog.identity import id_from_name
    from tests.integrations import test_verl_promises

    monkeypatch.setattr(test_verl_promises, "ID", id_from_name("ppo", NAME))


def test_a_preempted_job_on_the_shared_disk_goes_on_where_it_was(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_is_the_names(monkeypatch)
    code, _ = cluster.run("train.sbatch", "a", PLAN=plan(1, 99, die=13), SLURM_RESTART_COUNT="0")
    assert code in (-signal.SIGKILL, 128 + signal.SIGKILL)
    code, said = cluster.run("train.sbatch", "b", PLAN=plan(2, 17), SLURM_RESTART_COUNT="1")
    assert code == 0, said
    assert "training starts at step 8" in said
    assert effective(cluster.shared / "eventlog") == expected(13, 17)


def test_jobs_on_nodes_of_their_own_are_gathered_and_synced_at_night(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_is_the_names(monkeypatch)
    # The first node dies with the job: no gathering at its end, and the epilog comes late.
    first = cluster.start("train-local.sbatch", "a", PLAN=plan(1, 99, die=13), GATHER_SECONDS="60")
    process = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGKILL, process
    shutil.rmtree(cluster.shared / "eventlog")  # as if it had not got there
    (cluster.shared / "eventlog").mkdir()
    code, said = cluster.run("train-local.sbatch", "b", PLAN=plan(2, 17), SLURM_RESTART_COUNT="1")
    assert code == 0, said
    elsewhere = str(cluster.folder / "not" / "there")
    assert cluster.run("epilog.sh", "a", SHARED=elsewhere)[0] == 0, "no node is drained for that"
    assert (cluster.folder / "a" / "eventlog-7").exists()
    assert cluster.run("epilog.sh", "a") == (0, "")
    assert cluster.run("epilog.sh", "a") == (0, "")  # nothing is left to bring
    assert not (cluster.folder / "a" / "eventlog-7").exists()
    assert effective(cluster.shared / "eventlog") == expected(13, 17)
    targets = f"--to trackio:{cluster.folder}/trackio"
    for night in range(2):
        code, said = cluster.run("nightly-sync", "login", TARGETS=targets)
        assert code == 0, said
        held = trackio(cluster)
        assert held == {k: n for k, n in expected(13, 17).items() if k[2] != "table"}, night
    code, said = cluster.run("nightly-sync", "login", TARGETS="--to wandb:http://127.0.0.1:9")
    assert code in (0, 5), said  # nobody there, or no key for him: and training is none the wiser


def trackio(cluster: Cluster) -> Counter[tuple[Any, ...]]:
    with sqlite3.connect(cluster.folder / "trackio" / "ppo.db") as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics").fetchall()
    found = [(k, s, v) for s, text in rows for k, v in json.loads(text).items()]
    return Counter(point for point in found if isinstance(point[2], (int, float)))


def test_a_job_that_is_told_to_end_is_gathered_before_it_does(cluster: Cluster) -> None:
    process = cluster.start(
        "train-local.sbatch", "a", PLAN=plan(1, 99, wait="signal"), GATHER_SECONDS="60"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
    _out, said = process.communicate(timeout=180)
    assert process.returncode == 143, said
    run = "eventlog/project=ppo/run=*"  # sealed, or not yet: it has little time
    assert [*cluster.shared.glob(f"{run}/*.arrows"), *cluster.shared.glob(f"{run}/sealed/*")]


def test_the_guide_names_every_setting() -> None:
    for key in _READERS:
        assert re.search(rf"[`.]{key}[=`]", GUIDE), key
