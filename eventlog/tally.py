"""What events of one writer add up to: how many points, the last time and step, how it stands.

A sealed file tells it of its own events, so that nobody has to read them to show a run at a glance:

==================== =============================================================================
eventlog.tally       a JSON object: ``points`` (rows of metrics), ``last`` (the highest time, in
                     nanoseconds since 1970 UTC), ``step`` (the highest, null if there is none);
                     where the events say so, ``state`` (a pair: the last word and its time) and
                     ``exit_code`` (the last one)
eventlog.tally_crc32 the CRC-32 of that text and, behind it, of ``eventlog.crc32``, which stands for
                     the rows: a tally of other rows is none
==================== =============================================================================

A file without it (of an earlier version, or one with events that are lost) is read instead.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eventlog.columns import is_word, numbers, present, truths
from eventlog.errors import FormatError
from eventlog.event import METRIC, RUNNING, STATE, STEP_MAX, STEP_MIN
from eventlog.value import decode

if TYPE_CHECKING:
    import pyarrow as pa

_NAMES = ("points", "last", "step", "state", "exit_code")


@dataclasses.dataclass
class Tally:
    """What the events of one writer add up to, so far: see `eventlog.glance.Glance`. `end` is the
    seq behind the last of them.
    """

    events: int = 0
    end: int = 0
    points: int = 0
    last: int = 0
    last_step: int | None = None
    status: str = RUNNING
    exit_code: int | None = None
    ended: int | None = None

    def add(self, first: int, last: int, told: Mapping[str, Any]) -> None:
        """Add the events `first` to `last`, of which a sealed file tells what they add up to."""
        self.events += last + 1 - first
        self.end = last + 1
        self.points += told["points"]
        self.last = max(self.last, told["last"])
        self._step(told["step"])
        if "state" in told:
            self._state(*told["state"])
        if "exit_code" in told:
            self.exit_code = told["exit_code"]

    def _step(self, step: int | None) -> None:
        if step is not None:
            self.last_step = step if self.last_step is None else max(step, self.last_step)

    def _state(self, word: str, time: int) -> None:
        self.status = word
        self.ended = None if word == RUNNING else time


def count(seen: Tally, table: pa.Table) -> None:
    """Add the rows of whole events of one writer to its tally."""
    seqs = numbers(table.column("seq"))
    seen.add(int(seqs[0]), int(seqs[-1]), summed(table))


def summed(table: pa.Table, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what rows add up to, behind those of which `before` tells it; words may be
    dictionaries. There is at least one row.
    """
    kinds = table.column("kind")
    steps = table.column("step")
    found: dict[str, Any] = {
        "points": int(truths(is_word(kinds, METRIC)).sum()),
        "last": int(numbers(table.column("time")).max()),
        "step": int(numbers(steps)[present(steps)].max())
        if steps.null_count < len(steps)
        else None,
    }
    states = table.filter(is_word(kinds, STATE))
    times = numbers(states.column("time")).tolist()
    rows = states.select(["key", "type", "num", "data"]).to_pylist()
    for time, row in zip(times, rows, strict=True):
        if row["key"] not in ("state", "exit_code"):
            continue
        try:
            value = decode(row["type"], row["num"], row["data"])
        except ValueError:  # damaged, or made by a stranger
            continue
        if row["key"] == "exit_code":
            # A stranger's may have more digits than JSON takes.
            whole = isinstance(value, int) and STEP_MIN <= value <= STEP_MAX
            found["exit_code"] = value if whole else None
        elif isinstance(value, str):
            found["state"] = [value, time]
    if before is None:
        return found
    highest = [step for step in (before["step"], found["step"]) if step is not None]
    return {
        **before,
        **found,
        "points": before["points"] + found["points"],
        "last": max(before["last"], found["last"]),
        "step": max(highest, default=None),
    }


# ------------------------------------------------------------------------------ in sealed files


def to_metadata(told: Mapping[str, Any], crc32: str) -> dict[str, str]:
    """Return what a sealed file tells; `crc32` is its ``eventlog.crc32``."""
    text = json.dumps(told, sort_keys=True)
    return {"eventlog.tally": text, "eventlog.tally_crc32": _check(text.encode(), crc32.encode())}


def in_metadata(meta: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    """Return what a sealed file tells of its events; None if it tells nothing that counts."""
    text = meta.get(b"eventlog.tally")
    if text is None:
        return None
    check = _check(text, meta.get(b"eventlog.crc32", b""))
    if check.encode() != meta.get(b"eventlog.tally_crc32"):
        return None
    try:
        told = json.loads(text)
        return checked(told)
    except (FormatError, ValueError, RecursionError):
        return None


def checked(told: Any) -> dict[str, Any]:
    """Return what a file tells, without what is not known here. Raises `FormatError`."""
    whole = isinstance(told, dict) and {"points", "last", "step"} <= told.keys()
    found = {name: told[name] for name in _NAMES if name in told} if whole else {}
    numbers_ = [found.get("points"), found.get("last")]
    maybe = [found.get("step"), found.get("exit_code")]
    state = found.get("state", ["", 0])
    good = (
        whole
        and all(type(number) is int for number in numbers_)
        and all(number is None or isinstance(number, int) for number in maybe)
        and isinstance(state, list)
        and [type(part) for part in state] == [str, int]
    )
    if not good:
        raise FormatError("what a sealed file's events add up to cannot be read")
    return found


def _check(text: bytes, crc32: bytes) -> str:
    return f"{zlib.crc32(text + crc32):08x}"
