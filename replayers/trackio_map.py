"""A batch's rows as Trackio's rows, and as the image that read-back is compared with."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from eventlog import event as events
from eventlog.errors import TemporaryError
from eventlog.frame import to_events
from eventlog.value import EXACT, Stored, loads
from replayers.target import Change, Rejected, image_schema
from replayers.trackio_config import CONFIG_KINDS, SHOWN_KINDS, config_value, only
from replayers.trackio_names import clean_text, config_key, metric_key
from replayers.trackio_values import SPELLINGS, UNREADABLE, DamagedError, Notes, plain, tree

if TYPE_CHECKING:
    import pyarrow as pa

#: Kinds that become Trackio rows.
ROW_KINDS = frozenset((events.METRIC, events.SYSTEM))
TRACE, TABLE = "trackio.trace", "trackio.table"

# ------------------------------------------------------------------------------ rows


class Document(NamedTuple):
    """One Trackio row: an event's metrics as one JSON object."""

    seq: int
    step: int
    time: int
    values: dict[str, Any]


#: What becomes of the reference of a table: its content as Trackio shows it, or less.
TableMaker = Callable[[dict[str, Any], list[str]], Any]


def documents(batch: pa.Table, notes: Notes, table: TableMaker) -> Iterator[Document]:
    """Yield the Trackio row of every event that has metric or system rows.

    Raises
    ------
    DamagedError
        If a value's stored form cannot be read.
    """
    for event in to_events(batch):
        values: dict[str, Any] = {}
        for row in event.rows:
            if row.kind not in ROW_KINDS:
                if row.kind not in CONFIG_KINDS:
                    notes.add("kind-not-held", row.kind, event.seq)
                continue
            rules: list[str] = []
            key = _free_key(row, values, rules)
            try:
                values[key] = _row_value(row, rules, table)
            except TemporaryError:
                raise
            except UNREADABLE as error:
                raise DamagedError(event.seq, row.key, error) from error
            for rule in rules:
                notes.add(rule, row.key, event.seq, key if rule.startswith("key-") else "")
        if not values and not any(row.kind in ROW_KINDS for row in event.rows):
            continue
        if event.step is None:
            notes.add("step-from-seq", "", event.seq)
        step = event.seq if event.step is None else event.step
        yield Document(event.seq, step, event.time, values)


def row_seqs(batch: pa.Table) -> set[int]:
    """Return the seqs of the events that have a row in Trackio."""
    return set(only(batch, ROW_KINDS).column("seq").to_pylist())


def _free_key(row: events.Row, taken: dict[str, Any], rules: list[str]) -> str:
    key = row.key if row.kind == events.METRIC else "system/" + row.key
    name = metric_key(key)
    if name != key:
        rules.append("key-reserved")
    if name in taken:
        rules.append("key-taken")
        number = 2
        while f"{name}#{number}" in taken:
            number += 1
        name = f"{name}#{number}"
    return name


def _row_value(row: events.Row, rules: list[str], table: TableMaker) -> Any:
    if row.type == "table":
        return table(reference(row.data), rules)
    return plain(Stored(row.type, row.num, row.data), rules)


def reference(data: bytes | None) -> dict[str, Any]:
    """Return the reference of a table to its blob. Raises `ValueError` if it is none."""
    found = loads(data or b"")
    if not isinstance(found, dict) or not isinstance(found.get("sha256"), str):
        raise ValueError("no reference of a table")
    return found


# ------------------------------------------------------------------------------ tables


def table_value(ref: dict[str, Any], content: bytes | None) -> Any:
    """Return a table as Trackio shows it: a list of traces, or an inline table.

    Without content, the inline table is empty and carries the reference only.
    """
    sha = ref["sha256"]
    if content is None:
        return {"_type": TABLE, "_value": [], "sha256": sha, "rows": _count(ref)}
    whole = loads(content)
    names = [clean_text(str(name)) for name in whole["columns"]]
    rows = [list(row) for row in whole["data"]]
    lowered = [name.lower() for name in names]
    if rows and "input" in lowered and "output" in lowered:
        return [_trace(sha, names, lowered, row, i) for i, row in enumerate(rows)]
    names = _distinct(names, max((len(row) for row in rows), default=0))
    value = [dict(zip(names, (tree(cell, []) for cell in row), strict=False)) for row in rows]
    return {"_type": TABLE, "_value": value, "sha256": sha, "rows": len(rows)}


