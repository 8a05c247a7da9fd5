"""SIGKILL of a process that logs in a tight loop: every event whose log() returned is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventlog.event import METRIC
from eventlog.reader import WriterReader, listing

#: Kills of a process that was started for it; `tools/kill` has a thousand of warm ones.
COLD, WARM = 10, 40
#: As many without --long.
COLD_FEW, WARM_FEW = 4, 12
ROOT = Path(__file__).resolve().parents[1]

LOOP = """
import os, sys, eventlog
run = eventlog.init("p", "n", id="x", dir=sys.argv[1], quiet=True, durability=sys.argv[2])
metrics = {f"m{i}": i * 0.5 for i in range(20)}
out = sys.stdout.fileno()
os.write(out, b"r")
step = 0
while True:
    metrics["m0"] = float(step)
    run.log(metrics, step=step)
    os.write(out, b".")
    step += 1
"""


def kill_once(journal: Path, durability: str, seconds: float) -> int:
    """Log until killed; return how many log() calls had returned, as another process saw it."""
    command = [sys.executable, "-c", LOOP, str(journal), durability]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"r"
        end = time.monotonic() + seconds
        told = 0
        while time.monotonic() < end:
            told += len(process.stdout.read1(65536))
        process.send_signal(signal.SIGKILL)
        told += len(process.stdout.read())
    return told


@pytest.mark.parametrize("durability", ["group", "os"])
def test_sigkill_loses_no_event_whose_log_returned(
    tmp_path: Path, durability: str, repeats: Callable[[int, int], int]
) -> None:
    chance = random.Random(durability)
    lost = acknowledged = 0
    for kill in range(repeats(COLD_FEW, COLD) // 2):
        journal = tmp_path / str(kill)
        told = kill_once(journal, durability, chance.uniform(0.0, 0.08))
        folder = str(journal / "project=p" / "run=x")
        (writer,) = listing(folder).writers
        found = list(WriterReader(folder, writer).events())
        steps = [e.step for e in found if e.rows[0].kind == METRIC]
        assert steps == list(range(len(steps)))
        assert told <= len(steps) <= told + 1
        acknowledged += told
        lost += max(0, told - len(steps))
    assert lost == 0
    assert acknowledged > repeats(COLD_FEW, COLD)


def test_sigkill_loses_nothing_at_any_level_with_any_kind_of_data(
    repeats: Callable[[int, int], int],
) -> None:
    kills = repeats(WARM_FEW, WARM)
    command = [sys.executable, "tools/kill_run.py", "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {line[:36].strip(): line[36:].strip() for line in done.stdout.splitlines()}
    assert figures["SIGKILLs"] == str(kills)
    assert figures["of them lost"] == "0"
    assert int(figures["events whose log() had returned"].replace(",", "")) > kills
