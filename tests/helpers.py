"""Builders shared by the tests of the core: events, rows, runs, faulty files, an oracle."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from eventlog import frame as frames
from eventlog.event import Event, Row, make_rows
from eventlog.files import Files
from eventlog.journal import Options, Writer
from eventlog.layout import run_folder
from eventlog.reader import WriterReader, listing
from eventlog.runfile import RunFile, claim
from eventlog.segment import Header, SegmentReader

NOW = 1_767_225_600_000_000_000


def examples(part: int, full: int) -> int:
    """Return how many random examples a test tries: a slice, or with ``--long`` all."""
    return full if "--long" in sys.argv else part


def sliced(values: Iterable[Any], every: int) -> list[Any]:
    """Return parameters of which each `every`-th runs always, and the others with ``--long``."""
    long = pytest.mark.long
    return [v if not n % every else pytest.param(v, marks=long) for n, v in enumerate(values)]


def bits(value: float) -> bytes:
    """Return the bits of a float64."""
    return struct.pack("<d", value)


def exact(row: Row) -> tuple:
    """Return a row in a form in which equal means the same type and the same bits."""
    return (*row[:3], None if row.num is None else bits(row.num), row.data)


def same(a: Iterable[Event], b: Iterable[Event]) -> bool:
    """Return whether two series of events are equal to the bit."""
    return [plain(e) for e in a] == [plain(e) for e in b]


def plain(event: Event) -> tuple:
    return (*event[:3], [exact(row) for row in event.rows])


def event(seq: int, values: dict[str, Any], step: int | None = 0, kind: str = "metric") -> Event:
    rows, refused = make_rows(kind, values.items())
    assert not refused, refused
    return Event(seq, NOW + seq, step, tuple(rows))


def series(count: int, first: int = 0) -> list[Event]:
    return [
        event(n, {"loss": n / 7, "n": n, "text": f"é{n}", "none": None}, n or None)
        for n in range(first, first + count)
    ]


def header(writer: str = "w0", segment: int = 0, first_seq: int = 0, **identity: Any) -> Header:
    return Header("run-1", writer, segment, first_seq, identity or {"project": "p", "name": "n"})


def segment_bytes(
    events: Iterable[Event],
    head: Header | None = None,
    *,
    durable: int | Callable[[int], int] = 0,
    end: bool = False,
) -> tuple[bytes, list[int]]:
    """Return a segment's bytes, and where its header and each of its frames end."""
    head = head or header()
    raw, seed = head.to_bytes()
    encoder = frames.Encoder(seed)
    ends = [len(raw)]
    for one in events:
        encoder.mark(durable(one.seq) if callable(durable) else durable)
        raw += encoder.event(one)
        ends.append(len(raw))
    return raw + (frames.END_OF_STREAM if end else b""), ends


class Bytes:
    """A store of files in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def names(self, folder: str) -> list[str]:
        found = (path for path in self.files if os.path.dirname(path) == folder)
        return sorted(os.path.basename(path) for path in found)

    def size(self, path: str) -> int:
        return len(self._of(path))

    def open(self, path: str) -> io.BytesIO:
        return io.BytesIO(self._of(path))

    def _of(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(2, "no such file", path)
        return self.files[path]


def scan(data: bytes) -> tuple[list[Event], Any]:
    """Return the events of a segment's bytes, and the verdict."""
    with SegmentReader("s", Bytes({"s": data})) as reader:
        found: list[Event] = []
        for span in reader.spans():
            stream = reader.header_bytes + bytes(span.data)
            import pyarrow as pa

            for batch in pa.ipc.open_stream(stream):
                found += frames.to_events(batch)
        return found, reader.verdict


def put(folder: Any, name: str, data: bytes) -> str:
    os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def run_in(journal: Any, run: str = "run-1", project: str = "p", name: str = "n") -> str:
    """Make a run's folder and return it."""
    folder = run_folder(str(journal), project, run)
    os.makedirs(folder, exist_ok=True)
    claim(folder, RunFile(run, project, name))
    return folder


def writer(
    folder: Any,
    *,
    run: str = "run-1",
    files: Files | None = None,
    identity: Any = None,
    **options: Any,
) -> Writer:
    options.setdefault("group_seconds", 60.0)
    os.makedirs(folder, exist_ok=True)
    return Writer(
        str(folder),
        run,
        identity or {"project": "p", "name": "n"},
        options=Options(**options),
        files=files or Files(),
    )


def read(folder: Any, name: str | None = None, **options: Any) -> list[Event]:
    """Return all events of one writer (the only one by default)."""
    found = listing(str(folder)).writers
    if name is None:
        if not found:
            return []
        (name,) = found
    return list(WriterReader(str(folder), name, **options).events())


def values_of(events: Iterable[Event], key: str = "x") -> list[Any]:
    """Return what was logged under one key."""
    return [row.value for e in events for row in e.rows if row.key == key]


class Failing(Files):
    """Fails the calls of chosen operations that `fails` names; counts all of them.

    `fails(n, name)` gets the number of the call among those of `operations`, from 1.
    """

    WRITING = ("create", "write", "sync", "sync_folder", "replace", "remove", "make_folder")

    def __init__(
        self,
        fails: Callable[[int, str], Any] = lambda n, name: None,
        operations: Iterable[str] = WRITING,
    ) -> None:
        self.fails = fails
        self.operations = frozenset(operations)
        self.calls: list[str] = []
        self.sizes: list[int] = []

    def _count(self, name: str) -> Any:
        if name not in self.operations:
            return None
        self.calls.append(name)
        found = self.fails(len(self.calls), name)
        if isinstance(found, BaseException):
            raise found
        return found

    def create(self, path: str) -> int:
        self._count("create")
        return super().create(path)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write; a number from `fails` is how many bytes go in."""
        short = self._count("write")
        self.sizes.append(len(data))
        return super().write(fd, data[:short] if isinstance(short, int) else data)

    def sync(self, fd: int) -> None:
        self._count("sync")
        super().sync(fd)

    def sync_folder(self, folder: str) -> None:
        self._count("sync_folder")
        super().sync_folder(folder)

    def replace(self, source: str, target: str) -> None:
        self._count("replace")
        super().replace(source, target)

    def remove(self, path: str) -> None:
        self._count("remove")
        super().remove(path)

    def make_folder(self, path: str) -> None:
        self._count("make_folder")
        super().make_folder(path)
