"""Selecting and ordering runs as ``Api().runs(filters=..., order=...)`` asks for it.

Filters are in MongoDB's notation: ``{"state": "finished"}``, ``{"config.lr.value": {"$gt": 0.1}}``,
``{"$or": [...]}``. A list field such as ``tags`` equals a value when it contains it. An operator
that is not known here is an error, so that a test never passes because a filter was ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from .runs import Run

ALIASES = {
    "displayName": "display_name",
    "group": "group_name",
    "jobType": "job_type",
    "createdAt": "created",
    "created_at": "created",
    "heartbeatAt": "heartbeat",
    "heartbeat_at": "heartbeat",
    "summary_metrics": "summary",
    "summaryMetrics": "summary",
}
MISSING = object()


class FilterError(ValueError):
    """A filter or order that this server does not understand."""


def isoformat(seconds: float) -> str:
    """Epoch seconds as the API writes times: UTC, to the second, with a Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def value_of(run: Run, path: str) -> Any:
    """The value at a dotted path, or MISSING."""
    head, _, rest = path.partition(".")
    head = ALIASES.get(head, head)
    if head not in Run.__dataclass_fields__:
        raise FilterError(f"runs have no field {head!r}")
    value = getattr(run, head)
    if head in ("created", "heartbeat"):
        return isoformat(value)
    if head not in ("config", "summary", "tags"):
        return value
    value = json.loads(value)
    return _inside(value, rest) if rest else value


def _inside(value: Any, path: str) -> Any:
    """The value at a path inside JSON; names may themselves contain dots."""
    if isinstance(value, dict):
        if path in value:
            return value[path]
        for name in value:
            if path.startswith(f"{name}."):
                found = _inside(value[name], path[len(name) + 1 :])
                if found is not MISSING:
                    return found
    return MISSING


def _equals(value: Any, wanted: Any) -> bool:
    if isinstance(value, list) and not isinstance(wanted, list):
        return wanted in value
    return bool(value == wanted)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(value: Any, wanted: Any) -> bool:
        try:
            return value is not MISSING and compare(value, wanted)
        except TypeError:
            return False

    return test


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _equals,
    "$ne": lambda value, wanted: not _equals(value, wanted),
    "$in": lambda value, wanted: any(_equals(value, one) for one in wanted),
    "$nin": lambda value, wanted: not any(_equals(value, one) for one in wanted),
    "$exists": lambda value, wanted: (value is not MISSING) == bool(wanted),
    "$gt": _ordered(lambda value, wanted: value > wanted),
    "$gte": _ordered(lambda value, wanted: value >= wanted),
    "$lt": _ordered(lambda value, wanted: value < wanted),
    "$lte": _ordered(lambda value, wanted: value <= wanted),
    "$regex": lambda value, wanted: isinstance(value, str) and bool(re.search(wanted, value)),
}


def _field_matches(run: Run, path: str, condition: Any) -> bool:
    value = value_of(run, path)
    if not isinstance(condition, dict) or not any(name.startswith("$") for name in condition):
        return _equals(value, condition)
    if unknown := set(condition) - set(OPERATORS):
        raise FilterError(f"unknown operator {', '.join(sorted(unknown))} for {path!r}")
    return all(OPERATORS[name](value, wanted) for name, wanted in condition.items())


def matches(run: Run, filters: Mapping[str, Any]) -> bool:
    """Whether a run passes.

    Raises:
        FilterError: a field or an operator that is not known.
    """
    for name, condition in filters.items():
        if name == "$and":
            passed = all(matches(run, one) for one in condition)
        elif name == "$or":
            passed = any(matches(run, one) for one in condition)
        elif name == "$not":
            passed = not matches(run, condition)
        elif name.startswith("$"):
            raise FilterError(f"unknown operator {name}")
        else:
            passed = _field_matches(run, name, condition)
        if not passed:
            return False
    return True


def select(runs: list[Run], filters: str | None, order: str | None) -> list[Run]:
    """The runs that pass, in order; ``filters`` is JSON, ``order`` like ``-created_at``.

    Raises:
        FilterError: not JSON, or not known.
    """
    try:
        wanted = json.loads(filters or "{}")
    except ValueError as error:
        raise FilterError(f"filters are not JSON: {error}") from error
    if not isinstance(wanted, dict):
        raise FilterError("filters are not an object")
    chosen = [run for run in runs if matches(run, wanted)]
    path = (order or "+created_at").strip()
    keyed = [(value_of(run, path.lstrip("+-")), run) for run in chosen]
    present = [pair for pair in keyed if pair[0] is not MISSING and pair[0] is not None]
    absent = [run for value, run in keyed if value is MISSING or value is None]
    try:
        present.sort(key=lambda pair: (pair[0], pair[1].id), reverse=path.startswith("-"))
    except TypeError as error:
        raise FilterError(f"runs cannot be ordered by {path!r}: {error}") from error
    return [run for _, run in present] + absent
