"""A run's config and summary as the user holds them: mappings whose every change is recorded."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from eventlog.errors import UsageError
from eventlog.event import CONFIG, make_rows

#: What is nested deeper is kept as text.
_DEPTH = 32


class Recorded(MutableMapping[str, Any]):
    """A mapping whose every change is an event: a run's config or summary.

    Keys are text; values are anything that can be logged, nested mappings and lists included. A
    top-level key is replaced as a whole. Keys cannot be deleted: what was logged stays.
    """

    def __init__(
        self,
        kind: str,
        record: Callable[[str, Mapping[str, Any]], None],
        refuse: Callable[[str], None],
    ) -> None:
        self._kind = kind
        self._record = record
        self._refuse = refuse
        self._values: dict[str, Any] = {}

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several keys as one event. Takes mappings, argparse's Namespace and dataclasses."""
        values: dict[str, Any] = {}
        try:
            for arg in args:
                values.update(as_mapping(arg))
        except Exception as error:  # what a mapping of others does must not end a training run
            self._refuse(f"{self._kind} could not be kept: {error}")
        values.update(kwargs)
        if values:
            self._record(self._kind, values)
            self._values.update(values)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __delitem__(self, key: str) -> None:
        raise UsageError(f"{self._kind} key {key!r} cannot be deleted: what was logged stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{self._kind}({self._values!r})"


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping of text: of a mapping, a Namespace, a dataclass, or what has items.

    Raises
    ------
    UsageError
        For anything else.
    """
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _spread(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if hasattr(value, "items"):
        return {str(k): v for k, v in value.items()}
    raise UsageError(f"a {type(value).__qualname__} is no mapping")


def _spread(value: Any, depth: int = 0) -> Any:
    """Return nested dataclasses as dicts. Not `dataclasses.asdict`, which copies all it finds, and
    fails for a lock, an open file or a generator.
    """
    if depth > _DEPTH:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: _spread(getattr(value, f.name), depth + 1) for f in fields}
    if type(value) is dict:
        return {key: _spread(item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_spread(item, depth + 1) for item in value)
    return value


def plain(value: Any) -> Any:
    """Return other mappings (OmegaConf's, say) as dicts, at any depth of mappings."""
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def readable(value: Any, depth: int = 0) -> Any:
    """Return `value` with what cannot be kept replaced by its text."""
    if depth > _DEPTH:
        return short(value)
    if isinstance(value, dict):
        return {str(k): readable(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(v, depth + 1) for v in value]
    rows, refused = make_rows(CONFIG, [("x", value)])
    return short(value) if refused else value if rows else None


def short(value: object) -> str:
    """Return at most 200 characters of what a value calls itself."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 200 else text[:197] + "..."
