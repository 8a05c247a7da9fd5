"""What `tools/kill` does inside the environment."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from tests.faults import kills  # noqa: E402 - tests are no installed package


def main(arguments: list[str]) -> int:
    """Run; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="tools/kill")
    parser.add_argument("--kills", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="K")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="eventlog-kill-") as folder:
        figures = kills.series(folder, options.kills, options.seed)
    for name, count in (
        ("SIGKILLs", figures.kills),
        ("events whose log() had returned", figures.acknowledged),
        ("of them lost", figures.lost),
        ("events read that were not told of", figures.untold),
        ("violations", len(figures.violations)),
        ("seconds", round(time.monotonic() - begun)),
    ):
        print(f"{name:36}{count:>12,}")
    for text in figures.violations[:20]:
        print(text, file=sys.stderr)
    return int(bool(figures.violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
