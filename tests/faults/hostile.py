"""Hostile files: what anyone could hand to those who read a journal, and what reading may do.

A *surface* is one thing that is read: a value, a frame, a segment, a whole run, a sealed file, a
cursor. It has first inputs made from real files; `mend`, which puts right the checksums of changed
bytes, so that changes get past them; and `read`, which reads an input as the package does. Reading
may refuse an input (`EventlogError`, or `ValueError` of a value) and nothing else, takes bounded
memory, and what it does give must agree with itself.

``tools/fuzz`` looks for inputs that break this, guided by coverage; `surfaces.slice_of` is the small part
that every test run does, and what was found once is in ``tests/faults/found``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eventlog import attempts, blobs, delivery, glance, reader, runfile, segment, value, views
from eventlog import frame as frames
from eventlog.archive import check_sealed
from eventlog.audit import FAILURES, verify
from eventlog.compact import compact
from eventlog.errors import EventlogError, FormatError
from eventlog.event import digest
from eventlog.reader import WriterReader
from eventlog.salvage import salvage
from eventlog.seal import seal
from eventlog.table import Table
from tests.faults.simulator import Memory, remembering
from tests.golden import make_v1
from tests.helpers import Bytes, header, segment_bytes, series

#: Where inputs that were found once lie: ``<surface>-<what it did>``.
FOUND = Path(__file__).with_name("found")
FOLDER = "/run"
_CRC_AT = frames.HEAD - 9
_LENGTH_AT = 8 + 24


@dataclasses.dataclass(frozen=True)
class Surface:
    """One thing that is read."""

    first: Callable[[], list[bytes]]
    read: Callable[[bytes], None]
    mend: Callable[[bytes], bytes] = bytes


# ------------------------------------------------------------------------------ mending


def mend_segment(data: bytes) -> bytes:
    """Put right the checksums of a segment's header and of everything that is like a frame."""
    out = bytearray(data)
    size = struct.unpack_from("<i", out, 4)[0] + 8 if len(out) >= 8 else 0
    at = out.find(b"@crc32:") + 7
    if not 8 < size <= len(out) or not 7 <= at <= size - 8:
        return data
    seed = zlib.crc32(out[at + 8 : size], zlib.crc32(out[:at]))
    out[at : at + 8] = b"%08x" % seed
    at = size
    while 0 <= at <= len(out) - frames.HEAD:
        at += max(mend_frame(out, at, seed), 0) or 1
        at = out.find(frames.CONTINUATION, at)
    return bytes(out)


def mend_frame(out: bytearray, at: int, seed: int) -> int:
    """Put right the checksum of a frame; return its size, 0 if it has none."""
    if len(out) - at < frames.HEAD:
        return 0
    (body,) = struct.unpack_from("<q", out, at + _LENGTH_AT)
    end = at + frames.HEAD + body
    if not 0 < body <= len(out) - at - frames.HEAD:
        return 0
    crc = zlib.crc32(out[at + _CRC_AT + 8 : end], zlib.crc32(out[at : at + _CRC_AT], seed))
    out[at + _CRC_AT : at + _CRC_AT + 8] = b"%08x" % crc
    return frames.HEAD + body


