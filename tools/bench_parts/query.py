"""One metric of one run of a million steps of twenty metrics, sealed: DuckDB, and our own reader."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

STEPS = 1_000_000
KEY = "actor/metric_0"


def measure(rounds: int, scale: float) -> Found:
    """Make the run, then ask for one metric of it, both ways in turn."""
    from eventlog.seal import seal

    count = max(int(STEPS * scale), 200)
    folder = mix.journal("million", count)
    begun = time.perf_counter()
    sealed = seal(folder)
    took = time.perf_counter() - begun
    (path,) = (os.path.join(folder, "sealed", name) for name in sealed.files)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for name, ask in WAYS.items():
        assert ask(folder, path).num_rows == count, name  # once unmeasured: what is loaded late
    for _ in range(rounds):
        for name, ask in WAYS.items():
            start = time.perf_counter()
            ask(folder, path)
            found[name].append(time.perf_counter() - start)
    duck, ours = found["DuckDB"], found["our reader"]
    bars = [
        Bar("one metric of a million steps, DuckDB, ms", 60, Spread.of(x * 1e3 for x in duck), ""),
        Bar("one metric of a million steps, our reader, s", 1, Spread.of(ours), ""),
    ]
    rows = [[name, Spread.of(x * 1e3 for x in times).text()] for name, times in found.items()]
    rows.append(["our reader / DuckDB", figures.ratios(ours, duck).text() + " x"])
    size = os.path.getsize(path)
    note = f"{count:,} steps, {count * mix.METRICS:,} points, {size / 1e6:,.0f} MB in one file, in the "
    note += f"page cache; sealed in {short(took)} s"
    return Found("query", bars, [Table("One metric of one run", ["way", "ms"], rows, note)])


def _duckdb(folder: str, path: str) -> Any:
    import duckdb

    with duckdb.connect() as connection:
        sql = "select step, num from read_parquet(?) where key = ?"
        return connection.sql(sql, params=[path, KEY]).to_arrow_table()


def _reader(folder: str, path: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    from eventlog.reader import WriterReader, listing

    (writer,) = listing(folder).writers
    parts = [
        table.filter(pc.equal(table.column("key"), KEY)).select(["step", "num"])
        for table in WriterReader(folder, writer).tables()
    ]
    return pa.concat_tables(parts)


WAYS: dict[str, Callable[[str, str], Any]] = {"DuckDB": _duckdb, "our reader": _reader}
