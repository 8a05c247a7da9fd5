"""A shape: what is the same in the frames of many events, so that the next one is made at once.

The bytes are those that `eventlog.frame.Encoder.event` makes of the same rows. A shape first looks
whether the values of a call *fit*: whether they can be stored as the rows were that it was made
from, exactly. What does not fit goes the general way.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any
from zlib import crc32

from eventlog.blobs import INLINE
from eventlog.event import Event, Row
from eventlog.frame import (
    DATA,
    HEAD,
    KEYS,
    KINDS,
    MAX_FRAME,
    NUMBERS,
    PADS,
    Encoder,
    lay_out,
    resized,
    texts,
)
from eventlog.value import DATA as DATA_OF
from eventlog.value import EXACT, encode

_pack = struct.Struct("<q").pack
_pack_end = struct.Struct("<i").pack
_NARROW = ("float32", "float16")
#: So many heads of frames are kept that differ in the length of their keys.
_MOST_HEADS = 64


#: The values of a call as a shape stores them: the numbers; from the shapes that store more, the
#: numbers and what lies beside them. Whoever holds one only hands it to the shape's `frame`.
Fitted = Sequence[Any]


class Shape:
    """What is the same in all frames of one set of keys, kinds and types whose values are all
    numbers: everything but seq, time, step and the numbers themselves.
    """

    __slots__ = (
        *("_crc", "_stamp", "_start"),
        *("count", "exact", "free", "head", "middle", "narrow", "pack", "stepless", "tail"),
    )

    def __init__(self, rows: Sequence[Row], *, with_step: bool) -> None:
        probe = lay_out(rows, 0, 0, 0 if with_step else None)
        step, keys, numbers, rest = (probe.offsets[i] for i in (4, 6, NUMBERS, NUMBERS + 1))
        self.count = len(rows)
        self.head = probe.head(len(probe.body))
        self.middle = probe.body[keys:numbers]
        self.tail = probe.body[rest:]
        self.pack = struct.Struct(f"<{len(rows)}d").pack
        self.stepless = b"" if with_step else probe.body[step:keys]
        words = [row.type for row in rows]
        # Integers may have grown beyond what a float64 holds; a narrow NaN may lose its payload.
        self.exact = tuple(i for i, w in enumerate(words) if w.startswith(("int", "uint")))
        self.narrow = tuple(i for i, w in enumerate(words) if w in _NARROW)
        self.free = not self.exact and not self.narrow and type(self) is Shape
        self._start, self._crc, self._stamp = b"", 0, b""

    def proven(self, rows: Sequence[Row], values: Sequence[Any], step: int | None) -> bool:
        """Return whether the frame of these values is the one that the general way makes of rows."""
        fitted = self.fit([row.key for row in rows], list(values))
        if fitted is None:
            return False
        event = Event(1, 2, step, tuple(rows))
        return self.frame(Encoder(3), 1, 2, step, fitted) == Encoder(3).event(event)

    def fit(
        self,
        keys: Sequence[Any],  # noqa: ARG002 - these are known
        values: list[Any],
    ) -> Fitted | None:
        """Return what is to be stored of the values of a call; None if they do not fit."""
        for i in self.exact:
            if not -EXACT <= values[i] <= EXACT:
                return None
        for i in self.narrow:
            if values[i] != values[i]:
                return None
        return values

    def frame(
        self, encoder: Encoder, seq: int, time: int, step: int | None, fitted: Fitted
    ) -> bytes:
        """Return the frame of an event."""
        if self._stamp is not encoder.stamp:  # what is before the checksum is the same for long
            self._start, self._crc = encoder.begin(self.head)
            self._stamp = encoder.stamp
        rest = self._rest(seq, time, step, self.middle, fitted, self.tail)
        return b"%b%08x%b" % (self._start, crc32(rest, self._crc), rest)

    def _rest(
        self,
        seq: int,
        time: int,
        step: int | None,
        middle: bytes,
        numbers: Sequence[Any],
        tail: bytes,
    ) -> bytes:
        """Return the body, and the zero before it that ends the metadata."""
        n = self.count
        steps = self.stepless if step is None else _pack(step) * n
        parts = (b"\0", _pack(seq) * n, _pack(time) * n, steps, middle, self.pack(*numbers), tail)
        return b"".join(parts)


class MixedShape(Shape):
    """The same of events with other values among the numbers: text, None, lists, torch's scalars.

    `loose` are the places of those, `kinds` their Python types. Each is encoded anew; where the
    type does not say it, it must come to the same type word, with or without number and data, as
    the rows that the shape was made from.
    """

    __slots__ = ("begun", "data_at", "gaps", "heads", "loose", "pad", "room", "vacant")

    def __init__(
        self, rows: Sequence[Row], loose: Sequence[int], kinds: Sequence[type], *, with_step: bool
    ) -> None:
        super().__init__(rows, with_step=with_step)
        probe = lay_out(rows, 0, 0, 0 if with_step else None)
        there = [(i, kind) for i, kind in zip(loose, kinds, strict=True) if kind is not type(None)]
        self.vacant = tuple(i for i in loose if i not in dict(there))
        self.loose = tuple(
            (i, DATA_OF.get(kind), (rows[i].type, rows[i].num is None, rows[i].data is None))
            for i, kind in there
        )
        self.exact = tuple(i for i in self.exact if i not in loose)
        self.narrow = tuple(i for i in self.narrow if i not in loose)
        self.data_at = probe.offsets[DATA]
        self.tail = probe.body[probe.offsets[NUMBERS + 1] : probe.offsets[DATA - 1]]
        # How many offsets in a row are the same, up to each loose value and behind the last.
        self.gaps = [b - a for a, b in pairwise((-1, *dict(there), len(rows)))]
        self.pad = PADS[4 * (len(rows) + 1) & 7]
        self.room = min(INLINE, MAX_FRAME - HEAD - self.data_at - 8)
        self.heads: dict[int, bytes] = {}
        #: What is before the checksum, and its sum, as long as the encoder's stamp is the same.
        self.begun: dict[int, tuple[bytes, int]] = {}

    def fit(self, keys: Sequence[Any], values: list[Any]) -> Fitted | None:
        """Return what is to be stored of the values of a call; None if they do not fit."""
        if super().fit(keys, values) is None:
            return None
        numbers, pieces = values.copy(), []
        try:
            for i, data_of, expected in self.loose:
                if data_of is not None:
                    numbers[i] = 0.0
                    pieces.append(data_of(values[i]))
                else:
                    word, num, data = encode(values[i])
                    if (word, num is None, data is None) != expected:
                        return None
                    numbers[i] = 0.0 if num is None else num
                    pieces.append(data or b"")
        except Exception:  # the general way knows what to do with it
            return None
        if sum(map(len, pieces)) > self.room:
            return None
        for i in self.vacant:
            numbers[i] = 0.0
        return numbers, pieces

    def frame(
        self, encoder: Encoder, seq: int, time: int, step: int | None, fitted: Fitted
    ) -> bytes:
        """Return the frame of an event."""
        numbers, pieces = fitted
        data = b"".join(pieces)
        size = len(data)
        if self._stamp is not encoder.stamp:
            self.begun.clear()
            self._stamp = encoder.stamp
        begun = self.begun.get(size)
        if begun is None:
            head = self._head(size)  # first: it may forget all
            begun = self.begun[size] = encoder.begin(head)
        ends = accumulate(map(len, pieces), initial=0)
        offsets = [_pack_end(end) * gap for end, gap in zip(ends, self.gaps, strict=True)]
        tail = b"".join((self.tail, *offsets, self.pad, data, PADS[size & 7]))
        rest = self._rest(seq, time, step, self.middle, numbers, tail)
        return b"%b%08x%b" % (begun[0], crc32(rest, begun[1]), rest)

    def _head(self, size: int) -> bytes:
        """Return the head of frames whose data have so many bytes."""
        head = self.heads.get(size)
        if head is None:
            if len(self.heads) >= _MOST_HEADS:
                self.heads.clear()
                self.begun.clear()
            head = self.heads[size] = resized(self.head, self.data_at + size + (-size & 7), size)
        return head


class KeylessShape(Shape):
    """The same of events whose keys are others each time: only kinds and types are the same."""

    __slots__ = ("heads", "kinds_at", "layout", "size")

    def __init__(self, rows: Sequence[Row], *, with_step: bool) -> None:
        super().__init__(rows, with_step=with_step)
        probe = lay_out(rows, 0, 0, 0 if with_step else None)
        self.layout = probe._replace(body=b"")
        self.kinds_at = probe.offsets[KINDS]
        self.size = len(probe.body)
        self.middle = probe.body[self.kinds_at : probe.offsets[NUMBERS]]
        self.heads: dict[int, bytes] = {}

    def fit(self, keys: Sequence[Any], values: list[Any]) -> Fitted | None:
        """Return what is to be stored of keys and values of a call; None if they do not fit."""
        if not all(type(key) is str for key in keys):
            return None
        try:
            ends, names = texts(keys)
        except UnicodeEncodeError:
            return None
        if HEAD + self.size + len(names) > MAX_FRAME:
            return None
        fitted = super().fit(keys, values)
        return None if fitted is None else (fitted, ends, names)

    def frame(
        self, encoder: Encoder, seq: int, time: int, step: int | None, fitted: Fitted
    ) -> bytes:
        """Return the frame of an event."""
        numbers, ends, names = fitted
        head = self.heads.get(len(names))
        if head is None:
            if len(self.heads) >= _MOST_HEADS:
                self.heads.clear()
            head = self.heads[len(names)] = self._head(len(names))
        middle = b"".join((ends, PADS[len(ends) & 7], names, PADS[len(names) & 7], self.middle))
        return encoder.finish(head, self._rest(seq, time, step, middle, numbers, self.tail))

    def _head(self, size: int) -> bytes:
        """Return the head of frames whose keys have so many bytes."""
        offsets, lengths = list(self.layout.offsets), list(self.layout.lengths)
        lengths[KEYS] = size
        moved = offsets[KEYS] + size + (-size & 7) - self.kinds_at
        offsets[KINDS:] = [offset + moved for offset in offsets[KINDS:]]
        return self.layout._replace(offsets=offsets, lengths=lengths).head(self.size + moved)
