"""Cuts and flipped bits: random segments and journals, and what must be read of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from eventlog.audit import FAILURES, verify
from eventlog.errors import FormatError
from eventlog.event import Event
from eventlog.reader import WriterReader
from eventlog.segment import DAMAGED, OPEN, TORN, WHOLE, SegmentReader
from tests.helpers import Bytes, event, header, plain, segment_bytes


@dataclasses.dataclass
class Counted:
    """How many were tried, and what was wrong."""

    cuts: int = 0
    flips: int = 0
    violations: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of random events, and where its header and its frames end."""

    data: bytes
    ends: list[int]
    events: list[Event]
    closed: bool

    @classmethod
    def of(cls, rng: random.Random, *, most: int = 4) -> Segment:
        """Make one."""
        events = [_event(rng, n) for n in range(rng.randint(1, most))]
        closed = rng.random() < 0.5
        data, ends = segment_bytes(events, header(), durable=lambda seq: seq // 2, end=closed)
        return cls(data, ends, events, closed)

    def whole(self, size: int) -> int:
        """Return how many frames end within the first `size` bytes."""
        return sum(end <= size for end in self.ends[1:])


def _event(rng: random.Random, seq: int) -> Event:
    values = {
        "x": rng.random(),
        "n": rng.choice([0, -1, 2**60 + rng.randrange(9), 2**70]),
        "text": "é" * rng.randint(0, 60),
        "odd": rng.choice([None, True, float("nan"), -0.0, b"\xff" * 8]),
    }
    chosen = dict(rng.sample(sorted(values.items()), rng.randint(1, 4)))
    return event(seq, chosen, rng.choice([None, seq]))


def _read(data: bytes) -> tuple[int, str]:
    """Return how many frames are whole, and the verdict's word ("foreign" without a header)."""
    try:
        with SegmentReader("s", Bytes({"s": data})) as reader:
            count = sum(span.count for span in reader.spans())
            assert reader.verdict is not None
            return count, reader.verdict.word
    except FormatError:
        return 0, "foreign"


def cut(segment: Segment, sizes: Iterable[int], out: Counted) -> None:
    """Cut a segment at some sizes."""
    for size in sizes:
        count, word = _read(segment.data[:size])
        out.cuts += 1
        if size < segment.ends[0]:
            wanted = (0, "foreign")
        elif size == len(segment.data) and segment.closed:
            wanted = (len(segment.events), WHOLE)
        else:
            wanted = (segment.whole(size), OPEN if size in segment.ends else TORN)
        if (count, word) != wanted:
            out.violations.append(f"cut at {size}: {count} {word}, not {wanted}")


def flip(segment: Segment, bits: Iterable[int], out: Counted) -> None:
    """Flip single bits of a segment: all frames in front stay, and it is never silent."""
    data = bytearray(segment.data)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        count, word = _read(bytes(data))
        data[bit // 8] ^= 1 << bit % 8
        out.flips += 1
        wanted = 0 if bit // 8 < segment.ends[0] else segment.whole(bit // 8)
        words = {"foreign"} if bit // 8 < segment.ends[0] else {TORN, DAMAGED}
        if count != wanted or word not in words:
            out.violations.append(f"bit {bit}: {count} {word}, not {wanted} {words}")


@dataclasses.dataclass(frozen=True)
class Journal:
    """Two segments of one writer; the first is wholly durable before the second begins."""

    files: dict[str, bytes]
    events: list[Event]
    split: int

    @classmethod
    def of(cls, rng: random.Random) -> Journal:
        """Make one."""
        count = rng.randint(2, 5)
        split = rng.randint(1, count - 1)
        events = [_event(rng, n) for n in range(count)]
        first, _ = segment_bytes(events[:split], header(), durable=0, end=True)
        second, _ = segment_bytes(events[split:], header("w0", 1, split), durable=split, end=True)
        return cls({"/r/w0-0.arrows": first, "/r/w0-1.arrows": second}, events, split)

    def check(self, name: str, data: bytes, out: Counted) -> None:
        """Read it with one file changed."""
        store = Bytes({**self.files, name: data})
        found = list(WriterReader("/r", "w0", store=store).events())
        report = verify("/r", store)
        (writer,) = report.writers
        what = f"{name}: {len(data)} bytes, {len(found)} events, {report.verdict}"
        if list(map(plain, found)) != list(map(plain, self.events[: len(found)])):
            out.violations.append(f"{what}: what is read is not what was written")
        if len(found) < self.split and report.verdict not in FAILURES:
            out.violations.append(f"{what}: durable events are gone and nobody says so")
        if (
            len(found) < len(self.events)
            and report.verdict == "ok"
            and len(data) == len(self.files[name])
        ):
            out.violations.append(f"{what}: a flip is silent")
        if not writer.problems and writer.verdict != "ok":
            out.violations.append(f"{what}: {writer.verdict} without a reason")

    def cut(self, rng: random.Random, count: int, out: Counted) -> None:
        """Cut one of the files at some places."""
        for _ in range(count):
            name = rng.choice(sorted(self.files))
            data = self.files[name]
            self.check(name, data[: rng.randrange(len(data))], out)
            out.cuts += 1

    def flip(self, rng: random.Random, count: int, out: Counted) -> None:
        """Flip some bits of one of the files."""
        for _ in range(count):
            name = rng.choice(sorted(self.files))
            data = bytearray(self.files[name])
            bit = rng.randrange(len(data) * 8)
            data[bit // 8] ^= 1 << bit % 8
            before = len(out.violations)
            self.check(name, bytes(data), out)
            out.flips += 1
            if len(out.violations) > before:
                out.violations[-1] += f" (bit {bit})"


def series(seed: int) -> Counted:
    """Cut one random segment at every byte and flip its every bit; then a journal, at random."""
    rng = random.Random(seed)
    out = Counted()
    segment = Segment.of(rng, most=3)
    cut(segment, range(len(segment.data) + 1), out)
    flip(segment, range(len(segment.data) * 8), out)
    journal = Journal.of(rng)
    journal.cut(rng, 50, out)
    journal.flip(rng, 50, out)
    return out
