"""Frames: made by hand, read by everybody, every flipped bit found."""

from __future__ import annotations

import io
import math

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import frame as frames
from eventlog.errors import FormatError, ValueRefused
from eventlog.event import Event, Row, make_rows
from eventlog.shape import Shape
from tests.helpers import NOW, event, examples, header, plain, same, scan, segment_bytes

INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.builds(
    Row,
    st.text(max_size=6),
    st.sampled_from(["metric", "config", "state"]),
    st.sampled_from(["float64", "str", "later"]),
    st.none() | st.floats(),
    st.none() | st.binary(max_size=9),
)
EVENTS = st.builds(
    lambda time, step, rows: (time, step, tuple(rows)),
    INT64,
    st.none() | INT64,
    st.lists(ROWS, min_size=1, max_size=12) | st.lists(ROWS, min_size=250, max_size=300),
)


@given(st.lists(EVENTS, min_size=1, max_size=4))
@settings(max_examples=examples(15, 40), deadline=None)
def test_stock_pyarrow_and_polars_read_what_was_put_in(given_events):
    events = [Event(seq, *fields) for seq, fields in enumerate(given_events)]
    data, _ends = segment_bytes(events, end=True)
    reader = pa.ipc.open_stream(data)
    batches = list(reader)
    for batch in batches:
        batch.validate(full=True)
    assert same([e for b in batches for e in frames.to_events(b)], events)
    assert same(scan(data)[0], events)
    table = pl.read_ipc_stream(io.BytesIO(data))
    assert table.height == sum(len(e.rows) for e in events)
    found = [(*r[:3], r[3]) for r in table.select("key", "kind", "type", "data").iter_rows()]
    assert found == [(r.key, r.kind, r.type, r.data) for e in events for r in e.rows]
    for name, values in (
        ("seq", [e.seq for e in events for _ in e.rows]),
        ("step", [e.step for e in events for _ in e.rows]),
    ):
        assert table[name].to_list() == values
    nums = [r.num for e in events for r in e.rows]
    for left, right in zip(table["num"].to_list(), nums, strict=True):
        assert left == right or (math.isnan(left) and math.isnan(right))
    assert table["time"].to_physical().to_list() == [e.time for e in events for _ in e.rows]


NUMBERS = st.dictionaries(
    st.text(max_size=5),
    st.floats() | st.integers(-(2**53), 2**53) | st.booleans(),
    min_size=1,
    max_size=20,
)


@given(NUMBERS, st.none() | INT64, st.integers(0, 2**40))
@settings(max_examples=examples(30, 100), deadline=None)
def test_the_short_way_makes_the_same_bytes_as_the_general_one(first, step, seq):
    later = {k: v * 0.5 if isinstance(v, float) else v for k, v in first.items()}
    rows, _ = make_rows("metric", first.items())
    shape = Shape(rows, with_step=step is not None)
    encoder = frames.Encoder(77)
    encoder.mark(12)
    for values in (first, later):
        fitted = shape.fit(list(values), list(values.values()))
        assert fitted is not None
        made = shape.frame(encoder, seq, NOW, step, fitted)
        rows, _ = make_rows("metric", values.items())
        assert made == encoder.event(Event(seq, NOW, step, tuple(rows)))


def test_a_shape_refuses_what_a_number_cannot_hold():
    import numpy as np

    rows, _ = make_rows("metric", [("n", 1), ("x", np.float32(1))])
    shape = Shape(rows, with_step=True)
    keys = ["n", "x"]
    assert shape.fit(keys, [2**53, np.float32(2)]) is not None
    assert shape.fit(keys, [2**53 + 1, np.float32(2)]) is None
    assert shape.fit(keys, [-(2**53) - 1, np.float32(2)]) is None
    assert shape.fit(keys, [1, np.float32("nan")]) is None


def test_every_flipped_bit_of_a_frame_is_found():
    data, ends = segment_bytes([event(0, {"a": 0.5, "b": "x", "c": None}, 3)])
    undetected = []
    for bit in range(ends[0] * 8, ends[1] * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        events, verdict = scan(bytes(changed))
        if events or verdict.word != "torn":
            undetected.append(bit)
    assert not undetected


@pytest.mark.parametrize("text", [b"ABCDEF01", b" 1234567", b"+1234567", b"1_234567"])
def test_a_checksum_in_another_spelling_is_none(text):
    _raw, seed = header().to_bytes()
    made = frames.Encoder(seed).event(event(0, {"a": 1.0}))
    assert frames.read_head(made) is not None
    at = made.index(b"crc32=") + 6
    assert frames.read_head(made[:at] + text + made[at + 8 :]) is None


def test_a_frame_is_valid_in_its_own_segment_only():
    data, ends = segment_bytes([event(0, {"a": 1.0})])
    other, _other_ends = segment_bytes([], header(writer="w1"))
    assert scan(data)[0]
    assert not scan(other + data[ends[0] :])[0]


def test_an_event_larger_than_a_frame_is_refused_and_one_that_just_fits_is_read():
    encoder = frames.Encoder(0)
    fits = event(0, {"x": b"\0" * (frames.MAX_FRAME - 1400)})
    made = encoder.event(fits)
    assert len(made) <= frames.MAX_FRAME
    assert frames.read_head(made[: frames.HEAD]) is not None
    with pytest.raises(ValueRefused, match="larger than"):
        encoder.event(event(0, {"x": b"\0" * frames.MAX_FRAME}))


def test_a_frame_of_many_rows_with_nulls_takes_linear_time():
    rows = tuple(
        Row(f"k{n}", "metric", "float64", None if n % 3 else 1.0, None) for n in range(60_000)
    )
    one = Event(0, NOW, None, rows)
    made = frames.Encoder(0).event(one)
    assert plain(frames.to_events(frames.read_batch(made, frames.schema()))[0]) == plain(one)


def test_a_compressed_message_is_no_frame():
    batch = frames.read_batch(frames.Encoder(0).event(event(0, {"a": 1.0})), frames.schema())
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as out:
        out.write_batch(batch)
    stream = sink.getvalue()
    at = stream.rindex(frames.CONTINUATION, 0, len(stream) - 8)
    assert frames.read_head(stream[at:].ljust(frames.HEAD, b"\0")) is None
    made = bytearray(frames.Encoder(0).event(event(0, {"a": 1.0})))
    made[8 + 44] ^= 2  # another vtable: a field of the record batch appears or goes
    assert frames.read_head(bytes(made)) is None


def test_what_is_no_arrow_message_raises_a_format_error():
    made = bytearray(frames.Encoder(0).event(event(0, {"a": 1.0})))
    made[8 + 224 : 8 + 224 + 320] = b"\xff" * 320
    with pytest.raises(FormatError):
        frames.read_batch(bytes(made), frames.schema())
