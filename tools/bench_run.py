"""What `tools/bench` does inside the environment."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import functools
import json
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench_parts import (
    append,
    imports,
    keys,
    machine,
    many,
    memory,
    page,
    query,
    scan,
    seal,
    stalls,
    sync,
    threads,
    watch,
    ways,
)
from bench_parts.figures import Found

from eventlog.cli.output import print_text, say

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
Measure = Callable[[int, float], Found]
PARTS: dict[str, Measure] = {
    "keys": keys.measure,
    "threads": threads.measure,
    "stalls": stalls.measure,
    "scan": scan.measure,
    "seal": seal.measure,
    "query": query.measure,
    "import": imports.measure,
    "memory": memory.measure,
    "sync": sync.measure,
    "many": many.measure,
    "watch": watch.measure,
}


def main(arguments: list[str]) -> int:
    """Measure what the command line names; 0 whether or not the bars are met."""
    parser = argparse.ArgumentParser(prog="tools/bench", description="See the top of tools/bench.")
    parser.add_argument("what", choices=["append", *PARTS, "all"])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="of all counts")
    parser.add_argument("--ways", metavar="A,B", help=f"of append: {', '.join(ways.WAYS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 0 < options.scale <= 100:
        parser.error("--rounds is at least 1, --scale above 0 and at most 100")
    names = _ways(options.ways, parser)
    parts: dict[str, Measure] = {"append": functools.partial(append.measure, names), **PARTS}
    if not options.json:
        print_text("\n".join(textwrap.fill(line, page.WIDTH) for line in machine.describe()))
    found = []
    for name in parts if options.what == "all" else [options.what]:
        found.append(_measured(name, parts[name], options.rounds, options.scale))
        if not options.json:
            page.show(found[-1])
    _told(found, options.json, whole=options.what == "all" and options.scale == 1.0)
    return 0


def _ways(given: str | None, parser: argparse.ArgumentParser) -> list[str]:
    if given is not None:
        names = given.split(",")
        for name in names:
            if name not in ways.WAYS or not ways.installed(name):
                parser.error(f"no way is called {name!r}, or its package is not installed")
        return names
    for name in ways.WAYS:
        if not ways.installed(name):
            say(f"{name} is left out: its package is not installed")
    return [name for name in ways.WAYS if ways.installed(name)]


def _measured(name: str, measure: Measure, rounds: int, scale: float) -> Found:
    """Run one part in a folder of its own."""
    command = f"tools/bench {name}" + (f" --rounds {rounds}" if rounds != 5 else "")
    command += f" --scale {scale:g}" if scale != 1 else ""
    say(f"{name} …")
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="eventlog-bench-") as folder,
        _inside(folder),
        machine.other_load() as load,
    ):
        found = measure(rounds, scale)
    seconds = round(time.monotonic() - begun, 1)
    return dataclasses.replace(found, command=command, seconds=seconds, other_load=load.share)


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _told(found: list[Found], as_json: bool, *, whole: bool) -> None:
    when = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d")
    if as_json:
        told = {"machine": machine.describe(), "date": when, "parts": [f.to_json() for f in found]}
        print_text(json.dumps(told, indent=1))
    else:
        missed = page.missed(found)
        print_text()
        print_text(textwrap.fill(page.load_of(found), page.WIDTH))
        print_text(f"{len(missed)} bars are missed" + (":" if missed else ""))
        for bar in missed:
            print_text(f"  {bar.what}: {bar.found.text()}")
    if whole:
        RESULTS.write_text(page.markdown(found, machine.describe(), when))
        say(f"written: tools/{RESULTS.name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
