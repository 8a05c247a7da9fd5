"""Each call of each kind fails once, or three times in a row, at every index."""

from __future__ import annotations

import errno

import pytest

from tests.faults import nth


@pytest.mark.parametrize("kind", nth.KINDS)
def test_a_call_that_fails_at_any_index_loses_nothing_durable(kind):
    turn = nth.KINDS.index(kind)
    error = nth.ERRORS[turn % len(nth.ERRORS)]
    levels = ("group", "memory", "seal") if kind != "any" else ("group", "seal")
    count, broken = nth.everywhere(kind, error, 1 + 2 * (turn % 2), levels)
    assert broken == []
    assert count or kind in ("remove", "length")


@pytest.mark.parametrize("error", nth.ERRORS, ids=errno.errorcode.get)
def test_a_sync_that_fails_at_any_index_with_any_error_loses_nothing_durable(error):
    assert nth.everywhere("sync", error, 1, ("group",))[1] == []


@pytest.mark.parametrize("error", nth.ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [1, 3, 100])
def test_reading_says_so_when_a_call_fails_at_any_index(error, lasting):
    count, broken = nth.reading_everywhere(error, lasting)
    assert broken == []
    assert count > 20
