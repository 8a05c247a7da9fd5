"""Events as rows of a W&B history and back: pure functions.

An event with metric or system rows is one history row. Beside its values a row has W&B's own
``_step``, ``_runtime`` and ``_timestamp``, and these, which the table in `replayers.to_wandb`
explains: ``training/global_step``, ``_eventlog/position`` and, where needed, ``_eventlog/row``, a
JSON object as text with any of

* ``step``: the event's step, where ``training/global_step`` is not it;
* ``own``: true if ``training/global_step`` is a metric that was logged;
* ``tables``: for each key of a table the SHA-256 of its blob and its count of rows;
* ``absent``: keys that W&B may have added to the row by itself (step metrics repeat their last
  value).
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from eventlog.event import CONFIG, DEFINITION, METRIC, NOTE, SUMMARY, SYSTEM, TAG, Event, Row
from eventlog.frame import to_events
from eventlog.value import decode
from replayers.target import Change, Rejected, image_schema, writer_of
from replayers.wandb_values import (
    LARGEST_ROW,
    LARGEST_VALUE,
    Notes,
    canonical,
    config_key,
    cut,
    finite,
    metric_key,
    nanoseconds,
    plain,
    seconds,
    tag_name,
)

if TYPE_CHECKING:
    import pyarrow as pa

RULES = "wandb-1"
GLOBAL_STEP = "training/global_step"
HIDDEN = "_eventlog/"
POSITION = "_eventlog/position"
ROW = "_eventlog/row"
_POSITION = re.compile(r"([a-z0-9]{1,16}):(0|[1-9][0-9]{0,18})")
_NOT_VALUES = frozenset(("_step", "_runtime", "_timestamp", "_wandb"))
#: Notes that W&B has a place for.
_NOTES = frozenset(("group", "job_type", "notes"))
#: What reading a damaged value may raise.
_UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, struct.error)

ImageRow = tuple[str, str, "int | None", "int | None", "int | None", "str | None"]


@dataclasses.dataclass(frozen=True)
class HistoryRow:
    """What one event becomes in the history; `tables` are references, by key."""

    seq: int
    values: dict[str, Any]
    about: dict[str, Any]
    tables: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of config, summary, tags, definitions or notes; `stamp` is its time, writer, seq."""

    kind: str
    key: str
    value: Any
    stamp: tuple[int, str, int]


@dataclasses.dataclass(frozen=True)
class Mapped:
    """What a batch becomes."""

    rows: list[HistoryRow]
    settings: list[Setting]
    changes: list[Change]


def map_batch(batch: pa.Table) -> Mapped:
    """Return what a batch becomes.

    Raises
    ------
    Rejected
        If events of it cannot be read, or are too large for a row.
    """
    notes = Notes()
    writer = writer_of(batch)
    rows: list[HistoryRow] = []
    settings: list[Setting] = []
    refused: dict[int, str] = {}
    for event in to_events(batch):
        try:
            row = history_row(event, writer, notes)
            found = list(_settings(event, writer, notes))
        except _UNREADABLE as error:
            refused[event.seq] = f"{type(error).__name__}: {error}"
            continue
        settings += found
        if row is not None:
            rows.append(row)
    if refused:
        seq, why = next(iter(refused.items()))
        raise Rejected(f"W&B cannot hold the event {seq} ({why})", seqs=refused)
    return Mapped(rows, settings, notes.changes())


def history_row(event: Event, writer: str, notes: Notes) -> HistoryRow | None:
    """Return an event's row of the history; None if it has nothing for it."""
    values, tables = _values(event, notes)
    if not values:
        return None
    about: dict[str, Any] = {}
    if GLOBAL_STEP in values:
        about = {"own": True, "step": event.step}
    elif event.step is None:
        about = {"step": None}
        values[GLOBAL_STEP] = event.seq
        notes.add("step-from-seq", GLOBAL_STEP, event.seq)
    else:
        values[GLOBAL_STEP] = event.step
    if tables:
        about["tables"] = {k: [ref["sha256"], ref.get("rows", 0)] for k, ref in tables.items()}
    stamp = seconds(event.time)
    if nanoseconds(stamp) != event.time:
        notes.add("time-rounded", "_timestamp", event.seq)
    values |= {"_timestamp": stamp, POSITION: f"{writer}:{event.seq}"}
    return HistoryRow(event.seq, values, about, tables)


