"""What one log() of 20 floats costs: every way with the same number of calls, in three modes.

Flat out, calls follow each other, and threads of a tracker compete with them for the interpreter;
at 1,000 and at 10 calls a second, as training does, caches are cold and threads wake up for little.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable

from bench_parts import figures, ways
from bench_parts.blocks import Block, Way
from bench_parts.figures import Bar, Found, Spread, Table, short
from bench_parts.mix import METRICS

#: Mode, calls a second (0: flat out), calls in a block.
MODES = (("flat out", 0, 5000), ("1,000 a second", 1000, 1000), ("10 a second", 10, 20))
#: What takes a millisecond a call and more has fewer of them, and is not asked for 1,000 a second.
SLOW = {ways.TENSORBOARD: 500, ways.MLFLOW: 50}
Blocks = dict[str, list[Block]]


def measure(names: list[str], rounds: int, scale: float) -> Found:
    """Measure the ways named, in blocks that alternate."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(Way(n, os.path.abspath(f"way-{i}"))) for i, n in enumerate(names)
        ]
        found = []
        for mode, rate, calls in MODES:
            count = max(int(calls * scale), 5)
            found.append((mode, _mode(opened, rate, count, rounds)))
        sizes = {way.name: way.close() for way in opened}
    bars = [bar for mode, blocks in found for bar in _bars(mode, blocks)]
    tables = [
        _table(mode, rate, blocks)
        for (mode, blocks), (_, rate, _) in zip(found, MODES, strict=True)
    ]
    return Found("append", bars, [*tables, _sizes(sizes)])


def _mode(opened: list[Way], rate: float, calls: int, rounds: int) -> Blocks:
    blocks: Blocks = {}
    for _ in range(rounds):
        for way in opened:
            if rate and way.name in SLOW:
                continue
            count = min(calls, SLOW.get(way.name, calls))
            blocks.setdefault(way.name, []).append(way.block(count, rate))
    return blocks


def _of(blocks: list[Block], what: Callable[[Block], float]) -> list[float]:
    return [what(block) for block in blocks]


def _bars(mode: str, blocks: Blocks) -> list[Bar]:
    if ways.OURS not in blocks or ways.BARE not in blocks:
        return []
    ours, bare = blocks[ways.OURS], blocks[ways.BARE]
    idle = _idle(blocks)
    bars = [
        Bar(f"log(), {mode}: median / bare os.write", 8, _ratio(ours, bare), "x"),
        Bar(
            f"log(), {mode}: CPU of the process / the call",
            2,
            Spread.of((b.cpu - idle) / b.median for b in ours),
            "x",
        ),
    ]
    if ours[0].calls >= 100:  # of fewer, the 99th of a hundred is no more than the longest
        p99 = Spread.of(b.p99 / b.median for b in ours)
        bars.insert(1, Bar(f"log(), {mode}: p99 / its median", 10, p99, "x"))
    for name, limit in ((ways.TRACKIO, 10.0), (ways.WANDB, 40.0)):
        if name in blocks:
            other = blocks[name]
            bars += [
                Bar(f"{name} / log(), {mode}: medians", limit, _ratio(other, ours), "x", True),
                Bar(f"{name} / log(), {mode}: means", limit, _means(other, ours), "x", True),
                Bar(
                    f"{name} / log(), {mode}: CPU of all its processes",
                    limit,
                    Spread.of(
                        (o.cpu - idle) / (u.cpu - idle) for o, u in zip(other, ours, strict=True)
                    ),
                    "x",
                    True,
                ),
            ]
    return bars


def _idle(blocks: Blocks) -> float:
    """Return the CPU time a call of a loop that logs nothing."""
    found = blocks.get(ways.NOTHING)
    return statistics.median(_of(found, lambda b: b.cpu)) if found else 0.0


def _ratio(of: list[Block], to: list[Block]) -> Spread:
    return figures.ratios(_of(of, lambda b: b.median), _of(to, lambda b: b.median))


def _means(of: list[Block], to: list[Block]) -> Spread:
    return figures.ratios(_of(of, lambda b: b.mean), _of(to, lambda b: b.mean))


def _table(mode: str, rate: float, blocks: Blocks) -> Table:
    idle = _idle(blocks)
    rows = []
    for name, found in blocks.items():
        cells = [name, f"{found[0].calls:,}"]
        whats: list[Callable[[Block], float]] = [
            lambda b: b.median,
            lambda b: b.mean,
            lambda b: b.p99,
            lambda b: b.most,
            lambda b: b.cpu,
        ]
        figures_of = [statistics.median(_of(found, what)) for what in whats]
        figures_of[-1] -= 0.0 if name == ways.NOTHING else idle
        cells += map(short, figures_of)
        ratio = _ratio(found, blocks[ways.BARE]).text() if ways.BARE in blocks else "-"
        rows.append([*cells, ratio])
    columns = ["way", "calls", "median us", "mean", "p99", "most", "CPU us", "x os.write (medians)"]
    note = "CPU: a call, all threads and processes of the way, until they are quiet again"
    note += ", less that of the loop that logs nothing" if ways.NOTHING in blocks else ""
    return Table(f"log() of {METRICS} floats, {mode}", columns, rows, note)


def _sizes(sizes: dict[str, dict[str, int]]) -> Table:
    rows = [
        [
            name,
            short(found["bytes"] / found["events"] / METRICS),
            short(found["ended"] / found["events"] / METRICS),
        ]
        for name, found in sizes.items()
        if found["bytes"]
    ]
    columns = ["way", "while it runs", "when it has ended"]
    note = (
        "the values repeat each 256 steps, which Parquet makes use of: `seal` tells the true size"
    )
    return Table("Bytes on disk a point", columns, rows, note)
