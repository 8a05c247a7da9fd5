"""Segments: one append-only file of frames, created new, never opened again for writing.

A segment is an Arrow IPC stream: a *header* (the schema message), frames (`eventlog.frame`), and
Arrow's end of stream if its writer appends no more to it. The header's schema metadata holds

==================  ===========================================================================
eventlog.format     ``1.0``: readers refuse another major version
eventlog.run        the run's id
eventlog.writer     the writer's name
eventlog.segment    this segment's number in its writer, from 0
eventlog.first_seq  the seq of its first frame
eventlog.needs      only in files of later minor versions: what a reader must know to read the
                    frames; a reader that does not know it refuses the file
eventlog.header     the rest, as JSON: project, name, owner, attempt, launch, process, ...
eventlog.crc32      ``@crc32:`` and eight hexadecimal digits: the CRC-32 of every byte of the
                    header but these digits. ``@`` occurs nowhere else in a header.
==================  ===========================================================================

Reading gives spans of whole frames, then a `Verdict`:

* ``whole``: up to the end of stream;
* ``open``: up to the end of the file, no end of stream: the writer lives, or was killed;
* ``torn``: some bytes at the end are no whole frame;
* ``damaged``: a bad frame, and behind it valid ones again: a hole that a power cut left, or
  corruption; which of the two is known by the highest durable mark of the writer
  (`eventlog.reader`);
* ``foreign``: no header of this format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from eventlog import frame as frames
from eventlog import strip
from eventlog.errors import FormatError, UsageError
from eventlog.files import LOCAL, Files, Store
from eventlog.formats import FORMAT, check_format
from eventlog.layout import SegmentName, is_writer

if TYPE_CHECKING:
    import pyarrow as pa

_MARK = b"@crc32:"
_MAX_HEADER = 2**20
_CHUNK = 4 * 2**20
#: Of so many islands of valid frames behind damage a verdict tells.
_ISLANDS = 1000
#: So many bytes that turn out to be no frame are checked behind damage before it gives up.
_PATIENCE = 2**30

WHOLE, OPEN, TORN, DAMAGED, FOREIGN = "whole", "open", "torn", "damaged", "foreign"


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of a segment say.

    `identity` is free for what describes the writer: owner, attempt, launch, process.
    """

    run: str
    writer: str
    segment: int
    first_seq: int
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: str = FORMAT

    @property
    def name(self) -> str:
        """The segment's file name."""
        return str(SegmentName(self.writer, self.segment))

    def to_bytes(self) -> tuple[bytes, int]:
        """Return the header's bytes and its checksum, which seeds the frames' checksums.

        Raises
        ------
        UsageError
            If it would be longer than readers take.
        """
        text = json.dumps(self.identity, ensure_ascii=True, sort_keys=True).replace("@", "\\u0040")
        run = json.dumps(self.run, ensure_ascii=True)[1:-1].replace("@", "\\u0040")
        metadata = {
            "eventlog.format": self.format,
            "eventlog.run": run,
            "eventlog.writer": self.writer,
            "eventlog.segment": str(self.segment),
            "eventlog.first_seq": str(self.first_seq),
            "eventlog.header": text,
            "eventlog.crc32": "@crc32:00000000",
        }
        raw = frames.schema().with_metadata(metadata).serialize().to_pybytes()
        if len(raw) > _MAX_HEADER:
            raise UsageError(
                f"what describes this run takes {len(raw)} bytes, more than the {_MAX_HEADER} "
                "that a segment's header may have",
                hint="choose a shorter project, name or id",
            )
        at = raw.index(_MARK) + len(_MARK)
        crc = zlib.crc32(raw[at + 8 :], zlib.crc32(raw[:at]))
        return raw[:at] + b"%08x" % crc + raw[at + 8 :], crc


def read_header(file: BinaryIO) -> tuple[Header, bytes, int]:
    """Read the header; return it, its bytes and its checksum.

    Raises
    ------
    FormatError
        If the bytes are no header, damaged, or of a newer major version.
    """
    raw, crc = checked_header(file)
    return _parse(raw), raw, crc


