"""Work done ahead, in threads: results come in order, and what is in flight is bounded."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_Hand = TypeVar("_Hand")
_Result = TypeVar("_Result")


def cores() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux's; a batch system gives few of many
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def in_order(
    jobs: Iterator[tuple[int, Callable[[_Hand], _Result]]], hands: Sequence[_Hand], most: int
) -> Iterator[_Result]:
    """Yield the results of jobs in the order of the jobs, and what one of them raises in its turn.

    Parameters
    ----------
    jobs:
        Cost and job; taken in this thread, a few ahead of what is yielded.
    hands:
        What jobs work with, a file that is open, say: one for each thread. A single one takes no
        thread.
    most:
        Jobs whose costs add up to more are not in flight together.
    """
    if len(hands) == 1:
        for _cost, job in jobs:
            yield job(hands[0])
        return
    import queue
    from concurrent.futures import ThreadPoolExecutor

    free: queue.SimpleQueue[_Hand] = queue.SimpleQueue()
    for hand in hands:
        free.put(hand)

    def done(job: Callable[[_Hand], _Result]) -> _Result:
        hand = free.get()
        try:
            return job(hand)
        finally:
            free.put(hand)

    flying: deque[tuple[int, Callable[[], _Result]]] = deque()
    total = 0
    failed: Exception | None = None
    threads = ThreadPoolExecutor(len(hands), "eventlog-ahead")
    try:
        while failed is None:
            try:
                cost, job = next(jobs)
            except StopIteration:
                break
            except Exception as error:
                failed = error  # in its turn: what comes before it is still on its way
                break
            while flying and (total + cost > most or len(flying) >= 2 * len(hands)):
                before, result = flying.popleft()
                yield result()
                total -= before
            try:
                flying.append((cost, threads.submit(done, job).result))
            except RuntimeError:  # the system gives no thread: then without
                flying.append((cost, functools.partial(done, job)))
            total += cost
        while flying:
            yield flying.popleft()[1]()
        if failed is not None:
            raise failed
    finally:
        threads.shutdown(cancel_futures=True)
