"""What one ``Tracking.log()`` of verl costs: eventlog, Trackio and W&B offline, in one run.

Each way is verl's genuine `Tracking` with that one backend, in a process of its own; blocks of the
ways alternate, flat out (one call behind the other) and paced (a pause before each call, as in
training: caches are cold). Sixty metrics: float, numpy's float64 and float32, int, bool; and the
same with a text, a None and a list of numbers among them. And a table of 256 generations of 2 kB.
CPU is that of the thread that calls: what other threads and processes of a way do comes on top.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
METRICS = 60
WAYS = ("eventlog", "trackio", "wandb")
MIXES = ("numbers", "with text")
#: Of `--calls`, so much for ways that take longer, and of paced blocks.
SHARE = {"eventlog": 1.0, "trackio": 1.0, "wandb": 0.3}
PAUSE = 0.02


def main(arguments: list[str]) -> int:
    """Measure, and print medians and ratios."""
    parser = argparse.ArgumentParser(prog="tools/verl bench", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each way, in turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        return serve(options.way)
    found = measure(options.calls, options.rounds)
    report(found, as_json=options.json)
    return 0


def data(step: int, mix: str) -> dict[str, Any]:
    """Return the metrics of a step: types and keys as verl's trainers log them."""
    import numpy as np

    kinds = [float, np.float64, np.float64, np.float32, float, int]
    found: dict[str, Any] = {
        f"actor/metric_{i}": kinds[i % 6](step + i * 0.5) for i in range(METRICS - 4)
    }
    found |= {f"perf/flag_{i}": (step + i) % 2 == 0 for i in range(4)}
    if mix == "with text":
        for key in ("actor/metric_0", "actor/metric_1", "actor/metric_2"):
            del found[key]
        found |= {"note": f"step {step}", "none": None, "list": [0.5, step / 7, 2.0]}
    return found


def serve(way: str) -> int:
    """Be one way: time blocks as they are asked for, a JSON line each."""
    import verl  # noqa: F401 - it loads its plug-ins
    from verl.utils.tracking import Tracking, ValidationGenerationsLogger

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the backends print
    config = {"trainer": {"eventlog": {"dir": "journal"}}}
    tracking = Tracking("bench", way, [way], config)
    generations = ValidationGenerationsLogger("bench", way)
    step = 0
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        block = []
        for _ in range(asked["calls"]):
            step += 1
            if asked["what"] == "table":
                samples = [(f"{step} {i} " + "q" * 1000, "a" * 1000, i / 2) for i in range(256)]
                call: Any = generations.log
                given: Any = ([way], samples, step)
            else:
                call, given = tracking.log, (data(step, asked["what"]), step)
            if asked["pause"]:
                time.sleep(asked["pause"])
            cpu = time.thread_time_ns()
            begun = time.perf_counter_ns()
            call(*given)
            took = time.perf_counter_ns() - begun
            block.append((took / 1e3, (time.thread_time_ns() - cpu) / 1e3))
        print(json.dumps(block), file=answers, flush=True)
    tracking.finish()
    return 0


#: What a call took in us: by the clock, and of the CPU time of the thread that calls.
Call = tuple[float, float]
Blocks = dict[tuple[str, str, str], list[list[Call]]]


def measure(calls: int, rounds: int) -> Blocks:
    """Return calls by (what, pace, way), a list a block."""
    found: Blocks = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="eventlog-verl-bench-"))
        children = {way: stack.enter_context(child(way, folder)) for way in WAYS}
        for _ in range(rounds):
            for what in MIXES:
                for pace, pause in (("flat out", 0.0), ("paced", PAUSE)):
                    for way, process in children.items():
                        count = max(int(calls * SHARE[way] * (0.1 if pause else 1)), 20)
                        block = ask(process, what, count, pause)
                        found.setdefault((what, pace, way), []).append(block)
                        time.sleep(0.3)  # its threads have their turn
            block = ask(children["eventlog"], "table", 10, PAUSE)
            found.setdefault(("table", "paced", "eventlog"), []).append(block)
    return found


@contextlib.contextmanager
def child(way: str, folder: str) -> Any:
    """Run one way in a process of its own, in a folder of its own."""
    place = Path(folder) / way
    place.mkdir()
    quiet = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(place),
        "TRACKIO_DIR": str(place / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    with open(place / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--way", way],
            cwd=place,
            env={**os.environ, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                sys.exit(f"{way} did not start:\n{(place / 'log').read_text()[-2000:]}")
            yield process
            process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()


def ask(process: Any, what: str, calls: int, pause: float) -> list[Call]:
    """Have a block timed."""
    process.stdin.write(json.dumps({"what": what, "calls": calls, "pause": pause}) + "\n")
    process.stdin.flush()
    block: list[Call] = json.loads(process.stdout.readline())
    return block


def medians_of(blocks: list[list[Call]], which: int) -> list[float]:
    """Return the median of each block, by the clock (0) or of CPU time (1)."""
    return [statistics.median(call[which] for call in block) for block in blocks]


def report(found: Blocks, *, as_json: bool) -> None:
    """Print the median of the blocks' medians, the 99th percentile, and ratios by round."""
    rows = []
    for (what, pace, way), blocks in found.items():
        medians = medians_of(blocks, 0)
        base = medians_of(found[what, pace, "eventlog"], 0)
        ratios = [m / b for m, b in zip(medians, base, strict=True)]
        clock = [call[0] for call in itertools.chain(*blocks)]
        rows.append(
            {
                "what": what if what == "table" else f"60 metrics, {what}",
                "pace": pace,
                "way": way,
                "median us": round(statistics.median(medians), 1),
                "cpu us": round(statistics.median(medians_of(blocks, 1)), 1),
                "p99 us": round(statistics.quantiles(clock, n=100)[98], 1),
                "x eventlog": round(statistics.median(ratios), 1),
                "least": round(min(ratios), 1),
                "most": round(max(ratios), 1),
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    sys.path.insert(0, str(TOP))
    from eventlog.cli.output import print_table

    print_table([name.upper() for name in rows[0]], [list(row.values()) for row in rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
