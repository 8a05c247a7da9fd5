"""`eventlog sync`: the engine alone, memory, and a sync that has nothing to do.

The engine is measured with the model target (`replayers.to_memory`), which maps every point, keeps
it, and compares what it keeps with what it was sent. For memory it lets go of the batch before the
last: what is left is the engine's.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import eventlog
from bench_parts import mix
from bench_parts.alone import answer
from bench_parts.figures import Bar, Found, Spread, Table, short

EVENTS, LONG, RUNS = 100_000, 1_000_000, 1000
_MB = 1e6


def measure(rounds: int, scale: float) -> Found:
    """Sync a run live and sealed, in turn; then syncs with nothing to do."""
    count = max(int(EVENTS * scale), 100)
    places = {"live": mix.journal("live", count)}
    places["sealed"] = shutil.copytree(places["live"], places["live"].replace("live", "sealed"))
    _seal(places["sealed"])
    told: dict[str, list[list[float]]] = {name: [] for name in places}
    for _ in range(rounds):
        for name in places:
            told[name].append(answer("sync", "speed", name))
    bars, rows = [], []
    for name, figures in told.items():
        cpu, clock = (Spread.of(column) for column in zip(*figures, strict=True))
        bars.append(Bar(f"engine, {name}: M points a CPU second", 1.5, cpu, "", least=True))
        (peak,) = answer("sync", "memory", name)
        bars.append(Bar(f"engine, {name}: MB above import", 150, Spread(peak, peak, peak), ""))
        rows.append([name, cpu.text(), clock.text(), short(peak)])
    columns = ["run", "M points/CPU s", "by the clock", "MB above import"]
    note = f"{count * mix.METRICS:,} points into the model target"
    engine = Table("Journal to the model target", columns, rows, note)
    quiet = _nothing(rounds, scale, bars)
    return Found("sync", bars, [engine, quiet])


def _seal(folder: str) -> None:
    from eventlog.seal import seal

    assert seal(folder).rows


def _nothing(rounds: int, scale: float, bars: list[Bar]) -> Table:
    """Time the command where there is nothing to do."""
    runs, events = max(int(RUNS * scale), 2), max(int(LONG * scale), 100)
    for n in range(runs):
        run = eventlog.init("bench", f"r{n}", dir="many", quiet=True, resume="never")
        run.log({"loss": 1.0}, step=0)
        run.finish()
    mix.journal("long", events, 1)
    what = {"many": (f"{runs:,} runs", 1.0), "long": (f"a run of {events:,} events", 0.3)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in what}
    for at in range(rounds + 1):
        for name in what:
            spent = _command(name)
            if at:  # the first one has everything to do
                found[name].append(spent)
    rows = []
    for name, (label, limit) in what.items():
        clock, cpu = (Spread.of(column) for column in zip(*found[name], strict=True))
        bars.append(Bar(f"nothing to do, {label}: s", limit, clock, ""))
        rows.append([label, clock.text(), cpu.text()])
    note = "the command from start to end, its bytecode compiled before, as an installation does"
    return Table("A sync with nothing to do", ["journal", "s", "CPU s"], rows, note)


def _command(name: str) -> tuple[float, float]:
    """Run the command; return its seconds, by the clock and of CPU time."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.abspath("bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "eventlog.cli.main", "sync", name, "--to", "memory", "--json"]
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    passed, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"eventlog sync {name}: {done.stderr[-2000:]}")
    return passed, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


# ------------------------------------------------------------------------------ in the process


def main(what: str, name: str) -> None:
    """Sync a journal's run into the model target anew; print what was asked for."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.ipc
    import pyarrow.parquet

    from bench_parts.memory import status
    from eventlog.catalog import find_all
    from replayers.replay import replay
    from replayers.to_memory import MemorySession, MemoryTarget

    class Forgetful(MemoryTarget):
        """Keeps the last batch only."""

        def open(self, run: Any) -> MemorySession:
            session = super().open(run)
            plain = session.send

            def send(batch: Any) -> Any:
                self.runs[run.id].points.clear()
                return plain(batch)

            session.send = send  # type: ignore[method-assign]
            return session

    pa.array([0]).to_numpy()
    target = Forgetful() if what == "memory" else MemoryTarget()
    (found,), _bad = find_all([name])
    state = os.path.join("state", name)
    shutil.rmtree(state, ignore_errors=True)
    before, used, passed = status("VmRSS"), time.process_time(), time.perf_counter()
    done = replay(found, target, state)
    used, passed = time.process_time() - used, time.perf_counter() - passed
    assert done.settled == done.events, done
    if what == "memory":
        print(status("VmHWM") - before)
    else:
        print(done.points / 1e6 / used, done.points / 1e6 / passed)


if __name__ == "__main__":
    main(*sys.argv[1:])
