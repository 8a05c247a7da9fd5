"""Sealing: points a second of CPU time, and bytes a point of the Parquet file.

Beside it, in turn: pyarrow writing the same table to Parquet with the same encodings, which is the
part of it that is not ours. The size depends on how many digits change from step to step: it is
told for learning rates that decay, and for constant ones.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from typing import Any

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

EVENTS = 50_000
DECAY, CONSTANT = "decays", "constant"


def measure(rounds: int, scale: float) -> Found:
    """Seal copies of a journal whose learning rates decay, and of one whose are constant."""
    count = max(int(EVENTS * scale), 100)
    made = {name: mix.journal(name, count, decay=name == DECAY) for name in (DECAY, CONSTANT)}
    series: dict[str, _Series] = {name: _Series() for name in made}
    for _ in range(rounds):
        for name, folder in made.items():
            _one(folder, count * mix.METRICS, series[name])
    bars, rows = [], []
    for name, one in series.items():
        cpu, sizes = Spread.of(one.cpu), Spread.of(one.sizes)
        bars += [
            Bar(f"sealing, M points a CPU second, lr {name}", 2, cpu, "", least=True),
            Bar(f"sealed, bytes a point, 20-metric mix, lr {name}", 5.5, sizes, ""),
        ]
        cells = [f"lr {name}", cpu.text(), short(Spread.of(one.clock).median)]
        cells += [short(Spread.of(one.floor).median), figures.ratios(one.cpu, one.floor).text()]
        rows.append([*cells, short(sizes.median)])
    columns = ["mix", "M points/CPU s", "by the clock", "pyarrow alone", "ratio", "bytes a point"]
    note = f"{count * mix.METRICS:,} points, read, checked, written, synced, read back; "
    note += "pyarrow alone: the same table written once"
    return Found("seal", bars, [Table("Sealing", columns, rows, note)])


@dataclasses.dataclass
class _Series:
    """Figures by round: million points a second, and bytes a point."""

    cpu: list[float] = dataclasses.field(default_factory=list)
    clock: list[float] = dataclasses.field(default_factory=list)
    floor: list[float] = dataclasses.field(default_factory=list)
    sizes: list[float] = dataclasses.field(default_factory=list)


def _one(made: str, points: int, series: _Series) -> None:
    import pyarrow.parquet as pq

    from eventlog.seal import seal

    copy = shutil.copytree(made, os.path.join("copy", "run"))
    used, passed = time.process_time(), time.perf_counter()
    sealed = seal(copy)
    series.cpu.append(points / 1e6 / (time.process_time() - used))
    series.clock.append(points / 1e6 / (time.perf_counter() - passed))
    assert sealed.rows == points
    paths = [os.path.join(copy, "sealed", name) for name in sealed.files]
    series.sizes.append(sum(map(os.path.getsize, paths)) / points)
    table = pq.read_table(paths[0], use_threads=False)
    series.floor.append(table.num_rows / 1e6 / _write(table, paths[0]))
    shutil.rmtree(copy)


def _write(table: Any, like: str) -> float:
    """Write a table as the file `like` was written; return the CPU seconds."""
    import pyarrow.parquet as pq

    from eventlog.sealedwriter import options

    begun = time.process_time()
    with pq.ParquetWriter(f"{like}.again", table.schema, **options()) as out:
        out.write_table(table, row_group_size=pq.read_metadata(like).row_group(0).num_rows)
    return time.process_time() - begun
