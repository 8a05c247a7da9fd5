"""Rates, back-off and the circuit breaker, with a clock of their own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.errors import UsageError
from replayers.pace import Backoff, Breaker, Pace, Stopped, parse_rate
from replayers.sending import lanes_to


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def widest(low: float, high: float) -> float:
    return high


@given(
    st.floats(0.5, 1000), st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 9)), max_size=30)
)
def test_no_more_rows_are_sent_than_the_rate_allows(
    rate: float, calls: list[tuple[int, float]]
) -> None:
    clock = Clock()
    pace = Pace(rate, clock=clock, pause=clock.pause)
    sent = 0
    begun = clock.now
    for rows, idle in calls:
        pace.take(rows)
        # What was sent before this batch has had its time.
        assert sent <= (clock.now - begun) * rate + 1e-6
        sent += rows
        clock.pause(idle)


def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    pace = Pace(clock=clock, pause=clock.pause)
    for _ in range(10):
        pace.take(10**9)
    assert clock.now == 100.0


def test_a_target_that_asks_for_quiet_gets_it_from_everybody() -> None:
    clock = Clock()
    pace = Pace(clock=clock, pause=clock.pause)
    pace.hold(7)
    pace.hold(3)
    pace.take(1)
    assert clock.now == 107.0
    pace.take(1)
    assert clock.now == 107.0


def test_the_end_of_the_sync_ends_every_wait() -> None:
    stop = threading.Event()
    pace = Pace(0.001, stop=stop)
    pace.take(1)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
        pace.take(1)  # a thousand seconds


@pytest.mark.parametrize(
    ("text", "rate"), [("500", 500), ("2.5/s", 2.5), ("30/min", 0.5), (" 3600 / h ", 1)]
)
def test_rates_are_rows_a_second_or_have_a_unit(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "fast", "5/day", "1e3", "nan", "5/"])
def test_what_is_no_rate_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is no rate"):
        parse_rate(text)


def test_pauses_double_up_to_the_longest_and_are_never_all_alike() -> None:
    backoff = Backoff(1, 10, widest)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next() == 1
    drawn = [Backoff(8, 8).next() for _ in range(200)]
    assert min(drawn) >= 4
    assert max(drawn) <= 8
    assert len(set(drawn)) > 100
    endless = Backoff()
    assert max(endless.next() for _ in range(5000)) <= 300


def test_a_breaker_keeps_all_away_but_one_who_looks() -> None:
    clock = Clock()
    breaker = Breaker(Backoff(4, 100, widest), clock)
    assert breaker.admits()
    assert breaker.admits()
    assert breaker.failed() == 4
    assert breaker.failed() == 4, "the others that were under way add nothing"
    assert breaker.open
    assert not breaker.admits()
    clock.pause(4)
    assert breaker.admits()
    assert not breaker.admits(), "one looks, the others wait for him"
    assert breaker.failed() == 8
    clock.pause(7.9)
    assert not breaker.admits()
    clock.pause(0.1)
    assert breaker.admits()
    breaker.undecided()
    assert breaker.admits()
    assert breaker.worked()
    assert not breaker.open
    assert breaker.admits()
    assert not breaker.worked(), "it had not been down"


def test_a_breaker_waits_at_least_as_long_as_the_target_asks() -> None:
    clock = Clock()
    breaker = Breaker(Backoff(1, 10, widest), clock)
    assert breaker.failed(90) == 90
    assert breaker.left() == 90


def test_a_rate_stands_in_the_configuration_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "eventlog.toml").write_text(
        '[targets.slow]\nkind = "memory"\nrate = "30/min"\n[targets.free]\nkind = "memory"\n'
    )
    stop = threading.Event()
    lanes = lanes_to(["slow", "free", "memory:x"], list, [], stop, jobs=1)
    assert [lane.pace.rate for lane in lanes] == [0.5, None, None]
    (told,) = lanes_to(["slow"], list, [], stop, jobs=1, rate="7")
    assert told.pace.rate == 7
