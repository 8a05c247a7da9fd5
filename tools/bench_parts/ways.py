"""The ways of logging that are held against each other: each logs one dict of floats and a step.

A way works in the current folder and in this process; `bench_parts.blocks` gives each its own.
What it is called with is what its users write, with what is not logging (monitors of the system,
uploads, chatter) turned off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from bench_parts import mix

Log = Callable[[dict[str, float], int], Any]


@contextlib.contextmanager
def nothing() -> Iterator[Log]:
    """A function that returns: what the clock, the loop and its pauses cost by themselves."""
    yield lambda data, step: None


@contextlib.contextmanager
def bare_write() -> Iterator[Log]:
    """os.write of as many bytes as eventlog's."""
    content = b"x" * frame_size(mix.steps(1)[0])
    fd = os.open("bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    yield lambda data, step: os.write(fd, content)
    os.close(fd)


def frame_size(data: dict[str, float]) -> int:
    """Return how many bytes eventlog writes for one call."""
    from eventlog.event import METRIC, Event, make_rows
    from eventlog.frame import Encoder

    rows, _ = make_rows(METRIC, data.items())
    return len(Encoder(0).event(Event(0, 0, 0, tuple(rows))))


@contextlib.contextmanager
def json_lines() -> Iterator[Log]:
    """json.dumps and one write a line."""
    fd = os.open("lines.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    yield lambda data, step: os.write(fd, json.dumps({"step": step, **data}).encode() + b"\n")
    os.close(fd)


@contextlib.contextmanager
def eventlog_run() -> Iterator[Log]:
    """Run.log at the default durability."""
    import eventlog

    run = eventlog.init("bench", "append", dir="journal", quiet=True)
    yield lambda data, step: run.log(data, step=step)
    run.finish()


@contextlib.contextmanager
def tensorboard_run() -> Iterator[Log]:
    """add_scalar for each key, of tensorboardX: the writer that needs no torch."""
    import tensorboardX

    writer = tensorboardX.SummaryWriter("events")

    def log(data: dict[str, float], step: int) -> None:
        for key, value in data.items():
            writer.add_scalar(key, value, step)

    yield log
    writer.close()


@contextlib.contextmanager
def trackio_run() -> Iterator[Log]:
    """trackio.log into a local folder."""
    os.environ["TRACKIO_DIR"] = os.path.abspath("trackio")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trackio

    trackio.init(project="bench", auto_log_cpu=False, auto_log_gpu=False)
    yield lambda data, step: trackio.log(data, step=step)
    trackio.finish()


@contextlib.contextmanager
def wandb_run() -> Iterator[Log]:
    """run.log of W&B in offline mode."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True, silent=True)
    run = wandb.init(project="bench", mode="offline", dir=os.getcwd(), settings=settings)
    yield lambda data, step: run.log(data, step=step)
    run.finish()


@contextlib.contextmanager
def mlflow_run() -> Iterator[Log]:
    """mlflow.log_metrics into a SQLite file."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("bench")
    mlflow.start_run()
    yield lambda data, step: mlflow.log_metrics(data, step=step)
    mlflow.end_run()


NOTHING, BARE, OURS = "nothing", "os.write", "eventlog"
TENSORBOARD, TRACKIO, WANDB, MLFLOW = "TensorBoard", "Trackio", "W&B offline", "MLflow SQLite"
WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Log]]] = {
    NOTHING: nothing,
    BARE: bare_write,
    "JSON lines": json_lines,
    OURS: eventlog_run,
    TENSORBOARD: tensorboard_run,
    TRACKIO: trackio_run,
    WANDB: wandb_run,
    MLFLOW: mlflow_run,
}
_PACKAGES = {TENSORBOARD: "tensorboardX", TRACKIO: "trackio", WANDB: "wandb", MLFLOW: "mlflow"}


def installed(name: str) -> bool:
    """Return whether the package of a way can be imported."""
    return name not in _PACKAGES or importlib.util.find_spec(_PACKAGES[name]) is not None
