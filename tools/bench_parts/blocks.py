"""Blocks of calls of one way, in a process of its own, so that no other way's threads are in it.

The bench starts a process a way (`Way`), which waits; a block is one request to one of them, so
that blocks of the ways alternate and only one way is busy at a time. A block ends when the way is
quiet again: what its threads and processes do after the last call is part of what it cost.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench_parts import figures, machine, mix, ways

#: A way is quiet when its processes used less CPU than this share of `_LOOK` seconds, twice.
_QUIET = 0.05
_LOOK = 0.2
#: Longest wait for quiet, in seconds; the shortest is more than any way's timer.
_SHORTEST, _LONGEST = 0.8, 30.0


@dataclasses.dataclass(frozen=True)
class Block:
    """One block: how long its calls took, and the CPU time of the way's processes, in us."""

    calls: int
    median: float
    mean: float
    p99: float
    p999: float
    most: float
    cpu: float  # a call, of all processes and threads, until the way was quiet


class Way:
    """A process in which one way of logging is open."""

    def __init__(self, name: str, folder: str) -> None:
        os.makedirs(folder)
        self.name = name
        self.folder = folder
        tools = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([tools, *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(os.path.join(folder, "stderr.txt"), "w") as talk:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench_parts.blocks", name],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=talk,
                text=True,
            )
        self._answer()

    def block(self, calls: int, rate: float = 0.0) -> Block:
        """Log so many times, `rate` a second, or one right after the other if it is 0."""
        return Block(**self._ask({"calls": calls, "rate": rate}))

    def close(self) -> dict[str, int]:
        """End the run; return ``events``, and ``bytes`` on disk before and ``ended`` after."""
        found = self._ask({})
        self._process.wait(60)
        return found

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            with open(os.path.join(self.folder, "stderr.txt"), errors="replace") as talk:
                sys.exit(f"{self.name} ended in the middle:\n{talk.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Way:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


# ------------------------------------------------------------------------------ in the process


def main(name: str) -> None:
    """Open a way and do what is asked for on stdin, a line each, until an empty request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a tracker prints is no answer

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    data = mix.steps()
    events = 0
    with ways.WAYS[name]() as log:
        for _ in range(3):  # what is made at the first calls is no part of any block
            log(data[0], events)
            events += 1
        _until_quiet(machine.family(os.getpid()))
        answer({})
        while request := json.loads(sys.stdin.readline() or "{}"):
            answer(dataclasses.asdict(_block(log, data, events, **request)))
            events += request["calls"]
        size = _bytes(".")
    answer({"events": events, "bytes": size, "ended": _bytes(".")})


def _block(
    log: ways.Log, data: list[dict[str, float]], first: int, calls: int, rate: float
) -> Block:
    took = [0] * calls
    count = len(data)
    now = time.perf_counter_ns
    gc.collect()
    pids = machine.family(os.getpid())
    others = _cpu_of_others(pids)
    mine = time.thread_time_ns()
    begun = now()
    for i in range(calls):
        if rate:
            wait = begun + int(i / rate * 1e9) - now()
            if wait > 0:
                time.sleep(wait / 1e9)
        values = data[i % count]
        start = now()
        log(values, first + i)
        took[i] = now() - start
    mine = time.thread_time_ns() - mine
    _until_quiet(pids)  # at the cost of this thread, which is not counted
    others = _cpu_of_others(pids) - others
    us = [x / 1e3 for x in took]
    return Block(
        calls,
        statistics.median(us),
        statistics.fmean(us),
        figures.quantile(us, 0.99),
        figures.quantile(us, 0.999),
        max(us),
        (mine + others) / calls / 1e3,
    )


def _cpu_of_others(pids: list[int]) -> int:
    """Return the CPU time of the way's processes, less that of this thread."""
    return machine.cpu_of(pids) - time.thread_time_ns()


def _until_quiet(pids: list[int]) -> None:
    """Wait until the threads and processes of the way have done what they had to do."""
    begun = time.monotonic()
    quiet = 0
    while quiet < 2 or time.monotonic() - begun < _SHORTEST:
        before = _cpu_of_others(pids)
        time.sleep(_LOOK)
        quiet = quiet + 1 if _cpu_of_others(pids) - before < _QUIET * _LOOK * 1e9 else 0
        if time.monotonic() - begun > _LONGEST:
            return


def _bytes(folder: str) -> int:
    """Return the bytes of the files in a folder."""
    total = 0
    for place, _folders, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(place, n)).st_size for n in names if n != "stderr.txt")
    return total


if __name__ == "__main__":
    main(sys.argv[1])
