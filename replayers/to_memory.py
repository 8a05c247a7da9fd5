"""The model target: it maps, keeps and answers like a real one, in the memory of this process.

Tests drive it; it is also the shortest example of a target. Its mapping changes nothing: the point
of a metric is (key, step, time, exact value), known by (writer, seq, kind, key), so that sending it
twice is once. Of config, summary and tags it keeps the newest value of each key: by seq within a
writer, by time between writers. It does not hold other kinds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from eventlog.columns import booleans, is_word, numbers, texts
from eventlog.event import CONFIG, METRIC, SUMMARY, SYSTEM, TAG
from replayers.batches import newest, of_kinds
from replayers.multiset import Counted, hashes
from replayers.positions import Positions
from replayers.superseding import APPEND, NEW_RUN, REBUILD
from replayers.target import Absent, Change, Foreign, RunInfo, RunState, image_schema, writer_of

if TYPE_CHECKING:
    import pyarrow as pa

POINTS, SETTINGS = (METRIC, SYSTEM), (CONFIG, SUMMARY, TAG)
PLACE = ("seq", "kind", "key")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The newest value of a key: when and where it was logged, and its row of the image."""

    time: int
    writer: str
    seq: int
    row: pa.Table

    def replaces(self, other: Setting) -> bool:
        """Return whether it is not older than another one of its key."""
        if self.writer == other.writer:
            return self.seq >= other.seq
        return self.time >= other.time


@dataclasses.dataclass
class StoredRun:
    """One run as the model keeps it: by writer, tables of ``seq`` and the columns of
    `image_schema`, each in the order of seq; the newest setting by kind and key.
    """

    info: RunInfo
    points: dict[str, list[pa.Table]] = dataclasses.field(default_factory=dict)
    settings: dict[tuple[str, str], Setting] = dataclasses.field(default_factory=dict)
    held: Positions = dataclasses.field(default_factory=Positions)
    state: RunState | None = None
    replaced_by: str = ""
    sends: int = 0


class MemoryTarget:
    """A backend in memory. `runs` is what it holds; it outlives sessions and cursors."""

    kind = "memory"
    rules = "memory-1"
    folds = False
    batch_rows = 2**20
    superseded = frozenset((APPEND, NEW_RUN, REBUILD))

    def __init__(self, address: str = "here") -> None:
        self.address = address
        self.runs: dict[str, StoredRun] = {}

    def open(self, run: RunInfo) -> MemorySession:
        name = f"{run.id}#{run.generation}" if run.generation else run.id
        if name not in self.runs and not run.create:
            raise Absent("there is no such run", on=name)
        there = self.runs.setdefault(name, StoredRun(run))
        if (there.info.project, there.info.name) != (run.project, run.name):
            raise Foreign(f"run {run.id} belongs to {there.info.project}/{there.info.name}")
        return MemorySession(there, lambda: self.runs.pop(name, None), name)

    def image(self, batch: pa.Table) -> pa.Table:
        return _image(of_kinds(batch, (*POINTS, *SETTINGS))).drop_columns(["seq"])

    def close(self) -> None:
        """Nothing to let go of."""


class MemorySession:
    """A session of the model."""

    def __init__(self, stored: StoredRun, discard: Callable[[], object], name: str) -> None:
        self._stored = stored
        self.discard = discard
        self.known_as = f"memory-{name}"

    def mark_replaced(self, by: str) -> None:
        self._stored.replaced_by = by

    def held(self) -> Positions:
        return self._stored.held

    def send(self, batch: pa.Table) -> list[Change]:
        import numpy as np

        stored, writer = self._stored, writer_of(batch)
        stored.sends += 1
        points = _image(of_kinds(batch, POINTS))
        there = self._there(writer, points)
        if there.num_rows:
            known = np.isin(hashes(points, PLACE), hashes(there, PLACE))
            points = points.filter(booleans(~known))
        if points.num_rows:
            stored.points.setdefault(writer, []).append(points)
        for place, setting in _settings(batch, writer):
            if place not in stored.settings or setting.replaces(stored.settings[place]):
                stored.settings[place] = setting
        stored.held |= Positions.of(writer, numbers(batch.column("seq")))
        return []

    def confirm(self, batch: pa.Table) -> bool:
        writer = writer_of(batch)
        points = _image(of_kinds(batch, POINTS))
        there = self._there(writer, points)
        if not there.equals(points):  # other events may lie between these, or a view left some out
            names = points.column_names
            left = Counted.of(hashes(points, names)).minus(Counted.of(hashes(there, names)))
            if left.total():
                return False
        settings = all(place in self._stored.settings for place, _one in _settings(batch, writer))
        seqs = Positions.of(writer, numbers(batch.column("seq")))
        return settings and self._stored.held | seqs == self._stored.held

    def read_back(self) -> Iterator[pa.Table]:
        for tables in self._stored.points.values():
            for table in tables:
                yield table.drop_columns(["seq"])
        for setting in self._stored.settings.values():
            yield setting.row

    def close(self, state: RunState) -> None:
        self._stored.state = state

    def _there(self, writer: str, points: pa.Table) -> pa.Table:
        """Return what is kept between the first and the last event of these points."""
        import pyarrow as pa

        parts = [points.slice(0, 0)]
        seqs = points.column("seq")
        first, last = (seqs[0].as_py(), seqs[-1].as_py()) if len(seqs) else (0, -1)
        for table in self._stored.points.get(writer, []):
            kept = table.column("seq")
            if kept[0].as_py() <= last and kept[-1].as_py() >= first:
                start, stop = numbers(kept).searchsorted([first, last + 1])
                parts.append(table.slice(int(start), int(stop - start)))
        return pa.concat_tables(parts)


def _settings(batch: pa.Table, writer: str) -> Iterator[tuple[tuple[str, str], Setting]]:
    rows = newest(of_kinds(batch, SETTINGS))
    image = _image(rows)
    times = rows.column("time").cast("int64").to_pylist()
    places = (rows.column(name).to_pylist() for name in ("seq", "kind", "key"))
    for at, (time, seq, kind, key) in enumerate(zip(times, *places, strict=True)):
        yield (kind, key), Setting(time, writer, seq, image.slice(at, 1).drop_columns(["seq"]))


def _image(rows: pa.Table) -> pa.Table:
    """Return what rows become, behind a column of their seqs: of a number its bits, of everything
    else its type and bytes as text; settings have no time.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = image_schema()
    kinds, data = rows.column("kind"), rows.column("data")
    bits = [chunk.view("int64") for chunk in rows.column("num").chunks]
    text = pa.nulls(len(data), "utf8")
    if data.null_count < len(data):
        there = rows.filter(data.is_valid())
        pairs = zip(*(there.column(name).to_pylist() for name in ("type", "data")), strict=True)
        spelled = texts([f"{word}:{raw.hex()}" for word, raw in pairs])
        text = pc.replace_with_mask(text, data.is_valid().combine_chunks(), spelled)
    columns = {
        "seq": rows.column("seq"),
        "kind": kinds,
        "key": rows.column("key"),
        "step": rows.column("step"),
        "time": pc.if_else(
            is_word(kinds, *POINTS), rows.column("time").cast("int64"), pa.nulls(len(data), "int64")
        ),
        "bits": pa.chunked_array(bits, "int64"),
        "text": text,
    }
    return pa.table(columns, pa.schema([pa.field("seq", pa.int64()), *schema]))
