"""The N-th call to the file system fails, for every N, under what a user calls: `init` on a run
that is there, `log`, `flush`, `finish`, `seal`, `verify`, reading.

The faults are put under `eventlog.files.LOCAL`, so that every part of the package meets them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import eventlog
from eventlog import blobs, start
from eventlog.audit import FAILURES, verify
from eventlog.compact import compact
from eventlog.errors import EventlogError
from eventlog.event import METRIC
from eventlog.files import LOCAL
from eventlog.layout import run_folder
from eventlog.reader import WriterReader, listing
from eventlog.salvage import salvage
from eventlog.seal import seal

#: What fails: an error number of the system's, or no memory.
ERRORS: list[int | None] = [
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ESTALE,
    errno.EMFILE,
    None,
]
#: All that touches files; what only asks whether a name is there fails by saying no.
CALLS = (
    "names size open create write length modified stamp open_again sync close sync_folder replace "
    "remove make_folder remove_folder lock_folder"
).split()
EVENTS = 7


def name_of(error: int | None) -> str:
    """Return what an error is called."""
    return "MemoryError" if error is None else errno.errorcode[error]


class Faults:
    """Counts the calls of `LOCAL`, and fails those from `first` on, `lasting` of them."""

    def __init__(self, error: int | None, first: int, lasting: int) -> None:
        self.calls = 0
        self._error = error
        self._range = range(first, first + lasting)

    @property
    def once(self) -> bool:
        """Whether a single call fails, and not those behind it."""
        return len(self._range) == 1

    def came(self) -> bool:
        """Return whether a call failed."""
        return self.calls >= self._range.start

    def count(self) -> None:
        """Count one call, or fail it."""
        self.calls += 1
        if self.calls in self._range:
            if self._error is None:
                raise MemoryError("injected")
            raise OSError(self._error, f"{os.strerror(self._error)}, injected")

    @contextlib.contextmanager
    def under(self) -> Iterator[None]:
        """Put the faults under everything that happens meanwhile."""

        def failing(call: Any) -> Callable[..., Any]:
            def run(*args: Any, **more: Any) -> Any:
                self.count()
                return call(*args, **more)

            return run

        def closed(fd: int) -> None:
            type(LOCAL).close(LOCAL, fd)  # one that fails has closed all the same
            self.count()

        def opened(path: str) -> Any:
            self.count()
            with type(LOCAL).open(LOCAL, path) as file:
                return _Read(self, file.read())

        for name in CALLS:
            setattr(LOCAL, name, failing(getattr(type(LOCAL), name).__get__(LOCAL)))
        LOCAL.close = closed  # type: ignore[method-assign]
        LOCAL.open = opened  # type: ignore[method-assign]
        try:
            yield
        finally:
            for name in CALLS:
                delattr(LOCAL, name)


class _Read(io.BytesIO):
    """A file whose reads are counted; what Arrow reads through it as well."""

    def __init__(self, faults: Faults, content: bytes) -> None:
        super().__init__(content)
        self._faults = faults

    def read(self, size: int | None = -1, /) -> bytes:
        self._faults.count()
        return super().read(size)


# ------------------------------------------------------------------------------ what is called


def init(journal: str, level: str) -> Any:
    """Begin or continue the run; nothing of it is left to the end of this process."""
    run = eventlog.init("p", "n", id="r", dir=journal, durability=level, quiet=True)
    start._unregister(run)
    return run


def begun(journal: str, level: str = "os", count: int = EVENTS) -> Any:
    """Begin a run, log to it with small segments, and leave it without a word."""
    run = init(journal, level)
    small = dataclasses.replace(run._writer.options, segment_bytes=5_000, group_seconds=60.0)
    run._writer.options = small
    for n in range(count):
        run.log({"x": n}, step=n)
    return run


def logged(journal: str, writer: str | None = None) -> list[Any]:
    """Return what was logged under x, by writer in the order of their names."""
    folder = run_folder(journal, "p", "r")
    return [
        row.value
        for name in listing(folder).writers
        if writer in (None, name)
        for event in WriterReader(folder, name).events()
        for row in event.rows
        if row.kind == METRIC and row.key == "x"
    ]


def judged(journal: str, broken: list[str]) -> None:
    """Note if `verify` says that the run is damaged: nothing here damages it."""
    report = verify(run_folder(journal, "p", "r"))
    if report.verdict in FAILURES:
        broken.append(f"verify says {report.verdict}: {[w.problems for w in report.writers]}")


def logging_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """`log` and `flush` never raise into training but as documented, and lose nothing."""
    broken: list[str] = []
    run = begun(journal, level, 0)
    kept = 0
    with faults.under():
        for n in range(EVENTS):
            before = run.health.appended + run.health.waiting
            try:
                run.log({"x": n}, step=n)
            except Exception as error:
                broken.append(f"log raised {error!r}")
            if n % 3 == 2:
                with contextlib.suppress(EventlogError, MemoryError):
                    run.flush()
            kept += run.health.appended + run.health.waiting > before
    with contextlib.suppress(EventlogError):
        run._writer.commit()
    run.finish()
    found = logged(journal)
    # Without memory the event of that call may be lost; nothing else may.
    if found != sorted(set(found)) or len(found) < (kept if faults._error is None else EVENTS):
        broken.append(f"{kept} kept, found {found}")
    judged(journal, broken)
    return broken


def tables_survive(journal: str, faults: Faults, level: str) -> list[str]:
    """Tables that find no room wait with one warning; none that `flush` vouched for is lost, and
    what is not there is null, or recorded as never written.
    """
    broken: list[str] = []
    run = begun(journal, level, 0)
    durable = 0
    with faults.under():
        for n in range(EVENTS):
            try:
                run.log({"x": n, "t": eventlog.Table(["n"], [[n]])}, step=n)
            except Exception as error:
                broken.append(f"log raised {error!r}")
            if n % 3 == 2:
                with contextlib.suppress(EventlogError, MemoryError):
                    run.flush()
                    durable = n + 1
    # Without memory a table may be null; `verify` says below if one that is named is lost.
    there = _tables(run.folder) | set(range(durable if faults._error is None else 0))
    broken += [f"table {n} was durable, and is lost" for n in range(durable) if n not in there]
    with contextlib.suppress(EventlogError):
        run._writer.commit()
    run.finish()
    if faults._error is not None and (found := logged(journal)) != list(range(EVENTS)):
        broken.append(f"found {found}")
    tables = _tables(run.folder)
    if faults._error is not None and sorted(tables) != list(range(EVENTS)):
        broken.append(f"found the tables {sorted(tables)}")
    judged(journal, broken)
    return broken


def _tables(folder: str) -> set[int]:
    """Return the numbers in the tables that are read."""
    found = set()
    for name in listing(folder).writers:
        for event in WriterReader(folder, name).events():
            for row in event.rows:
                if row.type == "table":
                    with contextlib.suppress(EventlogError):
                        content = blobs.get(folder, row.value["sha256"])
                        found.add(eventlog.Table.from_bytes(content).data[0][0])
    return found


def finishing_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """`finish` never raises, and what was logged is there."""
    broken: list[str] = []
    run = begun(journal, level)
    with faults.under():
        try:
            run.finish()
        except Exception as error:
            broken.append(f"finish raised {error!r}")
    if level != "memory" or not faults.came():
        found = logged(journal)
        if found != list(range(EVENTS)):
            broken.append(f"found {found}")
    judged(journal, broken)
    return broken


def continuing_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """`init` on a run that is there gives a run or an `EventlogError`; both lose nothing."""
    broken: list[str] = []
    first = begun(journal, "os")
    first._writer.close()
    run = None
    with faults.under():
        try:
            run = init(journal, level)
        except EventlogError:
            pass
        except MemoryError:
            if faults._error is not None:
                broken.append("init raised MemoryError")
        except Exception as error:
            broken.append(f"init raised {error!r}")
    if run is not None:
        run._writer.options = dataclasses.replace(run._writer.options, group_seconds=60.0)
        run.log({"x": 0})
        run.finish()
        if logged(journal, run._writer.name) != [0]:
            broken.append(f"the new attempt has {logged(journal, run._writer.name)}")
    if logged(journal, first._writer.name) != list(range(EVENTS)):
        broken.append(f"the first attempt has {logged(journal, first._writer.name)}")
    judged(journal, broken)
    return broken


def sealing_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """Sealing that fails removes nothing that is not sealed, and goes on afterwards."""
    broken: list[str] = []
    begun(journal, "os")._writer.close()
    folder = run_folder(journal, "p", "r")
    with faults.under():
        try:
            seal(folder)
        except (OSError, EventlogError, MemoryError):
            pass
        except Exception as error:
            broken.append(f"seal raised {error!r}")
    for again in (False, True):
        if again:
            seal(folder)
        if logged(journal) != list(range(EVENTS)):
            broken.append(f"found {logged(journal)}, sealed again: {again}")
    if listing(folder).segments:
        broken.append("segments are left")
    judged(journal, broken)
    return broken


def compacting_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """Compaction that fails takes nothing away, and goes on afterwards."""
    broken: list[str] = []
    folder = run_folder(journal, "p", "r")
    run = init(journal, "os")
    run._writer.options = dataclasses.replace(run._writer.options, segment_bytes=3_000)
    for n in range(EVENTS):
        run.log({"x": n}, step=n)
        seal(folder)
    run._writer.close()
    seal(folder)
    with faults.under():
        try:
            compact(folder)
        except (OSError, EventlogError, MemoryError):
            pass
        except Exception as error:
            broken.append(f"compact raised {error!r}")
    for again in (False, True):
        if again:
            compact(folder)
        if logged(journal) != list(range(EVENTS)):
            broken.append(f"found {logged(journal)}, compacted again: {again}")
    if len(listing(folder).sealed[run._writer.name]) != 1:
        broken.append(f"{listing(folder).sealed} are left")
    judged(journal, broken)
    return broken


def salvaging_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """Salvage never touches the old journal, and brings all of it over when nothing fails."""
    broken: list[str] = []
    old, new = os.path.join(journal, "old"), os.path.join(journal, "new")
    begun(old, "os")._writer.close()
    if level == "sealed":
        seal(run_folder(old, "p", "r"))
    before = _content(old)
    with faults.under():
        try:
            salvage(run_folder(old, "p", "r"), run_folder(new, "p", "r"))
        except (OSError, EventlogError, MemoryError):
            pass
        except Exception as error:
            broken.append(f"salvage raised {error!r}")
    if os.path.isdir(run_folder(new, "p", "r")) and not faults.came() and not logged(new):
        broken.append("nothing was brought over")
    salvage(run_folder(old, "p", "r"), run_folder(new, "p", "r"))
    if logged(new) != list(range(EVENTS)):
        broken.append(f"found {logged(new)}")
    judged(new, broken)
    if _content(old) != before:
        broken.append("the old journal was changed")
    return broken


def _content(top: str) -> dict[str, bytes]:
    found = {}
    for folder, _folders, names in os.walk(top):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found[file.name] = file.read()
    return found


def verifying_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """`verify` says what it could not read; it never takes a part for the whole."""
    broken: list[str] = []
    begun(journal, "os")._writer.close()
    folder = run_folder(journal, "p", "r")
    if level == "sealed":
        seal(folder)
    whole = verify(folder)
    with faults.under():
        try:
            report = verify(folder)
        except (OSError, EventlogError, MemoryError):
            return []
        except Exception as error:
            return [f"verify raised {error!r}"]
    if report.verdict == "ok" and report.writers[0].events != whole.writers[0].events:
        broken.append(f"verify says ok of {report.writers}")
    return broken


def reading_survives(journal: str, faults: Faults, level: str) -> list[str]:
    """Reading gives all, or an error, or says what is missing."""
    begun(journal, "os")._writer.close()
    folder = run_folder(journal, "p", "r")
    if level == "sealed":
        seal(folder)
    (name,) = listing(folder).writers
    source = WriterReader(folder, name)
    found: list[int] = []
    with faults.under():
        try:
            for event in source.events():
                found += [row.value for row in event.rows if row.kind == METRIC]
        except (OSError, EventlogError, MemoryError):
            return [] if found == list(range(len(found))) else [f"read {found}"]
        except Exception as error:
            return [f"reading raised {error!r}"]
    if found == list(range(EVENTS)) or (source.missing and found == list(range(len(found)))):
        return []
    return [f"read {found} and said nothing"]
