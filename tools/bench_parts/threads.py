"""One run, logged to by one thread and by four: what an event costs, and that none is lost."""

from __future__ import annotations

import sys
import threading
import time

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

THREADS = 4


def measure(rounds: int, scale: float) -> Found:
    """Measure blocks of one thread and of four in turn, then count what the files hold."""
    import eventlog
    from eventlog.audit import verify

    run = eventlog.init("bench", "threads", dir="journal", quiet=True)
    assert run.folder is not None
    data = mix.steps()
    count = max(int(20_000 * scale), 40) // THREADS * THREADS
    blocks: dict[int, list[tuple[float, float]]] = {1: [], THREADS: []}
    returned = 0
    for _ in range(rounds):
        for threads in blocks:
            accepted: list[int] = []
            blocks[threads].append(_block(run, data, threads, count // threads, accepted))
            returned += sum(accepted)
            run.flush()
    run.finish()
    held = verify(run.folder)
    # Every call gave a seq of its own, and every seq that was given is in the files.
    called = 2 * rounds * count
    lost = called - returned + run.health.appended - sum(w.events for w in held.writers)
    if held.verdict != "ok":
        sys.exit(f"verify says {held.verdict} of the run of many threads: {held}")
    return _told(blocks, called, lost)


def _block(
    run: object, data: list[dict[str, float]], threads: int, calls: int, accepted: list[int]
) -> tuple[float, float]:
    """Log from so many threads; return the us an event took, by the clock and of CPU time."""
    ready = threading.Barrier(threads + 1)

    def work(log: object = run.log) -> None:  # type: ignore[attr-defined]
        seqs = set()
        ready.wait()
        for i in range(calls):
            seqs.add(log(data[i % len(data)], step=i))  # type: ignore[operator]
        accepted.append(len(seqs - {None}))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    begun, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.join()
    events = threads * calls / 1e6
    return (time.perf_counter() - begun) / events, (time.process_time() - cpu) / events


def _told(blocks: dict[int, list[tuple[float, float]]], logged: int, lost: int) -> Found:
    rows, spreads = [], []
    for i, name in enumerate(("us an event, by the clock", "CPU us an event")):
        one, four = ([block[i] for block in blocks[n]] for n in (1, THREADS))
        spreads.append(figures.ratios(four, one))
        rows.append(
            [name, short(Spread.of(one).median), short(Spread.of(four).median), spreads[-1].text()]
        )
    counted = Spread(lost, lost, lost)
    bars = [
        Bar(f"{THREADS} threads / 1 thread: time an event", 1.5, spreads[0], "x"),
        Bar(f"{THREADS} threads / 1 thread: CPU an event", 1.5, spreads[1], "x"),
        Bar(f"events lost of {logged:,}, counted by verify", 0, counted, ""),
    ]
    columns = ["log() of 20 floats", "1 thread", f"{THREADS} threads", "ratio"]
    return Found("threads", bars, [Table("Threads of one run", columns, rows)])