def checked_header(file: BinaryIO) -> tuple[bytes, int]:
    """Read the bytes of a header, of any version, and its checksum.

    Raises
    ------
    FormatError
        If the bytes are no header, or damaged.
    """
    start = file.read(8)
    size = struct.unpack("<i", start[4:])[0] if len(start) == 8 else -1
    if start[:4] != frames.CONTINUATION or not 0 < size <= _MAX_HEADER - 8:
        raise FormatError("no segment of an event log starts like this")
    raw = start + file.read(size)
    if len(raw) < 8 + size:
        raise FormatError("the header of a segment is cut off")
    at = raw.find(_MARK) + len(_MARK)
    digits = raw[at : at + 8]
    if at < len(_MARK) or raw.count(_MARK) != 1 or re.fullmatch(rb"[0-9a-f]{8}", digits) is None:
        raise FormatError("a segment's header has no checksum")
    crc = zlib.crc32(raw[at + 8 :], zlib.crc32(raw[:at]))
    if crc != int(digits, 16):
        raise FormatError("a segment's header is damaged: its checksum does not hold")
    return raw, crc


def _parse(raw: bytes) -> Header:
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(raw))
        meta = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        check_format(meta["eventlog.format"])
        if meta.get("eventlog.needs"):
            raise FormatError(
                f"a segment needs {meta['eventlog.needs']!r}, which this version does not know",
                hint="install a newer eventlog-journal",
            )
        identity = json.loads(meta["eventlog.header"])
        header = Header(
            run=json.loads(f'"{meta["eventlog.run"]}"'),
            writer=meta["eventlog.writer"],
            segment=int(meta["eventlog.segment"]),
            first_seq=int(meta["eventlog.first_seq"]),
            identity=identity,
            format=meta["eventlog.format"],
        )
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        raise FormatError(f"a segment's header cannot be read ({error})") from error
    good = is_writer(header.writer) and min(header.segment, header.first_seq) >= 0
    if not good or not isinstance(identity, dict) or not _same_schema(schema):
        raise FormatError("a segment's header does not describe an event log")
    return header


def _same_schema(schema: pa.Schema) -> bool:
    return bool(schema.equals(frames.schema(), check_metadata=False))


# ------------------------------------------------------------------------------ writing


class NotCreated(OSError):
    """A segment's file could not be created: nobody saw a successor of the one before it."""


class SegmentWriter:
    """Appends frames to a new segment. After an error it is broken and takes no more."""

    def __init__(self, folder: str, header: Header, files: Files = LOCAL) -> None:
        self.files = files
        self.folder = folder
        self.path = os.path.join(folder, header.name)
        raw, seed = header.to_bytes()
        self.encoder = frames.Encoder(seed)
        self.broken = False
        self.size = 0
        self.listed = False  # whether the folder's entry survives a power cut
        self._failed: OSError | None = None
        self.first_seq = header.first_seq
        try:
            self._fd = files.create(self.path)
        except OSError as error:
            raise NotCreated(*error.args) from error
        try:
            self.size = files.write(self._fd, raw)
            if self.size < len(raw):
                self.append(raw[self.size :])
                # A power cut could leave a part of it with frames behind: that is damage to all
                # who cannot know of the two writes.
                files.sync(self._fd)
        except BaseException:
            self.discard()
            raise

    def append(self, data: bytes) -> None:
        """Write in one call; raise `OSError` if not everything went in."""
        size = len(data)
        try:
            done = self.files.write(self._fd, data)
            while done < size:
                more = self.files.write(self._fd, memoryview(data)[done:])
                if more <= 0:
                    raise OSError(28, "nothing more could be written", self.path)
                done += more
        except BaseException:
            self.broken = True
            raise
        self.size += size

    def sync(self) -> None:
        """Make what was appended survive a power cut. A sync that failed once fails for ever: a
        second one would only say that nothing is left to write.
        """
        if self._failed is not None:
            raise self._failed
        try:
            if self._fd < 0:  # it was let go of when it was full
                try:
                    self._fd = self.files.open_again(self.path)
                except FileNotFoundError:  # sealed meanwhile, and durable before it was removed
                    return
            self.files.sync(self._fd)
            if not self.listed:
                self.files.sync_folder(self.folder)
                self.listed = True
        except BaseException as error:
            self.broken = True
            failed = error if isinstance(error, OSError) else error.__context__
            if isinstance(failed, OSError):  # Ctrl-C hides it from who called
                self._failed = failed
            raise

    def end(self) -> None:
        """Write the end of stream: nothing more is appended."""
        if not self.broken:
            self.append(frames.END_OF_STREAM)

    def abandon(self) -> None:
        """Let go of the file as it is."""
        self.broken = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                self.files.close(fd)

    def discard(self) -> None:
        """Let go of the file and remove it: what it holds is, or will be, in another one."""
        self.abandon()
        with contextlib.suppress(OSError):
            self.files.remove(self.path)

    def length(self) -> int:
        """Return how many bytes the file has, whether or not a call that wrote them returned."""
        return self.files.length(self._fd)

    def close(self) -> None:
        """Let go of the file; raises `OSError` if the system reports a late failure."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self.files.close(fd)


# ------------------------------------------------------------------------------ reading


@dataclasses.dataclass(frozen=True)
class Span:
    """Whole, checked frames that follow each other: `data` is their bytes.

    `durable` is the highest durable mark among them. `size` is the size of each if they are all
    of one shape (`eventlog.strip`), else 0.
    """

    data: memoryview
    first_seq: int
    count: int
    rows: int
    durable: int = 0
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Island:
    """Valid frames behind bad bytes, one right behind the other, with seqs that follow.

    `first` and `last` are the seqs of the first and the last, `offset` is where it begins.
    """

    offset: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a segment ends.

    Attributes
    ----------
    word:
        ``whole``, ``open``, ``torn``, ``damaged`` or ``foreign``.
    offset:
        Where the bytes that are good so far end.
    next_seq:
        The seq that the next frame would have.
    durable:
        The highest durable mark in any valid frame, those behind the damage too.
    lost_bytes:
        Bytes that belong to no frame that was recovered.
    later:
        Valid frames behind the damage, at most the first thousand islands of them: listed, never
        recovered here (`eventlog.salvage` does).
    detail:
        One sentence for people.
    """

    word: str
    offset: int
    next_seq: int
    durable: int = 0
    lost_bytes: int = 0
    later: tuple[Island, ...] = ()
    detail: str = ""


