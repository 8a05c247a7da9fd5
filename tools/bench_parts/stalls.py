"""How long single calls of log() take while the group commit syncs, beside the level `os`.

The longest calls are those of the machine, too: a loop that logs nothing, and one that writes as
many bytes with os.write while another thread syncs that file, show how much of it.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench_parts import figures, mix, ways
from bench_parts.figures import Bar, Found, Spread, Table, short

#: Seconds between the syncs of the bare file: those of the group commit.
_EVERY = 0.5
#: Mode, calls a second (0: flat out, 200 MB a second, more than many disks take), calls in a block.
MODES = (("1,000 a second", 1000, 2000), ("flat out", 0, 60_000))
#: Enough for the longest of some hundred thousand calls.
MOST_ROUNDS = 3
GROUP = "eventlog, group"
Log = Callable[[dict[str, float], int], Any]


@dataclasses.dataclass
class _Calls:
    """The calls of one way, in us: by block, and those of all blocks that overlap a sync."""

    blocks: list[list[float]] = dataclasses.field(default_factory=list)
    in_sync: list[float] = dataclasses.field(default_factory=list)


def measure(rounds: int, scale: float) -> Found:
    """Measure blocks of every way in turn, at a pace of training and flat out."""
    tables, bars = [], []
    with _SyncTimes() as syncs, contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(way()) for name, way in WAYS.items()}
        for mode, rate, calls in MODES:
            found = {name: _Calls() for name in opened}
            for _ in range(min(rounds, MOST_ROUNDS)):
                for name, log in opened.items():
                    _block(log, max(int(calls * scale), 20), rate, syncs, found[name])
            tables.append(_table(mode, found))
            group = found[GROUP].blocks
            ratio = Spread.of(figures.quantile(b, 0.99) / statistics.median(b) for b in group)
            bars.append(
                Bar(f"log(), group commit at work, {mode}: p99 / its median", 10, ratio, "x")
            )
    return Found("stalls", bars, tables)


def _block(log: Log, calls: int, rate: int, syncs: _SyncTimes, found: _Calls) -> None:
    data = mix.steps()
    now = time.perf_counter_ns
    took, at = [0.0] * calls, [0.0] * calls
    syncs.spans.clear()
    begun = now()
    for i in range(calls):
        if rate:
            wait = begun + i * 1_000_000_000 // rate - now()
            if wait > 0:
                time.sleep(wait / 1e9)
        values = data[i % len(data)]
        start = now()
        log(values, i)
        took[i] = (now() - start) / 1e3
        at[i] = start / 1e3
    time.sleep(2 * _EVERY)  # what the last calls left to sync is synced outside of other blocks
    found.blocks.append(took)
    found.in_sync += syncs.during(at, took)


class _SyncTimes:
    """Notes when os.fdatasync was at work, in us."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._genuine = os.fdatasync

    def __enter__(self) -> _SyncTimes:
        os.fdatasync = self._timed  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        os.fdatasync = self._genuine

    def _timed(self, fd: int) -> None:
        begun = time.perf_counter_ns() / 1e3
        try:
            self._genuine(fd)
        finally:
            self.spans.append((begun, time.perf_counter_ns() / 1e3))

    def during(self, at: list[float], took: list[float]) -> list[float]:
        """Return how long those calls took during which a sync was at work."""
        found = []
        for a, b in self.spans:
            first = bisect.bisect_left(at, a)
            first -= first > 0 and at[first - 1] + took[first - 1] > a
            found += took[first : bisect.bisect_left(at, b)]
        return found


# ------------------------------------------------------------------------------ ways


@contextlib.contextmanager
def _synced_file() -> Iterator[Log]:
    """os.write into a file that another thread syncs."""
    fd = os.open("synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    content = b"x" * ways.frame_size(mix.steps(1)[0])
    over, written = threading.Event(), threading.Event()

    def sync() -> None:
        while not over.wait(_EVERY):
            if written.is_set():
                written.clear()
                os.fdatasync(fd)

    def log(data: dict[str, float], step: int) -> None:
        os.write(fd, content)
        written.set()

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    yield log
    over.set()
    thread.join()
    os.close(fd)


@contextlib.contextmanager
def _run(level: str) -> Iterator[Log]:
    import eventlog

    run = eventlog.init("bench", level, dir="journal", quiet=True, durability=level)
    yield run.log
    run.finish()


WAYS: dict[str, Callable[[], contextlib.AbstractContextManager[Log]]] = {
    "nothing": ways.nothing,
    "os.write, no sync": ways.bare_write,
    "os.write, synced": _synced_file,
    "eventlog, os": lambda: _run("os"),
    GROUP: lambda: _run("group"),
}


def _table(mode: str, found: dict[str, _Calls]) -> Table:
    rows = []
    for name, calls in found.items():
        quantiles = [
            statistics.median(figures.quantile(block, part) for block in calls.blocks)
            for part in (0.5, 0.99, 0.999)
        ]
        cells = [name, *map(short, [*quantiles, max(map(max, calls.blocks))])]
        some = calls.in_sync
        cells += [
            f"{len(some):,}",
            *(short(f(some)) if some else "-" for f in (statistics.median, max)),
        ]
        rows.append(cells)
    columns = ["way", "median us", "p99", "p99.9", "most", "calls in a sync", "median us", "most"]
    return Table(f"Stalls: single calls, 20 floats, {mode}", columns, rows)
