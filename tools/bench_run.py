"""What `tools/bench` measures."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eventlog.cli.output import print_table

METRICS = 20
Log = Callable[[dict[str, float], int], Any]


def main(arguments: list[str]) -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="tools/bench", description="See the top of tools/bench.")
    parser.add_argument("what", choices=["append"])
    parser.add_argument("--calls", type=int, default=2000, help="calls in a block")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each way, in turn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="eventlog-bench-") as folder:
        os.chdir(folder)
        with contextlib.ExitStack() as stack:
            ways = {name: stack.enter_context(open_way()) for name, open_way in WAYS.items()}
            blocks = measure(ways, options.calls, options.rounds)
    report(blocks, as_json=options.json)
    return 0


def measure(ways: dict[str, Log], calls: int, rounds: int) -> dict[str, list[list[float]]]:
    """Return microseconds of each call, by way and block; blocks of the ways alternate."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in ways}
    data = {f"actor/metric_{i}": i * 0.5 for i in range(METRICS)}
    step = 0
    for _ in range(rounds):
        for name, log in ways.items():
            # What takes milliseconds a call needs fewer calls for as good a median.
            count = calls if name in CHEAP else max(calls // 20, 20)
            block = []
            for _ in range(count):
                step += 1
                data["actor/metric_0"] = float(step)
                begun = time.perf_counter_ns()
                log(data, step)
                block.append((time.perf_counter_ns() - begun) / 1e3)
            blocks[name].append(block)
            time.sleep(0.2)  # background threads have their turn outside of other blocks
    return blocks


def report(blocks: dict[str, list[list[float]]], *, as_json: bool) -> None:
    """Print the median of the blocks' medians, the 99th percentile, and ratios by round."""
    bare = [statistics.median(block) for block in blocks["os.write"]]
    rows = []
    for name, found in blocks.items():
        medians = [statistics.median(block) for block in found]
        ratios = [m / b for m, b in zip(medians, bare, strict=True)]
        high = [statistics.quantiles(block, n=100)[98] for block in found]
        rows.append(
            [
                name,
                round(statistics.median(medians), 2),
                round(statistics.median(high), 2),
                round(statistics.median(ratios), 1),
                round(min(ratios), 1),
                round(max(ratios), 1),
            ]
        )
    columns = ["WAY", "MEDIAN us", "P99 us", "x os.write", "LEAST", "MOST"]
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1))
    else:
        print_table(columns, rows)


# ------------------------------------------------------------------------------ ways


def frame_size() -> int:
    """Return how many bytes eventlog writes for one call."""
    from eventlog.event import METRIC, Event, make_rows
    from eventlog.frame import Encoder

    rows, _ = make_rows(METRIC, ((f"actor/metric_{i}", i * 0.5) for i in range(METRICS)))
    return len(Encoder(0).event(Event(0, 0, 0, tuple(rows))))


@contextlib.contextmanager
def bare_write() -> Iterator[Log]:
    """os.write of the same number of bytes."""
    content = b"x" * frame_size()
    fd = os.open("bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield lambda data, step: os.write(fd, content)
    os.close(fd)


@contextlib.contextmanager
def json_lines() -> Iterator[Log]:
    """json.dumps and one write a line."""
    fd = os.open("lines.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield lambda data, step: os.write(fd, json.dumps({"step": step, **data}).encode() + b"\n")
    os.close(fd)


@contextlib.contextmanager
def eventlog_run() -> Iterator[Log]:
    """Run.log, default durability."""
    import eventlog

    run = eventlog.init("bench", "append", dir="journal", quiet=True)
    yield lambda data, step: run.log(data, step=step)
    with contextlib.redirect_stderr(io.StringIO()):
        run.finish()


@contextlib.contextmanager
def trackio_run() -> Iterator[Log]:
    """trackio.log into a local folder."""
    os.environ["TRACKIO_DIR"] = os.path.abspath("trackio")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="bench", auto_log_cpu=False, auto_log_gpu=False)
    yield lambda data, step: trackio.log(data, step=step)
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.finish()


@contextlib.contextmanager
def wandb_run() -> Iterator[Log]:
    """run.log of W&B in offline mode."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    settings = wandb.Settings(console="off", x_disable_stats=True, silent=True)
    run = wandb.init(project="bench", mode="offline", dir=str(Path.cwd()), settings=settings)
    yield lambda data, step: run.log(data, step=step)
    run.finish()


@contextlib.contextmanager
def mlflow_run() -> Iterator[Log]:
    """mlflow.log_metrics into SQLite."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.getLogger("alembic").setLevel(logging.ERROR)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    with contextlib.redirect_stderr(io.StringIO()):
        mlflow.set_experiment("bench")
        mlflow.start_run()
    yield lambda data, step: mlflow.log_metrics(data, step=step)
    mlflow.end_run()


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Log]]] = {
    "os.write": bare_write,
    "JSON lines": json_lines,
    "eventlog": eventlog_run,
    "Trackio": trackio_run,
    "W&B offline": wandb_run,
    "MLflow SQLite": mlflow_run,
}
CHEAP = ("os.write", "JSON lines", "eventlog", "Trackio")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
