"""The shapes of events that a writer has seen: from a call's keys and types to its frame, at once.

A training loop logs the same keys with the same types again and again. What is the same in all
their frames (`eventlog.shape.Shape`, or `MixedShape` where text, None or lists stand among the numbers) is
kept, and found by a *signature*: kind, keys and types of the call, nested dicts included. One that
never comes again is not worth a shape: it is made when a signature comes for the second time. Keys
that were never there have a shape too (`KeylessShape`), if numbers of these types came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventlog.event import Row
from eventlog.shape import Fitted, KeylessShape, MixedShape, Shape
from eventlog.table import is_frame

#: More shapes, of more bytes in all, and more signatures seen once, than this are not kept.
MOST = 512
MOST_BYTES = 64 * 2**20
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
        #: By keys, what they were logged with last: types, kind, whether without a step; its shape.
        self._last: dict[tuple[Any, ...], tuple[list[type], str, bool, Shape]] = {}
        self._keyless: dict[Signature, KeylessShape] = {}
        self._bytes = 0
        self._seen: set[int] = set()

    def find(
        self, kind: str, data: Mapping[Any, Any], step: int | None
    ) -> tuple[Shape | None, Fitted | None, Signature, list[Any]]:
        """Return a call's shape and what it stores, if one is known that can hold these values
        exactly; the call's signature (empty if it can have none); and its values, flat.
        """
        values = [*data.values()]
        keys = (*data,)
        last = self._last.get(keys)
        if last is not None:
            types, its_kind, stepless, shape = last
            # In this order: it is the types that differ, if anything does.
            if [*map(type, values)] == types and stepless is (step is None) and its_kind == kind:
                fitted = values if shape.free else shape.fit(keys, values)
                if fitted is not None:
                    return shape, fitted, (), values
        return self._search(kind, data, step, keys, values)

    def _search(
        self,
        kind: str,
        data: Mapping[Any, Any],
        step: int | None,
        keys: tuple[Any, ...],
        values: list[Any],
    ) -> tuple[Shape | None, Fitted | None, Signature, list[Any]]:
        types = tuple(map(type, values))
        signature: Signature = (kind, step is None, keys, types)
        shape = self._known.get(signature)
        if shape is not None:
            self._last[keys] = [*types], kind, step is None, shape
        else:
            if dict in types:
                parts: list[Any] = [kind, step is None]
                values = []
                signature = tuple(parts) if _spread(data, parts, values, _DEEPEST) else ()
                shape = self._known.get(signature)
            else:
                shape = self._keyless.get((kind, step is None, types))
                # What comes for the second time goes the general way, and gets a shape of its own.
                if shape is None or hash(signature) in self._seen:
                    return None, None, signature, values
        fitted = None if shape is None else shape.fit(keys, values)
        if fitted is None:
            return None, None, signature, values
        if type(shape) is KeylessShape:
            self._is_new(signature)
        return shape, fitted, signature, values

    def _is_new(self, signature: Signature) -> bool:
        """Return whether a signature was not seen, as far as is remembered; remember it."""
        seen = hash(signature)
        if seen in self._seen:
            return False
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(seen)
        return True

    def learn(
        self, signature: Signature, values: list[Any], rows: list[Row], step: int | None
    ) -> None:
        """Remember the shape of an event, if its types alone say that the next one has it."""
        if not signature or len(rows) != len(values):
            return
        flat = len(signature) == 4 and dict not in signature[3]
        types = (*signature[:2], signature[3]) if flat else ()
        new = self._is_new(signature), not flat or self._is_new(types)
        if all(new):
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
        if not new[0]:
            shape = (
                MixedShape(rows, loose, [kinds[i] for i in loose], with_step=with_step)
                if loose
                else Shape(rows, with_step=with_step)
            )
            if shape.proven(rows, values, step):
                self._put(self._known, signature, shape)
        if not new[1] and not loose and types not in self._keyless:
            keyless = KeylessShape(rows, with_step=with_step)
            if keyless.proven(rows, values, step):
                self._put(self._keyless, types, keyless)

    def _put(self, known: dict[Signature, Any], signature: Signature, shape: Shape) -> None:
        size = len(shape.middle) + len(shape.tail)
        if self._bytes + size > MOST_BYTES:
            self._known.clear()
            self._keyless.clear()
            self._last.clear()
            self._bytes = 0
        elif len(known) >= MOST:
            known.clear()
            self._last.clear()
        self._bytes += size
        known[signature] = shape


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