class SegmentReader:
    """Reads one segment from its start; `verdict` is known when `spans` has ended."""

    def __init__(self, path: str, store: Store = LOCAL) -> None:
        """Open and read the header.

        Raises
        ------
        OSError
            If the file cannot be opened.
        FormatError
            If it is no segment, or its header is damaged.
        """
        self.path = path
        self._file = store.open(path)
        try:
            self.header, self.header_bytes, self._seed = read_header(self._file)
        except BaseException:
            self._file.close()
            raise
        self.verdict: Verdict | None = None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spans(self) -> Iterator[Span]:
        """Yield all whole frames in order, several to a span, up to the first that is not."""
        offset, seq, durable = len(self.header_bytes), self.header.first_seq, 0
        for span, rest in self._stream(seq):
            if not span.count:
                self.verdict = self._judge(rest, offset, seq, durable)
                return
            offset += len(span.data)
            seq += span.count
            durable = max(durable, span.durable)
            yield span

    def spans_from(self, offset: int, seq: int) -> Iterator[Span]:
        """Yield the whole frames from an offset on, the first of which has `seq`."""
        self._file.seek(offset)
        for span, _rest in self._stream(seq):
            if span.count:
                yield span

    def seq_at(self, offset: int) -> int:
        """Return the seq of the frame that begins at an offset."""
        self._file.seek(offset)
        return frames.first_seq(memoryview(self._file.read(frames.HEAD + 8)))

    def _stream(self, seq: int) -> Iterator[tuple[Span, bytes]]:
        """Yield whole frames from where the file stands, and at last an empty span with the bytes
        behind them that were read.
        """
        held = b""
        while True:
            chunk = self._file.read(_CHUNK)
            held = held + chunk if held else chunk
            at = 0
            for span in self._whole(memoryview(held), 0, seq):
                yield span, b""
                at += len(span.data)
                seq += span.count
            held = held[at:]
            if not chunk or self._is_bad(held):
                yield Span(memoryview(b""), seq, 0, 0), held
                return

    def islands(self) -> Iterator[tuple[int, Span]]:
        """Yield, once the verdict is ``damaged``, every span of valid frames behind the damage with
        its offset in the file. Their seqs follow within a span, and may do anything between two.
        """
        assert self.verdict is not None
        self._file.seek(self.verdict.offset)
        yield from self._behind(self._file.read(_CHUNK), self.verdict.offset)

    def _whole(self, view: memoryview, at: int, seq: int) -> Iterator[Span]:
        """Yield the whole frames that begin at `at` with `seq`: strips, and what lies between."""
        start, first, rows, durable = at, seq, 0, 0
        while (head := frames.read_head(view[at : at + frames.HEAD])) is not None:
            many = 0
            if _repeats(view, at, head.size):
                many, mark = strip.alike(view, at, head.size, seq, self._seed)
                if many >= strip.SHORTEST:
                    if at > start:
                        yield Span(view[start:at], first, seq - first, rows, durable)
                    stop = at + many * head.size
                    yield Span(view[at:stop], seq, many, many * head.rows, mark, head.size)
                    at = start = stop
                    seq += many
                    first, rows, durable = seq, 0, 0
                    continue
            if not self._holds(view, at, head, seq):
                break
            at += head.size
            seq += 1
            rows += head.rows
            durable = max(durable, head.durable)
        if at > start:
            yield Span(view[start:at], first, seq - first, rows, durable)

    def _holds(self, view: memoryview, at: int, head: frames.Head, seq: int) -> bool:
        frame = view[at : at + head.size]
        if len(frame) < head.size or frames.first_seq(frame) != seq:
            return False
        return frames.checksum(frame, self._seed) == head.crc

    def _is_bad(self, rest: bytes) -> bool:
        """Return whether more bytes cannot turn `rest` into a frame."""
        if len(rest) < frames.HEAD:
            return False
        head = frames.read_head(rest[: frames.HEAD])
        return head is None or len(rest) >= head.size

    def _judge(self, rest: bytes, offset: int, seq: int, durable: int) -> Verdict:
        if rest == frames.END_OF_STREAM:
            return Verdict(WHOLE, offset, seq, durable)
        if not rest:
            return Verdict(OPEN, offset, seq, durable)
        found: list[Island] = []
        count = 0
        for at, span in self._behind(rest, offset):
            count += span.count
            durable = max(durable, span.durable)
            if len(found) < _ISLANDS:
                found.append(Island(at, span.first_seq, span.first_seq + span.count - 1))
        size = self._file.tell() - offset
        if not count:
            detail = f"{size} bytes at its end, from offset {offset}, are no whole frame"
            return Verdict(TORN, offset, seq, durable, size, detail=detail)
        detail = f"bad bytes at offset {offset}, {count} valid frames behind them"
        return Verdict(DAMAGED, offset, seq, durable, size, tuple(_joined(found)), detail)

    def _behind(self, rest: bytes, offset: int) -> Iterator[tuple[int, Span]]:
        """Look for valid frames behind bad bytes, at each place where a frame could start."""
        base, held, at = offset, rest, 1
        budget = _PATIENCE
        while True:
            more = self._file.read(_CHUNK)
            held += more
            view = memoryview(held)
            while (at := held.find(frames.PREFIX, at)) >= 0:
                head = frames.read_head(view[at : at + frames.HEAD])
                short = len(held) - at < (head.size if head is not None else frames.HEAD)
                if short and more:
                    break
                if head is None or short:
                    at += 1
                    continue
                # Heads that lie about 16 MiB each must not make this take hours.
                budget -= head.size
                begun, seq = at, frames.first_seq(view[at:])
                if budget >= 0:
                    for span in self._whole(view, at, seq):
                        yield base + at, span
                        at += len(span.data)
                        budget += len(span.data)
                at += at == begun
            if not more:
                return
            keep = at if at >= 0 else max(len(held) - len(frames.PREFIX) + 1, 0)
            base += keep
            held = held[keep:]
            at = 0


def _repeats(view: memoryview, at: int, size: int) -> bool:
    """Return whether a strip may begin here: the next frame, and one further on, begin alike."""
    last = at + (strip.SHORTEST - 1) * size
    if len(view) < last + size:
        return False
    one = view[at : at + strip.HEAD]
    return bool(
        one == view[at + size : at + size + strip.HEAD] and one == view[last : last + strip.HEAD]
    )


def _joined(found: list[Island]) -> list[Island]:
    """Put islands together whose seqs follow each other."""
    out: list[Island] = []
    for island in found:
        if out and out[-1].last + 1 == island.first:
            out[-1] = dataclasses.replace(out[-1], last=island.last)
        else:
            out.append(island)
    return out
