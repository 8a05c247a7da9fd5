"""Shapes: what they make is to the byte what the generic way makes, whatever the values become."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import struct
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import blobs
from eventlog.event import Event, make_rows
from eventlog.frame import Encoder
from eventlog.shape import MixedShape
from eventlog.table import Table
from eventlog.value import decode, dumps, loads
from tests.helpers import exact, examples, read, writer

NUMBERS = [
    st.floats(),
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.integers(0, 255).map(np.uint8),
]
OTHERS = [
    st.text(max_size=8),
    st.none(),
    st.lists(st.floats(allow_nan=False), max_size=3),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.binary(max_size=5),
    st.decimals(allow_nan=False).map(lambda d: d),
    st.dates(),
    st.floats(width=32).map(lambda f: np.array([f, 1], np.float32)),
    st.complex_numbers(allow_nan=False),
]


def kept(folder, calls, **options):
    """Log calls of (step, data); return the rows that are read, and how many went the long way."""
    one = writer(folder, durability="os", **options)
    with mock.patch.object(Encoder, "event", autospec=True, side_effect=Encoder.event) as long:
        for step, data in calls:
            one.append("metric", data, step)
    one.close()
    return [(e.step, [exact(row) for row in e.rows]) for e in read(folder)], long.call_count


def plain(calls):
    return [
        (step, [exact(row) for row in make_rows("metric", data.items())[0]]) for step, data in calls
    ]


@settings(max_examples=examples(25, 60), deadline=None)
@given(
    columns=st.lists(st.sampled_from([*NUMBERS, *OTHERS]), min_size=1, max_size=7),
    with_step=st.booleans(),
    data=st.data(),
)
def test_events_of_any_mixture_are_kept_as_the_generic_way_keeps_them(
    columns, with_step, data, tmp_path_factory
):
    calls = [
        (n if with_step else None, {f"k{i}": data.draw(c) for i, c in enumerate(columns)})
        for n in range(5)
    ]
    found, _ = kept(tmp_path_factory.mktemp("run"), calls)
    assert found == plain(calls)


def mixed(n):
    return {
        "loss": n / 7,
        "text": f"é{n}" * (n % 3),
        "none": None,
        "list": [n, 0.5],
        "narrow": np.float32(n / 8),
        "n": n,
        "when": dt.datetime(2026, 1, 1 + n % 9),
    }


@pytest.mark.parametrize("step", [7, None])
def test_numbers_with_others_among_them_have_a_quick_way_from_the_third_time_on(tmp_path, step):
    calls = [(step, mixed(n)) for n in range(50)]
    found, long = kept(tmp_path, calls)
    assert found == plain(calls)
    assert long <= 3  # the first two, and one that a shape is proven with


class Scalar:
    """Like a scalar of torch, whose type does not say what it is."""

    def __init__(self, value, dtype):
        self.dtype, self._value = dtype, value

    def item(self):
        return self._value


def test_a_value_that_becomes_another_type_goes_the_long_way_and_is_exact(tmp_path):
    values = [Scalar(0.5, "torch.float32")] * 4 + [
        Scalar(3, "torch.int64"),
        Scalar(True, "torch.bool"),
    ]
    values += [Scalar(math.nan, "torch.float32"), Scalar(2**60 + 1, "torch.int64")] * 2
    calls = [(n, {"x": value, "y": 1.0}) for n, value in enumerate(values)]
    found, _ = kept(tmp_path, calls)
    assert found == plain(calls)


def test_numbers_that_grow_beyond_a_double_go_the_long_way(tmp_path):
    numbers = [1, 2, 3, 2**53 + 1, 5, -(2**70), 7]
    calls = [(n, {"x": number, "text": "t"}) for n, number in enumerate(numbers)]
    found, _ = kept(tmp_path, calls)
    assert found == plain(calls)


def test_a_text_that_grows_beyond_what_a_frame_should_hold_becomes_a_blob(tmp_path):
    texts = ["a", "b", "c", "d" * (blobs.INLINE + 1), "e"]
    found, _ = kept(tmp_path, [(n, {"x": text, "y": 1.0}) for n, text in enumerate(texts)])
    assert [rows[0][2] for _, rows in found] == ["str", "str", "str", "blob", "str"]
    assert [decode(*e.rows[0][2:]) for e in read(tmp_path)][:3] == texts[:3]


@pytest.mark.parametrize(
    "value", [Table(["a"], [[1]]), {"deep": "text"}, {"deep": {"er": None}}, {}]
)
def test_tables_and_dicts_among_others_are_kept(tmp_path, value):
    calls = [(n, {"x": value, "text": "t", "y": float(n)}) for n in range(5)]
    one = writer(tmp_path, durability="os")
    for step, data in calls:
        one.append("metric", data, step)
    one.close()
    first, *others = [[exact(row)[:3] for row in e.rows] for e in read(tmp_path)]
    assert all(rows == first for rows in others)
    assert [e.values()["y"] for e in read(tmp_path)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_value_that_is_refused_once_costs_only_itself(tmp_path):
    one = writer(tmp_path, durability="os")
    bad = []
    for n in range(6):
        value = ["fine"] if n != 4 else [object()]
        try:
            one.append("metric", {"x": value, "y": float(n)}, n)
        except Exception as error:
            bad.append((n, type(error).__name__))
    one.close()
    assert bad == [(4, "ValueRefused")]
    assert [e.values()["y"] for e in read(tmp_path)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_decimals_and_other_rare_types_are_exact(tmp_path):
    calls = [
        (n, {"d": decimal.Decimal(n) / 7, "c": complex(n, 1), "b": bytes([n]), "y": n})
        for n in range(5)
    ]
    found, _ = kept(tmp_path, calls)
    assert found == plain(calls)


def test_a_shape_follows_the_marks_and_segments_whose_frames_it_makes():
    """What stands before the checksum is kept, for many lengths of data, until a mark changes."""

    def rows(text):
        return make_rows("metric", [("x", 0.5), ("t", text), ("n", None)])[0]

    shape = MixedShape(rows(""), [1, 2], [str, type(None)], with_step=True)
    encoders = [Encoder(1), Encoder(2)]
    for mark in (0, 7, 7, 8):
        for encoder in encoders:
            encoder.mark(mark)
            for size in (*range(80), *range(80)):  # more than are kept
                text = "é" * size
                fitted = shape.fit(["x", "t", "n"], [0.5, text, None])
                made = shape.frame(encoder, 3, 4, 5, fitted)
                assert made == encoder.event(Event(3, 4, 5, tuple(rows(text))))


@pytest.mark.parametrize(
    "value", [[math.nan], [1.0, math.inf], [-math.inf], [1e300, -0.0, 5e-324], [0.1] * 9, []]
)
def test_lists_of_floats_come_out_exactly(value):
    came = loads(dumps(value))
    assert [struct.pack("<d", x) for x in came] == [struct.pack("<d", x) for x in value]
