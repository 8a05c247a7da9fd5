"""Verification: what a run's files hold, what they lack, and whether that was to be expected."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eventlog import blobs
from eventlog.archive import check_sealed, open_sealed
from eventlog.columns import is_word
from eventlog.errors import EventlogError, FormatError, IntegrityError
from eventlog.event import STATE
from eventlog.files import LOCAL, Store
from eventlog.footer import Lost
from eventlog.forks import forks
from eventlog.frame import HEAD, PREFIX, first_seq, read_head
from eventlog.gaps import Losses, blobs_of, gaps
from eventlog.layout import BLOBS, ArchivedName, SegmentName, is_blob, segment_name
from eventlog.listing import listing
from eventlog.reader import WriterReader, headers, may_hold_events
from eventlog.restored import Contradiction
from eventlog.runfile import RunFile
from eventlog.segment import DAMAGED, FOREIGN, TORN, SegmentReader
from eventlog.value import loads

if TYPE_CHECKING:
    import pyarrow as pa

#: Verdicts of a run, the worst first; the first five are failures.
CORRUPT, MISSING, GAP, FORK, RESTORED = "corrupt", "missing", "gap", "fork", "restored"
SALVAGED, OK = "salvaged", "ok"
FAILURES = (CORRUPT, MISSING, GAP, FORK, RESTORED)
VERDICTS = (*FAILURES, TORN, SALVAGED, OK)

#: What a disk writes whole or not at all, in bytes.
_SECTOR = 512
#: So many zeros in a row are in no header.
_HOLE = 32
#: How much of a segment without a header is looked at.
_LOOKED_AT = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class FileReport:
    """One file: its verdict, and the events it holds (`first` to `last`, -1 if none).

    `bytes` is 0 for what lies in an archive; `offset` is where the good bytes of a segment end; `segments` are the numbers of the segments
    that it is, or was made of.
    """

    name: str
    verdict: str
    first: int
    last: int
    bytes: int
    lost_bytes: int = 0
    durable: int = 0
    detail: str = ""
    lost: tuple[Lost, ...] = ()
    offset: int = -1
    segments: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class WriterReport:
    """One writer.

    Attributes
    ----------
    events, rows:
        How many were read.
    verdict:
        ``ok``, ``torn`` (an unacknowledged tail, no failure), ``salvaged`` (what is missing was
        recorded as lost by a salvage, no failure), ``corrupt``, ``missing`` (a segment that
        no file is or was made of), ``gap`` (a seq that none of the files holds), ``fork``.
    declared:
        How many events its writer said it has when it finished; None if it never said.
    named:
        The writers of the run that it knew of when it finished.
    problems:
        A sentence each.
    """

    writer: str
    events: int
    rows: int
    verdict: str
    declared: int | None
    files: tuple[FileReport, ...]
    problems: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it declared how many events it has at least, and has them."""
        return self.declared is not None and self.declared <= self.events


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run. `complete` is what was declared: ``complete``, ``incomplete`` or ``unknown``."""

    folder: str
    verdict: str
    complete: str
    writers: tuple[WriterReport, ...]
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the run contradicts what was promised of it."""
        return self.verdict in FAILURES


def verify(folder: str, store: Store = LOCAL, *, run: RunFile | None = None) -> RunReport:
    """Read every byte of a run and judge it; of `run`, if that is given. Nothing is changed."""
    found = listing(folder, store)
    writers = [_writer(folder, name, store) for name in found.writers]
    problems: list[str] = []
    words = [w.verdict for w in writers]
    try:
        if run is not None:
            run.check(folder, headers(folder, store))
    except IntegrityError as error:
        problems.append(error.what)
        words.append(CORRUPT)
    for one in writers:
        durable = max((file.durable for file in one.files), default=0)
        # Whoever finishes a run makes all before its last event durable, other writers' names too.
        finished = one.declared is not None and durable >= one.declared - 1
        for name in sorted(set(one.named) - set(found.writers)):
            text = f"the writer {name} was there when the run finished"
            problems.append(f"{text}, and no file of it is here")
            words.append(MISSING if finished else TORN)
        for seq, problem, could_be_lost in _blobs(folder, one.writer, store):
            problems.append(problem)
            words.append(TORN if could_be_lost and seq >= durable else MISSING)
    verdict = next((v for v in VERDICTS if v in words), OK)
    declared = [w for w in writers if w.declared is not None]
    complete = "complete" if all(w.complete for w in declared) else "incomplete"
    if not writers or len(declared) < len(writers):
        complete = "unknown" if complete == "complete" else complete
    return RunReport(folder, verdict, complete, tuple(writers), tuple(problems))


def held_against(report: RunReport, found: Iterable[Contradiction]) -> RunReport:
    """Return a report with what cursors contradict."""
    for one in found:
        words = (report.verdict, RESTORED if one.failure else TORN)
        verdict = next(v for v in VERDICTS if v in words)
        problems = (*report.problems, one.text)
        report = dataclasses.replace(report, verdict=verdict, problems=problems)
    return report


