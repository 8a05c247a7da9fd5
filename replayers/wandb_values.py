"""Stored values as W&B's history, config and summary keep them, and names it takes.

Pure functions. The rules, with their names in the ledger, are the table at the head of
`replayers.to_wandb`.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import hashlib
import json
import re
import struct
from typing import Any

from eventlog.event import Row
from eventlog.table import Table
from eventlog.value import NUMERIC, TYPES, Stored, decode, encode
from replayers.target import Change, RunInfo

#: Arrays of more elements than this are named by their digest: W&B has no use for them in a row.
LARGEST_ARRAY = 1_000
#: A value of more bytes of JSON than this is cut: W&B's documented limit is 1 MB.
LARGEST_VALUE = 900_000
#: A row of more bytes of JSON than this: the client leaves rows of 9.9 MiB out in silence.
LARGEST_ROW = 8_000_000
LONGEST_TAG = 64
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_QUIET_NAN = struct.pack("<d", float("nan"))
_OWN_KEY = re.compile(r"_+(step|runtime|timestamp|wandb|eventlog(/.*)?)|_*", re.DOTALL)
_OWN_CONFIG = re.compile(r"_+(wandb|wandb_version|eventlog)|wandb_version|eventlog")
_PROJECT = re.compile(r"[^/\\#?%:\x00-\x1f]{1,128}")
_RENAMED = re.compile(r".*--[0-9a-f]{16}", re.DOTALL)
_RUN_ID = re.compile(r"[a-z0-9_-]{1,64}")
_GIVEN_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Notes:
    """Gathers what the rules changed, one `Change` per rule and key."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, str], tuple[int, int, int]] = {}

    def add(self, rule: str, key: str, seq: int) -> None:
        """Note that a rule changed a value of `key` in the event `seq`."""
        first, last, count = self._spans.get((rule, key), (seq, seq, 0))
        self._spans[rule, key] = (min(first, seq), max(last, seq), count + 1)

    def changes(self) -> list[Change]:
        """Return everything noted."""
        return [Change(rule, key, *span) for (rule, key), span in self._spans.items()]


# ------------------------------------------------------------------------------ values


def plain(row: Row | Stored, rules: list[str]) -> Any:
    """Return a stored value as W&B keeps it; append the names of the rules that changed it.

    Raises
    ------
    ValueError, and whatever decoding raises
        If the stored form is damaged.
    """
    word, num, data = row.type, row.num, row.data
    if num is not None and word in NUMERIC and num - num == 0.0:
        if word == "bool":
            return num == 1.0
        if word.startswith(("int", "uint")):
            return _whole(int(num), rules)
        return _float(num, rules)
    if word not in TYPES:
        rules.append("type-unknown")
        raw = "" if data is None else base64.b64encode(data).decode()
        return f"{word}:{num}:{raw}"
    if word in ("blob", "table"):
        rules.append(f"{word}-as-reference")
        reference = decode(word, num, data)
        return f"{word} sha256:{reference['sha256']}"
    return tree(decode(word, num, data), rules)


def tree(value: Any, rules: list[str]) -> Any:
    """Return any value that a journal gives back as plain JSON, as `plain` does."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value, rules)
    if isinstance(value, int):
        return _whole(value, rules)
    if isinstance(value, float):
        return _float(float(value), rules)
    if isinstance(value, dict):
        return {_dict_key(key, rules): tree(item, rules) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tree(item, rules) for item in value]
    return _other(value, rules)


def text(value: str, rules: list[str]) -> str:
    r"""Return text that is UTF-8: lone surrogates become ``\udXXX`` in ASCII."""
    try:
        value.encode()
    except UnicodeEncodeError:
        rules.append("surrogate-escaped")
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _dict_key(key: Any, rules: list[str]) -> str:
    if not isinstance(key, str):
        rules.append("dict-key-as-text")
    return text(key if isinstance(key, str) else str(key), rules)


def _whole(number: int, rules: list[str]) -> Any:
    if _INT_MIN <= number <= _INT_MAX:
        return number
    try:
        wide = float(number)
    except OverflowError:
        wide = 0.0
    if int(wide) == number:
        return wide  # the client would make a float of it as well; this one is exact
    rules.append("int-as-text")
    return str(number) if number.bit_length() <= 4096 else hex(number)


def _float(number: float, rules: list[str]) -> float:
    if number == 0.0:
        if str(number) == "-0.0":
            rules.append("negative-zero")
        return 0.0
    if number != number and struct.pack("<d", number) != _QUIET_NAN:
        rules.append("nan-payload")
        return float("nan")
    return number


def _other(value: Any, rules: list[str]) -> Any:
    if isinstance(value, (bytes, bytearray)):
        rules.append("bytes-as-text")
        return "base64:" + base64.b64encode(value).decode()
    if isinstance(value, complex):
        rules.append("complex-as-text")
        return str(value)
    if isinstance(value, dt.date):
        rules.append("datetime-as-text")
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        rules.append("decimal-as-text")
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _array(value, rules)
    rules.append("object-as-text")
    return text(str(value), rules)


def _array(value: Any, rules: list[str]) -> Any:
    if value.ndim == 0 and value.dtype.kind in "biuf":
        return tree(value.item(), rules)
    if value.size <= LARGEST_ARRAY and value.dtype.kind in "biuf":
        rules.append("array-as-list")
        return tree(value.tolist(), rules)
    rules.append("array-as-digest")
    shape = "x".join(map(str, value.shape))
    return f"array {value.dtype} {shape} sha256:{hashlib.sha256(value.tobytes()).hexdigest()}"


def finite(value: Any, rules: list[str]) -> Any:
    """Return a value of config or summary, which W&B keeps only if it is finite."""
    if isinstance(value, float) and value - value != 0.0:
        rules.append("nonfinite-as-text")
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [finite(item, rules) for item in value]
    if isinstance(value, dict):
        return {key: finite(item, rules) for key, item in value.items()}
    return value


def cut(value: Any) -> str:
    """Return the text that stands for a value that is too large."""
    raw = json.dumps(value).encode()
    return f"cut sha256:{hashlib.sha256(raw).hexdigest()} of {len(raw)} bytes"


def cells(content: bytes) -> dict[str, Any]:
    """Return the columns and data of a table's blob as W&B shows them."""
    table = Table.from_bytes(content)
    data = [[plain(encode(cell), []) for cell in row] for row in table.data]
    return {"columns": [text(name, []) for name in table.columns], "data": data}


