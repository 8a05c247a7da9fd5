"""Memory at its highest, above what importing takes, for a run and for one ten times as long.

Each is a process of its own that notes its resident memory when everything is imported; pyarrow
imports pandas, where that is installed, at the first array it makes, and that belongs to it.
"""

from __future__ import annotations

import os
import shutil
import sys

from bench_parts import mix
from bench_parts.alone import answer
from bench_parts.figures import Bar, Found, Spread, Table, short

EVENTS = (20_000, 200_000)
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
    return Found(
        "memory", bars, [Table("Memory above import, at its highest", columns, rows, note)]
    )


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

    import eventlog.audit
    import eventlog.seal  # noqa: F401 - what is imported is no part of the figure

    pa.array([0]).to_numpy()
    before = status("VmRSS")
    WORK[name](folder)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
