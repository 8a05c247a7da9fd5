"""Strips: what numpy cuts out of frames of one shape is what pyarrow reads of them."""

from __future__ import annotations

import random
import struct

import numpy as np
import pyarrow as pa
import pytest

from eventlog import frame as frames
from eventlog import strip
from eventlog.fingerprint import combine, fingerprint
from eventlog.reader import span_columns
from eventlog.sealed import sealed_schema
from eventlog.segment import SegmentReader
from tests.helpers import Bytes, event, plain, scan, segment_bytes

COUNT = 40
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF0DEAD0000BEEF))[0]
SHAPES = {
    "numbers": lambda n: {"loss": n / 7, "lr": 3e-4, "n": n, "nan": NAN, "-0": -0.0},
    "one": lambda n: {"x": float(n)},
    "nulls in turn": lambda n: {"a": None if n % 2 else 1.5, "b": 1.5 if n % 2 else None, "c": 1},
    "text": lambda n: {"a": 1.5, "text": f"{n:04d}é", "b": b"\xff" * 3},
    "nine": lambda n: {f"k{i}": None if i == n % 9 else i / 3 for i in range(9)},
    "types": lambda n: {"a": True, "b": np.float32(n / 3), "c": 2**60 + n, "d": "x" * (n % 3)},
    "keys": lambda n: {f"{n:03d}": 1.0, "same": 2.0},
}


def series(shape, step=True):
    return [event(n, SHAPES[shape](n), n if step else None) for n in range(COUNT)]


def spans(data):
    with SegmentReader("s", Bytes({"s": data})) as reader:
        for span in reader.spans():
            yield span, reader


def table(columns, schema):
    out = pa.Table.from_arrays(columns, names=schema.names)
    return pa.Table.from_arrays(
        [c.cast(f.type) for c, f in zip(out.columns, schema)], schema=schema
    )


@pytest.mark.parametrize("step", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_columns_of_a_strip_are_those_that_pyarrow_reads(shape, step):
    events = series(shape, step)
    data, _ends = segment_bytes(events, durable=lambda seq: seq // 3, end=True)
    found, strips = [], 0
    for span, reader in spans(data):
        strips += bool(span.size)
        stream = pa.ipc.open_stream(reader.header_bytes + bytes(span.data)).read_all()
        for dictionaries in (False, True):
            columns = span_columns(span, reader, dictionaries=dictionaries)
            again = table(columns, frames.schema())
            again.validate(full=True)
            assert list(map(plain, frames.to_events(again))) == list(
                map(plain, frames.to_events(stream))
            )
        found += frames.to_events(again)
    assert list(map(plain, found)) == list(map(plain, events))
    assert strips or shape == "types"


def test_a_bad_frame_ends_a_strip_wherever_it_is():
    data, ends = segment_bytes(series("numbers"), durable=7)
    rng = random.Random(3)
    for _ in range(300):
        at = rng.randrange(ends[0], len(data))
        bad = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        hit = next(i for i, end in enumerate(ends) if end > at) - 1
        events, verdict = scan(bad)
        assert len(events) == hit, at
        assert verdict.next_seq == hit and verdict.word == (
            "damaged" if hit < COUNT - 1 else "torn"
        )


def test_the_highest_durable_mark_of_a_strip_is_known():
    for durable in (0, 5, 2**40, lambda seq: 9 * seq, lambda seq: 400 - seq):
        data, _ends = segment_bytes(series("one"), durable=durable)
        highest = max(durable(n) if callable(durable) else durable for n in range(COUNT))
        assert scan(data)[1].durable == highest


def test_a_layout_that_is_none_is_left_to_pyarrow():
    data, ends = segment_bytes(series("text"))
    size = ends[1] - ends[0]
    good = bytearray(data[ends[0] :])
    assert strip.columns(memoryview(bytes(good)), size, 3) is not None
    for at in (96, 104, 8 + 84 + 4, 8 + 220 + 4 + 16, 8 + 220 + 4 + 24, 8 + 220 + 4 + 8 * 21):
        for value in (-8, 7, 2**31, 2**62):
            bad = bytearray(good)
            for start in range(0, len(bad), size):
                bad[start + at : start + at + 8] = struct.pack("<q", value)
            found = strip.columns(memoryview(bytes(bad)), size, 3)
            assert found is None or all(len(c) == 3 * COUNT for c in found)


def test_text_that_is_no_utf8_is_no_strip():
    data, ends = segment_bytes(series("one"))
    size = ends[1] - ends[0]
    bad = data[ends[0] :].replace(b"metric", b"met\xffic")
    assert strip.columns(memoryview(bad), size, 1) is None
    assert strip.columns(memoryview(bad), size, 1, dictionaries=True) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fingerprint_is_the_same_for_words_and_for_dictionaries(shape):
    data, _ends = segment_bytes(series(shape))
    ((span, reader),) = spans(data)
    words = span_columns(span, reader)
    dictionaries = span_columns(span, reader, dictionaries=True)
    names = sealed_schema().names[:8]
    one = fingerprint(pa.Table.from_arrays(words, names=names))
    assert one == fingerprint(pa.Table.from_arrays(dictionaries, names=names))
    part = fingerprint(pa.Table.from_arrays(words, names=names).slice(3, 7))
    assert part == fingerprint(pa.Table.from_arrays(dictionaries, names=names).slice(3, 7))
    assert part != one


def test_checksums_of_parts_make_that_of_the_whole():
    import zlib

    rng = random.Random(1)
    for _ in range(50):
        one, other = rng.randbytes(rng.randrange(99)), rng.randbytes(rng.randrange(9999))
        assert combine(zlib.crc32(one), zlib.crc32(other), len(other)) == zlib.crc32(one + other)
