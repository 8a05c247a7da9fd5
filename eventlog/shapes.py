"""The shapes of events that a writer has seen: from a call's keys and types to its frame, at once.

A training loop logs the same keys with the same types again and again. What is the same in all
their frames (`eventlog.frame.Shape`) is kept, found by keys and types alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventlog.event import Row
from eventlog.frame import Shape

#: More shapes than this are not kept.
MOST = 512


class Shapes:
    """A bounded memory of shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, Shape] = {}

    def find(
        self, kind: str, data: Mapping[Any, Any], values: list[Any], step: int | None
    ) -> Shape | None:
        """Return the shape of an event if it is known and can hold these values exactly."""
        shape = self._known.get((kind, step is None, tuple(data), tuple(map(type, values))))
        return shape if shape is not None and shape.holds(values) else None

    def learn(
        self, kind: str, values: Mapping[str, Any], rows: list[Row], step: int | None
    ) -> None:
        """Remember the shape of an event, if its types alone say that the next one has it."""
        types = tuple(map(type, values.values()))
        if len(rows) != len(types) or not all(_is_shaped(t) for t in types):
            return
        if any(row.data is not None or row.num is None for row in rows):
            return
        if not all(type(key) is str for key in values):
            return
        if len(self._known) >= MOST:
            self._known.clear()
        shape = Shape(rows, with_step=step is not None)
        if shape.proven(rows, step):
            self._known[kind, step is None, tuple(values), types] = shape


_NUMPY = frozenset(
    "float64 float32 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool bool_".split()
)


def _is_shaped(kind: type) -> bool:
    """Return whether a Python type alone says the stored type."""
    if kind is float or kind is int or kind is bool:
        return True
    return kind.__module__ == "numpy" and kind.__name__ in _NUMPY
