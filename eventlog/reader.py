"""The events of one writer of a run, in order, from any position, live or sealed.

A folder is listed anew whenever something seems to be missing, live files before sealed ones: what
sealing moves from one to the other is always in one of the two lists.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from eventlog import frame as frames
from eventlog import strip
from eventlog.archive import open_sealed, sealed_segments
from eventlog.columns import booleans, is_word, numbers
from eventlog.errors import FormatError
from eventlog.event import Event
from eventlog.files import LOCAL, Store
from eventlog.footer import Lost
from eventlog.listing import listing
from eventlog.lookup import holds, rows_of_key
from eventlog.sealed import SealedFile, whole_events
from eventlog.segment import WHOLE, Header, SegmentReader, Span, Verdict

if TYPE_CHECKING:
    import pyarrow as pa

_TRIES = 5
#: Rows of which events are made in one go.
_AT_ONCE = 2000


def span_table(span: Span, reader: SegmentReader) -> pa.Table:
    """Return the rows of a span.

    Raises
    ------
    FormatError
        If its frames, whole by their checksums, are not what the format says.
    """
    import pyarrow as pa

    return pa.Table.from_arrays(span_columns(span, reader), schema=frames.schema())


def span_columns(
    span: Span, reader: SegmentReader, *, dictionaries: bool = False
) -> list[pa.Array]:
    """Return the columns of a span; `dictionaries` allows `key`, `kind` and `type` to be such.

    Raises
    ------
    FormatError
        If its frames, whole by their checksums, are not what the format says.
    """
    import numpy as np
    import pyarrow as pa

    found = None
    if span.size:
        rows = span.rows // span.count
        found = strip.columns(span.data, span.size, rows, dictionaries=dictionaries)
    if found is None:
        try:
            buffer = pa.py_buffer(b"".join((reader.header_bytes, span.data)))
            table = pa.ipc.open_stream(buffer).read_all().combine_chunks()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise FormatError(
                f"a frame is no valid Arrow message ({error})", on=reader.path
            ) from error
        found = [column.chunk(0) for column in table.columns]
    seqs = numbers(found[0])
    steps = np.diff(seqs)
    last = span.first_seq + span.count - 1
    if seqs[0] != span.first_seq or seqs[-1] != last or not ((steps == 0) | (steps == 1)).all():
        raise FormatError("the events of a segment do not follow each other", on=reader.path)
    return found


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
    columns:
        Read these columns only, and `seq`, in the order of the schema: of sealed files nothing else
        is unpacked then.
    key:
        Read the rows of this key only.

    Attributes
    ----------
    next_seq:
        The seq behind the last event that was read.
    lost:
        Events that no file holds, and that a salvage recorded as lost for good: reading goes on
        behind them.
    """

    def __init__(
        self,
        folder: str,
        writer: str,
        *,
        start: int = 0,
        skip_missing: bool = False,
        store: Store = LOCAL,
        columns: Collection[str] | None = None,
        key: str | None = None,
    ) -> None:
        self.folder = folder
        self.writer = writer
        self.next_seq = start
        self.missing: list[Missing] = []
        self.lost: list[Lost] = []
        self.verdicts: dict[str, Verdict] = {}
        self._skip = skip_missing
        self._columns = columns
        self._key = key
        self._store = store
        self._vanished: OSError | None = None
        self._unread: OSError | None = None
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
            self._vanished = self._unread = None
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
            if (self._vanished or self._unread or ahead is not None) and tries < _TRIES:
                continue  # sealed in this moment, or being copied: list again
            if failed is not None:
                raise failed
            if ahead is None:
                # What still vanishes after so many looks was not sealed: it is there, and unread.
                unread = self._unread or self._vanished
                if unread is not None:
                    raise unread
                return
            told = self._told_lost(self.next_seq, ahead - 1)
            if told is not None:  # nothing that was not said when they were lost
                self.lost.append(told)
                self.next_seq = ahead
                tries = 0
                continue
            reason = "; ".join(self._faults.values()) or str(self._vanished or "no file holds them")
            self.missing.append(Missing(self.next_seq, ahead - 1, reason))
            if not self._skip:
                return
            self.next_seq = ahead
            tries = 0

    def _told_lost(self, first: int, last: int) -> Lost | None:
        """Return what a file beside a gap says of it, if that is that its events are lost."""
        for name in listing(self.folder, self._store).parquet(self.writer):
            if name.first != last + 1 and name.last != first - 1:
                continue
            try:
                with open_sealed(os.path.join(self.folder, name.path), self._store) as file:
                    for gap in file.lost:
                        if gap.first <= first and gap.last >= last:
                            return Lost(first, last, gap.reason)
            except (OSError, FormatError):
                continue
        return None

    def _note(self, path: str, error: OSError) -> None:
        """Remember that a file could not be read; `FileNotFoundError` and a stale handle of NFS
        mean that it was sealed a moment ago.
        """
        self._firsts.pop(path, None)
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            self._vanished = error
        else:
            self._unread = error
            self._faults[path] = f"{os.path.basename(path)}: {error}"

    def events(self) -> Iterator[Event]:
        """Yield the events one by one."""
        import numpy as np

        for table in self.tables():
            seqs = numbers(table.column("seq"))
            start = 0
            while start < len(seqs):  # a part at a time: who wants one event pays for few
                last = seqs[min(start + _AT_ONCE, len(seqs)) - 1]
                stop = int(np.searchsorted(seqs, last, "right"))
                yield from frames.to_events(table.slice(start, stop - start))
                start = stop

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
            os.path.join(self.folder, name.path)
            for name in found.parquet(self.writer)
            if name.first <= self.next_seq <= name.last
        ]
        # A later segment begins with what may be damaged in the one before it.
        live.sort(reverse=True)
        return sealed + [path for _first, path in live]

    def _ahead(self) -> int | None:
        """Return the lowest seq beyond `next_seq` that some file begins with."""
        found = listing(self.folder, self._store)
        firsts = [name.first for name in found.parquet(self.writer)]
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
        try:
            reader = SegmentReader(path, self._store)
        except FormatError as error:
            # It had a header a moment ago: a network file system may show what was there before.
            self._firsts.pop(path, None)
            self._faults[path] = f"{os.path.basename(path)}: {error}"
            return
        with reader:
            for span in reader.spans():
                if span.first_seq + span.count <= self.next_seq:
                    continue
                table = self._chosen(self._from_next(span_table(span, reader)))
                self.next_seq = span.first_seq + span.count
                if table.num_rows:
                    yield table
            verdict = reader.verdict
        if verdict is not None:
            name = os.path.basename(path)
            self.verdicts[name] = verdict
            # Not what its size was said to be: less may have been there to read.
            size = verdict.offset + verdict.lost_bytes
            size += len(frames.END_OF_STREAM) if verdict.word == WHOLE else 0
            self._ends[path] = (size, verdict.next_seq)
            if verdict.detail:
                self._faults[path] = f"{name}: {verdict.detail}"

    def _chosen(self, table: pa.Table) -> pa.Table:
        """Return the rows and columns that were asked for."""
        if self._key is not None:
            table = table.filter(is_word(table.column("key"), self._key))
        return table if self._columns is None else table.select(self._schema().names)

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        fields = frames.schema()
        if self._columns is None:
            return fields
        return pa.schema([f for f in fields if f.name == "seq" or f.name in self._columns])

    def _read_sealed(self, path: str) -> Iterator[pa.Table]:
        words = ("key", "kind", "type") if self._key is not None else ()
        with open_sealed(path, self._store, words) as file:
            for table in whole_events(self._groups(file)):
                table = self._from_next(table)
                if table.num_rows:
                    self.next_seq = max(self.next_seq, table.column(0)[-1].as_py() + 1)
                    yield table
            # What was left out of the last row groups was read, too.
            self.next_seq = max(
                [self.next_seq, *(last + 1 for _n, _first, last, _crc in file.groups)]
            )

    def _groups(self, file: SealedFile) -> Iterator[pa.Table]:
        import pyarrow as pa

        schema = self._schema()
        if self._key is not None:
            yield from rows_of_key(file, self.writer, self._key, schema, self.next_seq)
            return
        for group, (_rows, _first, last, _crc) in enumerate(file.groups):
            if last < self.next_seq:
                continue
            found = of_writer(file.rows(group, [*schema.names, "writer"]), self.writer)
            try:
                rows = found.select(schema.names).cast(schema)
            except (pa.ArrowException, ValueError) as error:
                text = f"a sealed file's columns have other types ({error})"
                raise FormatError(text, on=file.path) from error
            yield rows

    def _from_next(self, table: pa.Table) -> pa.Table:
        """Return the rows from `next_seq` on."""
        import numpy as np

        return table.slice(int(np.searchsorted(numbers(table.column(0)), self.next_seq)))


def of_writer(table: pa.Table, writer: str) -> pa.Table:
    """Return the rows of one writer."""
    column = table.column("writer").combine_chunks()
    if column.dictionary.to_pylist() == [writer]:
        return table
    return table.filter(booleans(holds(table.column("writer"), writer)))


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
        for writer in found.writers:
            for file in found.parquet(writer):
                try:
                    for part in sealed_segments(os.path.join(folder, file.path), store):
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
        sealed = [name.path for name in found.parquet(writer)]
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
