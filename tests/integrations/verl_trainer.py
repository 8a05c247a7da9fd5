"""A training program that uses verl's loggers as verl's own trainers do, in the same order.

usage: verl_trainer.py JSON, with `Plan` as an object. Run in a process of its own, which may kill
itself: a checkpoint names the step to start from, the logger is built before it is looked at,
validation comes at the checkpoint's own step and before training, each step is one call of log().
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PROJECT, NAME = "ppo", "qwen 7b"
TEST_FREQ, SAVE_FREQ = 4, 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one launch does. Values carry `who`, so that it can be told who logged them.

    `start` is the checkpoint's step that the trainer finds by itself if None; `die` the step after
    which it kills itself; `says` whether the config tells where the checkpoints are; `package`
    whether to import verl itself; `nested` whether a metric lies in dicts in a dict, with which
    verl's own loggers lose the whole step; `wait` whether it says "ready" after its second step and
    waits for a "line" of its input, or for a "signal" (a job in the background has no input).
    """

    who: int
    journal: str
    checkpoints: str
    last: int
    start: int | None = None
    die: int | None = None
    val_only: bool = False
    says: bool = True
    package: bool = False
    nested: bool = True
    wait: str = ""
    logger: Any = ("eventlog",)
    name: str = NAME
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def begins_at(self) -> int:
        """The step of the checkpoint."""
        tracker = Path(self.checkpoints) / "latest_checkpointed_iteration.txt"
        if self.start is not None:
            return self.start
        return int(tracker.read_text()) if tracker.exists() else 0


def training(step: int, who: int) -> dict[str, float]:
    """The metrics of one step, flat, as floats that are exact everywhere."""
    return {
        "training/global_step": float(step),
        "actor/loss": step + who / 16,
        "timing_s/gen/mean": step / 4 + who,
        "perf/total_num_tokens": 2048.0 * step + who,
    }


def validation(step: int, who: int) -> dict[str, float]:
    """The metrics of a validation."""
    return {"val-core/gsm8k/acc/mean@1": step / 8 + who / 64}


def generations(step: int, who: int) -> list[tuple[str, str, float]]:
    """What validation generated."""
    return [(f"question {i}", f"answer {i} at {step} by {who}", i / 2) for i in range(3)]


def points(who: int, first: int, last: int, *, validates: bool = True) -> list[tuple[Any, ...]]:
    """Every (key, step, value) that a launch from checkpoint `first` logs until `last`."""
    found = [(k, first, v) for k, v in validation(first, who).items()] if validates else []
    for step in range(first + 1, last + 1):
        values = training(step, who) | (validation(step, who) if step % TEST_FREQ == 0 else {})
        found += [(k, step, v) for k, v in values.items()]
    return found


def run(plan: Plan) -> None:
    """Do what the plan says."""
    if plan.package:
        import verl  # noqa: F401 - it loads its plug-ins

        import_tracking: Any = __import__("verl.utils.tracking", fromlist=["Tracking"])
    else:
        from tests.integrations import verl_source

        import_tracking = verl_source.tracking()
    import numpy as np

    loggers = list(plan.logger) if isinstance(plan.logger, tuple) else plan.logger
    trainer = {
        "project_name": PROJECT,
        "experiment_name": plan.name,
        "logger": loggers,
        "val_only": plan.val_only,
        "resume_mode": "auto",
        "default_local_dir": plan.checkpoints if plan.says else "nowhere",
        "eventlog": {"dir": plan.journal, **plan.settings},
    }
    if plan.start is not None and plan.says:
        trainer |= {
            "resume_mode": "resume_path",
            "resume_from_path": f"{plan.checkpoints}/global_step_{plan.start}",
        }
    config = {"trainer": trainer, "actor_rollout_ref": {"actor": {"optim": {"lr": 1e-6}}}}
    samples = import_tracking.ValidationGenerationsLogger(PROJECT, plan.name)
    tracking = import_tracking.Tracking(PROJECT, plan.name, loggers, config)
    step = plan.begins_at()
    samples.log(loggers, generations(step, plan.who), step)
    tracking.log(data=validation(step, plan.who), step=step)
    if plan.val_only:
        return
    while step < plan.last:
        step += 1
        flat = training(step, plan.who)
        data: dict[str, Any] = {
            "training/global_step": step,
            "actor/loss": np.float64(flat["actor/loss"]),
            "perf/total_num_tokens": np.int64(flat["perf/total_num_tokens"]),
        }
        mean = np.float32(flat["timing_s/gen/mean"])
        data |= (
            {"timing_s": {"gen": {"mean": mean}}} if plan.nested else {"timing_s/gen/mean": mean}
        )
        if step % TEST_FREQ == 0:
            samples.log(loggers, generations(step, plan.who), step)
            data |= validation(step, plan.who)
        tracking.log(data=data, step=step)
        if plan.wait and step == plan.begins_at() + 2:
            print("ready", flush=True)
            if plan.wait == "line":
                sys.stdin.readline()
            else:
                while True:  # a signal that is handled wakes it, and is not the end of it
                    signal.pause()
        if step % SAVE_FREQ == 0:
            save(plan, step)
        if step == plan.die:
            os.kill(os.getpid(), signal.SIGKILL)
    tracking.finish(exit_code=0)


def save(plan: Plan, step: int) -> None:
    """Save a checkpoint, and name it the latest."""
    folder = Path(plan.checkpoints)
    (folder / f"global_step_{step}").mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


if __name__ == "__main__":
    run(Plan(**json.loads(sys.argv[1])))
