"""How long single calls of log() take while the group commit syncs, beside the level `os`.

The longest calls are those of the machine, too: a loop that logs nothing, and one that writes as
many bytes with os.write while another thread syncs that file, show how much of it.
"""

from __future__ import annotations

import contextlib
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
RATE = 1000
Log = Callable[[dict[str, float], int], Any]


def measure(rounds: int, scale: float) -> Found:
    """Measure blocks of some seconds at 1,000 calls a second, in turn."""
    found: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    syncs = _SyncTimes()
    during: dict[str, list[float]] = {name: [] for name in WAYS}
    with contextlib.ExitStack() as stack:
        stack.enter_context(syncs)
        opened = {name: stack.enter_context(way()) for name, way in WAYS.items()}
        for _ in range(rounds):
            for name, log in opened.items():
                syncs.spans.clear()
                begun = _block(log, max(int(3000 * scale), 20))
                found[name].append([took for _at, took in begun])
                during[name] += [took for at, took in begun if syncs.overlap(at, at + took)]
                time.sleep(2 * _EVERY)
    return _told(found, during)


def _block(log: Log, calls: int) -> list[tuple[float, float]]:
    """Return when each call began and how long it took, in us."""
    data = mix.steps()
    now = time.perf_counter_ns
    out = []
    begun = now()
    for i in range(calls):
        wait = begun + i * 1_000_000_000 // RATE - now()
        if wait > 0:
            time.sleep(wait / 1e9)
        start = now()
        log(data[i % len(data)], i)
        out.append((start / 1e3, (now() - start) / 1e3))
    return out


class _SyncTimes:
    """Notes when os.fdatasync was at work, in us."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._genuine = os.fdatasync

    def __enter__(self) -> None:
        os.fdatasync = self._timed  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        os.fdatasync = self._genuine

    def _timed(self, fd: int) -> None:
        begun = time.perf_counter_ns() / 1e3
        try:
            self._genuine(fd)
        finally:
            self.spans.append((begun, time.perf_counter_ns() / 1e3))

    def overlap(self, start: float, stop: float) -> bool:
        """Return whether a sync was at work between two times."""
        return any(a < stop and start < b for a, b in self.spans)


# ------------------------------------------------------------------------------ ways


@contextlib.contextmanager
def _synced_file() -> Iterator[Log]:
    """os.write into a file that another thread syncs."""
    fd = os.open("bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
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
    "eventlog, group": lambda: _run("group"),
}


def _told(found: dict[str, list[list[float]]], during: dict[str, list[float]]) -> Found:
    rows = []
    for name, blocks in found.items():
        cells = [name, short(statistics.median(map(statistics.median, blocks)))]
        for part in (0.99, 0.999):
            cells += [short(statistics.median(figures.quantile(b, part) for b in blocks))]
        cells.append(short(max(map(max, blocks))))
        inside = during[name]
        cells += [
            str(len(inside)),
            short(statistics.median(inside)) if inside else "-",
            short(max(inside)) if inside else "-",
        ]
        rows.append(cells)
    columns = [
        "way",
        "median us",
        "p99",
        "p99.9",
        "most",
        "calls in a sync",
        "their median",
        "most",
    ]
    title = f"Stalls: single calls at {RATE:,} a second, 20 floats"
    return Found("stalls", _bars(found), [Table(title, columns, rows)])


def _bars(found: dict[str, list[list[float]]]) -> list[Bar]:
    group = found["eventlog, group"]
    ratio = Spread.of(figures.quantile(b, 0.99) / statistics.median(b) for b in group)
    return [Bar(f"log() at {RATE:,} a second, group: p99 / its median", 10, ratio, "x")]
