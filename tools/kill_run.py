"""What `tools/kill` does inside the environment."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from replayers.superseding import APPEND, CHOICES  # noqa: E402 - the checkout's own
from tests.faults import kills  # noqa: E402 - tests are no installed package
from tests.targets import kill_places, sync_kills  # noqa: E402

#: How many kills are published, of the trainer and of a sync into each kind of target.
TRAINER, SYNC = 1000, {"mlflow-server": 100, "wandb": 100}


def main(arguments: list[str]) -> int:
    """Run; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="tools/kill")
    parser.add_argument("--sync", action="store_true", help="kill eventlog sync, not a trainer")
    parser.add_argument("--target", choices=list(kill_places.PLACES), default="model")
    parser.add_argument("--superseded", choices=CHOICES, default=APPEND)
    parser.add_argument("--kills", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="K")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    if options.sync:
        count = options.kills or SYNC.get(options.target, 500)
        violations = _sync(options.target, count, options.seed, options.superseded)
    else:
        violations = _trainer(options.kills or TRAINER, options.seed)
    _show("seconds", round(time.monotonic() - begun))
    for text in violations[:20]:
        print(text, file=sys.stderr)
    return int(bool(violations))


def _trainer(count: int, seed: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="eventlog-kill-") as folder:
        figures = kills.series(folder, count, seed)
    _show("SIGKILLs", figures.kills)
    _show("events whose log() had returned", figures.acknowledged)
    _show("of them lost", figures.lost)
    _show("events read that were not told of", figures.untold)
    _show("violations", len(figures.violations))
    return figures.violations


def _sync(target: str, count: int, seed: int, superseded: str) -> list[str]:
    begun = time.monotonic()

    def tell(figures: sync_kills.Figures) -> None:
        wrong = f", {len(figures.violations)} violations" if figures.violations else ""
        seconds = time.monotonic() - begun
        text = f"{seconds:.0f} s: {figures.kills} kills, {figures.runs} runs compared{wrong}"
        print(text, file=sys.stderr, flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="eventlog-kill-") as folder,
        kill_places.PLACES[target](Path(folder)) as place,
    ):
        figures = sync_kills.series(place, count, seed, tell, superseded)
    for name, number in figures.rows():
        _show(name, number)
    return figures.violations


def _show(name: str, number: int) -> None:
    print(f"{name:36}{number:>12,}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
