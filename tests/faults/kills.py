"""SIGKILL of a process that logs in a tight loop, again and again.

Each life is a fork of a process that has imported everything and never did anything, so that a
kill takes milliseconds. What `log` had returned for is told through a pipe, a byte each; the run is
read by yet another process.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import random
import select
import shutil
import signal
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa  # noqa: F401 - each life is a fork that has it

import eventlog
from eventlog.audit import FAILURES, verify
from eventlog.event import METRIC
from eventlog.options import Options
from eventlog.reader import WriterReader, listing

LEVELS = ("group", "os", "sync")
KINDS = ("floats", "texts", "new keys", "tables", "segments")
#: The longest time, in seconds, between the first event and the kill.
LONGEST = 0.06


@dataclasses.dataclass
class Figures:
    """What a series gave."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    untold: int = 0
    violations: list[str] = dataclasses.field(default_factory=list)


def series(folder: str, kills: int, seed: int = 1) -> Figures:
    """Kill so many lives, and read what each left."""
    out = Figures()
    chance = random.Random(seed)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(os.getpid).result()  # its pipes are there before the first fork
        judged = []
        for number in range(kills):
            level, kind = LEVELS[number % 3], KINDS[number % 5]
            journal = os.path.join(folder, str(number))
            told = _live(journal, level, kind, chance.uniform(0.0, LONGEST))
            judged.append((number, level, kind, told, pool.submit(judge, journal, told)))
        for number, level, kind, told, future in judged:
            found, problem = future.result()
            out.kills += 1
            out.acknowledged += told
            out.lost += max(0, told - found)
            out.untold += max(0, found - told)
            if problem:
                out.violations.append(f"kill {number} (seed {seed}, {level}, {kind}): {problem}")
    return out


def _live(journal: str, level: str, kind: str, seconds: float) -> int:
    """Log until killed; return how many log() calls had returned, as this process saw it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _log(journal, level, kind, writing)
        except BaseException as error:
            print(f"a life ended by itself: {error!r}", file=sys.stderr)
        finally:
            os._exit(1)
    os.close(writing)
    told = len(os.read(reading, 1))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            told += len(os.read(reading, 65536))
    os.kill(pid, signal.SIGKILL)
    while more := os.read(reading, 65536):
        told += len(more)
    os.close(reading)
    _pid, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "a life ended before it was killed"
    return told


def _log(journal: str, level: str, kind: str, out: int) -> None:
    run = eventlog.init("p", "n", id="x", dir=journal, quiet=True, durability=level)
    if kind == "segments":
        assert run._writer is not None
        run._writer._chain._options = Options(level, segment_bytes=20_000)
    fixed = {f"m{i}": i * 0.5 for i in range(20)}
    for step in range(10**9):
        data: dict[str, Any] = {"step": step}
        if kind == "floats":
            data |= fixed
        elif kind == "texts":
            data |= {"t": f"text {step}", "f": np.float32(step), "none": None}
        elif kind == "new keys":
            data |= {f"never/{step}/{i}": float(i) for i in range(5)}
        elif kind == "tables" and step % 10 == 0:
            data["t"] = eventlog.Table(["a"], [[step]])
        run.log(data, step=step)
        os.write(out, b".")


def judge(journal: str, told: int) -> tuple[int, str]:
    """Return how many logged events are read, and what is wrong ("" if nothing is)."""
    folder = os.path.join(journal, "project=p", "run=x")
    (writer,) = listing(folder).writers
    found = [e for e in WriterReader(folder, writer).events() if e.rows[0].kind == METRIC]
    problem = ""
    if [e.step for e in found] != list(range(len(found))):
        problem = "steps are not 0, 1, 2, ..."
    elif [e.rows[0].value for e in found] != list(range(len(found))):
        problem = "values are not those that were logged"
    elif not told <= len(found) <= told + 1:
        problem = f"{told} calls had returned, {len(found)} events are read"
    elif (report := verify(folder)).verdict in FAILURES:
        problem = f"verify says {report.verdict}: {report}"
    shutil.rmtree(journal)
    return len(found), problem
