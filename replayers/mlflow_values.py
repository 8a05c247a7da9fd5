"""What single values become in MLflow: numbers, texts and tables, by the rules of `mlflow_map`."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from eventlog.event import CONFIG, Row
from eventlog.value import decode, dumps, encode, loads

LARGEST = 1.7976931348623157e308
#: What is wrong with a row that is none of format 1 shows itself as one of these.
INVALID = (ValueError, TypeError, LookupError, ArithmeticError, struct.error)

_DOUBLE = struct.Struct("<d")
_INT64 = struct.Struct("<q")
_INFINITY = float("inf")


def bits_of(value: float) -> int:
    """Return the bits of a float64 as an int64, of any NaN those of the usual one."""
    return int(_INT64.unpack(_DOUBLE.pack(value if value == value else float("nan")))[0])


def held_value(value: float) -> float:
    """Return a float64 as MLflow's SQL store gives it back."""
    return as_held(value, None)[0]


def sheet_json(blob: bytes) -> tuple[bytes, int]:
    """Return a table's blob as ``mlflow.log_table`` would write it, and how many of its numbers
    are NaN or infinite and became null, as JSON has none.

    Raises
    ------
    ValueError
        If the blob holds no table.
    """
    try:
        tree = loads(blob)
        lost = [0]
        plain = {part: _plain(tree[part], lost) for part in ("columns", "data")}
    except INVALID as error:
        raise ValueError(f"the blob holds no table ({error})") from error
    return json.dumps(plain, allow_nan=False).encode(), lost[0]


def as_held(number: float, narrow: bytes | None) -> tuple[float, str]:
    """Return the value that MLflow will hold, and the rule that changed it, "" for none."""
    if number != number:
        usual = narrow is None and _DOUBLE.pack(number) == _DOUBLE.pack(float("nan"))
        return float("nan"), "" if usual else "nan-payload"
    if number in (_INFINITY, -_INFINITY):
        return (LARGEST if number > 0 else -LARGEST), "inf-clamped"
    if number == 0.0 and _DOUBLE.pack(number) != bytes(8):
        return 0.0, "negative-zero"
    return number, ""


def leaves(row: Row) -> Iterator[tuple[str, str]]:
    """Yield the keys and texts of a config value: its leaves if it is a dict."""
    value = row.value if row.type == "json" else None
    if not isinstance(value, dict):
        yield row.key, _param_text(row)
        return
    flat: dict[str, Any] = {}
    _flatten(row.key, value, flat)
    for key, leaf in flat.items():
        yield key, _param_text(Row(key, CONFIG, *encode(leaf)))


def _flatten(prefix: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            _flatten(f"{prefix}/{key}", inner, flat)
    else:
        flat[prefix] = value


def _param_text(row: Row) -> str:
    if row.type in ("str", "bool", "null"):
        return str(row.value)
    return json_text(row)


def json_text(row: Row) -> str:
    """Return a value as typed JSON; NaN and infinities by their names."""
    if row.type in ("json", "table", "blob"):
        return (row.data or b"").decode()
    if row.type == "str":
        return json.dumps(row.value, ensure_ascii=False)
    if row.num is None or row.type == "bool":
        return dumps(decode(row.type, row.num, row.data)).decode()
    if row.type.startswith(("int", "uint")):
        return str(int(row.num))
    return json.dumps(row.num)


def clean(text: str) -> tuple[str, list[str]]:
    """Return a text that every database takes, and the rules that changed it."""
    rules = []
    if "\0" in text:
        text, rules = text.replace("\0", ""), ["nul-stripped"]
    encoded = text.encode("utf-8", "backslashreplace").decode()
    if encoded != text:
        rules.append("surrogate-escaped")
    return encoded, rules


def cut(text: str, limit: int) -> str:
    """Return the beginning of a text and its SHA-256, `limit` characters in all."""
    end = "... sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return text[: limit - len(end)] + end


def _plain(value: Any, lost: list[int]) -> Any:
    """Return a value of typed JSON as plain JSON, counting numbers that it has no words for."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, lost) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, lost) for key, item in value.items()}
    item = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(item, float) and item - item != 0.0:
        lost[0] += 1
        return None
    if isinstance(item, (bool, int, float)):
        return item
    return item.tolist() if hasattr(item, "tolist") else str(item)