def _values(event: Event, notes: Notes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the values of an event's metric and system rows, and the tables among them."""
    values: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for row in event.rows:
        if row.kind not in (METRIC, SYSTEM):
            continue
        key = _free_key(row, values, event.seq, notes)
        rules: list[str] = []
        values[key] = value = plain(row, rules)
        if row.type == "table":
            tables[key] = decode(row.type, row.num, row.data)
            rules.remove("table-as-reference")
        elif isinstance(value, (str, list, dict)):
            sizes[key] = len(json.dumps(value))
        for rule in rules:
            notes.add(rule, key, event.seq)
    for key in _too_large(values, sizes):
        values[key] = cut(values[key])
        notes.add("value-cut", key, event.seq)
    return values, tables


def _free_key(row: Row, values: dict[str, Any], seq: int, notes: Notes) -> str:
    wished = row.key if row.kind == METRIC else f"system/{row.key}"
    key = metric_key(wished)
    if key != wished:
        notes.add("key-renamed", key, seq)
    if key not in values:
        return key
    number = 2
    while f"{key}#{number}" in values:
        number += 1
    notes.add("key-taken", f"{key}#{number}", seq)
    return f"{key}#{number}"


def _too_large(values: dict[str, Any], sizes: dict[str, int]) -> list[str]:
    """Return the keys to cut, so that each value and the whole row are within W&B's limits."""
    out = [key for key, size in sizes.items() if size > LARGEST_VALUE]
    keys = sum(6 * len(key) for key in values) if len(values) > 1000 else 0
    total = keys + 32 * len(values) + sum(s for k, s in sizes.items() if k not in out)
    for size, key in sorted(((s, k) for k, s in sizes.items() if k not in out), reverse=True):
        if total <= LARGEST_ROW:
            break
        out.append(key)
        total -= size - 100
    if total > LARGEST_ROW:
        raise ValueError(f"{len(values)} keys in one event make a row of some {total} bytes")
    return out


def _settings(event: Event, writer: str, notes: Notes) -> Iterator[Setting]:
    stamp = (event.time, writer, event.seq)
    for row in event.rows:
        if row.kind in (METRIC, SYSTEM):
            continue
        rules: list[str] = []
        pair = setting(row, rules)
        if pair is None:
            notes.add("kind-not-held", row.kind, event.seq)
            continue
        for rule in rules:
            notes.add(rule, pair[0], event.seq)
        yield Setting(row.kind, *pair, stamp)


def setting(row: Row, rules: list[str]) -> tuple[str, Any] | None:
    """Return key and value of a row of config, summary, tag, definition or note as W&B has it."""
    if row.kind == TAG:
        return tag_name(row.key, rules), row.num == 1.0
    if row.kind == DEFINITION:
        given = decode(row.type, row.num, row.data)
        return metric_key(row.key), given if isinstance(given, dict) else {}
    if row.kind == NOTE and row.key in _NOTES:
        return row.key, str(plain(row, rules))
    if row.kind not in (CONFIG, SUMMARY):
        return None
    key = config_key(row.key) if row.kind == CONFIG else metric_key(row.key)
    if key != row.key:
        rules.append("key-renamed")
    value = finite(plain(row, rules), rules)
    if isinstance(value, (str, list, dict)) and len(json.dumps(value)) > LARGEST_VALUE:
        rules.append("value-cut")
        value = cut(value)
    return key, value


def definition(key: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of W&B's ``define_metric``."""
    out: dict[str, Any] = {"name": key}
    step = given.get("step_metric")
    if step:
        # W&B's own _step is the place of the row here; whoever asks for it means the user's step.
        own = {"_step": GLOBAL_STEP, "_timestamp": step, "_runtime": step}
        out["step_metric"] = own.get(step) or metric_key(step)
    if given.get("summary"):
        out["summary"] = given["summary"]
    return out


# ------------------------------------------------------------------------------ back


def position(row: dict[str, Any]) -> tuple[str, int] | None:
    """Return the position that a history row carries, or None for a row that is not ours."""
    found = row.get(POSITION)
    match = _POSITION.fullmatch(found) if isinstance(found, str) else None
    return None if match is None else (match[1], int(match[2]))


def image(batch: pa.Table) -> pa.Table:
    """Return what the rows of a batch become in W&B, as `image_schema`."""
    notes = Notes()
    writer = writer_of(batch)
    out: list[ImageRow] = []
    for event in to_events(batch):
        row = history_row(event, writer, notes)
        if row is not None:
            out += points(row.values, row.about, lambda _digest, _value: True)
        for one in _settings(event, writer, notes):
            out += setting_image(one.kind, {one.key: one.value})
    return as_table(out)


def points(
    row: dict[str, Any], about: dict[str, Any], is_table: Callable[[str, Any], bool]
) -> Iterator[ImageRow]:
    """Yield the points of a history row; `is_table` says whether a table is what it should be."""
    step = about["step"] if "step" in about else row.get(GLOBAL_STEP)
    time = nanoseconds(row.get("_timestamp"))
    leave = {*_NOT_VALUES, *about.get("absent", ())}
    if not about.get("own"):
        leave.add(GLOBAL_STEP)
    tables = about.get("tables", {})
    for key, value in row.items():
        if key in leave or key.startswith(HIDDEN):
            continue
        shown = value
        if key in tables:
            whole = is_table(tables[key][0], value)
            shown = ["table", *tables[key]] if whole else ["another table", value]
        yield (METRIC, key, step, time, *bits(shown))


def bits(value: Any) -> tuple[int | None, str | None]:
    """Return (bits, None) for a number that a float64 holds, else (None, canonical JSON)."""
    number = None if isinstance(value, bool) else value
    if isinstance(number, int) and abs(number) <= 2**1023 and int(float(number)) == number:
        number = float(number)
    if not isinstance(number, float):
        return None, canonical(value)
    number = float("nan") if number != number else number + 0.0
    return struct.unpack("<q", struct.pack("<d", number))[0], None


def setting_image(kind: str, values: dict[str, Any]) -> Iterator[ImageRow]:
    """Yield the image of config, summary or tags."""
    for key, value in values.items():
        if kind in (CONFIG, SUMMARY) or (kind == TAG and value is True):
            yield (kind, key, None, None, *bits(value))


def as_table(rows: Iterable[ImageRow]) -> pa.Table:
    """Return rows as a table of `image_schema`."""
    import pyarrow as pa

    schema = image_schema()
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
