"""Events, rows and positions: the frozen values that every other module passes on.

An *event* is what one call recorded; it has one row per key. A *position* is (writer, seq), the
only cursor there is: a step is data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from eventlog.errors import ValueRefused
from eventlog.value import SCALARS, Stored, decode, encode

#: Kinds of rows of format 1. Readers keep and count kinds they do not know.
METRIC = "metric"
CONFIG = "config"
SUMMARY = "summary"
TAG = "tag"
DEFINITION = "definition"
STATE = "state"
ALERT = "alert"
SYSTEM = "system"
CONSOLE = "console"
NOTE = "note"
GAP = "gap"

#: How a run stands that has not ended, or whose process is gone without a word.
RUNNING, UNKNOWN = "running", "unknown"

STEP_MIN, STEP_MAX = -(2**63), 2**63 - 1


class Position(NamedTuple):
    """Where an event lies: its writer, and its place 0, 1, 2, ... in that writer."""

    writer: str
    seq: int


class Row(NamedTuple):
    """One key of an event, in stored form (`eventlog.value`)."""

    key: str
    kind: str
    type: str
    num: float | None
    data: bytes | None

    @property
    def value(self) -> Any:
        """The value that was logged."""
        return decode(self.type, self.num, self.data)


class Event(NamedTuple):
    """What one call recorded.

    `time` is nanoseconds since 1970 UTC by the writer's clock (data, never an order); `step` is
    None where none was given.
    """

    seq: int
    time: int
    step: int | None
    rows: tuple[Row, ...]

    def values(self, kind: str = METRIC) -> dict[str, Any]:
        """Return the values of one kind by key, in the order in which they were logged."""
        return {row.key: row.value for row in self.rows if row.kind == kind}


def digest(event: Event) -> int:
    """Return the CRC-32 of an event's content, the same for every way it can be stored.

    A cursor remembers it for the event it stands at: frames differ between a segment, its copy
    in a later segment and a Parquet file, the content does not.
    """
    step = b"-" if event.step is None else struct.pack("<q", event.step)
    crc = zlib.crc32(struct.pack("<qq", event.seq, event.time) + step)
    for row in event.rows:
        num = b"-" if row.num is None else struct.pack("<d", row.num)
        texts = (row.key.encode(), row.kind.encode(), row.type.encode())
        data = b"-" if row.data is None else row.data
        for part in (*texts, num, data):
            crc = zlib.crc32(part, zlib.crc32(struct.pack("<q", len(part)), crc))
    return crc


def whole_step(step: object) -> int | None:
    """Return an integral `step` as an int, None for every other (which the caller warns of)."""
    if type(step) is not int:
        item = getattr(step, "item", None)
        if callable(item):
            try:
                step = item()
            except Exception:
                return None
        if isinstance(step, float) and step.is_integer():
            step = int(step)
        if isinstance(step, bool) or not isinstance(step, int):
            return None
    return int(step) if STEP_MIN <= step <= STEP_MAX else None


class Flat(NamedTuple):
    """What `flatten` made: values by key, keys that were given twice, reasons for what was left
    out.
    """

    values: dict[str, Any]
    twice: list[str]
    refused: list[str]


def flatten(data: Mapping[Any, Any]) -> Flat:
    """Flatten nested mappings with ``/``.

    A key that comes up twice keeps its last value. Keys are text without lone surrogates, or
    integers (written in decimal); others are left out with a reason.
    """
    flat = Flat({}, [], [])
    _flatten(data, "", flat, set())
    return flat


def _flatten(data: Mapping[Any, Any], prefix: str, flat: Flat, above: set[int]) -> None:
    if id(data) in above or len(above) >= 64:
        flat.refused.append(f"{prefix[:-1]!r}: it contains itself or is nested too deep")
        return
    above.add(id(data))
    values = flat.values
    for key, value in data.items():
        name = key if type(key) is str and key.isascii() else _key(key)
        if name is None:
            flat.refused.append(f"the key {_shown(key)}: it is no text that can be kept")
            continue
        if prefix:
            name = prefix + name
        if type(value) not in SCALARS and issubclass(type(value), Mapping):
            _flatten(value, name + "/", flat, above)
            continue
        if name in values:
            flat.twice.append(name)
            del values[name]
        values[name] = value
    above.discard(id(data))


def _key(key: object) -> str | None:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        return None
    try:
        # Of a text or number that is also an Enum, `str` gives the name.
        text = str.__str__(key) if isinstance(key, str) else int.__repr__(key)
        text.encode("utf-8")
    except ValueError:  # a lone surrogate, or a number of thousands of digits
        return None
    return text


def _shown(key: object) -> str:
    try:
        return repr(key)[:80]
    except Exception:
        return f"of type {type(key).__qualname__}"


def make_rows(kind: str, values: Iterable[tuple[str, Any]]) -> tuple[list[Row], list[str]]:
    """Return a row per value that can be kept, and a reason for each that cannot."""
    rows: list[Row] = []
    refused: list[str] = []
    for key, value in values:
        if type(value) is float:
            rows.append(Row(key, kind, "float64", value, None))
            continue
        try:
            stored = value if isinstance(value, Stored) else encode(value)
        except ValueRefused as error:
            refused.append(f"{key!r}: {error.what}")
        except Exception as error:  # a value with a hostile dtype or item must not stop training
            refused.append(f"{key!r}: {type(error).__name__}: {error}")
        else:
            rows.append(Row(key, kind, *stored))
    return rows, refused
