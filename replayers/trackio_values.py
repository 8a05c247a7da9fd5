"""Stored values as the plain JSON that Trackio keeps, and the record of what that changed."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import hashlib
import json
import math
import struct
from typing import Any

from eventlog.errors import EventlogError
from eventlog.value import NUMERIC, TYPES, Stored, decode
from replayers.target import Change
from replayers.trackio_names import clean_text

#: Arrays of more elements than this are named by their digest.
LARGEST_ARRAY = 10_000
#: How Trackio writes what JSON cannot, and what it reads them as.
SPELLINGS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
#: What reading a damaged value, or a blob that is not there, may raise.
UNREADABLE = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    OSError,
    EventlogError,
)
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_FLOATS = frozenset(("float64", "float32", "float16", "bfloat16"))
_QUIET_NAN = struct.pack("<d", math.nan)


class DamagedError(ValueError):
    """The stored form of an event cannot be read; `seq` is the event."""

    def __init__(self, seq: int, key: str, cause: Exception) -> None:
        super().__init__(f"{key!r} of the event {seq}: {type(cause).__name__}: {cause}")
        self.seq = seq


class Notes:
    """Gathers what the rules changed, one `Change` per rule and key."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], list[Any]] = {}

    def add(self, rule: str, key: str, seq: int, detail: str = "") -> None:
        """Note that a rule changed a value of `key` in the event `seq`."""
        note = self._notes.setdefault((rule, key), [seq, seq, 0, detail])
        note[0] = min(note[0], seq)
        note[1] = max(note[1], seq)
        note[2] += 1

    def changes(self) -> list[Change]:
        """Return everything noted, in the order in which it first came up."""
        return [Change(rule, key, *note) for (rule, key), note in self._notes.items()]


def plain(stored: Stored, rules: list[str]) -> Any:
    """Return a stored value as plain JSON, and append the names of the rules that changed it.

    Raises
    ------
    ValueError, and whatever decoding raises
        If the stored form is damaged.
    """
    word, num, data = stored
    if num is not None and word in NUMERIC:
        if word in _FLOATS:
            if num - num == 0.0:
                return num
        elif word == "bool":
            return num == 1.0
        else:
            return _whole(int(num), rules)
    if word in _FLOATS and data is None:
        return tree(math.nan if num is None else num, rules)
    if word not in TYPES:
        rules.append("type-unknown")
        text = None if data is None else base64.b64encode(data).decode()
        return {"type": word, "num": tree(num, rules), "data": text}
    if word in ("blob", "table"):
        rules.append(f"{word}-as-reference")
    return tree(decode(word, num, data), rules)


def tree(value: Any, rules: list[str]) -> Any:
    """Return any value that a journal gives back as plain JSON, as `plain` does."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, rules)
    if isinstance(value, int):
        return _whole(value, rules)
    if isinstance(value, float):
        return _float(float(value), quiet=struct.pack("<d", value) == _QUIET_NAN, rules=rules)
    if isinstance(value, dict):
        return _object(value, rules)
    if isinstance(value, (list, tuple)):
        return [tree(item, rules) for item in value]
    return _other(value, rules)


def _whole(number: int, rules: list[str]) -> Any:
    if _INT_MIN <= number <= _INT_MAX:
        return number
    rules.append("int-as-text")
    return str(number) if number.bit_length() <= 4096 else hex(number)


def _float(number: float, *, quiet: bool, rules: list[str]) -> Any:
    if number - number == 0.0:
        return number
    rules.append("nonfinite-as-text")
    if number == number:
        return "Infinity" if number > 0 else "-Infinity"
    if not quiet:
        rules.append("nan-payload")
    return "NaN"


def _text(text: str, rules: list[str]) -> str:
    clean = clean_text(text)
    if clean is not text:
        rules.append("surrogate-escaped")
    if clean.lstrip("\\") in SPELLINGS:
        rules.append("string-escaped")
        return "\\" + clean
    return clean


def _object(value: dict[Any, Any], rules: list[str]) -> Any:
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = key if isinstance(key, str) else json.dumps(tree(key, rules))
        clean = clean_text(name)
        if clean is not key:
            rules.append("dict-key-as-text")
        if clean in out:  # two keys with one text: keep both, as a list of pairs
            return [[tree(k, rules), tree(v, rules)] for k, v in value.items()]
        out[clean] = tree(item, rules)
    mark = out.get("_type")
    if isinstance(mark, str) and mark.lstrip("\\").startswith("trackio."):
        rules.append("type-escaped")  # Trackio would take it for a trace, an image, ...
        out["_type"] = "\\" + mark
    return out


def _other(value: Any, rules: list[str]) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        return _array(value, rules)
    if isinstance(value, np.floating):
        quiet = value.tobytes() == value.dtype.type(math.nan).tobytes()
        return _float(float(value), quiet=quiet, rules=rules)
    if isinstance(value, (np.integer, np.bool_)):
        return tree(value.item(), rules)
    if isinstance(value, bytes):
        rules.append("bytes-as-text")
        return "base64:" + base64.b64encode(value).decode("ascii")
    if isinstance(value, (complex, np.complexfloating)):
        rules.append("complex-as-text")
        return str(complex(value))
    if isinstance(value, (dt.datetime, dt.date)):
        rules.append("datetime-as-text")
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        rules.append("decimal-as-text")
        return _text(str(value), rules)
    rules.append("object-as-text")
    return _text(str(value), rules)


def _array(array: Any, rules: list[str]) -> Any:
    if array.size <= LARGEST_ARRAY and array.dtype.kind in "biuf":
        rules.append("array-as-list")
        return _nested(array, rules)
    rules.append("array-as-digest")
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return f"ndarray:{array.dtype.str}:{list(array.shape)}:sha256:{digest}"


def _nested(array: Any, rules: list[str]) -> Any:
    """Return nested lists; the rules of an array's elements are noted once for all of them."""
    inside: list[str] = []
    items = [array[()]] if array.ndim == 0 else list(array)
    out = [_nested(i, inside) if getattr(i, "ndim", 0) else tree(i, inside) for i in items]
    rules.extend(rule for rule in dict.fromkeys(inside) if rule not in rules)
    return out[0] if array.ndim == 0 else out