def _writer(folder: str, writer: str, store: Store) -> WriterReport:
    files = _files(folder, writer, store)
    source = WriterReader(folder, writer, skip_missing=True, store=store)
    problems: list[str] = []
    verdict = OK
    events = rows = 0
    declared: int | None = None
    named: set[str] = set()
    losses = Losses()
    try:
        for table in source.tables():
            seqs = table.column("seq")
            events += seqs[-1].as_py() - seqs[0].as_py() + 1
            rows += table.num_rows
            for dropped in gaps(table):
                losses.add(dropped)
            for known in _declared(table):
                named |= set(known)
                declared = known.get(writer, declared)
    except (FormatError, OSError) as error:
        problems.append(str(error))
        verdict = CORRUPT
    problems += losses.told()
    durable = max((f.durable for f in files), default=0)
    behind = [gap for f in files for gap in f.lost if gap.first == source.next_seq]
    for lost in (*source.lost, *behind):
        problems.append(f"events {lost.first} to {lost.last} are lost, as recorded: {lost.reason}")
        verdict = SALVAGED if verdict == OK else verdict
    end = max([source.next_seq, *(lost.last + 1 for lost in behind)])
    gone = sum(lost.last - lost.first + 1 for lost in (*source.lost, *behind))
    unacknowledged = False
    for gap in source.missing:
        problems.append(f"events {gap.first} to {gap.last} are missing: {gap.reason}")
        if gap.first >= durable:
            # Power was lost: it took them, and left some that came later.
            unacknowledged = True
            verdict = TORN if verdict in (OK, SALVAGED) else verdict
            continue
        bad = any(
            f.verdict == FOREIGN or (f.verdict in (TORN, DAMAGED) and f.last + 1 == gap.first)
            for f in files
        )
        absent = _absent(writer, files)
        if bad or verdict == CORRUPT:
            verdict = CORRUPT
        elif absent:
            problems.append(f"{', '.join(absent)}: no such file, and none that was made of it")
            verdict = MISSING
        else:
            verdict = GAP
    for file in files:
        if file.verdict == FOREIGN and _has_grown(folder, file, writer, store):
            continue
        if file.verdict == FOREIGN:
            problems.append(f"{file.name}: {file.detail}")
            path = os.path.join(folder, file.name)
            held = may_hold_events(path, store) and not _never_durable(path, store)
            if held or durable > end:
                verdict = CORRUPT
            else:  # its writer died, or power was lost, before the first frame was in it
                verdict = TORN if verdict in (OK, SALVAGED) else verdict
        elif file.lost_bytes:
            problems.append(f"{file.name}: {file.detail}")
            verdict = TORN if verdict in (OK, SALVAGED) else verdict
    if durable > end:
        problems.append(f"events {end} to {durable - 1} were durable once and cannot be read")
        verdict = CORRUPT
    ranges = [(f.name, f.first, f.last) for f in files if f.first >= 0]
    found = [
        f"{one} and {other} both hold event {seq}, and differ"
        for one, other, seq in forks(folder, writer, ranges, store)
    ]
    if found:
        problems += found
        verdict = FORK if verdict in (OK, SALVAGED, TORN) else verdict
    short = declared is not None and events + gone < declared and not unacknowledged
    if short and verdict in (OK, SALVAGED, TORN):
        problems.append(f"its writer declared {declared} events, {events} are here")
        verdict = MISSING
    return WriterReport(
        writer, events, rows, verdict, declared, files, tuple(problems), tuple(sorted(named))
    )


def _absent(writer: str, files: tuple[FileReport, ...]) -> list[str]:
    """Return the first segments of a writer that no file is, or was made of."""
    there = {number for file in files for number in file.segments}
    wanted = (number for number in range(max(there, default=0)) if number not in there)
    return [str(SegmentName(writer, number)) for number in itertools.islice(wanted, 5)]


def _has_grown(folder: str, file: FileReport, writer: str, store: Store) -> bool:
    """Return whether what was no segment a moment ago is one now: its writer had just created it."""
    path = os.path.join(folder, file.name)
    try:
        if file.name.endswith(".parquet") or store.size(path) == file.bytes:
            return False
    except OSError:
        return False
    again = _segment(path, writer, store)
    return again is None or again.verdict != FOREIGN


