"""The surfaces that hostile files are read at, and inputs of them that are changed at random."""

from __future__ import annotations

import random
import resource
import struct
from pathlib import Path

from eventlog import runfile
from tests.faults import hostile
from tests.faults import hostile_archives as archives

SURFACES: dict[str, hostile.Surface] = {
    "value": hostile.Surface(hostile._values, hostile.read_value),
    "frame": hostile.Surface(hostile._frames, hostile.read_frame),
    "segment": hostile.Surface(hostile._segments, hostile.read_segment, hostile.mend_segment),
    "run": hostile.Surface(hostile._runs, hostile.read_run, hostile.mend_run),
    "sealed": hostile.Surface(hostile._sealed_files, hostile.read_sealed, hostile.mend_sealed),
    "sealing": hostile.Surface(lambda: hostile._runs()[:2], hostile.read_sealing, hostile.mend_run),
    "compacting": hostile.Surface(hostile._small_files, hostile.read_compacting, hostile.mend_run),
    "salvaging": hostile.Surface(
        lambda: hostile._runs() + hostile._small_files(), hostile.read_salvaging, hostile.mend_run
    ),
    "cursor": hostile.Surface(
        hostile._cursors, lambda data: hostile.read_cursor(hostile.mend_cursor(data))
    ),
    "ledger": hostile.Surface(hostile._ledgers, hostile.read_ledger, hostile.mend_segment),
    "run-file": hostile.Surface(
        lambda: [runfile.RunFile("run-1", "p", "n").to_bytes()], hostile.read_run_file
    ),
    "blob": hostile.Surface(lambda: [b"a" * 64 + b"x", b"../" * 21 + b"a"], hostile.read_blob),
    "archive": hostile.Surface(archives.archives, archives.read_archive, archives.mend),
    "archiving": hostile.Surface(archives.projects, archives.read_archiving, archives.mend_all),
}


# ------------------------------------------------------------------------------ without a guide

#: Numbers that length fields are tried with.
ODD = [0, 1, -1, 7, 8, 255, 2**15, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**62, 2**63 - 1]


def change(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Return the bytes changed at a few places."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(8)
        if how == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at : at + 1] = rng.randbytes(1)
        elif how == 2:  # an aligned number
            kind = rng.choice(["<q", "<i", "<h"])
            size = struct.calcsize(kind)
            at -= at % size
            number = rng.choice(ODD) % 2 ** (8 * size)
            out[at : at + size] = number.to_bytes(size, "little")
        elif how == 3:
            del out[at : at + rng.choice([1, 8, 64, 640])]
        elif how == 4:
            out[at:at] = out[at : at + rng.choice([1, 8, 64, 640])]
        elif how == 5:
            size = rng.choice([1, 8, 64, 512])
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif how == 6 and other:
            start = rng.randrange(len(other))
            out[at:at] = other[start : start + rng.choice([8, 64, 640, 2000])]
        elif how == 7:
            del out[at:]
    return bytes(out)


def slice_of(name: str, seed: int, count: int, megabytes: int = 600) -> None:
    """Read `count` changed inputs of a surface, in a process that may take so much more memory;
    raise what reading must not raise, and name the input that does it.
    """
    surface, rng = SURFACES[name], random.Random(seed)
    first = surface.first()
    for data in first:
        surface.read(data)
    limit_memory(megabytes)
    for _ in range(count):
        data = change(rng.choice(first), rng, rng.choice(first))
        if rng.random() < 0.8:
            data = surface.mend(data)
        try:
            surface.read(data)
        except Exception as error:
            raise AssertionError(f"{name}: {error!r} for {data!r}") from error


def limit_memory(megabytes: int) -> None:
    """Let this process take only so much more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
