"""The events of one writer of a run, in order, from any position, live or sealed.

A folder is listed anew whenever something seems to be missing, live files before sealed ones: what
sealing moves from one to the other is always in one of the two lists.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventlog import frame as frames
from eventlog.errors import FormatError
from eventlog.event import Event
from eventlog.files import LOCAL, Store
from eventlog.layout import SEALED, SealedName, SegmentName, sealed_name, segment_name
from eventlog.segment import Header, SegmentReader, Span, Verdict, check_format

if TYPE_CHECKING:
    import pyarrow as pa

_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a run's folder, by writer."""

    segments: dict[str, tuple[SegmentName, ...]]
    sealed: dict[str, tuple[SealedName, ...]]

    @property
    def writers(self) -> list[str]:
        """All writers, sorted by name."""
        return sorted({*self.segments, *self.sealed})


def listing(folder: str, store: Store = LOCAL) -> Listing:
    """List a run's segments, then its sealed files; every other name is ignored."""
    segments: dict[str, list[SegmentName]] = {}
    for name in store.names(folder):
        segment = segment_name(name)
        if segment is not None:
            segments.setdefault(segment.writer, []).append(segment)
    sealed: dict[str, list[SealedName]] = {}
    for name in store.names(os.path.join(folder, SEALED)):
        file = sealed_name(name)
        if file is not None:
            sealed.setdefault(file.writer, []).append(file)
    return Listing(
        {w: tuple(sorted(names)) for w, names in segments.items()},
        {w: tuple(sorted(names)) for w, names in sealed.items()},
    )


@dataclasses.dataclass(frozen=True)
class SealedSegment:
    """What a sealed file remembers of a segment it was made of."""

    header: Header
    next_seq: int
    verdict: str
    durable: int
    lost_bytes: int = 0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SealedSegment:
        """Read what `to_json` gave; unknown fields are ignored."""
        names = {field.name for field in dataclasses.fields(Header)}
        header = Header(**{k: v for k, v in fields["header"].items() if k in names})
        known = {field.name for field in dataclasses.fields(cls)} - {"header"}
        return cls(header, **{k: v for k, v in fields.items() if k in known})


def sealed_segments(path: str, store: Store = LOCAL) -> list[SealedSegment]:
    """Return what a sealed file says of the segments it was made of.

    Raises
    ------
    FormatError
        If it is no sealed file of a version this package reads, or damaged.
    """
    with open_parquet(path, store) as parquet:
        return _parse_sealed(parquet, path)


def _parse_sealed(parquet: Any, path: str) -> list[SealedSegment]:
    meta = parquet.metadata.metadata or {}
    try:
        check_format(meta[b"eventlog.format"].decode())
        text = meta[b"eventlog.segments"] + meta[b"eventlog.groups"]
        if zlib.crc32(text) != int(meta[b"eventlog.crc32"], 16):
            raise FormatError(
                "the metadata of a sealed file is damaged: its checksum does not hold"
            )
        return [SealedSegment.from_json(x) for x in json.loads(meta[b"eventlog.segments"])]
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error