def _trace(sha: str, names: list[str], lowered: list[str], row: list[Any], i: int) -> Any:
    at_input, at_output = lowered.index("input"), lowered.index("output")
    row = row + [None] * (len(names) - len(row))
    metadata: dict[str, Any] = {"source": "validation_generations", "sample_index": i}
    for at, name in enumerate(names):
        if at not in (at_input, at_output):
            key = "score" if lowered[at] == "score" else name
            while key in metadata:
                key += "_"
            metadata[key] = tree(row[at], [])
    while "table" in metadata:
        metadata["table_"] = metadata.pop("table")
    metadata["table"] = sha
    messages = [
        {"role": "user", "content": _message(row[at_input])},
        {"role": "assistant", "content": _message(row[at_output])},
    ]
    return trace(messages, metadata)


def trace(messages: Any, metadata: Any) -> dict[str, Any]:
    """Return one of Trackio's traces."""
    return {"_type": TRACE, "messages": messages, "metadata": metadata}


def is_table(value: Any) -> bool:
    """Return whether a stored value is an inline table that `table_value` made."""
    return isinstance(value, dict) and value.get("_type") == TABLE and "sha256" in value


def _message(cell: Any) -> str:
    return clean_text(cell) if isinstance(cell, str) else json.dumps(tree(cell, []))


def _distinct(names: list[str], wide: int) -> list[str]:
    out: list[str] = []
    for i in range(max(len(names), wide)):
        name = names[i] if i < len(names) else f"column {i}"
        while name in out:
            name += "_"
        out.append(name)
    return out


def _count(ref: dict[str, Any]) -> int:
    rows = ref.get("rows")
    return rows if isinstance(rows, int) else 0


def table_text(sha: str, rows: int, *, altered: bool = False) -> str:
    """Return how image and read-back name a table: by its blob, and whether its cells differ."""
    shown: dict[str, Any] = {"table": sha, "rows": rows}
    if altered:
        shown["altered"] = True
    return dumps(shown)


# ------------------------------------------------------------------------------ image


class Cells:
    """Collects rows of `replayers.target.image_schema`."""

    def __init__(self) -> None:
        self.rows: tuple[list[Any], ...] = ([], [], [], [], [], [])

    def __len__(self) -> int:
        return len(self.rows[0])

    def add(self, kind: str, key: str, step: int | None, time: int | None, value: Any) -> None:
        """Add the cell of a value of Trackio's JSON."""
        bits, text = cell(value)
        self.add_text(kind, key, step, time, text, bits)

    def add_text(
        self,
        kind: str,
        key: str,
        step: int | None,
        time: int | None,
        text: str | None,
        bits: int | None = None,
    ) -> None:
        """Add a cell whose form is known."""
        for column, item in zip(self.rows, (kind, key, step, time, bits, text), strict=True):
            column.append(item)

    def table(self) -> pa.Table:
        """Return the rows as a table."""
        import pyarrow as pa

        schema = image_schema()
        arrays = [pa.array(c, f.type) for c, f in zip(self.rows, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


def cell(value: Any) -> tuple[int | None, str | None]:
    """Return a JSON value as ``(bits, text)``: a number by its bits, all else as JSON text."""
    if isinstance(value, str) and value in SPELLINGS:
        value = SPELLINGS[value]
    if isinstance(value, float) or (type(value) is int and -EXACT <= value <= EXACT):
        return struct.unpack("<q", struct.pack("<d", value))[0], None
    return None, dumps(value)


def dumps(value: Any) -> str:
    """Return compact JSON in ASCII, keys in their own order."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def image(batch: pa.Table) -> pa.Table:
    """Return what rows of one writer become in Trackio."""
    cells = Cells()
    for document in documents(batch, Notes(), _named):
        for key, value in document.values.items():
            if isinstance(value, _TableName):
                cells.add_text("metric", key, document.step, document.time, value)
            else:
                cells.add("metric", key, document.step, document.time, value)
    for event in to_events(only(batch, SHOWN_KINDS)):
        for row in event.rows:
            key = config_key(row.key) if row.kind == events.CONFIG else row.key
            cells.add(row.kind, key, None, None, config_value(row, event.seq, Notes()))
    return cells.table()


def changes(batch: pa.Table) -> list[Change]:
    """Return what the rules change of the rows of one writer.

    Raises
    ------
    Rejected
        If an event cannot be read.
    """
    notes = Notes()
    try:
        for _document in documents(batch, notes, _named):
            pass
    except DamagedError as error:
        raise Rejected(f"a value cannot be read: {error}", seqs=[error.seq]) from error
    return notes.changes()


class _TableName(str):
    __slots__ = ()


def _named(ref: dict[str, Any], _rules: list[str]) -> Any:
    return _TableName(table_text(ref["sha256"], _count(ref)))