def _never_durable(path: str, store: Store) -> bool:
    """Return whether a segment without a valid header is what a power cut may have left of one
    that was never synced: a sector of its header is zeros, and no frame, as far as frames can be
    told without a header, says that an event of this segment had been durable.
    """
    if path.endswith(".parquet"):
        return False
    try:
        with store.open(path) as file:
            raw = file.read(_LOOKED_AT)
    except OSError:  # it cannot be read, or is a link out of the journal
        return False
    data, first = memoryview(raw), raw.find(PREFIX)
    stop = len(raw) if first < 0 else first
    # A sector that never came is zeros, or zeros behind what a short write had brought.
    ends = (raw[at : at + _SECTOR][-_HOLE:] for at in range(0, stop, _SECTOR))
    if all(map(any, ends)):
        return False
    seq, at = None, first
    while at >= 0:
        head = read_head(data[at : at + HEAD])
        body = at + HEAD
        # A sector that never came says nothing of the frame's seq.
        known = any(raw[body : (body // _SECTOR + 1) * _SECTOR])
        if head is not None and known and len(raw) >= body + 8:
            seq = first_seq(data[at:]) if seq is None else seq
            if head.durable > seq:
                return False
        at = raw.find(PREFIX, at + 1)
    return True


def _files(folder: str, writer: str, store: Store) -> tuple[FileReport, ...]:
    found = listing(folder, store)
    out: list[FileReport] = []
    for name in found.segments.get(writer, ()):
        report = _segment(os.path.join(folder, str(name)), writer, store)
        if report is not None:
            out.append(report)
    for file in found.parquet(writer):
        path, label = os.path.join(folder, file.path), file.path
        size = 0
        try:
            if not isinstance(file, ArchivedName):  # of a part nobody asks how large it is
                size = store.size(path)
            check_sealed(path, store)
            with open_sealed(path, store) as opened:
                durable = max((part.durable for part in opened.segments), default=0)
                report = FileReport(
                    label,
                    "sealed",
                    file.first,
                    file.last,
                    size,
                    durable=durable,
                    lost=tuple(opened.lost),
                    segments=tuple(sorted({part.header.segment for part in opened.segments})),
                )
            out.append(report)
        except FileNotFoundError:
            continue
        except (FormatError, OSError) as error:
            out.append(FileReport(label, FOREIGN, -1, -1, size, detail=str(error)))
    return tuple(out)


def _segment(path: str, writer: str, store: Store) -> FileReport | None:
    name = os.path.basename(path)
    size = 0
    try:
        size = store.size(path)
        with SegmentReader(path, store) as segment:
            if segment.header.writer != writer:
                raise FormatError(f"its header names the writer {segment.header.writer}")
            for _ in segment.spans():
                pass
            verdict = segment.verdict
            assert verdict is not None
            last = verdict.next_seq - 1
            first = segment.header.first_seq if last >= segment.header.first_seq else -1
            return FileReport(
                name,
                verdict.word,
                first,
                last if first >= 0 else -1,
                size,
                verdict.lost_bytes,
                verdict.durable,
                verdict.detail,
                offset=verdict.offset,
                segments=(segment.header.segment,),
            )
    except FileNotFoundError:  # sealed in this moment
        return None
    except (FormatError, OSError) as error:
        known = segment_name(name)
        numbers = () if known is None else (known.number,)
        return FileReport(name, FOREIGN, -1, -1, size, detail=str(error), segments=numbers)


def _declared(table: pa.Table) -> Iterator[dict[str, int | None]]:
    """Yield what writers declared of all writers they knew: their events, None if unknown."""
    import pyarrow.compute as pc

    rows = table.filter(
        pc.and_(is_word(table.column("kind"), STATE), is_word(table.column("key"), "writers"))
    )
    for data in rows.column("data").to_pylist():
        try:
            known = loads(data)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(known, dict):
            yield {str(k): v if isinstance(v, int) else None for k, v in known.items()}


def _blobs(folder: str, writer: str, store: Store) -> list[tuple[int, str, bool]]:
    """Check every blob that an event names; return the event, what is wrong, and whether a power
    cut may have done it. That a blob is not there of which is recorded that it was never written
    is no surprise; that it is there, and not whole, is one.
    """
    problems: dict[str, tuple[int, str, bool]] = {}
    checked: set[str] = set()
    never: set[str] = set()
    try:
        for table in WriterReader(folder, writer, skip_missing=True, store=store).tables():
            for gap in gaps(table):
                never |= blobs_of(gap)
            rows = table.filter(is_word(table.column("type"), "table", "blob"))
            for seq, data in zip(
                *(rows.column(n).to_pylist() for n in ("seq", "data")), strict=True
            ):
                sha = str(loads(data).get("sha256", ""))
                if sha not in checked:
                    checked.add(sha)
                    try:
                        blobs.check(folder, sha, store)
                    except IntegrityError as error:
                        text = f"event {seq} of {writer}: {error}"
                        problems[sha] = seq, text, is_blob(sha)
    except (EventlogError, OSError, ValueError, AttributeError, TypeError):
        pass  # reported with the writer
    return [
        found
        for sha, found in problems.items()
        if sha not in never or _is_there(os.path.join(folder, BLOBS, sha), store)
    ]


def _is_there(path: str, store: Store) -> bool:
    try:
        store.size(path)
    except FileNotFoundError:
        return False
    except OSError:  # nobody can tell
        return True
    return True


__all__ = [
    "CORRUPT",
    "FORK",
    "MISSING",
    "OK",
    "SALVAGED",
    "TORN",
    "RunReport",
    "WriterReport",
    "verify",
]
