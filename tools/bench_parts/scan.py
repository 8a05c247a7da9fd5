"""The recovery scan: every frame's checksum, place and order, as a start after a crash reads it.

Beside it, in turn: reading the same bytes and nothing else, and CRC-32 of them in one piece. The
files are in the page cache.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable

from bench_parts import figures, mix
from bench_parts.figures import Bar, Found, Spread, Table, short

_CHUNK = 2**20
#: Keys an event, events in a journal.
CASES = ((mix.METRICS, 50_000), (1, 100_000), (100, 10_000))


def measure(rounds: int, scale: float) -> Found:
    """Scan journals of small, usual and large frames."""
    bars, rows = [], []
    for keys, events in CASES:
        count = max(int(events * scale), 100)
        paths = _segments(mix.journal(f"keys-{keys}", count, keys))
        size = sum(os.path.getsize(path) for path in paths)
        speeds = {way: [0.0] * rounds for way in (_read, _crc, _scan)}
        for i in range(rounds):
            for way, found in speeds.items():
                begun = time.process_time()
                way(paths, count)
                found[i] = size / 1e6 / (time.process_time() - begun)
        read, crc, scan = (speeds[way] for way in (_read, _crc, _scan))
        bars.append(Bar(f"scan, {keys} keys an event, MB/s", 300, Spread.of(scan), "", least=True))
        cells = [short(Spread.of(speed).median) for speed in (read, crc)]
        share = figures.ratios(scan, crc).text()
        rows.append([keys, f"{size / count:,.0f}", *cells, Spread.of(scan).text(), share])
    columns = ["keys", "bytes a frame", "read MB/s", "CRC-32 MB/s", "scan MB/s", "scan / CRC-32"]
    note = "megabytes a second of CPU time, one core"
    return Found("scan", bars, [Table("Recovery scan with checksums", columns, rows, note)])


def _segments(folder: str) -> list[str]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".arrows"))
    return [os.path.join(folder, name) for name in names]


def _chunks(paths: list[str], use: Callable[[bytes], object]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                use(chunk)


def _read(paths: list[str], count: int) -> None:
    _chunks(paths, len)


def _crc(paths: list[str], count: int) -> None:
    _chunks(paths, zlib.crc32)


def _scan(paths: list[str], count: int) -> None:
    from eventlog.segment import WHOLE, SegmentReader

    found = 0
    for path in paths:
        with SegmentReader(path) as reader:
            found += sum(span.count for span in reader.spans())
            assert reader.verdict is not None
            assert reader.verdict.word == WHOLE
    assert found == count
