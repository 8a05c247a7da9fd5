"""`eventlog sync --watch`: from `log()` to the local target, and what it costs beside quiet runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import eventlog
from bench_parts.figures import Bar, Found, Spread, Table, quantile, short

#: For how long a run that was quiet keeps its session (`replayers.lane.QUIET`), and some more.
_LET_GO = 35.0


def measure(rounds: int, scale: float) -> Found:
    """Follow one live run into a Trackio folder; then stand beside quiet runs."""
    seen = _latency(max(int(rounds * 8 * scale), 2))
    late = [quantile(seen, part) for part in (0.5, 0.95, 1.0)]
    rows, bars = [], [Bar("log() to a Trackio folder, s", 2, Spread.of(seen), "")]
    for runs in (100, 1000):
        spent = _idle(max(int(runs * scale), 1), 20 * min(scale, 1.0), _LET_GO * min(scale, 1.0))
        rows.append([f"{runs:,}", f"{short(spent)} %"])
        if runs == 100:
            bars.append(Bar("idle beside 100 quiet runs, % of a core", 2, Spread.of([spent]), ""))
    tables = [
        Table(
            "An event's way to a Trackio folder, s",
            ["events", "median", "p95", "most"],
            [[len(seen), *map(short, late)]],
        ),
        Table("Idle", ["quiet runs", "CPU of a core"], rows, "half of them ended, half open"),
    ]
    return Found("watch", bars, tables)


@contextlib.contextmanager
def _following(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "eventlog.cli.main", "sync", *arguments, "--watch", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _latency(events: int) -> list[float]:
    folder = Path("live").absolute()
    seen = []
    run = eventlog.init("bench", "live", dir=folder / "j", quiet=True, resume="never")
    with _following(str(folder / "j"), "--to", f"trackio:{folder / 't'}"):
        for step in range(events + 1):
            begun = time.perf_counter()
            run.log({"loss": float(step)}, step=step)
            while _last_step(folder / "t" / "bench.db") < step:
                time.sleep(0.005)
            if step:  # the first one waits for the programs to start
                seen.append(time.perf_counter() - begun)
            time.sleep(0.37)  # not in time with the looks
    run.finish()
    return seen


def _last_step(path: Path) -> int:
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT max(step) FROM metrics").fetchone()[0] or 0)
        finally:
            connection.close()
    return -1


def _idle(runs: int, seconds: float, quiet: float) -> float:
    """Return which part of a core a sync takes beside so many quiet runs, in percent."""
    folder = Path(f"quiet-{runs}").absolute()
    for n in range(runs):
        run = eventlog.init("bench", f"r{n}", dir=folder, quiet=True, resume="never")
        run.log({"loss": 1.0}, step=0)
        if n % 2:
            run.finish()
        elif run._writer is not None:
            run._writer.close()
    with _following(str(folder), "--to", "memory") as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if told["runs"] == runs and not told["unread"] and not told["events"]:
                break
        time.sleep(quiet)
        before, begun = _used(process.pid), time.perf_counter()
        time.sleep(seconds)
        return 100 * (_used(process.pid) - before) / (time.perf_counter() - begun)


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