def open_parquet(path: str, store: Store) -> Any:
    """Open a sealed file (a `pyarrow.parquet.ParquetFile`) whose pages are checked when read.

    Raises
    ------
    FormatError
        If it is no Parquet file, or its end is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = store.open(path)
    try:
        if file.read(4) != b"PAR1":  # libraries look at the one at the end only
            raise OSError(22, "its first bytes are not those of a Parquet file")
        # Without threads of Arrow: one that is left over by a failed read aborts the interpreter.
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        file.close()
        raise FormatError(f"a sealed file cannot be read ({error})", on=path) from error


def sealed_groups(parquet: Any, path: str) -> list[tuple[int, int, int, int]]:
    """Return rows, first seq, last seq and fingerprint of each row group of a sealed file.

    Raises
    ------
    FormatError
        If its metadata are damaged.
    """
    _parse_sealed(parquet, path)
    try:
        groups = json.loads(parquet.metadata.metadata[b"eventlog.groups"])
        found = [(int(n), int(first), int(last), int(crc)) for n, first, last, crc in groups]
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"this is no sealed file of an event log ({error!r})", on=path) from error
    if len(found) != parquet.num_row_groups:
        raise FormatError("a sealed file has not the row groups that were sealed", on=path)
    return found


def span_table(span: Span, reader: SegmentReader) -> pa.Table:
    """Return the rows of a span.

    Raises
    ------
    FormatError
        If its frames, whole by their checksums, are not what the format says.
    """
    import numpy as np
    import pyarrow as pa

    try:
        buffer = pa.py_buffer(b"".join((reader.header_bytes, span.data)))
        table = pa.ipc.open_stream(buffer).read_all().combine_chunks().replace_schema_metadata()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"a frame is no valid Arrow message ({error})", on=reader.path) from error
    seqs = table.column(0).to_numpy()
    steps = np.diff(seqs)
    last = span.first_seq + span.count - 1
    if seqs[0] != span.first_seq or seqs[-1] != last or not ((steps == 0) | (steps == 1)).all():
        raise FormatError("the events of a segment do not follow each other", on=reader.path)
    return table


@dataclasses.dataclass(frozen=True)
class Missing:
    """Events of a writer that no file holds: `first` to `last`, inclusive."""

    first: int
    last: int
    reason: str


class WriterReader:
    """Reads one writer of a run.

    Parameters
    ----------
    folder:
        The run's folder.
    writer:
        The writer's name.
    start:
        The first seq to read.
    skip_missing:
        Go on behind missing events; otherwise reading ends in front of them. Either way they are
        in `missing` afterwards.

    Attributes
    ----------
    next_seq:
        The seq behind the last event that was read.
    """

    def __init__(
        self,
        folder: str,
        writer: str,
        *,
        start: int = 0,
        skip_missing: bool = False,
        store: Store = LOCAL,
    ) -> None:
        self.folder = folder
        self.writer = writer
        self.next_seq = start
        self.missing: list[Missing] = []
        self.verdicts: dict[str, Verdict] = {}
        self._skip = skip_missing
        self._store = store
        self._vanished = False
        self._firsts: dict[str, int] = {}
        self._ends: dict[str, tuple[int, int]] = {}
        self._faults: dict[str, str] = {}

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of whole events, in order, in tables of some ten thousand rows.

        Raises
        ------
        FormatError
            For a file that cannot be what its name says.
        OSError
            If a file is there, cannot be read, and no other holds its events.
        """
        tries = 0
        while True:
            before = self.next_seq
            self._vanished = False
            failed: OSError | None = None
            for path in self._sources():
                try:
                    yield from self.file(path)
                except OSError as error:
                    self._note(path, error)
                    failed = None if self._vanished else error
                if self.next_seq > before:
                    break
            if self.next_seq > before:
                tries = 0
                continue
            ahead = self._ahead()
            tries += 1
            if (self._vanished or ahead is not None) and tries < _TRIES:
                continue  # sealed in this moment, or being copied: list again
            if failed is not None:
                raise failed
            if ahead is None:
                return
            reason = "; ".join(self._faults.values()) or "no file holds them"
            self.missing.append(Missing(self.next_seq, ahead - 1, reason))
            if not self._skip:
                return
            self.next_seq = ahead
            tries = 0

    def _note(self, path: str, error: OSError) -> None:
        """Remember that a file could not be read; `FileNotFoundError` and a stale handle of NFS
        mean that it was sealed a moment ago.
        """
        self._firsts.pop(path, None)
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            self._vanished = True
        else:
            self._faults[path] = f"{os.path.basename(path)}: {error}"

    def events(self) -> Iterator[Event]:
        """Yield the events one by one."""
        for table in self.tables():
            yield from frames.to_events(table)

    # ---------------------------------------------------------------- where to read on

    def _sources(self) -> list[str]:
        """Return the files that may hold `next_seq`, the most likely first."""
        found = listing(self.folder, self._store)
        live: list[tuple[int, str]] = []
        for name in found.segments.get(self.writer, ()):
            path = os.path.join(self.folder, str(name))
            first = self._first_of(path)
            if first is not None and first <= self.next_seq and not self._exhausted(path):
                live.append((first, path))
        sealed = [
            os.path.join(self.folder, SEALED, str(name))
            for name in found.sealed.get(self.writer, ())
            if name.first <= self.next_seq <= name.last
        ]
        # A later segment begins with what may be damaged in the one before it.
        live.sort(reverse=True)
        return sealed + [path for _first, path in live]

    def _ahead(self) -> int | None:
        """Return the lowest seq beyond `next_seq` that some file begins with."""
        found = listing(self.folder, self._store)
        firsts = [name.first for name in found.sealed.get(self.writer, ())]
        for name in found.segments.get(self.writer, ()):
            path = os.path.join(self.folder, str(name))
            first = self._first_of(path)
            if first is not None and first > self.next_seq and self._holds_any(path):
                firsts.append(first)
        return min((first for first in firsts if first > self.next_seq), default=None)

    def _exhausted(self, path: str) -> bool:
        """Return whether a segment was read to an end before `next_seq` and has not grown."""
        size, end = self._ends.get(path, (-1, 0))
        if end > self.next_seq:
            return False
        try:
            return self._store.size(path) == size
        except OSError:
            return False

    def _holds_any(self, path: str) -> bool:
        try:
            with SegmentReader(path, self._store) as reader:
                return next(reader.spans(), None) is not None
        except (OSError, FormatError):
            return False

    def _first_of(self, path: str) -> int | None:
        if path not in self._firsts:
            try:
                with SegmentReader(path, self._store) as reader:
                    if reader.header.writer != self.writer:
                        raise FormatError(f"its header names the writer {reader.header.writer}")
                    self._firsts[path] = reader.header.first_seq
            except OSError as error:
                self._note(path, error)
                return None
            except FormatError as error:
                self._faults[path] = f"{os.path.basename(path)}: {error}"
                return None
        return self._firsts[path]

    # ---------------------------------------------------------------- reading

    def file(self, path: str) -> Iterator[pa.Table]:
        """Yield what one file of the writer holds from `next_seq` on, as `tables` does."""
        return self._read_sealed(path) if path.endswith(".parquet") else self._read_segment(path)

    def _read_segment(self, path: str) -> Iterator[pa.Table]:
        size = self._store.size(path)
        with SegmentReader(path, self._store) as reader:
            for span in reader.spans():
                if span.first_seq + span.count <= self.next_seq:
                    continue
                table = self._from_next(span_table(span, reader))
                self.next_seq = span.first_seq + span.count
                yield table
            verdict = reader.verdict
        if verdict is not None:
            name = os.path.basename(path)
            self.verdicts[name] = verdict
            self._ends[path] = (size, verdict.next_seq)
            if verdict.detail:
                self._faults[path] = f"{name}: {verdict.detail}"

    def _read_sealed(self, path: str) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.compute as pc

        with open_parquet(path, self._store) as parquet:
            groups = sealed_groups(parquet, path)
            names = frames.schema().names
            held: pa.Table | None = None
            try:
                for group in range(parquet.num_row_groups):
                    if groups[group][2] < self.next_seq:
                        continue
                    rows = parquet.read_row_group(
                        group, columns=[*names, "writer"], use_threads=False
                    )
                    rows = rows.filter(pc.equal(rows.column("writer"), self.writer)).select(names)
                    rows = rows.cast(frames.schema())
                    held = rows if held is None else pa.concat_tables([held, rows])
                    if group + 1 < parquet.num_row_groups:
                        whole, held = _cut(held)
                        yield from self._taken(whole)
                if held is not None:
                    yield from self._taken(held)
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                raise FormatError(f"a sealed file cannot be read ({error})", on=path) from error

    def _taken(self, table: pa.Table) -> Iterator[pa.Table]:
        table = self._from_next(table.combine_chunks())
        if table.num_rows:
            self.next_seq = table.column(0)[-1].as_py() + 1
            yield table

    def _from_next(self, table: pa.Table) -> pa.Table:
        """Return the rows from `next_seq` on."""
        import numpy as np

        return table.slice(int(np.searchsorted(table.column(0).to_numpy(), self.next_seq)))


