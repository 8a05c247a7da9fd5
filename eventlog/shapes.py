"""The shapes of events that a writer has seen: from a call's keys and types to its frame, at once.

A training loop logs the same keys with the same types again and again. What is the same in all
their frames (`eventlog.frame.Shape`, or `MixedShape` where text, None or lists stand among the
numbers) is kept, and found by a *signature*: kind, keys and types of
the call, nested dicts included. One that never comes again is not worth a shape: it is made when a
signature comes for the second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventlog.event import Row
from eventlog.frame import MixedShape, Shape
from eventlog.table import is_frame

#: More shapes, and more signatures seen once, than this are not kept.
MOST = 512
_MOST_SEEN = 8192
#: Dicts nested deeper have no signature.
_DEEPEST = 8

Signature = tuple[Any, ...]


def _spread(data: Mapping[Any, Any], signature: list[Any], values: list[Any], deepest: int) -> bool:
    mine = list(data.values())
    types = tuple(map(type, mine))
    signature += (tuple(data), types)
    if dict not in types:
        values += mine
        return True
    for kind, value in zip(types, mine, strict=True):
        if kind is not dict:
            values.append(value)
        elif not deepest or not _spread(value, signature, values, deepest - 1):
            return False
    return True


class Shapes:
    """A bounded memory of shapes."""

    def __init__(self) -> None:
        self._known: dict[Signature, Shape] = {}
        self._seen: set[int] = set()

    def find(
        self, kind: str, data: Mapping[Any, Any], step: int | None
    ) -> tuple[Shape | None, Signature, list[Any]]:
        """Return a call's shape, if it is known and can hold these values exactly; its signature
        (empty if it can have none); and its values, flat.
        """
        values = list(data.values())
        types = tuple(map(type, values))
        signature: Signature = (kind, step is None, tuple(data), types)
        shape = self._known.get(signature)
        if shape is None and dict in types:
            parts: list[Any] = [kind, step is None]
            values = []
            signature = tuple(parts) if _spread(data, parts, values, _DEEPEST) else ()
            shape = self._known.get(signature)
        if shape is not None and not shape.holds(values):
            shape = None
        return shape, signature, values

    def learn(
        self, signature: Signature, values: list[Any], rows: list[Row], step: int | None
    ) -> None:
        """Remember the shape of an event, if its types alone say that the next one has it."""
        if not signature or len(rows) != len(values):
            return
        seen = hash(signature)
        if seen not in self._seen:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(seen)
            return
        keys = signature[2::2]
        if signature in self._known or not all(type(k) is str for level in keys for k in level):
            return
        kinds = list(map(type, values))
        loose = [i for i, kind in enumerate(kinds) if not _is_shaped(kind)]
        if not all(_is_loose(kinds[i]) for i in loose):
            return
        tight = set(range(len(rows))).difference(loose)
        if any(rows[i].data is not None or rows[i].num is None for i in tight):
            return
        with_step = step is not None
        shape = (
            MixedShape(rows, loose, with_step=with_step)
            if loose
            else Shape(rows, with_step=with_step)
        )
        if shape.proven(rows, step):
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[signature] = shape


_NUMPY = frozenset(
    "float64 float32 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool bool_".split()
)


def _is_shaped(kind: type) -> bool:
    """Return whether a Python type alone says the stored type."""
    if kind is float or kind is int or kind is bool:
        return True
    return kind.__module__ == "numpy" and kind.__name__ in _NUMPY


def _is_loose(kind: type) -> bool:
    """Return whether a value of this type may stand among the numbers of a shape: it is one row,
    and lies in no blob of its own.
    """
    return not (issubclass(kind, Mapping) or hasattr(kind, "__eventlog__") or is_frame(kind))
