"""Ten thousand runs in one journal: `eventlog status` and `eventlog ls`, from start to end.

The journal is made as quickly as real files can be: of each run its `run.json` and its sealed file
are written by what writes them everywhere, and the cursors of two targets as a sync leaves them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import eventlog
from bench_parts.figures import Bar, Found, Spread, Table

RUNS, STEPS, PROJECTS = 10_000, 20, 10
TARGETS = ("a", "b")
LIMITS = {"status": 3.0, "ls": 4.0}


def measure(rounds: int, scale: float) -> Found:
    """Make the journal, then run the commands in turn."""
    runs = max(int(RUNS * scale), 2)
    begun = time.monotonic()
    make("many", runs)
    made = time.monotonic() - begun
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LIMITS}
    for at in range(rounds + 1):
        for name in found:
            spent = _command(name, runs)
            if at:  # the first one fills caches, and compiles
                found[name].append(spent)
    bars, rows = [], []
    for name, limit in LIMITS.items():
        clock, cpu = (Spread.of(column) for column in zip(*found[name], strict=True))
        bars.append(Bar(f"eventlog {name}, {runs:,} runs: s", limit, clock, ""))
        rows.append([f"eventlog {name}", clock.text(), cpu.text()])
    note = (
        f"{runs:,} runs of {STEPS} steps, sealed, {len(TARGETS)} targets that have them; made in "
        f"{made:.0f} s; the command from start to end"
    )
    return Found("many", bars, [Table("Many runs", ["command", "s", "CPU s"], rows, note)])


def make(journal: str, runs: int) -> None:
    """Make a journal of so many runs that two targets have."""
    from eventlog.catalog import find_all
    from eventlog.delivery import deliveries, state_folder
    from eventlog.home import prepare
    from eventlog.sealed import SealedFile
    from replayers.replay import replay
    from replayers.to_memory import MemoryTarget

    prepare(journal)
    with eventlog.init("p", "r", id="model", dir="model", quiet=True, config={"lr": 1e-3}) as run:
        for step in range(STEPS):
            run.log({"loss": 1 / (step + 1), "acc": step / STEPS}, step=step)
    (model,), _bad = find_all(["model"])
    state = state_folder("model")
    for address in TARGETS:
        replay(model, MemoryTarget(address), state)
    (path,) = Path(model.folder).glob("sealed/*.parquet")
    with SealedFile(str(path)) as file, _without_syncs():
        cursors = list(deliveries(state))
        (rows,) = [file.rows(group) for group in range(len(file.groups))]
        for number in range(runs):
            _run(journal, number, path.name, rows, file.segments, cursors)


def _run(
    journal: str, number: int, name: str, rows: Any, segments: Any, cursors: list[Any]
) -> None:
    from eventlog.delivery import Delivery, cursor_bytes, footprint, state_folder
    from eventlog.layout import run_folder
    from eventlog.runfile import RunFile
    from eventlog.sealedwriter import SealedWriter, with_origin

    run = RunFile(f"run{number}", f"p{number % PROJECTS}", f"r{number}")
    folder = run_folder(journal, run.project, run.id)
    place = os.path.join(folder, "sealed")
    os.makedirs(place)
    Path(folder, "run.json").write_bytes(run.to_bytes())
    own = with_origin(rows.columns[:-2], run.id, segments[0].header.writer)
    parts = [
        dataclasses.replace(
            one,
            header=dataclasses.replace(
                one.header,
                run=run.id,
                identity={**one.header.identity, "project": run.project, "name": run.name},
            ),
        )
        for one in segments
    ]
    with SealedWriter(place) as out:
        out.add(own)
        out.finish(os.path.join(place, name), parts)
    print_ = footprint(folder)
    for cursor in cursors:
        delivery = Delivery(
            state_folder(journal),
            kind=cursor.kind,
            address=cursor.address,
            project=run.project,
            run=run.id,
        )
        mine = dataclasses.replace(cursor, run=run.id, project=run.project, footprint=print_)
        os.makedirs(delivery.folder)
        Path(delivery.folder, "cursor.json").write_bytes(cursor_bytes(mine))


@contextlib.contextmanager
def _without_syncs() -> Any:
    """What is made here need not survive a power cut."""
    before = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda fd: None
    try:
        yield
    finally:
        os.fsync, os.fdatasync = before


def _command(name: str, runs: int) -> tuple[float, float]:
    """Run the command; return its seconds, by the clock and of CPU time."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.abspath("bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "eventlog.cli.main", name, "many"]
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    passed, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = runs * (len(TARGETS) if name == "status" else 1)
    if done.returncode or len(done.stdout.splitlines()) != lines + 1:
        sys.exit(f"eventlog {name}: {done.stderr[-2000:]}")
    return passed, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
