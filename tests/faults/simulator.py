"""The simulator of crash states: what a power cut could leave of a folder, at any instant.

`Recorder` stands in for `eventlog.files.Files`: it does what it is told on a real folder and
remembers every operation. `Disk` replays those operations and knows, at each of them, what a
power cut may and may not take:

* the bytes of a file that were not synced: each sector of 512 bytes holds none of them, all of
  them, or those up to one of the writes; what was never written is zeros; the size is anything
  from the synced size to the present one;
* the bytes that were in the kernel's hands when a sync failed, for ever: a later sync of the same
  file proves nothing of them;
* each name that was made, renamed or removed since its folder was synced, one by one;
* nothing else.

`check` compares a state with what its writers had been promised by then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

from eventlog import blobs, reader, segment
from eventlog.audit import FAILURES, verify
from eventlog.event import GAP, Event
from eventlog.files import Files
from eventlog.frame import to_events
from eventlog.reader import WriterReader, listing
from eventlog.value import loads
from tests.helpers import plain

SECTOR = 512


# ------------------------------------------------------------------------------ recording


class Killed(BaseException):
    """The process is gone at this operation."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One thing that was done; `acked` and `appended` are what writers had been told before it.

    `name` is the method's, or ``lost`` for a sync that failed. `file` counts files in the order
    of their making.
    """

    name: str
    path: str = ""
    target: str = ""
    file: int = -1
    data: bytes = b""
    acked: tuple[tuple[str, int], ...] = ()
    appended: tuple[tuple[str, int], ...] = ()


Progress = Callable[[], tuple[dict[str, int], dict[str, int]]]


class Recorder(Files):
    """Does every operation below `root` and remembers it.

    `fault` gets the count of the operation, from 1, and its name; it may return an exception,
    which is raised instead of doing it, or a number: how many bytes of a write go in.
    """

    def __init__(self, root: str, fault: Callable[[int, str], Any] = lambda n, name: None) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self.progress: Progress = lambda: ({}, {})
        self.fault = fault
        self.count = 0
        self._files: dict[str, int] = {}
        self._of: dict[int, tuple[int, str]] = {}
        self._sizes: list[int] = []
        self._making: list[str] = []

    def inside(self, path: str) -> str:
        """Return a path relative to the root ("" for the root itself)."""
        relative = os.path.relpath(path, self.root)
        return "" if relative == "." else relative

    def _note(self, name: str, path: str = "", target: str = "", **fields: Any) -> None:
        acked, appended = (tuple(sorted(told.items())) for told in self.progress())
        made = Operation(name, path, target, acked=acked, appended=appended, **fields)
        self.operations.append(made)

    def _try(self, name: str) -> Any:
        self.count += 1
        found = self.fault(self.count, name)
        if isinstance(found, BaseException):
            raise found
        return found

    def _absorb(self, path: str, file: int) -> None:
        """Note what came into a file by other ways than `write` (Arrow's own)."""
        size = os.stat(path).st_size
        if size > self._sizes[file]:
            with open(path, "rb") as there:
                there.seek(self._sizes[file])
                data = there.read()
            self._sizes[file] = size
            self._note("write", file=file, data=data)

    def create(self, path: str) -> int:
        self._try("create")
        fd = super().create(path)
        file = len(self._sizes)
        self._sizes.append(0)
        inside = self.inside(path)
        self._files[inside] = file
        self._of[fd] = file, path
        self._note("create", inside, file=file)
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        part = self._try("write")
        if isinstance(part, int):
            data = data[:part]
        file, _path = self._of[fd]
        self._note("write", file=file, data=bytes(data))
        done = super().write(fd, data)
        assert done == len(data)
        self._sizes[file] += done
        return done

    def open_again(self, path: str) -> int:
        self._try("open_again")
        fd = super().open_again(path)
        self._of[fd] = self._files[self.inside(path)], path
        return fd

    def sync(self, fd: int) -> None:
        file, path = self._of[fd]
        if os.path.exists(path):
            self._absorb(path, file)
        try:
            self._try("sync")
        except OSError:
            self._note("lost", file=file)
            raise
        # No real sync: nothing here is ever cut off from its power.
        self._note("sync", file=file)

    def sync_folder(self, folder: str) -> None:
        self._see_folders()
        self._try("sync_folder")
        self._note("sync_folder", self.inside(folder))

    def make_folder(self, path: str) -> None:
        if not os.path.isdir(path):
            self._try("make_folder")
            self._making.append(path)
        super().make_folder(path)
        self._see_folders()

    def _see_folders(self) -> None:
        """Note the folders that `make_folder` has made by now."""
        for path in sorted(self._making):
            if os.path.isdir(path):
                self._note("make_folder", self.inside(path))
                self._making.remove(path)

    def replace(self, source: str, target: str) -> None:
        self._try("replace")
        old, new = self.inside(source), self.inside(target)
        self._absorb(source, self._files[old])
        self._note("replace", old, new)
        super().replace(source, target)
        self._files[new] = self._files.pop(old)

    def remove_folder(self, path: str) -> None:
        self._try("remove_folder")
        super().remove_folder(path)
        self._note("remove", self.inside(path))

    def remove(self, path: str) -> None:
        self._try("remove")
        super().remove(path)
        self._note("remove", self.inside(path))
        self._files.pop(self.inside(path), None)

    def close(self, fd: int) -> None:
        self._of.pop(fd, None)
        super().close(fd)
        self._try("close")

    def end(self) -> None:
        """Note what had been promised when all was done."""
        self._note("end")


# ------------------------------------------------------------------------------ the disk


class _File:
    """One file: its bytes, and which of them are safe."""

    __slots__ = ("bounds", "data", "doubtful", "synced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = 0  # the size that is safe
        self.doubtful: list[tuple[int, int]] = []  # ranges below it that a failed sync lost
        self.bounds: list[int] = []  # where writes ended

    def unsafe(self) -> list[tuple[int, int]]:
        """Return the ranges of bytes that a power cut may take."""
        last = [(self.synced, len(self.data))] if len(self.data) > self.synced else []
        return self.doubtful + last

    def sectors(self) -> list[tuple[int, list[int]]]:
        """Return for each sector with unsafe bytes where its safe ones end, and its versions:
        the places up to which it may have been written.
        """
        found: dict[int, tuple[int, list[int]]] = {}
        for start, stop in self.unsafe():
            for number in range(start // SECTOR, (stop - 1) // SECTOR + 1):
                low, high = max(start, number * SECTOR), min(stop, (number + 1) * SECTOR)
                inner = [b for b in self.bounds if low < b < high]
                old = found.get(number)
                cuts = [low, *inner, high]
                found[number] = (low, cuts) if old is None else (old[0], [*old[1], *cuts])
        return [(number, sorted(set(cuts))) for number, (_low, cuts) in sorted(found.items())]

    def sizes(self) -> list[int]:
        """Return sizes that a power cut may leave."""
        size = len(self.data)
        if size == self.synced:
            return [size]
        inner = [b for b in self.bounds if self.synced < b < size]
        edges = range((self.synced // SECTOR + 1) * SECTOR, size, SECTOR)
        odd = (self.synced + size) // 2 | 1
        return sorted({self.synced, size, *inner[-4:], *list(edges)[:4], min(odd, size)})

    def made(self, cuts: dict[int, int], size: int) -> bytes:
        """Return the content with each sector written up to its cut, at a size."""
        out = bytearray(self.data)
        for start, stop in self.unsafe():
            for number in range(start // SECTOR, (stop - 1) // SECTOR + 1):
                low, high = max(start, number * SECTOR), min(stop, (number + 1) * SECTOR)
                at = min(max(cuts[number], low), high)
                out[at:high] = bytes(high - at)
        return bytes(out[:size])


State = dict[str, bytes]


class Disk:
    """Replays operations and gives the states that a power cut may leave after each."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}  # what is safe: path -> file, -1 for a folder
        self._changes: dict[str, list[tuple[str, str, str, int]]] = {}  # by folder, not safe

    def apply(self, done: Operation) -> None:
        """Do one operation."""
        if done.name == "create":
            self._files[done.file] = _File()
            self._change(done.path, ("make", done.path, "", done.file))
        elif done.name == "make_folder":
            self._change(done.path, ("make", done.path, "", -1))
        elif done.name == "write":
            file = self._files[done.file]
            file.data += done.data
            file.bounds.append(len(file.data))
        elif done.name == "sync":
            file = self._files[done.file]
            file.synced = len(file.data)
        elif done.name == "lost":
            file = self._files[done.file]
            if len(file.data) > file.synced:
                file.doubtful.append((file.synced, len(file.data)))
        elif done.name == "replace":
            self._change(done.path, ("move", done.path, done.target, self._file_of(done.path)))
        elif done.name == "remove":
            self._change(done.path, ("remove", done.path, "", -1))
        elif done.name == "sync_folder":
            for change in self._changes.pop(done.path, []):
                _do(self._names, change)

    def _change(self, path: str, change: tuple[str, str, str, int]) -> None:
        self._changes.setdefault(os.path.dirname(path), []).append(change)

    def _file_of(self, path: str) -> int:
        names = dict(self._names)
        for change in self._changes.get(os.path.dirname(path), []):
            _do(names, change)
        return names[path]

    def states(self, limit: int, rng: random.Random) -> Iterator[State]:
        """Yield all states if they are at most `limit`, else so many of them."""
        changes = [c for folder in sorted(self._changes) for c in self._changes[folder]]
        touched = [n for n in self._files if self._files[n].unsafe()]
        axes = {n: (self._files[n].sectors(), self._files[n].sizes()) for n in touched}
        count = 2.0 ** len(changes)
        for sectors, sizes in axes.values():
            count *= len(sizes) * math.prod(float(len(cuts)) for _number, cuts in sectors)
        if count <= limit:
            contents = [self._all(n, *axes[n]) for n in touched]
            kept = itertools.product((False, True), repeat=len(changes))
            for names in [self._named(changes, k) for k in kept]:
                for chosen in itertools.product(*contents):
                    yield self._state(names, dict(zip(touched, chosen, strict=True)))
            return
        for turn in range(limit):
            keep = _mood(turn, rng)
            names = self._named(changes, tuple(keep() for _ in changes))
            made: dict[int, bytes] = {}
            for n in touched:
                sectors, sizes = axes[n]
                keep = _mood(turn, rng)
                size = sizes[-1] if keep() else rng.choice(sizes)
                if rng.random() < 0.1:
                    size = rng.randint(sizes[0], sizes[-1])
                cuts = {}
                for number, places in sectors:
                    odd = len(places) > 2 and rng.random() < 0.2
                    cuts[number] = rng.choice(places) if odd else places[-1 if keep() else 0]
                made[n] = self._files[n].made(cuts, size)
            yield self._state(names, made)

    def _all(self, n: int, sectors: list[tuple[int, list[int]]], sizes: list[int]) -> list[bytes]:
        numbers = [number for number, _cuts in sectors]
        choices = itertools.product(*(cuts for _number, cuts in sectors))
        made = [dict(zip(numbers, choice, strict=True)) for choice in choices]
        return [self._files[n].made(cuts, size) for cuts in made for size in sizes]

    def _named(
        self, changes: list[tuple[str, str, str, int]], kept: tuple[bool, ...]
    ) -> dict[str, int]:
        names = dict(self._names)
        for change, keep in zip(changes, kept, strict=True):
            if keep:
                _do(names, change)
        return names

    def _state(self, names: dict[str, int], made: dict[int, bytes]) -> State:
        folders = {path for path, n in names.items() if n < 0} | {""}
        out = {}
        for path, n in names.items():
            if n >= 0 and os.path.dirname(path) in folders:
                content = made.get(n)
                out[path] = self._safe(n) if content is None else content
        return out

    def _safe(self, n: int) -> bytes:
        return bytes(self._files[n].data)


def _do(names: dict[str, int], change: tuple[str, str, str, int]) -> None:
    what, path, target, file = change
    if what == "make":
        names[path] = file
    elif what == "move":
        names.pop(path, None)
        names[target] = file
    else:
        names.pop(path, None)


def _mood(turn: int, rng: random.Random) -> Callable[[], bool]:
    """Return how a random state decides: all kept, none, nearly all, nearly none, or anything."""
    share = (0.5, 0.9, 0.1, 1.0, 0.0, 0.97)[rng.randrange(6)] if turn > 1 else float(turn)
    return lambda: rng.random() < share


# ------------------------------------------------------------------------------ judging


class Memory:
    """A state as a store; what is asked for is below `root`."""

    def __init__(self, root: str, state: State) -> None:
        self._files = {os.path.join(root, path): data for path, data in state.items()}
        self._names: dict[str, list[str]] = {}
        for path in self._files:
            folder, name = os.path.split(path)
            self._names.setdefault(folder, []).append(name)

    def names(self, folder: str) -> list[str]:
        return sorted(self._names.get(folder, []))

    def size(self, path: str) -> int:
        return len(self._of(path))

    def open(self, path: str) -> io.BytesIO:
        return io.BytesIO(self._of(path))

    def _of(self, path: str) -> bytes:
        if path not in self._files:
            raise FileNotFoundError(2, "no such file", path)
        return self._files[path]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is read of a state: events by writer, blobs that are right, and what is wrong for
    certain, whatever had been promised.
    """

    recovered: dict[str, int]
    bad_blobs: dict[str, int]
    run: bytes | None
    faults: tuple[str, ...]
    word: str = ""
    problems: tuple[str, ...] = ()


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Let readers parse equal bytes once, and list a folder that cannot change once."""
    parse, table, tries = segment._parse, reader.span_table, reader._TRIES
    tables: dict[bytes, Any] = {}

    def span_table(span: Any, source: Any) -> Any:
        key = source.header_bytes + bytes(span.data)
        if key not in tables:
            tables[key] = table(span, source)
        return tables[key]

    segment._parse = functools.lru_cache(1000)(parse)
    reader.span_table, reader._TRIES = span_table, 1
    try:
        yield
    finally:
        segment._parse, reader.span_table, reader._TRIES = parse, table, tries


class Judge:
    """Judges states of one history, those of a run's folder below `root`; the same state is read
    once.
    """

    def __init__(self, root: str, run: str, expected: dict[str, list[Event]]) -> None:
        self.root, self.folder = root, os.path.join(root, run)
        self._expected = {writer: list(map(plain, events)) for writer, events in expected.items()}
        self.states = 0
        self._known: dict[bytes, Verdict] = {}

    @property
    def distinct(self) -> int:
        """How many states were different ones."""
        return len(self._known)

    def check(self, state: State, done: Operation) -> list[str]:
        """Return what a state breaks of what had been promised before `done`."""
        self.states += 1
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(state):
            if ".tmp-" not in path:
                digest.update(b"%d %s %d " % (len(path), path.encode(), len(state[path])))
                digest.update(state[path])
        key = digest.digest()
        verdict = self._known.get(key)
        if verdict is None:
            verdict = self._known[key] = self.judge(state)
        faults = list(verdict.faults)
        if verdict.word in FAILURES:
            faults.append(f"verify says {verdict.word}: {verdict.problems}")
        for writer, count in done.acked:
            found = verdict.recovered.get(writer, 0)
            if found < count:
                faults.append(f"{writer}: {count} events were durable, {found} are read")
            if verdict.bad_blobs.get(writer, count) < count:
                faults.append(f"{writer}: event {verdict.bad_blobs[writer]} lost its blob")
        appended = dict(done.appended)
        for writer, found in verdict.recovered.items():
            if found > appended.get(writer, 0):
                faults.append(f"{writer}: {found} events are read, fewer were appended")
        return faults

    def judge(self, state: State) -> Verdict:
        """Read a state with everything that reads a journal."""
        store = Memory(self.root, state)
        recovered: dict[str, int] = {}
        bad_blobs: dict[str, int] = {}
        faults: list[str] = []
        word, problems = "", []
        try:
            for writer in listing(self.folder, store).writers:
                expected = self._expected.get(writer, [])
                source = WriterReader(self.folder, writer, store=store)
                found: list[Event] = []
                for table in source.tables():
                    found += to_events(table)
                recovered[writer] = len(found)
                if list(map(plain, found)) != expected[: len(found)]:
                    faults.append(f"{writer}: what is read is not what was appended")
                never = _never_written(found)
                for event in found:
                    right = _blobs_right(self.folder, event, store, never)
                    if writer not in bad_blobs and not right:
                        bad_blobs[writer] = event.seq
            report = verify(self.folder, store)
            word = report.verdict
            problems = [p for w in report.writers for p in w.problems] + list(report.problems)
            for one in report.writers:
                if one.events != recovered.get(one.writer) and one.verdict == "ok":
                    faults.append(f"verify counts {one.events} events of {one.writer}")
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
        told = state.get("run.json")
        return Verdict(recovered, bad_blobs, told, tuple(faults), word, tuple(problems))


def _never_written(events: list[Event]) -> set[str]:
    rows = (row for event in events for row in event.rows)
    return {sha for row in rows if (row.kind, row.key) == (GAP, "blobs") for sha in row.value}


def _blobs_right(folder: str, event: Event, store: Any, never: set[str]) -> bool:
    for row in event.rows:
        if row.type in ("blob", "table") and loads(row.data or b"")["sha256"] not in never:
            try:
                blobs.get(folder, loads(row.data)["sha256"], store)
            except Exception:
                return False
    return True