def _cut(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Split off the last event, which the next row group may continue."""
    import numpy as np

    seqs = table.column(0).to_numpy()
    at = int(np.searchsorted(seqs, seqs[-1])) if len(seqs) else 0
    return table.slice(0, at), table.slice(at)


def headers(folder: str, store: Store = LOCAL) -> dict[str, list[Header]]:
    """Return the headers of every writer's segments, in the order of their numbers, live or
    sealed. Files that cannot be read are left out.
    """
    for _ in range(_TRIES):
        found = listing(folder, store)
        out: dict[str, dict[int, Header]] = {}
        vanished = False
        for writer, names in found.segments.items():
            for name in names:
                try:
                    with SegmentReader(os.path.join(folder, str(name)), store) as reader:
                        out.setdefault(writer, {})[name.number] = reader.header
                except FileNotFoundError:
                    vanished = True
                except (OSError, FormatError):
                    continue
        for writer, files in found.sealed.items():
            for file in files:
                try:
                    for part in sealed_segments(os.path.join(folder, SEALED, str(file)), store):
                        if part.header.writer == writer:
                            out.setdefault(writer, {}).setdefault(part.header.segment, part.header)
                except FileNotFoundError:
                    vanished = True
                except (OSError, FormatError):
                    continue
        if not vanished:
            break
    return {writer: [parts[n] for n in sorted(parts)] for writer, parts in sorted(out.items())}


def may_hold_events(path: str, store: Store) -> bool:
    """Return whether a file without a valid header has bytes that look like a frame's."""
    if path.endswith(".parquet"):
        return True
    held = b""
    try:
        with store.open(path) as file:
            while chunk := file.read(2**20):
                held = held[-16:] + chunk
                if frames.PREFIX in held or b"durable=" in held:
                    return True
    except OSError:
        return True
    return False


def unreadable(folder: str, store: Store = LOCAL) -> dict[str, str]:
    """Return, for each writer of whose files no header can be read although one may hold events,
    what is wrong with the first of them. `headers` leaves such a writer out.
    """
    known = headers(folder, store)
    found = listing(folder, store)
    out: dict[str, str] = {}
    for writer in found.writers:
        if writer in known:
            continue
        sealed = [os.path.join(SEALED, str(name)) for name in found.sealed.get(writer, ())]
        live = [str(name) for name in found.segments.get(writer, ())]
        for name in [*live, *sealed]:
            path = os.path.join(folder, name)
            try:
                if name in sealed:
                    sealed_segments(path, store)
                elif may_hold_events(path, store):
                    SegmentReader(path, store).close()
            except FileNotFoundError:
                continue
            except (OSError, FormatError) as error:
                out.setdefault(writer, f"{name}: {error}")
    return out
