"""eventlog with the whole of verl: its own import of plug-ins, its trainer, torch, OmegaConf, Ray.

Not part of the default run, because of verl's size: ``tools/verl`` makes the environment and runs
this file by its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from eventlog import blobs
from eventlog.catalog import find_all
from eventlog.event import CONFIG, NOTE
from eventlog.glance import glance
from eventlog.integrations.verl_settings import restart
from eventlog.reader import WriterReader
from eventlog.table import Table
from tests.integrations import test_verl_promises as promises
from tests.integrations.verl_trainer import NAME, PROJECT, points

#: Fixtures are used by their names.
backends, node = promises.backends, promises.node

VAL = {"val-core/gsm8k/acc/mean@1": 0.25}


def events(journal: Path) -> list[Any]:
    (found,), bad = find_all((str(journal),))
    assert not bad
    return [
        event
        for attempt in glance(found.folder).attempts
        for writer in attempt.writers
        for event in WriterReader(found.folder, writer).events()
    ]


def table(journal: Path, reference: dict[str, Any]) -> list[Any]:
    (found,), _ = find_all((str(journal),))
    return Table.from_bytes(blobs.get(found.folder, reference["sha256"])).data


def config(folder: Path, **trainer: Any) -> Any:
    return OmegaConf.create(
        {
            "trainer": {
                "project_name": PROJECT,
                "experiment_name": NAME,
                "logger": ["console", "eventlog"],
                "eventlog": {"dir": str(folder / "journal")},
                "default_local_dir": str(folder / "checkpoints"),
                "default_hdfs_dir": None,
                "resume_mode": "auto",
                "resume_from_path": None,
                "del_local_ckpt_after_load": False,
                "log_val_generations": 2,
                **trainer,
            },
            "actor_rollout_ref": {"actor": {"optim": {"lr": 1e-6, "betas": [0.9, 0.95]}}},
            "data": {"max_token_len": "${oc.env:NOT_THERE,512}"},
        }
    )


def test_verl_itself_loads_the_plug_in_and_that_loads_no_pyarrow_and_no_backend() -> None:
    code = (
        "import sys, verl; from verl.utils.tracking import Tracking; "
        "print('eventlog' in Tracking.supported_backend, 'eventlog.integrations.verl_runs' in "
        "sys.modules, [m for m in ('pyarrow', 'wandb', 'mlflow', 'trackio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "True False []"


def test_the_doctor_says_that_it_will_work() -> None:
    command = [sys.executable, "-m", "eventlog.cli.main", "doctor", "verl", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "logger" in [finding["what"] for finding in json.loads(done.stdout)]


def test_killed_and_started_again_with_the_whole_of_verl(
    tmp_path: Path, backends: promises.Backends
) -> None:
    machine = promises.Node(tmp_path / "a", tmp_path)
    machine.launch(machine.plan(1, 99, die=promises.KILLED, package=True))
    machine.launch(machine.plan(2, promises.LAST, package=True))
    counted = promises.with_tables(promises.EXPECTED, promises.TABLES)
    assert promises.effective(machine.journal) == counted
    backends.sync(machine.journal)
    promises.shows_one_run(backends)
    promises.shows_exactly(backends)


def test_beside_console_and_mlflow_of_verls_own_each_keeps_what_it_would_alone(
    tmp_path: Path, backends: promises.Backends
) -> None:
    machine = promises.Node(tmp_path / "a", tmp_path)
    more: dict[str, Any] = {"package": True, "logger": ["console", "eventlog", "mlflow"]}
    more["nested"] = False
    there = {"MLFLOW_TRACKING_URI": backends.tracking}
    machine.launch(machine.plan(1, 99, die=promises.KILLED, **more), **there)
    machine.launch(machine.plan(2, promises.LAST, **more), **there)
    theirs = {run for (run,) in backends.mlflow("SELECT run_uuid FROM runs")}
    before = _points(backends, theirs)
    assert len(theirs) == 2, "verl makes a run for each launch"
    expected = Counter([*points(1, 0, promises.KILLED), *points(2, 8, promises.LAST)])
    assert before == expected
    backends.sync_mlflow(machine.journal)
    tagged = "SELECT run_uuid FROM tags WHERE key = 'eventlog.run' AND value = ?"
    ours = {run for (run,) in backends.mlflow(tagged, promises.ID)}
    assert len(ours - theirs) == len(ours) == 1
    assert _points(backends, ours) == Counter(promises.EXPECTED)
    assert _points(backends, theirs) == before


def _points(backends: promises.Backends, runs: set[str]) -> Counter[tuple[Any, ...]]:
    """Return the points of some of MLflow's runs; it refuses the ``@`` of verl's names."""
    return Counter(
        (key.replace("_x40_", "@").replace("_at_", "@"), step, value)
        for run, key, step, value in backends.mlflow(
            "SELECT run_uuid, key, step, value FROM metrics"
        )
        if run in runs
    )


# ------------------------------------------------------------------------------ values

FLOATS = ["float64", "float32", "float16", "bfloat16"]
INTS = ["int8", "int16", "int32", "int64", "uint8", "bool"]


def test_values_of_torch_and_omegaconf_are_kept_at_any_depth(tmp_path: Path) -> None:
    from verl.utils.tracking import Tracking

    given = config(tmp_path)
    tracking = Tracking(PROJECT, NAME, "eventlog", OmegaConf.to_container(given, resolve=True))
    words = FLOATS + INTS
    scalars = {w: torch.tensor(1, dtype=getattr(torch, w)) for w in words}
    one = {w: torch.ones(1, dtype=getattr(torch, w)) for w in words}
    tracking.log(
        {"zero": {"dim": scalars}, "one": one, "grad": torch.tensor(0.5).requires_grad_()}, 1
    )
    tracking.log(
        {
            "list": [torch.tensor(0.5), {"deep": [np.float32(0.25), torch.tensor([1, 2])]}],
            "config": given.actor_rollout_ref,
            "in_list": [given.actor_rollout_ref.actor.optim],
            "none": None,
            "text": "x",
        },
        torch.tensor(2),
    )
    tracking.finish()
    first, second = (e for e in events(tmp_path / "journal") if e.step is not None)
    assert (first.step, second.step) == (1, 2)
    kept = first.values()
    types = {row.key: row.type for row in first.rows}
    for word in words:
        for prefix in ("zero/dim/", "one/"):
            assert kept[prefix + word] == 1
            assert types[prefix + word] == word
    assert (kept["grad"], types["grad"]) == (0.5, "float32")
    kept = second.values()
    assert kept["list"][0] == 0.5
    assert kept["list"][1]["deep"][1].tolist() == [1, 2]
    assert kept["config/actor/optim/betas"] == [0.9, 0.95]
    assert kept["in_list"] == [{"lr": 1e-6, "betas": [0.9, 0.95]}]
    assert (kept["none"], kept["text"]) == (None, "x")


def test_a_config_that_was_not_resolved_is_recorded_resolved(tmp_path: Path) -> None:
    from verl.utils.tracking import Tracking

    given = config(tmp_path)
    Tracking(PROJECT, NAME, "eventlog", given).finish()
    recorded = {k: v for e in events(tmp_path / "journal") for k, v in e.values(CONFIG).items()}
    assert recorded == OmegaConf.to_container(given, resolve=True)


# ------------------------------------------------------------------------------ the trainer


class Worker:
    """Stands for the workers on GPUs."""

    def load_checkpoint(self, *_args: Any, **_how: Any) -> None:
        pass

    update_weights = load_checkpoint


def trainer_of(config: Any) -> Any:
    """Return verl's genuine trainer without what needs GPUs."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer
    from verl.utils.tracking import ValidationGenerationsLogger

    class Trainer(RayPPOTrainer):
        def __init__(self) -> None:
            self.config = config
            self._init_dump_executor()
            self.actor_rollout_wg = self.checkpoint_manager = Worker()
            self.use_critic = False
            self.train_dataloader = [None] * 10
            self.validation_generations_logger = ValidationGenerationsLogger(
                project_name=config.trainer.project_name,
                experiment_name=config.trainer.experiment_name,
            )

        def _validate(self, *_args: Any, **_how: Any) -> dict[str, float]:
            inputs, outputs = ["q 0", "q 1", "q 2"], ["a 0", "a 1", "a 2"]
            self._maybe_log_val_generations(inputs=inputs, outputs=outputs, scores=[0.0, 0.5, 1.0])
            return dict(VAL)

    return Trainer()


