"""Work done ahead in threads: in order, bounded, and to an end in any case."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventlog.ahead import in_order


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("eventlog-ahead")]


def jobs(count, cost=1, work=lambda hand, n: n):
    return ((cost, lambda hand, n=n: work(hand, n)) for n in range(count))


@pytest.mark.parametrize("hands", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_results_come_in_the_order_of_the_jobs(hands):
    meet = threading.Barrier(len(hands), timeout=120)

    def work(hand, n):
        if n < len(hands):
            meet.wait()  # each of them has one of the first
        time.sleep(0.002 * (n % 3 == 0))
        return hand, n

    found = list(in_order(jobs(40, work=work), hands, 100))
    assert [n for _hand, n in found] == list(range(40))
    assert {hand for hand, _n in found} == set(hands)
    assert not threads()


@pytest.mark.parametrize(("cost", "most", "at_once"), [(1, 100, 3), (10, 25, 2), (10, 5, 1)])
def test_no_hand_works_twice_at_once_and_costs_are_bounded(cost, most, at_once):
    busy, seen, lock = set(), [], threading.Lock()

    def work(hand, n):
        with lock:
            assert hand not in busy
            busy.add(hand)
            seen.append(len(busy))
        time.sleep(0.001)
        with lock:
            busy.remove(hand)
        return n

    assert len(list(in_order(jobs(30, cost, work), ["a", "b", "c"], most))) == 30
    assert max(seen) <= at_once


@pytest.mark.parametrize("hands", [["a"], ["a", "b"]])
@pytest.mark.parametrize("in_making", [True, False])
def test_what_is_raised_comes_in_its_turn(hands, in_making):
    def fails(hand, n):
        time.sleep(0.001 * (5 - n % 5))
        if n == 7:
            raise OSError(5, "the disk")
        return n

    def made():
        for n, job in enumerate(jobs(20, work=fails)):
            if in_making and n == 7:
                raise OSError(5, "the disk")
            yield job

    found = in_order(made(), hands, 100)
    assert [next(found) for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="the disk"):
        next(found)
    assert not threads()


def test_who_reads_no_further_leaves_no_thread():
    found = in_order(jobs(1000), ["a", "b"], 100)
    assert next(found) == 0
    assert threads()
    found.close()
    assert not threads()


@pytest.mark.parametrize("good", [0, 1])
def test_without_a_thread_to_be_had_the_work_is_done_all_the_same(good, monkeypatch):
    submit, calls = ThreadPoolExecutor.submit, []

    def refused(self, *work):
        calls.append(work)
        if len(calls) > good:
            raise RuntimeError("can't start new thread")
        return submit(self, *work)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    assert list(in_order(jobs(20), ["a", "b"], 100)) == list(range(20))
    assert calls