def canonical(value: Any) -> str:
    """Return JSON that is the same for values that W&B does not tell apart (3.0 and 3)."""
    return json.dumps(_canonical(value), sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------ names


def metric_key(key: str) -> str:
    """Return a key of a row, or of the summary, that is none of W&B's or ours.

    Those, and the empty one, get one more underscore, so that no two keys become one.
    """
    return "_" + key if _OWN_KEY.fullmatch(key) else key


def config_key(key: str) -> str:
    """Return a key of the config that is none of W&B's or ours, and that it does not trim.

    W&B strips ``-`` at both ends and drops nothing else; ``%`` escapes them, and itself.
    """
    if _OWN_CONFIG.fullmatch(key):
        return "_" + key
    escaped = key.replace("%", "%25")
    inner = escaped.strip("-")
    head = len(escaped) - len(escaped.lstrip("-"))
    if not inner:
        return "%2D" * head or "%"
    return "%2D" * head + inner + "%2D" * (len(escaped) - len(inner) - head)


def tag_name(tag: str, rules: list[str]) -> str:
    """Return a tag of 1 to 64 characters, as W&B wants it."""
    name = text(tag, rules)
    if 0 < len(name) <= LONGEST_TAG and not _RENAMED.fullmatch(name):
        return name
    rules.append("tag-cut")
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_TAG - 18]}--{digest}"


def project_name(run: RunInfo) -> str:
    """Return the W&B project of a run: the recorded ``WANDB_PROJECT``, else its project.

    A name that W&B refuses, or that looks like the result of this rule, becomes what is left of
    it, ``--`` and 16 hexadecimal digits of its SHA-256.
    """
    name = run.elsewhere.get("WANDB_PROJECT") or run.project
    if _PROJECT.fullmatch(name) and not _RENAMED.fullmatch(name):
        return name
    rest = re.sub(r"[/\\#?%:\x00-\x1f]+", "-", name)[:100].strip("-") or "project"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{rest}--{digest[:16]}"


def run_id(run: RunInfo, given: str = "") -> str:
    """Return the run's id in W&B: the recorded ``WANDB_RUN_ID``, else `given`, else its own; behind
    it the generation of a run that replaces another one.

    One that is not plain becomes 32 hexadecimal digits of its SHA-256.
    """
    wished = run.elsewhere.get("WANDB_RUN_ID") or given
    name = _first_id(run, wished)
    if not run.generation:
        return name
    later = f"{name}-{run.generation}"
    return later if _GIVEN_ID.fullmatch(later) else _hashed(later)


def _first_id(run: RunInfo, wished: str) -> str:
    if wished and _GIVEN_ID.fullmatch(wished):
        return wished
    name = wished or run.id
    return name if _RUN_ID.fullmatch(name) else _hashed(name)


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def run_name(run: RunInfo) -> str | None:
    """Return the run's display name in W&B; None for one that W&B makes up."""
    return f"{run.name or run.id} ({run.generation})" if run.generation else run.name or None


def seconds(nanoseconds: int) -> float:
    """Return W&B's ``_timestamp``."""
    return nanoseconds / 1e9


def nanoseconds(timestamp: Any) -> int | None:
    """Return the time that a ``_timestamp`` stands for, to the microsecond."""
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)):
        return None
    return round(timestamp * 1e6) * 1000