def mend_sealed(data: bytes) -> bytes:
    """Put right the checksum of a sealed file's metadata."""
    try:
        meta = pq.read_metadata(io.BytesIO(data)).metadata
        text = meta[b"eventlog.segments"] + meta[b"eventlog.groups"]
        old = meta[b"eventlog.crc32"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return data
    if re.fullmatch(rb"[0-9a-f]{8}", old) is None:
        return data
    at = data.rfind(old)
    return data[:at] + b"%08x" % zlib.crc32(text) + data[at + 8 :]


def mend_cursor(data: bytes) -> bytes:
    """Take the bytes for a cursor's inner text, and put the outer one around it."""
    text = data.decode("utf-8", "replace")
    return json.dumps({"crc32": f"{zlib.crc32(text.encode()):08x}", "cursor": text}).encode()


# ------------------------------------------------------------------------------ many files in one

#: A run of hostile files is one input: for each file a byte that says which, four of its length.
NAMES = [
    "run.json",
    "w0-0.arrows",
    "w0-1.arrows",
    "w1-0.arrows",
    "sealed/w0-0-3.parquet",
    "sealed/w0-4-7.parquet",
]


def pack(files: dict[str, bytes]) -> bytes:
    """Return files as one input."""
    parts = (struct.pack("<BI", NAMES.index(n), len(data)) + data for n, data in files.items())
    return b"".join(parts)


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of an input, whatever it is."""
    files: dict[str, bytes] = {}
    while len(data) >= 5:
        which, size = struct.unpack_from("<BI", data)
        files[NAMES[which % len(NAMES)]] = data[5 : 5 + size]
        data = data[5 + size :]
    return files


def mend_run(data: bytes) -> bytes:
    """Put right the checksums of all files of a run."""
    files = unpack(data)
    for name, content in files.items():
        if name.endswith(".arrows"):
            files[name] = mend_segment(content)
        elif name.endswith(".parquet"):
            files[name] = mend_sealed(content)
    return pack(files)


# ------------------------------------------------------------------------------ reading


def read_value(data: bytes) -> None:
    """Decode a value: a byte for its type, one for whether it has a number, eight, its data."""
    if len(data) < 10:
        return
    words = [*sorted(value.TYPES), "unknown"]
    num = struct.unpack("<d", data[2:10])[0] if data[1] % 2 else None
    rest = None if data[1] % 4 >= 2 else data[10:]
    with contextlib.suppress(ValueError):
        value.decode(words[data[0] % len(words)], num, rest)
    with contextlib.suppress(ValueError):
        Table.from_bytes(data[10:])


def read_frame(data: bytes) -> None:
    """Read one frame, its head, its batch and its events."""
    head = frames.read_head(data[: frames.HEAD])
    if head is None or head.size > len(data):
        return
    try:
        batch = frames.read_batch(data[: head.size], frames.schema())
        for event in frames.to_events(batch):
            digest(event)
    except FormatError:
        pass


def read_segment(data: bytes) -> None:
    """Scan a segment; its verdict must account for its bytes."""
    store = Bytes({"s": data})
    try:
        with segment.SegmentReader("s", store) as source:
            seq, size = source.header.first_seq, len(source.header_bytes)
            for span in source.spans():
                assert span.first_seq == seq and span.count > 0
                seq += span.count
                size += len(span.data)
                reader.span_table(span, source)
            verdict = source.verdict
            assert verdict is not None and verdict.offset == size
            assert verdict.next_seq == seq
            lost = len(data) - size - 8 * (verdict.word == segment.WHOLE)
            assert verdict.lost_bytes == lost
    except FormatError:
        pass


def read_run(data: bytes) -> None:
    """Read a run with everything that reads a run."""
    with remembering():
        look(FOLDER, Memory(FOLDER, unpack(data)))


def look(folder: str, store: Any) -> None:
    """Read all that a folder holds; `EventlogError` is the way to refuse it, and `OSError` where
    a file cannot be opened.
    """

    def attempt(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except (EventlogError, OSError):
            return None

    attempt(lambda: runfile.read(folder, store))
    heads = attempt(lambda: reader.headers(folder, store)) or {}
    attempts.attempts(heads)
    attempt(lambda: reader.unreadable(folder, store))
    for writer in reader.listing(folder, store).writers:
        for skip in (False, True):
            source = WriterReader(folder, writer, skip_missing=skip, store=store)
            attempt(lambda s=source: _in_order(s))
    report = verify(folder, store)
    assert report.verdict
    attempt(lambda: glance.glance(folder, store))
    attempt(lambda: _view(folder, store))


def _in_order(source: WriterReader) -> None:
    last = -1
    for event in source.events():
        assert event.seq > last
        last = event.seq
        digest(event)


def _view(folder: str, store: Any) -> None:
    view = views.effective(folder, store)
    for writer in reader.listing(folder, store).writers:
        for table in WriterReader(folder, writer, skip_missing=True, store=store).tables():
            view.rows(writer, table)


def read_sealed(data: bytes) -> None:
    """Read one sealed file."""
    path = os.path.join(FOLDER, "sealed", "w0-0-3.parquet")
    store = Bytes({path: data})
    try:
        reader.sealed_segments(path, store)
        check_sealed(path, store)
        list(WriterReader(FOLDER, "w0", store=store).events())
    except EventlogError:
        pass


def read_sealing(data: bytes) -> None:
    """Seal hostile segments: whatever was read before is read afterwards."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        for name, content in unpack(data).items():
            if name.endswith(".arrows"):
                Path(top, name).write_bytes(content)
        before = _events(top)
        for abandoned in (False, True):
            with contextlib.suppress(EventlogError):
                seal(top, abandoned=abandoned)
        after = _events(top)
        assert {w: e for w, e in after.items() if e} == {w: e for w, e in before.items() if e}


def read_compacting(data: bytes) -> None:
    """Compact hostile sealed files: whatever was read before is read afterwards."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        os.mkdir(os.path.join(top, "sealed"))
        for name, content in unpack(data).items():
            if name.endswith(".parquet"):
                Path(top, name).write_bytes(content)
        before = _events(top)
        with contextlib.suppress(EventlogError, OSError):
            compact(top)
        assert _events(top) == before


def read_salvaging(data: bytes) -> None:
    """Salvage a hostile run: what was read of the old one is in the new, which is whole."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        old, new = os.path.join(top, "old"), os.path.join(top, "new")
        os.makedirs(os.path.join(old, "sealed"))
        for name, content in unpack(data).items():
            Path(old, name).write_bytes(content)
        try:
            salvage(old, new)
        except EventlogError:
            return
        assert verify(new).verdict not in FAILURES
        there = _events(new)
        for writer, events in _events(old).items():
            assert set(events) <= set(there.get(writer, []))


def _events(folder: str) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for writer in reader.listing(folder).writers:
        found = out.setdefault(writer, [])
        with contextlib.suppress(EventlogError, OSError):
            for event in WriterReader(folder, writer, skip_missing=True).events():
                found.append(digest(event))
    return out


def read_cursor(data: bytes) -> None:
    """Read a cursor file."""
    with contextlib.suppress(FormatError):
        delivery.parse_cursor(data)


def read_ledger(data: bytes) -> None:
    """Read a ledger: a segment of the replay side."""
    one = delivery.Delivery("/s", kind="k", address="a", project="p", run="r")
    one.files = Bytes({os.path.join(one.folder, "w0-0.arrows"): data})  # type: ignore[assignment]
    try:
        for told in one.ledger():
            assert isinstance(told["time"], int)
    except EventlogError:
        pass


def read_run_file(data: bytes) -> None:
    """Read a run.json."""
    with contextlib.suppress(EventlogError):
        runfile.read(FOLDER, Bytes({os.path.join(FOLDER, "run.json"): data}))


def read_blob(data: bytes) -> None:
    """Read a blob whose name the first bytes say, of a store that has it under that name."""
    name = data[:64].decode("latin-1")
    store = Bytes({os.path.join(FOLDER, "blobs", name): data[64:]})
    with contextlib.suppress(EventlogError):
        assert blobs.get(FOLDER, name, store) == data[64:]


# ------------------------------------------------------------------------------ first inputs


def _segments() -> list[bytes]:
    out = []
    for first, number in ((0, 0), (4, 1)):
        head = header("w0", number, first)
        made, ends = segment_bytes(series(4, first), head, durable=first, end=not number)
        out += [made, made[: ends[-2] + 100]]
    return [*out, *(p.read_bytes() for p in sorted(Path(make_v1.HERE).rglob("*.arrows")))]


def _frames() -> list[bytes]:
    made, ends = segment_bytes(series(3))
    return [made[a:b] for a, b in itertools.pairwise(ends)]


def _sealed_files() -> list[bytes]:
    golden = [p.read_bytes() for p in sorted(Path(make_v1.HERE).rglob("*.parquet"))]
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate((_segments()[0], _segments()[2])):
            Path(folder, f"w0-{number}.arrows").write_bytes(data)
        seal(folder, abandoned=True)
        return [p.read_bytes() for p in sorted(Path(folder, "sealed").iterdir())] + golden


def _small_files() -> list[bytes]:
    """Return runs of two sealed files that follow each other."""
    one, _cut, two, _ = _segments()[:4]
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate((one, two)):
            Path(folder, f"w0-{number}.arrows").write_bytes(data)
            seal(folder, abandoned=True)
        names = [name for name in NAMES if name.endswith(".parquet")]
        files = {name: Path(folder, name).read_bytes() for name in names}
    return [pack(files), pack({names[0]: files[names[0]]})]


def _runs() -> list[bytes]:
    run = runfile.RunFile("run-1", "p", "n").to_bytes()
    one, _cut, two, _ = _segments()[:4]
    other, _ = segment_bytes(series(3), header("w1"), durable=2)
    state, _ = segment_bytes([_state()], header("w1"), end=True)
    return [
        pack({"run.json": run, "w0-0.arrows": one, "w0-1.arrows": two, "w1-0.arrows": other}),
        pack({"w0-0.arrows": one, "w0-1.arrows": two, "w1-0.arrows": state}),
        pack({"sealed/w0-0-3.parquet": _sealed_files()[0], "w0-1.arrows": two}),
    ]


def _state() -> Any:
    from tests.helpers import event

    told = {"state": "finished", "exit_code": 0, "writers": {"w0": 8, "w1": 1}, "rewind": 3}
    return event(0, told, 7, kind="state")


def _values() -> list[bytes]:
    rows = [row for e in make_v1.events(0) for row in e.rows]
    words = sorted(value.TYPES)
    tables = [Table(["a", "b"], [[1, float("nan")], [(2,), {"$type": 1}]]).to_bytes()]
    out = [b"\x00\x00" + bytes(8) + content for content in tables]
    for row in rows:
        num = bytes(8) if row.num is None else struct.pack("<d", row.num)
        flag = (row.num is not None) + 2 * (row.data is None)
        out.append(bytes([words.index(row.type), flag]) + num + (row.data or b""))
    return out


def _cursors() -> list[bytes]:
    mark = delivery.Mark(3, 5, 77, 9, 10, 2)
    some = delivery.Cursor("r", "p", "k", "a", "t", "1", "running", 1, {"w0": mark}, {"w0": [1]})
    return [json.loads(delivery.cursor_bytes(some))["cursor"].encode()]


def _ledgers() -> list[bytes]:
    from tests.helpers import event

    fields = {"writer": "w0", "first": 0, "last": 3, "time": 4, "kind": "x"}
    told = [event(n, fields, None, kind="delivery") for n in range(3)]
    return [segment_bytes(told, header("w0"), end=True)[0]]
