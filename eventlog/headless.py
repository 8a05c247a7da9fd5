"""Segments whose header is destroyed: whose frames they are, and the frames.

A frame is seeded with the checksum of its segment's header. CRC-32 can be turned round: a frame and
its own checksum tell the seed. Two frames with the same one come from one segment, which no chance
brings about in four billion tries; and then every frame of that seed is as good as it ever was.

What the header alone said has to be found elsewhere. The segments of one writer say the same but for
their number and first seq. If a header made of what another one says, with the number that the file's
name has and the seq of the first frame, has that very checksum, it is the one that was destroyed. If
not, run, writer and number are what folder and file are called, and nothing more is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from eventlog import frame as frames
from eventlog.errors import FormatError
from eventlog.files import LOCAL, Store
from eventlog.fingerprint import seed_of
from eventlog.segment import DAMAGED, Header, SegmentReader, Span, Verdict, checked_header

#: So many bytes at the start of a file are searched for frames that tell the seed: a few of the
#: largest frames.
_SEARCHED = 4 * frames.MAX_FRAME
#: Of frames that overlap so many bytes are checked.
_PATIENCE = 2**30
#: So many frames of one seed are proof, and so many seeds are remembered meanwhile.
_PROOF, _SEEDS = 2, 10_000


class HeadlessReader(SegmentReader):
    """Reads the frames of a segment without its header: `islands` yields them, `verdict` is
    ``damaged``, and `proven` says whether `header` is the one that was destroyed.
    """

    def __init__(self, path: str, known: Sequence[Header], store: Store = LOCAL) -> None:
        """Open and find the seed.

        Parameters
        ----------
        known:
            What the header may have said, perhaps with another first seq; the first of them is
            taken if none is proven. Not empty.

        Raises
        ------
        OSError
            If the file cannot be opened.
        FormatError
            If nothing proves that its frames belong together.
        """
        self.path = path
        self._file = store.open(path)
        try:
            found = _likely(self._file.read(_SEARCHED))
            self.header, self._seed, self.proven = _identified(found, known)
            self.header_bytes = self.header.to_bytes()[0]
            self.verdict = Verdict(DAMAGED, 0, self.header.first_seq)
            self.verdict = self._judged()
        except BaseException:
            self._file.close()
            raise

    def islands(self) -> Iterator[tuple[int, Span]]:
        """Yield every span of valid frames with its offset."""
        self._file.seek(0)
        # One byte in front: the search begins behind the first.
        yield from self._behind(b"\0", -1)

    def _judged(self) -> Verdict:
        good = count = durable = 0
        end = self.header.first_seq
        for _offset, span in self.islands():
            good += len(span.data)
            count += span.count
            durable = max(durable, span.durable)
            end = max(end, span.first_seq + span.count)
        whose = (
            "another segment proves what it said" if self.proven else "what it said is not known"
        )
        detail = f"its header is destroyed, {count} valid frames behind it; {whose}"
        return Verdict(DAMAGED, 0, end, durable, self._file.tell() - good, detail=detail)


def is_headless(path: str, store: Store = LOCAL) -> bool:
    """Return whether the header of a segment, of any version, is destroyed. Raises `OSError`."""
    with store.open(path) as file:
        try:
            checked_header(file)
        except FormatError:
            return True
    return False


@dataclasses.dataclass
class _Seed:
    """A seed that frames may have: the lowest seq among them, and how many there are."""

    first: int
    last: int
    count: int = 1


def _likely(raw: bytes) -> dict[int, _Seed]:
    """Return the seeds that frames in some bytes may have, until one is proven."""
    found: dict[int, _Seed] = {}
    view, at, budget = memoryview(raw), -1, _PATIENCE
    while (at := raw.find(frames.PREFIX, at + 1)) >= 0 and len(found) < _SEEDS:
        head = frames.read_head(view[at : at + frames.HEAD])
        if head is None or len(view) - at < head.size:
            continue
        budget -= head.size  # heads that lie about 16 MiB each must not make this take hours
        if budget < 0:
            break
        frame = view[at : at + head.size]
        seq, seed = frames.first_seq(frame), _seed(frame, head.crc)
        one = found.get(seed)
        if one is None:
            found[seed] = _Seed(seq, seq)
        elif seq > one.last:  # and not the same frame again
            one.last, one.count = seq, one.count + 1
            if one.count >= _PROOF:
                return found
    return found


def _seed(frame: memoryview, crc: int) -> int:
    """Return the seed with which a frame has its checksum."""
    return seed_of(crc, frames.checksum(frame, 0), len(frame) - frames.CRC_DIGITS)


def _identified(found: dict[int, _Seed], known: Sequence[Header]) -> tuple[Header, int, bool]:
    """Return the header, the seed, and whether that header has it."""
    for seed, one in found.items():
        for header in known:
            for made in (dataclasses.replace(header, first_seq=one.first), header):
                if made.to_bytes()[1] == seed:
                    return made, seed, True
    for seed, one in found.items():
        if one.count >= _PROOF:
            return dataclasses.replace(known[0], first_seq=one.first), seed, False
    raise FormatError("its header is destroyed, and no two frames prove that they belong together")
