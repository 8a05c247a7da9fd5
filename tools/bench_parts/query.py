"""One metric of one run of a million steps, sealed: through DuckDB, and through our own reader.

Rows lie in the order of steps, and so one metric of twenty is spread over the whole file, which
any engine has to decompress; a run that has one metric shows what the rest of a query costs.
What DuckDB's time goes into, and what was tried, is said in `_WHY`.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

STEPS = 1_000_000
METRICS = (mix.METRICS, 1)
DUCKDB, ANEW, OURS = "DuckDB", "DuckDB, opened anew", "our reader"
KEY = "actor/metric_0"
#: Figures of DuckDB 2.0.0 with `threads=1`, of the run of twenty metrics and a million steps.
_WHY = (
    "Why one metric costs what it costs: DuckDB spends some 270 ms of CPU, of which the key (a "
    "dictionary of words, its filter pushed down) takes 36, the steps 25, and the numbers of all "
    "twenty metrics, 97 MB packed by zstd and 160 MB unpacked, 200: each 2,048 rows hold some of "
    "the metric, so that no page can be skipped. All twenty in one query cost 300 ms. Smaller "
    "pages give 5.8 bytes a point and no time; num without zstd takes 160 ms, still above the bar "
    "on two cores, and 8.3 bytes a point; lz4 and snappy 205 to 220 ms and 6.6 to 6.8 bytes; zstd "
    "at level 1 or 9 no less time. Only rows in the order of the key would let it skip (23 ms), "
    "which are 6 to 7 bytes a point, and not the order of seq that the format says"
)


def measure(rounds: int, scale: float) -> Found:
    """Make runs of many metrics and of one, then ask for one metric, both ways in turn."""
    count = max(int(STEPS * scale), 200)
    found = [_run(metrics, count, rounds) for metrics in METRICS]
    bars = [bar for one, _rows, _note in found for bar in one]
    rows = [row for _bars, some, _note in found for row in some]
    note = f"{count:,} steps; in the page cache; {'; '.join(note for _bars, _rows, note in found)}"
    note += f". {_WHY}"
    table = Table(
        "One metric of one run",
        ["metrics of the run", "way", "ms", "CPU ms, all threads"],
        rows,
        note,
    )
    return Found("query", bars, [table])


def _run(metrics: int, count: int, rounds: int) -> tuple[list[Bar], list[list[Any]], str]:
    from eventlog.seal import seal

    folder = mix.journal(f"metrics-{metrics}", count, metrics)
    begun = time.perf_counter()
    sealed = seal(folder)
    took = time.perf_counter() - begun
    paths = [os.path.join(folder, "sealed", name) for name in sealed.files]
    session = _Session()
    ways = {DUCKDB: session.duckdb, ANEW: session.duckdb_anew, OURS: session.reader}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for name, ask in ways.items():
        assert ask(folder, paths).num_rows == count, name  # once unmeasured: what is loaded late
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, ask in ways.items():
            start, used = time.perf_counter(), time.process_time()
            ask(folder, paths)
            found[name].append((time.perf_counter() - start) * 1e3)
            cpu[name].append((time.process_time() - used) * 1e3)
    what = f"one of {metrics} metrics, {count:,} steps"
    bars = [
        Bar(f"{what}, DuckDB, ms", 60, Spread.of(found[DUCKDB]), ""),
        Bar(f"{what}, our reader, ms", 1000, Spread.of(found[OURS]), ""),
    ]
    rows: list[list[Any]] = [
        [metrics, name, Spread.of(found[name]).text(), Spread.of(cpu[name]).text()] for name in ways
    ]
    ratios = [figures.ratios(of[OURS], of[DUCKDB]).text() for of in (found, cpu)]
    rows.append([metrics, "our reader / DuckDB", *ratios])
    size = sum(map(os.path.getsize, paths)) / 1e6
    shutil.rmtree(folder)
    note = (
        f"{metrics} metrics: {count * metrics:,} points, {size:,.0f} MB, sealed in {short(took)} s"
    )
    return bars, rows, note


SQL = "select step, num from read_parquet(?) where key = ?"


class _Session:
    """DuckDB as it is held open by who asks more than once, and our reader, which opens nothing."""

    def __init__(self) -> None:
        import duckdb

        self._open = duckdb.connect()

    def duckdb(self, folder: str, paths: list[str]) -> Any:
        return self._open.sql(SQL, params=[paths, KEY]).to_arrow_table()

    def duckdb_anew(self, folder: str, paths: list[str]) -> Any:
        import duckdb

        with duckdb.connect() as connection:
            return connection.sql(SQL, params=[paths, KEY]).to_arrow_table()

    def reader(self, folder: str, paths: list[str]) -> Any:
        from eventlog.series import series

        return series(folder, KEY)
