"""Makes `tests/golden/v1`: a small journal of format 1, read by every later version for ever.

Never run again on committed files: it refuses when the folder is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import struct
import sys
from typing import Any

import numpy as np

from eventlog.event import Event, make_rows
from eventlog.layout import run_folder
from eventlog.reader import WriterReader
from eventlog.runfile import RunFile
from eventlog.seal import seal
from eventlog.segment import Header
from eventlog.value import Stored, dumps
from tests.helpers import put, segment_bytes

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "v1")
START = 1_767_225_600_000_000_000
RUN = RunFile("golden-é", "gold", "first")
BLOB = b"a value that is kept beside the segments\n"
SHA = hashlib.sha256(BLOB).hexdigest()
IDENTITY = {
    "project": RUN.project,
    "name": RUN.name,
    "id_from": "given",
    "owner": "ada",
    "attempt": {"key": "a1", "ordinal": 1, "evidence": "first", "start": START, "restart": []},
    "host": "golden",
    "pid": 1,
    "boot_id": "golden",
    "pid_namespace": "pid:[1]",
    "process_start": 1,
}


def _nan(pattern: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", pattern))[0])


def values() -> list[dict[str, Any]]:
    """Return the values of the events of a writer."""
    big = {"sha256": SHA, "size": len(BLOB), "type": "bytes"}
    return [
        {
            "loss": 0.1,
            "-0": -0.0,
            "inf": math.inf,
            "-inf": -math.inf,
            "nan": _nan(0x7FF0DEAD0000BEEF),
        },
        {
            "int": 2**53 + 1,
            "large": -(10**30),
            "small": -7,
            "true": True,
            "false": False,
            "null": None,
        },
        {
            "i8": np.int8(-128),
            "u64": np.uint64(2**64 - 1),
            "f32": np.float32(0.1),
            "f16": np.float16(0.5),
        },
        {
            "f32nan": np.uint32(0x7FA00001).view(np.float32),
            "c": 1 - 2j,
            "bytes": b"\x00\xff",
            "": "empty key",
        },
        {
            "text": "é\n\U0001f600",
            "lone": "\ud800",
            "tree": [1, (2.5, None), {"a": np.float32(1)}, {1: "x"}],
        },
        {"array": np.arange(3, dtype="<i4"), "big": Stored("blob", None, dumps(big))},
    ]


def events(first: int) -> list[Event]:
    """Return six events from seq `first` on."""
    made = []
    for n, fields in enumerate(values()):
        rows, refused = make_rows("config" if n == 1 else "metric", fields.items())
        assert not refused
        step = None if n == 1 else (first + n) * 10
        made.append(Event(first + n, START + first + n, step, tuple(rows)))
    return made


def segment(writer: str, number: int, first: int, *, end: bool) -> tuple[str, bytes, list[int]]:
    """Return name and bytes of a segment, and where its header and frames end."""
    head = Header(RUN.id, writer, number, first, IDENTITY)
    data, ends = segment_bytes(events(first), head, durable=lambda seq: max(seq - 2, 0), end=end)
    return head.name, data, ends


def describe(event: Event) -> dict[str, Any]:
    """Return an event in plain words: numbers as their bits, data as base64."""
    rows = [
        {
            "key": row.key,
            "kind": row.kind,
            "type": row.type,
            "num": None if row.num is None else struct.pack(">d", row.num).hex(),
            "data": None if row.data is None else base64.b64encode(row.data).decode(),
        }
        for row in event.rows
    ]
    return {"seq": event.seq, "time": event.time, "step": event.step, "rows": rows}


def main() -> int:
    """Make the folder."""
    if os.path.exists(HERE):
        print(f"{HERE} is there: golden files are never made again", file=sys.stderr)
        return 2
    folder = run_folder(HERE, RUN.project, RUN.id)
    put(folder, "run.json", RUN.to_bytes())
    put(folder, f"blobs/{SHA}", BLOB)
    name, data, _ends = segment("sealed", 0, 0, end=True)
    put(folder, name, data)
    seal(folder)
    for writer, number, first, end in (
        ("live", 0, 0, True),
        ("live", 1, 6, False),
        ("torn", 0, 0, False),
    ):
        name, data, _ends = segment(writer, number, first, end=end)
        put(folder, name, data[:-100] if writer == "torn" else data)
    expected = {
        writer: [describe(e) for e in WriterReader(folder, writer).events()]
        for writer in ("live", "sealed", "torn")
    }
    text = json.dumps(expected, indent=1, sort_keys=True, ensure_ascii=True)
    put(HERE, "expected.json", text.encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