@pytest.mark.parametrize("logger", [["console", "eventlog"], "eventlog"])
def test_verls_trainer_validates_at_an_old_checkpoint(
    tmp_path: Path, logger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's own fit(): it builds the logger, loads the checkpoint, validates and ends."""
    save(tmp_path / "checkpoints", 8)
    given = config(tmp_path, logger=logger, val_only=True)
    from verl.trainer.ppo import ray_trainer

    monkeypatch.setattr(ray_trainer.SkipManager, "init", lambda _config: None)
    trainer_of(given).fit()
    found = [e for e in events(tmp_path / "journal") if e.step is not None]
    assert [e.step for e in found] == [8, 8]
    generations, validation = (e.values() for e in found)
    assert validation == VAL
    rows = table(tmp_path / "journal", generations["val/generations"])
    assert len(rows) == 2
    assert all(row[0].replace("q", "a") == row[1] for row in rows)


def save(folder: Path, step: int) -> None:
    (folder / f"global_step_{step}").mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


def test_where_training_starts_again_is_where_verl_finds_it(tmp_path: Path) -> None:
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    folder = tmp_path / "checkpoints"
    given = OmegaConf.to_container(config(tmp_path), resolve=True)

    def same() -> int | None:
        path = find_latest_ckpt_path(str(folder))
        theirs = None if path is None else int(path.split("global_step_")[-1])
        ours = restart(given)
        assert (None if ours is None else ours.step) == theirs
        return theirs

    assert same() is None
    folder.mkdir()
    assert same() is None
    save(folder, 4)
    assert same() == 4
    save(folder, 8)
    assert same() == 8
    (folder / "global_step_8").rmdir()  # deleted, to make room
    assert same() is None


# ------------------------------------------------------------------------------ Ray


@pytest.fixture(scope="module")
def cluster() -> Any:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)
    yield ray
    ray.shutdown()


