"""The model target: it maps, keeps and answers like a real one, in the memory of this process.

Tests drive it; it is also the shortest example of a target. Its mapping changes nothing, so its
rules are the simplest there are: a metric's point is (key, step, time, exact value).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventlog.event import METRIC
from replayers.positions import Positions
from replayers.target import Change, Foreign, RunInfo, RunState, image_schema, writer_of

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, str, "int | None", "int | None", "int | None", "str | None"]


@dataclasses.dataclass
class StoredRun:
    """One run as the model keeps it: rows by (writer, seq, index), so that sending twice is once."""

    info: RunInfo
    rows: dict[tuple[str, int, int], Row] = dataclasses.field(default_factory=dict)
    settings: dict[tuple[str, str], Row] = dataclasses.field(default_factory=dict)
    held: Positions = dataclasses.field(default_factory=Positions)
    state: RunState | None = None
    sends: int = 0


class MemoryTarget:
    """A backend in memory. `runs` is what it holds; it outlives sessions and cursors."""

    kind = "memory"
    rules = "memory-1"
    folds = False

    def __init__(self, address: str = "here") -> None:
        self.address = address
        self.runs: dict[str, StoredRun] = {}

    def open(self, run: RunInfo) -> MemorySession:
        there = self.runs.setdefault(run.id, StoredRun(run))
        if (there.info.project, there.info.name) != (run.project, run.name):
            raise Foreign(f"run {run.id} belongs to {there.info.project}/{there.info.name}")
        return MemorySession(there)

    def image(self, batch: pa.Table) -> pa.Table:
        rows = [row for _seq, row in _image(batch)]
        return _table(rows)

    def close(self) -> None:
        """Nothing to let go of."""


class MemorySession:
    """A session of the model."""

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored
        self.known_as = f"memory-{stored.info.id}"

    def held(self) -> Positions:
        return self._stored.held

    def send(self, batch: pa.Table) -> list[Change]:
        writer = writer_of(batch)
        self._stored.sends += 1
        index: dict[int, int] = {}
        for seq, row in _image(batch):
            index[seq] = index.get(seq, -1) + 1
            if row[0] == METRIC:
                self._stored.rows[writer, seq, index[seq]] = row
            else:
                self._stored.settings[row[0], row[1]] = row
        self._stored.held |= Positions.of(writer, batch.column("seq").to_pylist())
        return []

    def confirm(self, batch: pa.Table) -> bool:
        writer = writer_of(batch)
        return all((writer, s) in self._stored.held for s in batch.column("seq").to_pylist())

    def read_back(self) -> Iterator[pa.Table]:
        yield _table([*self._stored.rows.values(), *self._stored.settings.values()])

    def close(self, state: RunState) -> None:
        self._stored.state = state


def _image(batch: pa.Table) -> Iterator[tuple[int, Row]]:
    times = batch.column("time").cast("int64").to_pylist()
    columns = ("seq", "step", "key", "kind", "type", "num", "data")
    rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    for time, (seq, step, key, kind, word, num, data) in zip(times, rows, strict=True):
        bits = None if num is None else struct.unpack("<q", struct.pack("<d", num))[0]
        text = None if data is None else f"{word}:{data.hex()}"
        yield seq, (kind, key, step, time if kind == METRIC else None, bits, text)


def _table(rows: list[Any]) -> pa.Table:
    import pyarrow as pa

    schema = image_schema()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
