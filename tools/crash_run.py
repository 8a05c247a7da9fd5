"""What `tools/crash` does inside the environment."""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from tests.faults import damage, histories, lazy, nth, scenes  # noqa: E402 - tests are no installed package

#: States that are tried after each operation of a history.
LIMIT = 100
#: No more violations than these are printed.
SHOWN = 20

Found = tuple[dict[str, int], list[str]]


def states(seed: int) -> Found:
    """Explore one random history."""
    figures = histories.explore(histories.Plan.of(seed), LIMIT)
    counts = {
        "histories": 1,
        "operations": figures.operations,
        "states": figures.states,
        "distinct states": figures.distinct,
    }
    return counts, [f"states, {violation}" for violation in figures.violations]


def damages(seed: int) -> Found:
    """Cut and flip one random segment and one random journal."""
    counted = damage.series(seed)
    told = [f"damage, seed {seed}: {text}" for text in counted.violations]
    return {"cuts": counted.cuts, "flips": counted.flips}, told


def failures(case: int) -> Found:
    """Fail a call of one kind with one error at every index."""
    if case < len(nth.CASES):
        count, violations = nth.everywhere(*nth.CASES[case])
    else:
        count, violations = scenes.everywhere(*scenes.CASES[case - len(nth.CASES)])
    return {"failures at call indices": count}, [f"failures, case {case}: {v}" for v in violations]


def cuts(folder: str, fifo: str, options: argparse.Namespace) -> int:
    """Cut the power of a LazyFS again and again."""
    top = tempfile.mkdtemp(dir=folder)
    end, count, taken, broken = time.monotonic() + options.seconds, 0, 0, []
    while time.monotonic() < end and count < options.states:
        lost, found = lazy.survives(top, fifo, options.seed + count)
        count, taken, broken = count + 1, taken + lost, broken + found
    print(
        f"{count} power cuts took {taken} events that were not durable; violations: {len(broken)}"
    )
    for text in broken[:SHOWN]:
        print(text, file=sys.stderr)
    return int(bool(broken))


def _quick() -> None:
    """Look for garbage rarely: nearly everything here goes by itself."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def main(arguments: list[str]) -> int:
    """Run; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="tools/crash")
    parser.add_argument("--states", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--flips", type=int, default=1_000_000, metavar="N", help="cuts as well")
    parser.add_argument("--seconds", type=float, default=3600.0, metavar="S")
    parser.add_argument("--seed", type=int, default=1, metavar="K")
    parser.add_argument("--state", type=int, metavar="M")
    parser.add_argument("--keep", metavar="FOLDER")
    parser.add_argument("--lazyfs", nargs=2, metavar=("FOLDER", "FIFO"))
    options = parser.parse_args(arguments)
    if options.lazyfs:
        return cuts(*options.lazyfs, options)
    if options.state is not None:
        for line in histories.told(options.seed, LIMIT, options.state):
            print(line)
        if options.keep:
            histories.kept(options.seed, LIMIT, options.state, options.keep)
        return 0
    begun = time.monotonic()
    tell = begun + 60.0
    counts: Counter[str] = Counter()
    violations: list[str] = []

    def wanted() -> Iterator[tuple[str, int]]:
        """Yield what to do next, until there is enough of it."""
        cases = iter(range(len(nth.CASES) + len(scenes.CASES)))
        for seed in itertools.count(options.seed):
            left = counts["distinct states"] < options.states, counts["flips"] < options.flips
            case = next(cases, None)
            over = not any(left) and case is None
            if over or time.monotonic() - begun > options.seconds:
                return
            if case is not None:
                yield "failures", case
            if left[0]:
                yield "states", seed
            if left[1]:
                yield "damages", seed

    work = {"states": states, "damages": damages, "failures": failures}
    with concurrent.futures.ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("forkserver"), initializer=_quick
    ) as pool:
        todo = wanted()
        running: set[concurrent.futures.Future[Found]] = set()
        while True:
            ahead = 2 * (os.cpu_count() or 1) - len(running)
            running |= {pool.submit(work[kind], n) for kind, n in itertools.islice(todo, ahead)}
            if not running:
                break
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for one in done:
                found, broken = one.result()
                counts.update(found)
                violations += broken
            if time.monotonic() > tell:
                tell += 60.0
                print(f"{dict(counts)}, violations: {len(violations)}", file=sys.stderr)
    counts["violations"] = len(violations)
    counts["seconds"] = round(time.monotonic() - begun)
    for name, count in counts.items():
        print(f"{name:32}{count:>14,}")
    for text in violations[:SHOWN]:
        print(text, file=sys.stderr)
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
