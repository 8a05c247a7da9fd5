"""The lines a run streamed, by file and offset.

A line lives at the offset the client gave it; a second line at the same offset replaces the first.
Replacing is how a retry is harmless and how two writers destroy each other, so for the history
file it is counted three ways: all overwrites, those that changed the line when ``_runtime`` (which
a restarted client measures anew) is left out of the comparison, and those that changed a byte.

``historyLineCount`` is one more than the greatest offset. Where offsets have gaps this is more
than the number of rows held; which of the two a real server answers is not known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .database import Database

HISTORY = "wandb-history.jsonl"
EVENTS = "wandb-events.jsonl"
SUMMARY = "wandb-summary.json"
OUTPUT = "output.log"
ALERTS = "alerts"  # no file of the protocol: where alerts are kept, one JSON object a line

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of a file; ``step`` is the ``_step`` of a history row."""

    offset: int
    step: int | None
    text: str


@dataclass(frozen=True)
class Overwrites:
    """How many lines replaced another, by how much they differed."""

    all: int = 0
    changed: int = 0
    changed_exactly: int = 0


def type_name(value: object) -> str:
    """The word by which W&B calls a value's type in ``historyKeys``."""
    if isinstance(value, bool) or value is None:
        return "boolean" if isinstance(value, bool) else "nil"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, dict):
        return str(value.get("_type", "map"))
    return "string" if isinstance(value, str) else "list"


def comparable(text: str) -> str:
    """A history row without ``_runtime``, in one spelling (so that NaN equals NaN)."""
    row = json.loads(text)
    row.pop("_runtime", None)
    return json.dumps(row, sort_keys=True)


def compare(old: Mapping[int, str], new: Iterable[Line]) -> Overwrites:
    """What happens to the lines of ``old`` (by offset) when ``new`` is stored."""
    replaced = [(old[line.offset], line.text) for line in new if line.offset in old]
    altered = [(before, after) for before, after in replaced if before != after]
    changed = sum(comparable(before) != comparable(after) for before, after in altered)
    return Overwrites(len(replaced), changed, len(altered))


def count_keys(texts: Iterable[str], sign: int) -> Counter[tuple[str, str]]:
    """How often each (key, type) occurs in history rows, times ``sign``."""
    counts: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for key, value in json.loads(text).items():
            # A key may hold half of a surrogate pair, escaped in the row, which SQLite refuses.
            counts[key.encode("utf-8", "replace").decode(), type_name(value)] += sign
    return counts


