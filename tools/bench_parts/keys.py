"""What one log() costs by what is in it: how many keys, which types, keys never seen before.

The bar is 6 us and 0.6 us a key on a machine whose bare os.write of 1,744 bytes takes 1.25 us; it
is scaled by that write as it was in the same round, and is three times as much for numpy scalars,
nested dicts and keys that were never seen. Less than 1 is below the bar. The 99th percentile of a
hundred or a thousand keys that were never seen is to be at most ten times the median; where other
work has the cores it says more of that work, so that of the calling thread's CPU time stands beside.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator
from time import perf_counter_ns as now
from time import thread_time_ns as cpu_now
from typing import Any, NamedTuple

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

#: The write that the bar was stated for: how many bytes, and how long it took, in us.
BARE_BYTES, BARE_US = 1744, 1.25
BASE_US, KEY_US, UNUSUAL, TAIL = 6.0, 0.6, 3.0, 10.0
Data = dict[str, Any]


def measure(rounds: int, scale: float) -> Found:
    """Measure every shape, in blocks that alternate."""
    import eventlog

    fd = os.open("bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    content = b"x" * BARE_BYTES
    run = eventlog.init("bench", "keys", dir="journal", quiet=True)
    found: dict[str, list[Block]] = {name: [] for name in SHAPES}
    bare: list[float] = []
    for _ in range(rounds):
        writes = [{}] * max(int(3000 * scale), 20)
        bare.append(_block(lambda data: os.write(fd, content), writes).median)
        os.fdatasync(fd)
        for name, (keys, _limit, make) in SHAPES.items():
            count = max(int(scale * (2000 if keys <= 20 else 400)), 10)
            found[name].append(_block(run.log, list(make(keys, count))))
            run.flush()  # at the disk, between the blocks
    run.finish()
    os.close(fd)
    return Found("keys", *_told(found, bare))


class Block(NamedTuple):
    """Calls one behind the other, in us: `cpu` is the time of the thread that calls."""

    median: float
    p99: float
    cpu_median: float
    cpu_p99: float


def _block(log: Callable[[Data], Any], data: list[Data]) -> Block:
    """Time the calls; the first tenth, in which things are learnt, is left aside."""
    took, cpu = [], []
    for values in data:
        begun = cpu_now()
        start = now()
        log(values)
        took.append((now() - start) / 1e3)
        cpu.append((cpu_now() - begun) / 1e3)
    aside = len(took) // 10
    return Block(
        *(
            part
            for times in (took[aside:], cpu[aside:])
            for part in (statistics.median(times), figures.quantile(times, 0.99))
        )
    )


def _told(found: dict[str, list[Block]], bare: list[float]) -> tuple[list[Bar], list[Table]]:
    bars, tails, rows = [], [], []
    for name, blocks in found.items():
        keys, limit, make = SHAPES[name]
        allowed = [(BASE_US + KEY_US * keys) * write / BARE_US for write in bare]
        medians = [block.median for block in blocks]
        spread = figures.ratios(medians, allowed)
        bars.append(Bar(f"{name} / (6 + 0.6 us a key)", limit, spread, "x"))
        tail = Spread.of(block.p99 / block.median for block in blocks)
        tail_cpu = Spread.of(block.cpu_p99 / block.cpu_median for block in blocks)
        if make is _never_seen and keys >= 100:
            tails.append(Bar(f"{name}: p99 / median", TAIL, tail, "x"))
            tails.append(Bar(f"{name}: p99 / median, CPU of the thread", TAIL, tail_cpu, "x"))
        p99 = [
            statistics.median(x) for x in zip(*((b.p99, b.cpu_p99) for b in blocks), strict=True)
        ]
        cells = [short(x) for x in (statistics.median(medians), *p99, statistics.median(allowed))]
        rows.append([name, *cells, spread.text(), f"{limit:g}"])
    note = f"scaled by the bare os.write of {BARE_BYTES:,} bytes: {Spread.of(bare).text()} us"
    columns = ["what", "median us", "p99", "p99 CPU", "6 + 0.6 a key", "ratio", "bar"]
    return bars + tails, [Table("log() by what is in it", columns, rows, note)]


# ------------------------------------------------------------------------------ shapes


def _floats(keys: int, count: int) -> Iterator[Data]:
    data = mix.steps(min(count, 64), keys)
    for i in range(count):
        yield dict(data[i % len(data)])


def _numpy(keys: int, count: int) -> Iterator[Data]:
    """Half of the values are numpy scalars of three types."""
    import numpy as np

    kinds = [np.float64, float, np.float32, float]
    for data in _floats(keys, count):
        values = {k: kinds[i % 4](v) for i, (k, v) in enumerate(data.items())}
        values["actor/metric_0"] = np.int64(7)
        yield values


def _nested(keys: int, count: int) -> Iterator[Data]:
    """Dicts of at most ten in a dict, and one level deeper for every other."""
    for data in _floats(keys, count):
        groups: Data = {}
        for i, (key, value) in enumerate(data.items()):
            inner = groups.setdefault(f"group_{i // 10}", {})
            if i % 2:
                inner = inner.setdefault("more", {})
            inner[key.rpartition("/")[2]] = value
        yield groups


def _never_seen(keys: int, count: int) -> Iterator[Data]:
    """No key was there before."""
    for data in _floats(keys, count):
        salt = random.getrandbits(48)
        yield {f"{key}_{salt}": value for key, value in data.items()}


def _subsets(keys: int, count: int) -> Iterator[Data]:
    """Half of twice as many known keys, other ones each time."""
    for data in _floats(2 * keys, count):
        yield dict(random.sample(list(data.items()), keys))


def _two_sets(keys: int, count: int) -> Iterator[Data]:
    """Two sets of keys in turn, as of training and validation."""
    for i, data in enumerate(_floats(keys, count)):
        yield data if i % 2 else {f"val/{key}": value for key, value in data.items()}


def _with_text(keys: int, count: int) -> Iterator[Data]:
    """One text, one None, one bool among the floats."""
    for i, data in enumerate(_floats(keys - 3, count)):
        yield {**data, "phase": f"epoch {i}", "best": None, "done": False}


Make = Callable[[int, int], Iterator[Data]]
#: Name: how many keys, how many times the bar is allowed, what makes the data of the calls.
SHAPES: dict[str, tuple[int, float, Make]] = {
    "1 float": (1, 1.0, _floats),
    "5 floats": (5, 1.0, _floats),
    "20 floats": (20, 1.0, _floats),
    "100 floats": (100, 1.0, _floats),
    "1,000 floats": (1000, 1.0, _floats),
    "20, two sets of keys in turn": (20, 1.0, _two_sets),
    "20, half of them numpy": (20, UNUSUAL, _numpy),
    "100, half of them numpy": (100, UNUSUAL, _numpy),
    "20, nested": (20, UNUSUAL, _nested),
    "100, nested": (100, UNUSUAL, _nested),
    "20, text and None among them": (20, UNUSUAL, _with_text),
    "20 of 40 keys, others each call": (20, UNUSUAL, _subsets),
    "1 key never seen": (1, UNUSUAL, _never_seen),
    "20 keys never seen": (20, UNUSUAL, _never_seen),
    "100 keys never seen": (100, UNUSUAL, _never_seen),
    "1,000 keys never seen": (1000, UNUSUAL, _never_seen),
}
