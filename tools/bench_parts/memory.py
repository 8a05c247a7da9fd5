"""Memory at its highest, above what importing takes, for a run and for one ten times as long, and
for archives of some runs and of ten times as many.

Each is a process of its own that notes its resident memory when everything is imported; pyarrow
imports pandas, where that is installed, at the first array it makes, and that belongs to it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from bench_parts import mix
from bench_parts.alone import answer
from bench_parts.figures import Bar, Found, Spread, Table, short

EVENTS = (20_000, 200_000)
#: Runs of a project, of so many events each.
RUNS, RUN_EVENTS = (30, 300), 200
LIMIT = 150.0
_MB = 1e6


def measure(rounds: int, scale: float) -> Found:
    """Read, seal, verify and read the sealed run, at both lengths."""
    found: dict[str, list[float]] = {name: [] for name in WORK}
    sizes = []
    counts = [max(int(events * scale), 50) for events in EVENTS]
    for count in counts:
        folder = mix.journal(f"length-{count}", count)
        sizes.append(
            sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder)) / _MB
        )
        for name in WORK:
            found[name].append(answer("memory", name, folder)[0])
        shutil.rmtree(folder)
    bars = [
        Bar(f"{name}, {size:,.0f} MB: MB above import", LIMIT, Spread(peak, peak, peak), "")
        for name, peaks in found.items()
        for size, peak in zip(sizes, peaks, strict=True)
    ]
    columns = ["what", *(f"{n:,} events, MB" for n in counts), "ratio"]
    rows = [
        [name, *map(short, peaks), short(peaks[-1] / peaks[0])] for name, peaks in found.items()
    ]
    note = f"live segments of {' and '.join(f'{s:,.0f}' for s in sizes)} MB; resident, pages of files too"
    archives, table = _archives(scale)
    tables = [Table("Memory above import, at its highest", columns, rows, note), table]
    return Found("memory", bars + archives, tables)


def _archives(scale: float) -> tuple[list[Bar], Table]:
    """Archive runs of a project, read and verify all of them, for some and for ten times as many."""
    from eventlog.seal import seal

    counts = [max(int(runs * scale), 2) for runs in RUNS]
    found: dict[str, list[float]] = {name: [] for name in OF_PROJECT}
    for count in counts:
        for n in range(count):
            folder = mix.journal(f"runs-{count}", RUN_EVENTS, run=f"r{n}")
            seal(folder)
        project = os.path.dirname(folder)
        for name in OF_PROJECT:
            found[name].append(answer("memory", name, project)[0])
        shutil.rmtree(project)
    bars = [
        Bar(f"{name}, {count:,}: MB above import", LIMIT, Spread(peak, peak, peak), "")
        for name, peaks in found.items()
        for count, peak in zip(counts, peaks, strict=True)
    ]
    columns = ["what", *(f"{n:,} runs, MB" for n in counts), "ratio"]
    rows = [
        [name, *map(short, peaks), short(peaks[-1] / peaks[0])] for name, peaks in found.items()
    ]
    note = f"{RUN_EVENTS:,} events of {mix.METRICS} metrics each, in one archive"
    return bars, Table("Memory above import, archives", columns, rows, note)


# ------------------------------------------------------------------------------ in the process


def _read(folder: str) -> None:
    from eventlog.reader import WriterReader, listing

    for writer in listing(folder).writers:
        for _table in WriterReader(folder, writer).tables():
            pass


def _seal(folder: str) -> None:
    from eventlog.seal import seal

    assert seal(folder).rows


def _verify(folder: str) -> None:
    from eventlog.audit import verify

    assert not verify(folder).failed


#: In this order: the run is sealed in between.
WORK = {
    "read, live": _read,
    "verify, live": _verify,
    "seal": _seal,
    "read, sealed": _read,
    "verify, sealed": _verify,
}


def _runs(project: str) -> list[str]:
    return [os.path.join(project, name) for name in os.listdir(project) if name.startswith("run=")]


def _archive(project: str) -> None:
    from eventlog.archiving import archive

    assert archive(project, _runs(project), unchanged=0).archives


def _each(work: Callable[[str], None]) -> Callable[[str], None]:
    def all_of(project: str) -> None:
        for folder in _runs(project):
            work(folder)

    return all_of


#: In this order: runs that are sealed are archived first.
OF_PROJECT = {
    "archive runs": _archive,
    "read archived runs": _each(_read),
    "verify archived runs": _each(_verify),
}


def status(field: str) -> float:
    """Return a figure of this process's memory, in megabytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / _MB
    raise OSError(f"no {field} in /proc/self/status")


def main(name: str, folder: str) -> None:
    """Do one piece of work; print the megabytes above import."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.ipc
    import pyarrow.parquet

    import eventlog.archiving
    import eventlog.audit
    import eventlog.seal  # noqa: F401 - what is imported is no part of the figure

    pa.array([0]).to_numpy()
    before = status("VmRSS")
    {**WORK, **OF_PROJECT}[name](folder)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
