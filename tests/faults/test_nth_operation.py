"""Each call of each kind fails once, or three times in a row, at every index."""

from __future__ import annotations

import errno

import pytest

from tests.faults import calls, nth, scenes


@pytest.mark.parametrize("kind", nth.KINDS)
def test_a_call_that_fails_at_any_index_loses_nothing_durable(kind, repeats):
    turn = nth.KINDS.index(kind)
    error = nth.ERRORS[turn % len(nth.ERRORS)]
    levels = ("group", "memory", "seal") if kind != "any" else ("group", "seal")
    count, broken = nth.everywhere(kind, error, 1 + 2 * (turn % 2), levels, repeats(3, 1))
    assert broken == []
    assert count or kind in ("remove", "length")


@pytest.mark.parametrize(
    "error",
    [nth.ERRORS[0], *(pytest.param(error, marks=pytest.mark.long) for error in nth.ERRORS[1:])],
    ids=errno.errorcode.get,
)
def test_a_sync_that_fails_at_any_index_with_any_error_loses_nothing_durable(error):
    assert nth.everywhere("sync", error, 1, ("group",))[1] == []


@pytest.mark.parametrize("error", nth.ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [1, pytest.param(3, marks=pytest.mark.long), 100])
def test_reading_says_so_when_a_call_fails_at_any_index(error, lasting, repeats):
    every = repeats(3, 1)
    count, broken = nth.reading_everywhere(error, lasting, every)
    assert broken == []
    assert count > 20 // every


#: Scenes that make many calls, three runs each time.
WIDER = {"archive": 13, "read archived": 2}


@pytest.mark.parametrize("lasting", [1, 10**6], ids=["once", "from there on"])
@pytest.mark.parametrize("name", scenes.SCENES)
def test_what_a_user_calls_survives_a_call_that_fails_at_any_index(name, lasting, repeats):
    """A slice of the calls; `tools/crash` fails each, with each error, at each level."""
    step = repeats(11, 5) * WIDER.get(name, 1)
    place = list(scenes.SCENES).index(name) + (lasting > 1)
    levels = scenes.SCENES[name][1]
    error = calls.ERRORS[place % (len(calls.ERRORS) - 1)]
    level = levels[place % len(levels)]
    count, broken = scenes.everywhere(name, level, error, lasting, first=1 + place % 5, step=step)
    assert broken == []
    assert count


@pytest.mark.parametrize("name", ["log", "finish", "init again"])
def test_no_memory_at_any_call_ends_no_training(name, repeats):
    count, broken = scenes.everywhere(name, "group", None, 1, first=2, step=repeats(11, 4))
    assert broken == []
    assert count
