"""Events: flattening, steps, digests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.event import Row, digest, flatten, make_rows, whole_step
from tests.helpers import event


def test_nested_mappings_flatten_and_the_last_value_of_a_key_wins():
    flat = flatten({"a": {"b": 1, 2: {"c": 3}}, "a/b": 4})
    assert flat.values == {"a/2/c": 3, "a/b": 4}
    assert flat.twice == ["a/b"]
    assert not flat.refused


def test_keys_that_are_no_text_are_left_out_with_a_reason():
    flat = flatten(
        {"\ud800": 1, (1, 2): 2, True: 3, 1.5: 4, None: 5, 10**5000: 8, "good": 6, "": 7}
    )
    assert flat.values == {"good": 6, "": 7}
    assert len(flat.refused) == 6


def test_a_mapping_that_contains_itself_is_left_out():
    loop: dict = {"x": 1}
    loop["self"] = loop
    flat = flatten(loop)
    assert flat.values == {"x": 1}
    assert flat.refused


def test_a_mapping_nested_too_deep_is_left_out():
    tree: dict = {"leaf": 1}
    for _ in range(70):
        tree = {"a": tree}
    assert not flatten(tree).values
    assert flatten(tree).refused


@pytest.mark.parametrize(
    ("step", "whole"),
    [
        (5, 5),
        (5.0, 5),
        (np.int64(7), 7),
        (np.float32(8.0), 8),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (-(2**63) - 1, None),
        (1.5, None),
        (math.nan, None),
        (math.inf, None),
        (True, None),
        ("5", None),
        (np.bool_(1), None),
        (object(), None),
        (1e300, None),
    ],
)
def test_an_integral_step_becomes_an_int_and_any_other_none(step, whole):
    assert whole_step(step) == whole


def test_a_step_whose_item_raises_is_none():
    class Hostile:
        def item(self):
            raise RuntimeError

    assert whole_step(Hostile()) is None


def test_the_digest_sees_every_part_of_an_event():
    one = event(3, {"a": 1.0, "b": "x"}, 5)
    row = one.rows[0]
    changed = [
        one._replace(seq=4),
        one._replace(time=one.time + 1),
        one._replace(step=None),
        one._replace(step=0),
        one._replace(rows=one.rows[::-1]),
        one._replace(rows=one.rows[:1]),
    ]
    parts = [{"key": "c"}, {"kind": "k"}, {"type": "float32"}, {"num": -1.0}, {"num": None}]
    changed += [
        one._replace(rows=(row._replace(**p), *one.rows[1:])) for p in [*parts, {"data": b""}]
    ]
    assert len({digest(e) for e in [one, *changed]}) == len(changed) + 1


@given(st.text(max_size=3), st.text(max_size=3))
@settings(max_examples=50)
def test_the_digest_does_not_run_keys_into_each_other(a, b):
    rows = [Row(a + b, "", "", None, None), Row(a, b, "", None, None)]
    one, other = (digest(event(0, {})._replace(rows=(r,))) for r in rows)
    assert (one == other) == (b == "")


def test_a_value_that_cannot_be_kept_leaves_the_others():
    rows, refused = make_rows("metric", [("a", 1), ("b", object()), ("c", 2)])
    assert [row.key for row in rows] == ["a", "c"]
    assert len(refused) == 1
    assert "'b'" in refused[0]