class Lines:
    """The table of lines."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, run_id: int, file: str, lines: Sequence[Line]) -> Overwrites:
        """Store lines, replacing those at the same offsets; part of a transaction."""
        if not lines:
            return Overwrites()
        overwrites = Overwrites()
        if file == HISTORY:
            low, high = lines[0].offset, lines[-1].offset
            old = {line.offset: line.text for line in self.read(run_id, file, low, high)}
            overwrites = compare(old, lines)
            self._add_keys(run_id, count_keys((line.text for line in lines), 1))
            self._add_keys(run_id, count_keys(old.values(), -1))
        self._database.execute_many(
            "INSERT INTO line (run_id, file, offset, step, text) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (run_id, file, offset) DO UPDATE "
            "SET step = excluded.step, text = excluded.text",
            ((run_id, file, line.offset, line.step, line.text) for line in lines),
        )
        return overwrites

    def _add_keys(self, run_id: int, counts: Counter[tuple[str, str]]) -> None:
        self._database.execute_many(
            "INSERT INTO key_count (run_id, key, type, count) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (run_id, key, type) DO UPDATE SET count = count + excluded.count",
            ((run_id, key, kind, count) for (key, kind), count in counts.items()),
        )

    def read(self, run_id: int, file: str, low: int = 0, high: int = 2**62) -> list[Line]:
        """Lines of a file with ``low <= offset <= high``, by offset."""
        rows = self._database.rows(
            "SELECT offset, step, text FROM line "
            "WHERE run_id = ? AND file = ? AND offset BETWEEN ? AND ? ORDER BY offset",
            (run_id, file, low, high),
        )
        return [Line(*row) for row in rows]

    def by_step(self, run_id: int, low: int, high: int) -> list[str]:
        """History rows with ``low <= _step < high``, by step, then offset. None is left out."""
        rows = self._database.rows(
            "SELECT text FROM line WHERE run_id = ? AND step >= ? AND step < ? "
            "ORDER BY step, offset",
            (run_id, low, high),
        )
        return [row[0] for row in rows]

    def append(self, run_id: int, file: str, text: str) -> None:
        """Store a line after the last one; a transaction of its own."""
        with self._database.transaction():
            self.write(run_id, file, [Line(self.line_count(run_id, file), None, text)])

    def line_count(self, run_id: int, file: str) -> int:
        """One more than the greatest offset."""
        last = self._database.number(
            "SELECT max(offset) FROM line WHERE run_id = ? AND file = ?", (run_id, file)
        )
        return 0 if last is None else last + 1

    def last(self, run_id: int, file: str, below: int) -> Line | None:
        """The last line whose offset is less than ``below``."""
        row = self._database.row(
            "SELECT offset, step, text FROM line WHERE run_id = ? AND file = ? AND offset < ? "
            "ORDER BY offset DESC LIMIT 1",
            (run_id, file, below),
        )
        return None if row is None else Line(*row)

    def greatest_step(self, run_id: int, below: int | None = None) -> int:
        """The greatest ``_step``, or -1; ``below`` leaves out the rows from that offset on."""
        sql = "SELECT max(step) FROM line WHERE run_id = ? AND step IS NOT NULL"
        if below is None:
            step = self._database.number(sql, (run_id,))
        else:
            step = self._database.number(f"{sql} AND offset < ?", (run_id, below))
        return -1 if step is None else step

    def duplicate_steps(self, run_id: int) -> dict[int, int]:
        """Steps that more than one history row has, with the number of rows."""
        rows = self._database.rows(
            "SELECT step, count(*) FROM line WHERE run_id = ? AND step IS NOT NULL "
            "GROUP BY step HAVING count(*) > 1 ORDER BY step",
            (run_id,),
        )
        return {row[0]: row[1] for row in rows}

    def gaps(self, run_id: int, file: str) -> list[tuple[int, int]]:
        """Ranges ``(first, last)`` of offsets without a line below the greatest offset."""
        rows = self._database.rows(
            "SELECT previous + 1, offset - 1 FROM (SELECT offset, "
            "lag(offset, 1, -1) OVER (ORDER BY offset) AS previous "
            "FROM line WHERE run_id = ? AND file = ?) WHERE offset > previous + 1 ORDER BY offset",
            (run_id, file),
        )
        return [(row[0], row[1]) for row in rows]

    def file_counts(self, run_id: int) -> dict[str, int]:
        """The number of lines held, by file."""
        rows = self._database.rows(
            "SELECT file, count(*) FROM line WHERE run_id = ? GROUP BY file ORDER BY file",
            (run_id,),
        )
        return {row[0]: row[1] for row in rows}

    def keys(self, run_id: int) -> dict[str, Row]:
        """Every key of the history with the types it had, as ``historyKeys`` shows them."""
        rows = self._database.rows(
            "SELECT key, type, count FROM key_count WHERE run_id = ? AND count > 0 "
            "ORDER BY key, type",
            (run_id,),
        )
        found: dict[str, Row] = {}
        for key, kind, count in rows:
            entry = found.setdefault(key, {"typeCounts": []})
            entry["typeCounts"].append({"type": kind, "count": count})
        return found

    def rewind(self, run_id: int, step: float) -> None:
        """Forget the history rows beyond a step; part of a transaction."""
        rows = self._database.rows(
            "SELECT text FROM line WHERE run_id = ? AND step > ?", (run_id, step)
        )
        self._add_keys(run_id, count_keys((row[0] for row in rows), -1))
        self._database.execute("DELETE FROM line WHERE run_id = ? AND step > ?", (run_id, step))
