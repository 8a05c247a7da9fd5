"""One run, logged to by one thread and by four: what an event costs, and that none is lost.

Beside it the least that any log of one file must do: a lock, and a bare write of as many bytes. And
both on one core only, where a lock need not be handed from core to core.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

THREADS = 4
LOG, BARE = "log() of 20 floats", "a lock and a bare os.write"
ONE_CORE = ", all on one core"
#: By way and number of threads: us an event, by the clock and of CPU time, of each round.
Blocks = dict[tuple[str, int], list[tuple[float, float]]]


def measure(rounds: int, scale: float) -> Found:
    """Measure blocks of one thread and of four in turn, then count what the files hold."""
    import eventlog
    from eventlog.audit import verify

    run = eventlog.init("bench", "threads", dir="journal", quiet=True)
    assert run.folder is not None
    data = mix.steps()
    count = max(int(20_000 * scale), 40) // THREADS * THREADS
    accepted: list[int] = []

    def log(calls: int) -> None:
        seqs = {run.log(data[i % len(data)], step=i) for i in range(calls)}
        accepted.append(len(seqs - {None}))

    write = _bare("bare", 2_208)
    blocks: Blocks = {}
    called = 0
    for _ in range(rounds):
        for cores in ("", ONE_CORE):
            for name, work in ((LOG, log), (BARE, write)):
                for threads in (1, THREADS):
                    took = _block(work, threads, count // threads, pinned=bool(cores))
                    blocks.setdefault((name + cores, threads), []).append(took)
                    called += count if name == LOG else 0
        run.flush()
        os.truncate("bare", 0)
    run.finish()
    held = verify(run.folder)
    # Every call gave a seq of its own, and every seq that was given is in the files.
    lost = called - sum(accepted) + run.health.appended - sum(w.events for w in held.writers)
    if held.verdict != "ok":
        sys.exit(f"verify says {held.verdict} of the run of many threads: {held}")
    return _told(blocks, called, lost)


def _bare(path: str, size: int) -> Callable[[int], None]:
    """Return what writes so many bytes under a lock, as often as it is told."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lock, content = threading.Lock(), b"x" * size

    def write(calls: int) -> None:
        for _ in range(calls):
            with lock:
                os.write(fd, content)

    return write


def _block(
    work: Callable[[int], None], threads: int, calls: int, *, pinned: bool
) -> tuple[float, float]:
    """Work in so many threads; return the us an event took, by the clock and of CPU time."""
    ready = threading.Barrier(threads + 1)
    everywhere = os.sched_getaffinity(0)

    def wait_and_work() -> None:
        ready.wait()
        work(calls)

    workers = [threading.Thread(target=wait_and_work) for _ in range(threads)]
    try:
        if pinned:  # of this thread, and of those that it starts
            os.sched_setaffinity(0, {min(everywhere)})
        for worker in workers:
            worker.start()
    finally:
        os.sched_setaffinity(0, everywhere)
    ready.wait()
    begun, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.join()
    events = threads * calls / 1e6
    return (time.perf_counter() - begun) / events, (time.process_time() - cpu) / events


def _told(blocks: Blocks, logged: int, lost: int) -> Found:
    rows, spreads = [], {}
    for way in dict.fromkeys(name for name, _threads in blocks):
        for i, what in enumerate(("us an event, by the clock", "CPU us an event")):
            one, four = ([took[i] for took in blocks[way, n]] for n in (1, THREADS))
            spread = spreads[way, i] = figures.ratios(four, one)
            medians = (short(Spread.of(x).median) for x in (one, four))
            rows.append([way, what, *medians, spread.text()])
    counted = Spread(lost, lost, lost)
    bars = [
        Bar(f"{THREADS} threads / 1 thread: time an event", 1.5, spreads[LOG, 0], "x"),
        Bar(f"{THREADS} threads / 1 thread: CPU an event", 1.5, spreads[LOG, 1], "x"),
        Bar(f"events lost of {logged:,}, counted by verify", 0, counted, ""),
    ]
    columns = ["way", "what", "1 thread", f"{THREADS} threads", "ratio"]
    return Found("threads", bars, [Table("Threads of one run", columns, rows)])
