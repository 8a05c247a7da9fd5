"""What a backend holds of a project's only run that none replaced, read with its own public interface.

Each function of a backend is called in a fork of a warm process (`tests.warm`) and prints JSON:
``points``, lists of key, step and the value in hexadecimal, and ``wrong``, what is not as it must
be beside.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
from collections import Counter
from typing import Any

from tests import warm

#: A metric's key, its step, and the bits of its value, one NaN for all.
Point = tuple[str, int, bytes]
#: Keys of what is logged begin with this; backends add some of their own.
PREFIX = "k/"


def bits(number: float) -> bytes:
    """Return a float64's bits, one NaN for all."""
    return struct.pack("<d", math.nan if number != number else number)


def read(call: str, arguments: list[str], **how: Any) -> tuple[Counter[Point], list[str]]:
    """Return all points that a function of this module finds, and what is wrong beside."""
    done = warm.run(arguments, call=f"{__name__}:{call}", **how)
    if done.returncode:
        raise subprocess.SubprocessError(f"{call} cannot be read: {done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    points = ((key, step, bits(float.fromhex(number))) for key, step, number in told["points"])
    return Counter(points), told["wrong"]


def _print(points: list[tuple[str, int, str]], wrong: list[str]) -> int:
    print(json.dumps({"points": points, "wrong": wrong}))
    return 0


def mlflow(arguments: list[str]) -> int:
    """MLflow's client; arguments: the tracking URI, and the name of the experiment."""
    from mlflow import MlflowClient

    uri, project = arguments
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(project)
    found = [] if experiment is None else client.search_runs([experiment.experiment_id])
    runs = [run for run in found if "eventlog.replaced-by" not in run.data.tags]
    wrong = [] if len(runs) == 1 else [f"{len(runs)} runs"]
    wrong += [f"its status is {r.info.status}" for r in runs if r.info.status != "FINISHED"]
    points = [
        (point.key, point.step, point.value.hex())
        for run in runs
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
        if key.startswith(PREFIX)
    ]
    return _print(points, wrong)


def trackio(arguments: list[str]) -> int:
    """Trackio's storage class; arguments: the folder, and the project."""
    from trackio.sqlite_storage import SQLiteStorage

    from tests.targets.spare import look_into

    folder, project = arguments
    look_into(folder)
    runs = SQLiteStorage.get_runs(project)
    points = [
        (key, log["step"], float(value).hex())
        for run in runs
        for log in SQLiteStorage.get_logs(project, run)
        for key, value in log.items()
        if key.startswith(PREFIX)
    ]
    return _print(points, [] if len(runs) == 1 else [f"{len(runs)} runs"])


def wandb(arguments: list[str]) -> int:
    """W&B's client, which finds the server in its environment; argument: the project."""
    import wandb

    (project,) = arguments
    api = wandb.Api(timeout=180)
    runs = list(api.runs(f"{api.default_entity}/{project}"))
    wrong = [] if len(runs) == 1 else [f"{len(runs)} runs"]
    wrong += [f"its state is {run.state}" for run in runs if run.state != "finished"]
    points = []
    for run in runs:
        rows = list(run.scan_history())
        if [row["_step"] for row in rows] != list(range(len(rows))):
            wrong.append("its rows are not numbered 0, 1, 2, ...")
        for row in rows:
            step = row["training/global_step"]
            points += [(k, step, float(row[k]).hex()) for k in row if k.startswith(PREFIX)]
    wandb.teardown()
    return _print(points, wrong)


def of_image(tables: Any) -> Counter[Point]:
    """Return the points of tables of `replayers.target.image_schema`."""
    found: Counter[Point] = Counter()
    for table in tables:
        names = ("kind", "key", "step", "bits")
        for kind, key, step, raw in zip(*(table.column(n).to_pylist() for n in names), strict=True):
            if kind == "metric" and key.startswith(PREFIX):
                found[key, step, bits(struct.unpack("<d", struct.pack("<q", raw))[0])] += 1
    return found