def test_actors_of_a_job_log_to_one_run_as_one_attempt(tmp_path: Path, cluster: Any) -> None:
    """As in fully asynchronous training: metrics come from one actor, generations from another,
    each with an environment and a folder of its own; then both are torn down without a word.
    """

    @cluster.remote(num_cpus=0)
    class Trainer:
        def __init__(self, config: Any, folder: str) -> None:
            import verl  # noqa: F401
            from verl.utils.tracking import Tracking

            os.chdir(folder)
            self.tracking = Tracking(
                PROJECT, NAME, config.trainer.logger, OmegaConf.to_container(config, resolve=True)
            )

        def step(self, step: int) -> None:
            self.tracking.log({"actor/loss": torch.tensor(step / 2)}, step)

    elsewhere = {"EVENTLOG_DIR": str(tmp_path / "wrong"), "EVENTLOG_NAME": "wrong"}

    @cluster.remote(num_cpus=0, runtime_env={"env_vars": elsewhere})
    class Rollouter:
        def __init__(self, config: Any, folder: str) -> None:
            import verl  # noqa: F401
            from verl.utils.tracking import ValidationGenerationsLogger

            os.chdir(folder)
            self.config = config
            self.logger = ValidationGenerationsLogger(PROJECT, NAME)

        def validate(self, step: int) -> None:
            self.logger.log(self.config.trainer.logger, [("q", "a", step / 4)], step)

    given = config(tmp_path, logger=["eventlog"])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    trainer = Trainer.remote(given, str(tmp_path / "one"))
    rollouter = Rollouter.remote(given, str(tmp_path / "two"))
    for step in range(6):
        cluster.get(trainer.step.remote(step))
        if step % 2 == 0:
            cluster.get(rollouter.validate.remote(step))
    cluster.kill(trainer)
    cluster.kill(rollouter)
    found = events(tmp_path / "journal")
    losses = [(e.step, e.values()["actor/loss"]) for e in found if "actor/loss" in e.values()]
    assert losses == [(step, step / 2) for step in range(6)]
    tables = [
        (e.step, e.values()["val/generations"]) for e in found if "val/generations" in e.values()
    ]
    assert [step for step, _ in tables] == [0, 2, 4]
    assert table(tmp_path / "journal", tables[1][1]) == [["q", "a", 0.5]]
    assert not (tmp_path / "wrong").exists()
    (run,), _ = find_all((str(tmp_path / "journal"),))
    assert glance(run.folder).status not in ("finished", "failed")
    (attempt,) = glance(run.folder).attempts
    assert len(attempt.writers) == 2
    told = [e.values(NOTE)["provenance"] for e in found if "provenance" in e.values(NOTE)]
    assert len({t["ray"]["session"] for t in told}) == 1
    assert len({t["ray"]["actor_id"] for t in told}) == 2
