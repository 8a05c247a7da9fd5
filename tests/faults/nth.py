"""The N-th call of one kind fails, for every N: training goes on and nothing durable is lost."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import tempfile
from typing import Any

from eventlog.audit import FAILURES, verify
from eventlog.errors import EventlogError, JournalError
from eventlog.files import Files
from eventlog.journal import Options, Writer
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
from eventlog.value import Stored, dumps
from tests.helpers import NOW, Failing

ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EMFILE]
KINDS = [
    "create",
    "write",
    "sync",
    "sync_folder",
    "open_again",
    "close",
    "replace",
    "remove",
    "make_folder",
    "length",
    "any",
]
#: Kind, error, and how many calls in a row fail.
CASES = [(kind, error, lasting) for kind in KINDS for error in ERRORS for lasting in (1, 3)]
EVENTS = 9


class Faulty(Failing):
    """Fails more kinds of calls."""

    def open_again(self, path: str) -> int:
        self._count("open_again")
        return super().open_again(path)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._count("close")

    def length(self, fd: int) -> int:
        self._count("length")
        return super().length(fd)


def faulty(kind: str, error: int, n: int, lasting: int) -> Faulty:
    """Return files whose calls `n` to `n + lasting - 1` of a kind fail."""

    def fails(call: int, name: str) -> Any:
        return OSError(error, os.strerror(error)) if n <= call < n + lasting else None

    return Faulty(fails, [k for k in KINDS if k != "any"] if kind == "any" else [kind])


def read(folder: str, name: str) -> list[int]:
    """Return the numbers that were logged, in order, of what is recovered."""
    if name not in listing(folder).writers:
        return []
    events = list(WriterReader(folder, name).events())
    assert [e.seq for e in events] == list(range(len(events)))
    return [e.rows[0].value for e in events]


def writer_survives(folder: str, files: Faulty, level: str) -> list[str]:
    """Log with a commit now and then; return what was broken."""
    broken = []
    options = Options(level, segment_bytes=3_000, group_seconds=60.0)
    one = Writer(folder, "r", {}, options=options, files=files)
    one._arm = lambda: None  # type: ignore[method-assign]
    try:
        for n in range(EVENTS):
            data: dict[str, Any] = {"x": n}
            if n % 4 == 2:
                with contextlib.suppress(OSError):
                    sha = one.put_blob(b"blob %d" % n)
                    data["b"] = Stored("blob", None, dumps({"sha256": sha, "size": 6}))
            one.append("metric", data, n, NOW + n)
            if n % 3 == 2:
                try:
                    one.commit()
                except JournalError:
                    if one.health().state != "degraded":
                        broken.append(f"a commit after event {n} failed and health is ok")
            durable, found = one.health().durable, read(folder, one.name)
            if found != list(range(len(found))) or not durable <= len(found) <= n + 1:
                broken.append(f"after event {n}: {durable} durable, read {found}")
        for _ in range(5):
            with contextlib.suppress(JournalError):
                one.commit()
                break
        health = one.health()
        # The level ``os`` keeps nothing that it could write again.
        if level != "os" and (health.state, health.durable) != ("ok", EVENTS):
            broken.append(f"at the end: {health}")
        one.close()
    except Exception as error:
        broken.append(f"raised into training: {error!r}")
    if read(folder, one.name) != list(range(EVENTS)):
        broken.append(f"recovered {read(folder, one.name)}")
    report = verify(folder)
    if report.verdict in FAILURES:
        broken.append(f"verify says {report.verdict}: {report}")
    return broken


def sealing_survives(folder: str, files: Faulty) -> list[str]:
    """Seal a run with failing calls, then again without; return what was broken."""
    broken = []
    one = Writer(folder, "r", {}, options=Options("os", segment_bytes=2_000))
    for n in range(EVENTS):
        one.append("metric", {"x": n}, n)
    one.close()
    with contextlib.suppress(OSError, EventlogError):
        seal(folder, files=files)
    for again in (False, True):
        if again:
            seal(folder)
        if read(folder, one.name) != list(range(EVENTS)):
            broken.append(f"recovered {read(folder, one.name)}, again: {again}")
        if verify(folder).verdict != "ok":
            broken.append(f"verify says {verify(folder)}, again: {again}")
    if [name for name in os.listdir(folder) if name.endswith(".arrows")]:
        broken.append("segments are left after the second sealing")
    return broken


class FailingStore(Files):
    """Fails calls of reading, and reads of what it opened."""

    def __init__(self, error: int, n: int, lasting: int) -> None:
        self.calls = 0
        self._error, self._range = error, range(n, n + lasting)

    def count(self) -> None:
        self.calls += 1
        if self.calls in self._range:
            raise OSError(self._error, os.strerror(self._error))

    def names(self, folder: str) -> list[str]:
        self.count()
        return super().names(folder)

    def size(self, path: str) -> int:
        self.count()
        return super().size(path)

    def open(self, path: str) -> Any:
        self.count()
        store = self

        class Reading(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                store.count()
                return super().readinto(buffer) or 0

        return io.BufferedReader(Reading(path))


def reading_survives(folder: str, name: str, store: FailingStore) -> list[str]:
    """Read a whole run with failing calls: all of it, or an error or a gap that says so."""
    found: list[int] = []
    reader = WriterReader(folder, name, store=store)
    try:
        for event in reader.events():
            found.append(event.rows[0].value)
    except (OSError, EventlogError):
        return [] if found == list(range(len(found))) else [f"read {found}"]
    if found == list(range(EVENTS)) or (found == list(range(len(found))) and reader.missing):
        return []
    return [f"read {found} and said nothing"]


def reading_everywhere(error: int, lasting: int, every: int = 1) -> tuple[int, list[str]]:
    """Fail every call of reading, or every so many-th, live and sealed, until none failed."""
    count, broken = 0, []
    with tempfile.TemporaryDirectory() as folder:
        one = Writer(folder, "r", {}, options=Options("os", segment_bytes=2_000))
        for n in range(EVENTS):
            one.append("metric", {"x": n}, n)
        one.close()
        for live in (True, False):
            if not live:
                seal(folder)
            for n in itertools.count(1, every):
                store = FailingStore(error, n, lasting)
                broken += [f"call {n}: {x}" for x in reading_survives(folder, one.name, store)]
                if store.calls < n:
                    break
                count += 1
    return count, broken


LEVELS = ("group", "sync", "memory", "os", "seal")


def everywhere(
    kind: str, error: int, lasting: int, levels: tuple[str, ...] = LEVELS, every: int = 1
) -> tuple[int, list[str]]:
    """Fail call 1, 2, 3 ... of a kind until none failed, or every so many-th; return how many, and
    what was broken.
    """
    count = 0
    broken: list[str] = []
    for level in levels:
        for n in itertools.count(1, every):
            files = faulty(kind, error, n, lasting)
            with tempfile.TemporaryDirectory() as folder:
                if level == "seal":
                    found = sealing_survives(folder, files)
                else:
                    found = writer_survives(folder, files, level)
            where = f"{level}: call {n} of {kind}, {lasting} fail with {errno.errorcode[error]}"
            broken += [f"{where}: {text}" for text in found]
            if len(files.calls) < n:
                break
            count += 1
    return count, broken
