"""What is read of recorded losses, in journals of strangers too."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from eventlog.event import GAP, make_rows
from eventlog.gaps import Losses, blobs_of, gaps

SHA = "a" * 64


def table(*several: dict[str, Any]) -> pa.Table:
    columns: dict[str, list[Any]] = {n: [] for n in ("seq", "kind", "key", "type", "num", "data")}
    for seq, fields in enumerate(several):
        for row in make_rows(GAP, fields.items())[0]:
            for name, value in (("seq", seq), *row._asdict().items()):
                columns[name].append(value)
    return pa.table({**columns, "num": pa.array(columns["num"], pa.float64())})


def test_losses_of_a_writer_are_one_sentence():
    losses = Losses()
    for gap in gaps(
        table(
            {"events": 3, "first_step": 5, "last_step": 9},
            {"events": 0, "values": 2, "first_step": 2, "last_step": 7, "reason": "no room"},
        )
    ):
        losses.add(gap)
    assert losses.told() == [
        "3 events and 2 tables or large values between the steps 2 and 9 found no room and were "
        "dropped, as recorded (no room)"
    ]
    assert Losses().told() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"events": "many", "values": [1], "blobs": "x", "reason": 5, "first_step": None},
        {"blobs": [5, None, "../../etc", ["a"]], "events": True},
        {"first_step": 2**70, "events": float("nan")},
        {"reason": "x" * 100_000, "blobs": {"a": 1}},
    ],
)
def test_a_gap_of_a_stranger_is_read_without_harm(fields):
    losses = Losses()
    for gap in gaps(table(fields)):
        losses.add(gap)
        assert blobs_of(gap) == set()
    assert losses.told() == []


def test_only_names_of_blobs_are_blobs():
    (gap,) = gaps(table({"blobs": [SHA, SHA.upper(), "b"]}))
    assert blobs_of(gap) == {SHA}


def test_many_gaps_take_no_square_of_time():
    count = 30_000
    losses = Losses()
    for gap in gaps(table(*({"events": 1} for _ in range(count)))):
        losses.add(gap)
    assert losses.events == count
