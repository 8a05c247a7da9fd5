"""Shapes: the quick way to a frame gives what the slow one gives, for any keys and types."""

from __future__ import annotations

import enum
from collections import UserDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.errors import ValueRefused
from eventlog.event import Row
from eventlog.intake import take
from eventlog.shapes import MOST, Shapes
from eventlog.table import Table
from tests.helpers import exact, examples, read, writer

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
NUMBERS = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.floats().map(np.float64),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 255).map(np.uint8),
    st.booleans().map(np.bool_),
    st.none(),
    st.text(max_size=3),
)
CALLS = st.dictionaries(
    KEYS,
    NUMBERS
    | st.dictionaries(KEYS, NUMBERS | st.dictionaries(KEYS, NUMBERS, max_size=2), max_size=3),
    min_size=1,
    max_size=6,
)


def rows_of(data):
    return take("metric", data, lambda content: "").rows


@given(st.lists(CALLS, min_size=1, max_size=3))
@settings(max_examples=examples(25, 60), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_call_is_the_same_event_the_first_time_and_every_time(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("run")
    one = writer(folder)
    logged = [data for data in calls for _ in range(4) if rows_of(data)]
    for n, data in enumerate(logged):
        one.append("metric", data, n)
    one.close()
    events = read(folder) if logged else []
    for event, data in zip(events, logged, strict=True):
        assert list(map(exact, event.rows)) == list(map(exact, rows_of(data)))


def learnt(*calls, step=1):
    shapes = Shapes()
    for data in calls:
        _shape, _fitted, signature, values = shapes.find("metric", data, step)
        shapes.learn(signature, values, rows_of(data), step)
    return shapes


def knows(shapes, data, step=1):
    return shapes.find("metric", data, step)[0] is not None


@pytest.mark.parametrize("data", [{"x": 1.0}, {"a": {"b": 1.0, "c": {"d": 2}}, "e": 3.0}])
def test_a_shape_is_made_when_it_comes_for_the_second_time(data):
    assert not knows(learnt(data), data)
    assert knows(learnt(data, data), data)
    assert not knows(learnt(data, data), data, step=None)


def test_values_that_numbers_alone_cannot_hold_leave_the_quick_way():
    narrow = np.uint32(0x7FC00001).view(np.float32)
    shapes = learnt(*2 * [{"n": 1, "f": np.float32(1)}])
    assert knows(shapes, {"n": 2**53, "f": np.float32(2)})
    assert not knows(shapes, {"n": 2**53 + 1, "f": np.float32(2)})
    assert not knows(shapes, {"n": 1, "f": narrow})


@pytest.mark.parametrize(
    "data",
    [
        {1: 0.5},
        {"a": {"b": 1.0}, "a/b": 2.0},
        {"x": 1.0, "y": object()},
        {"x": UserDict({"y": 1.0})},
        {"x": Table(["a"], [[1]])},
    ],
)
def test_what_types_and_keys_alone_do_not_tell_has_no_shape(data):
    assert not knows(learnt(data, data, data), data)


@given(st.lists(KEYS, min_size=12, max_size=12), NUMBERS, NUMBERS, st.none() | st.integers(0, 9))
@settings(max_examples=examples(25, 60), deadline=None, suppress_health_check=list(HealthCheck))
def test_keys_that_were_never_there_are_the_same_event_as_the_long_way_makes(
    tmp_path_factory, keys, one_value, other, step
):
    folder = tmp_path_factory.mktemp("run")
    one = writer(folder)
    logged = [{key: one_value, key + "é": other} for key in keys]
    for data in logged:
        one.append("metric", data, step)
    one.close()
    for event, data in zip(read(folder), logged, strict=True):
        assert event.step == step
        assert list(map(exact, event.rows)) == list(map(exact, rows_of(data)))


def test_keys_never_seen_take_the_quick_way_once_numbers_of_their_types_came_before():
    shapes = learnt({"a": 1.0, "b": 2}, {"c": 1.0, "d": 2})
    for n in range(3):
        assert knows(shapes, {f"e{n}": 1.0, f"f{n}" * n * 99: 2})
    assert not knows(shapes, {"e0": 1.0, "f0" * 0: 2}), "for the second time: it gets its own"
    assert not knows(shapes, {"g": 1.0, "h": 2**53 + 1})
    assert not knows(shapes, {"g": 1.0, "h": 2.0})
    assert not knows(shapes, {"g": 1.0, "h": 2}, step=None)


@pytest.mark.parametrize("key", ["\ud800", 7, "k" * (16 * 2**20)], ids=["surrogate", "int", "long"])
def test_keys_that_need_a_look_take_the_long_way(key):
    shapes = learnt({"a": 1.0, "b": 2.0}, {"c": 1.0, "d": 2.0})
    assert knows(shapes, {"e": 1.0, "f": 2.0})
    assert not knows(shapes, {key: 1.0, "f": 2.0})


def test_a_dict_that_contains_itself_has_no_shape():
    loop = {"x": 1.0}
    loop["me"] = loop
    assert not knows(learnt(loop, loop, loop), loop)


def test_memory_for_shapes_is_bounded():
    shapes = learnt(*(d for n in range(2 * MOST) for d in 2 * [{f"k{n}": 1.0}]))
    assert len(shapes._known) <= MOST
    for n in range(20_000):
        data = {f"never{n}": 1.0}
        _shape, _fitted, signature, values = shapes.find("metric", data, 1)
        shapes.learn(signature, values, [Row(f"never{n}", "metric", "float64", 1.0, None)], 1)
    assert len(shapes._seen) <= 8192


def test_memory_for_shapes_of_long_keys_is_bounded(monkeypatch):
    monkeypatch.setattr("eventlog.shapes.MOST_BYTES", 100_000)
    calls = [{f"{n}" + "k" * 10_000: 1.0} for n in range(40)]
    shapes = learnt(*(data for call in calls for data in (call, call)))
    assert 0 < len(shapes._known) <= 10
    assert knows(shapes, calls[-1])


def test_texts_that_are_enums_are_the_text_as_key_and_as_value(tmp_path):
    class Word(str, enum.Enum):
        LOSS = "loss"

    class Number(enum.IntEnum):
        ONE = 1

    one = writer(tmp_path)
    for _ in range(3):
        one.append("metric", {Word.LOSS: 1.0, Number.ONE: 2.0, "w": Word.LOSS}, 0)
        one.append("metric", {"loss": 1.0, "1": 2.0}, 0)
    one.close()
    for event in read(tmp_path):
        assert [row.key for row in event.rows][:2] == ["loss", "1"]
        assert [row.value for row in event.rows][2:] in ([], ["loss"])


class Raising:
    """No number after all."""

    def __float__(self):
        raise RuntimeError("not today")

    def item(self):
        raise RuntimeError("nor like this")


def test_hostile_sizes_and_values_are_kept_exactly_or_cost_only_themselves(tmp_path):
    one = writer(tmp_path)
    loop = {"x": 1.0}
    loop["me"] = loop
    hostile = {
        "text": "é" * (5 * 2**20),
        "huge": 10**400,
        "surrogate": "a\ud800b",
        "nul": "a\0b",
        "nested": {"deep": {"big": b"\xff" * (5 * 2**20)}},
    }
    one.append("metric", hostile, 0)
    many = {f"k{n}": float(n) for n in range(50_000)}
    one.append("metric", many, 1)
    for refused in ({"bad": Raising()}, {"loop": loop}, {"\ud800": 1}, {"x": [loop]}):
        with pytest.raises(ValueRefused):
            one.append("metric", {**refused, "good": 1.0}, 2)
    with pytest.raises(ValueRefused, match="several calls"):
        one.append("metric", {f"k{n}": float(n) for n in range(300_000)}, 3)
    one.append("metric", {"x": 1.0}, 4)
    one.close()
    events = read(tmp_path)
    assert [e.step for e in events] == [0, 1, 2, 2, 2, 2, 4]
    found = events[0].values()
    assert found["huge"] == 10**400
    assert (found["surrogate"], found["nul"]) == ("a\ud800b", "a\0b")
    kinds = {row.key: row.type for row in events[0].rows}
    assert kinds["text"] == kinds["nested/deep/big"] == "blob"
    content = {b.stat().st_size: b.read_bytes() for b in (tmp_path / "blobs").iterdir()}
    assert content[10 * 2**20].decode() == hostile["text"]
    assert content[5 * 2**20] == hostile["nested"]["deep"]["big"]
    assert events[1].values() == many
    assert all("good" in e.values() for e in events[2:6])
