"""The journals of the conformance suite: hostile names and values, attempts that go on or go back."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from eventlog.catalog import Found, find_all
from eventlog.event import CONFIG, METRIC, NOTE, STATE, SUMMARY, TAG, Row
from eventlog.home import prepare
from eventlog.journal import Options, Writer
from eventlog.layout import run_folder
from eventlog.runfile import RunFile, claim

VALUES: dict[str, Any] = {
    "loss": 0.1 + 0.2,
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "minus zero": -0.0,
    "smallest": 5e-324,
    "largest": 1.7976931348623157e308,
    "big": 2**53 + 1,
    "bigger": 10**400,
    "bool": True,
    "none": None,
    "text": "é\0\x1b[31m\n",
    "list": [1, 2.5, None, {"a": "b"}],
    "dict": {"deep": {"er": 1}},
    "bytes": b"\x00\xff",
}
KEYS = (
    "",
    " ",
    "..",
    "../../etc/passwd",
    "a/b/../c",
    "key with spaces",
    "ключ",
    "\x1b[0m\0",
    "%2e%2e",
    "k" * 400,
    "_step",
    "step",
    "time",
    "timestamp",
    "project",
    "_runtime",
    "_wandb",
    "__proto__",
    "system/gpu",
    "'; DROP TABLE metrics; --",
)


def make_journal(folder: Path, *, events: int = 24, hostile: bool = True, id: str = "") -> Found:
    """Make a journal of one run: a writer that goes on, hostile keys and values, settings.

    Parameters
    ----------
    events:
        Events with three plain metrics each, before the hostile ones.
    id:
        The run's id; a new one if it is empty.
    """
    prepare(str(folder))
    id = id or uuid.uuid4().hex[:16]
    place = run_folder(str(folder), "conformance", id)
    os.makedirs(place, exist_ok=True)
    claim(place, RunFile(id, "conformance", f"run {id}"))
    writer = append(place, id, events)
    if hostile:
        _hostile(writer, events)
    writer.append(SUMMARY, {"best": 0.25, "text": "x"}, None)
    writer.append(STATE, {"state": "finished", "exit_code": 0}, None)
    writer.close()
    return found_in(folder, id)


def found_in(folder: Path, id: str) -> Found:
    """Return the run of that id of a journal."""
    (found,), _bad = find_all([str(folder)], [id])
    return found


def append(place: str, id: str, events: int, first: int = 0) -> Writer:
    """Append events to a run as a new attempt; return its writer, still open."""
    start = time.time_ns()
    attempt = {"key": uuid.uuid4().hex, "start": start, "evidence": "explicit"}
    identity = {"project": "conformance", "name": f"run {id}", "attempt": attempt}
    writer = Writer(place, id, identity, options=Options(durability="memory"))
    writer.append(CONFIG, {"lr": 1e-3, "first": first, "nested": {"a": 1}}, None)
    writer.append(TAG, {"tag one": True}, None)
    for step in range(first, first + events):
        row = {"loss": 1 / (step + 1), "reward": step / 7, "tokens": step * 2048}
        writer.append(METRIC, row, step)
    return writer


def _hostile(writer: Writer, step: int) -> None:
    for key, value in VALUES.items():
        writer.append(METRIC, {f"v/{key}": value}, step)
    writer.append(METRIC, {key: i / 3 for i, key in enumerate(KEYS)}, step + 1)
    writer.append(METRIC, {"no step": 1.5}, None)
    writer.append(METRIC, {"loss": -1.0}, -(2**40))
    writer.append(METRIC, {"loss": 2.0}, 2**40)
    for _ in range(3):  # the same key, step and value, at three times
        writer.append(METRIC, {"again": 1.0}, 7)
    writer.append(NOTE, {"a note": "x"}, None)


def poison(writer: Writer) -> None:
    """Append an event with a value that is not what its type says."""
    writer.append_rows([Row("loss", METRIC, "int64", None, b"no number")], 1)
