"""Hostile archives: what `tests.faults.hostile` does to other files, to those that hold many runs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eventlog.archive import WholeArchive, read
from eventlog.archived import absent
from eventlog.archiving import archive
from eventlog.errors import EventlogError
from eventlog.listing import listing
from eventlog.runfile import RunFile
from eventlog.seal import seal
from eventlog.sealed import WORDS
from eventlog.segment import Header
from eventlog.series import series as one_metric
from tests.faults import hostile
from tests.helpers import Bytes, put, run_in, segment_bytes, series

RUNS = ("r0", "r1")
PROJECT = "/j/project=p"
ARCHIVE = "runs-0123456789abcdef.parquet"
#: The files of a project that is to be archived, one input: see `hostile.pack`.
NAMES = [
    f"sealed/{ARCHIVE}",
    *(f"run={run}/{name}" for run in RUNS for name in ("run.json", f"sealed/w{run}-0-3.parquet")),
]


def mend(data: bytes) -> bytes:
    """Put right the checksum of an archive's metadata."""
    try:
        meta = pq.read_metadata(io.BytesIO(data)).metadata
        text, old = meta[b"eventlog.parts"] + meta[b"eventlog.groups"], meta[b"eventlog.crc32"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return data
    if re.fullmatch(rb"[0-9a-f]{8}", old) is None:
        return data
    at = data.rfind(old)
    return data[:at] + b"%08x" % zlib.crc32(text) + data[at + 8 :]


def read_archive(data: bytes) -> None:
    """Read an archive, and the runs in it with everything that reads a run."""
    path = f"{PROJECT}/sealed/{ARCHIVE}"
    files = {path: data}
    for run in RUNS:
        files[f"{PROJECT}/run={run}/run.json"] = RunFile(run, "p", "n").to_bytes([ARCHIVE])
    store = Bytes(files)
    with contextlib.suppress(EventlogError):
        found = read(path, store)
        rows = sum(group[0] for group in found.groups)
        with WholeArchive(path, store, WORDS) as whole:
            assert sum(whole.checked(n).num_rows for n in range(len(whole.groups))) == rows
    for run in RUNS:
        folder = f"{PROJECT}/run={run}"
        hostile.look(folder, store)
        absent(folder, [ARCHIVE], store)
        with contextlib.suppress(EventlogError, OSError):
            one_metric(folder, "loss", store=store)


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of an input, whatever it is."""
    files: dict[str, bytes] = {}
    while len(data) >= 5:
        which, size = struct.unpack_from("<BI", data)
        files[NAMES[which % len(NAMES)]] = data[5 : 5 + size]
        data = data[5 + size :]
    return files


def pack(files: dict[str, bytes]) -> bytes:
    """Return files as one input."""
    parts = (struct.pack("<BI", NAMES.index(n), len(data)) + data for n, data in files.items())
    return b"".join(parts)


def mend_all(data: bytes) -> bytes:
    """Put right the checksums of all files of a project."""
    files = unpack(data)
    for name, content in files.items():
        if name.startswith("sealed/"):
            files[name] = mend(content)
        elif name.endswith(".parquet"):
            files[name] = hostile.mend_sealed(content)
    return pack(files)


def read_archiving(data: bytes) -> None:
    """Archive hostile runs: whatever was read before is read afterwards."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        project = os.path.join(top, "project=p")
        folders = [os.path.join(project, f"run={run}") for run in RUNS]
        for place in (project, *folders):
            os.makedirs(os.path.join(place, "sealed"))
        for name, content in unpack(data).items():
            Path(project, name).write_bytes(content)
        before = [hostile._events(folder) for folder in folders]
        for _ in range(2):
            with contextlib.suppress(EventlogError, OSError):
                archive(project, folders, unchanged=0)
            for folder, events in zip(folders, before, strict=True):
                after = hostile._events(folder)
                assert {w: e for w, e in after.items() if e} == {
                    w: e for w, e in events.items() if e
                }


# ------------------------------------------------------------------------------ first inputs


def _made(top: str) -> list[str]:
    folders = []
    for run in RUNS:
        folder = run_in(top, run)
        head = Header(run, f"w{run}", 0, 0, {"project": "p", "name": "n", "rank": 0})
        put(folder, head.name, segment_bytes(series(4), head, durable=4, end=True)[0])
        seal(folder)
        folders.append(folder)
    return folders


def archives() -> list[bytes]:
    """Return an archive of two runs."""
    with tempfile.TemporaryDirectory() as top:
        folders = _made(top)
        project = os.path.dirname(folders[0])
        (name,) = archive(project, folders, unchanged=0).archives
        return [Path(project, "sealed", name).read_bytes()]


def projects() -> list[bytes]:
    """Return a project of two runs that are sealed, and one whose archiving was killed."""
    with tempfile.TemporaryDirectory() as top:
        project = os.path.dirname(_made(top)[0])
        assert all(len(listing(f"{project}/run={run}").sealed) == 1 for run in RUNS)
        files = {name: Path(project, name).read_bytes() for name in NAMES[1:]}
    return [pack(files), pack({**files, NAMES[0]: archives()[0]})]
