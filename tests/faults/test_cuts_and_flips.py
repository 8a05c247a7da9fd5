"""A cut at every byte, every bit flipped: what is in front stays, and nothing is silent."""

from __future__ import annotations

import random

import pytest

from tests.faults.damage import Counted, Journal, Segment, cut, flip


def test_a_cut_at_every_byte_leaves_the_whole_frames_before_it():
    out = Counted()
    for seed in range(4):
        segment = Segment.of(random.Random(seed))
        cut(segment, range(len(segment.data) + 1), out)
    assert out.violations == []
    assert out.cuts > 5_000


def test_every_flipped_bit_of_a_segment_is_found():
    out = Counted()
    segment = Segment.of(random.Random(3), most=2)
    flip(segment, range(len(segment.data) * 8), out)
    assert out.violations == []
    assert out.flips > 15_000


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3))])
def test_cuts_and_flips_of_a_journal_of_two_segments_lose_nothing_durable_in_silence(seed):
    rng, out = random.Random(seed), Counted()
    journal = Journal.of(rng)
    journal.cut(rng, 120, out)
    journal.flip(rng, 250, out)
    assert out.violations == []


def test_a_cut_of_the_first_segment_at_every_byte_is_a_failure(repeats):
    journal, out = Journal.of(random.Random(7)), Counted()
    data = journal.files["/r/w0-0.arrows"]
    for size in range(0, len(data), repeats(13, 1)):
        journal.check("/r/w0-0.arrows", data[:size], out)
    assert out.violations == []
