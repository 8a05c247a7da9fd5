"""Segments: every cut, flip and hole gets its verdict, in bounded memory."""

from __future__ import annotations

import errno
import struct
import tracemalloc

import pytest

from eventlog import frame as frames
from eventlog.errors import FormatError, UsageError
from eventlog.segment import Island, NotCreated, SegmentReader, SegmentWriter, read_header
from tests.helpers import Bytes, Failing, event, header, plain, same, scan, segment_bytes, series

EVENTS = series(6)
DATA, ENDS = segment_bytes(EVENTS)


def opened(data):
    return SegmentReader("s", Bytes({"s": data}))


def test_a_cut_at_every_byte_leaves_exactly_the_whole_frames_before_it():
    for cut in range(ENDS[0], len(DATA) + 1):
        whole = sum(end <= cut for end in ENDS[1:])
        events, verdict = scan(DATA[:cut])
        assert len(events) == whole
        assert verdict.next_seq == whole
        assert verdict.offset == ENDS[whole]
        assert verdict.lost_bytes == cut - ENDS[whole]
        assert verdict.word == ("open" if cut == ENDS[whole] else "torn")
    assert same(events, EVENTS)


def test_a_cut_inside_the_header_is_no_segment():
    for cut in range(ENDS[0]):
        with pytest.raises(FormatError):
            opened(DATA[:cut])


def test_every_flipped_bit_of_the_header_is_found():
    found = []
    for bit in range(ENDS[0] * 8):
        changed = bytearray(DATA[: ENDS[1]])
        changed[bit // 8] ^= 1 << bit % 8
        try:
            with opened(bytes(changed)):
                found.append(bit)
        except FormatError:
            continue
    assert not found


@pytest.mark.parametrize("length", [1, 8, 300, 1500])
def test_a_hole_in_the_middle_is_damage_and_later_frames_are_listed(length):
    at = ENDS[2] + 10
    events, verdict = scan(DATA[:at] + b"\xaa" * length + DATA[at + length :])
    last_hit = next(i for i, end in enumerate(ENDS) if end >= at + length)
    assert verdict.word == "damaged"
    assert same(events, EVENTS[:2])
    later = (Island(ENDS[last_hit], last_hit, 5),) if last_hit < 6 else ()
    assert verdict.later == later
    assert verdict.lost_bytes == len(DATA) - ENDS[2]


def test_bytes_that_are_missing_in_the_middle_are_damage_too():
    events, verdict = scan(DATA[: ENDS[2] + 3] + DATA[ENDS[2] + 7 :])
    assert len(events) == 2
    assert [(i.first, i.last) for i in verdict.later] == [(3, 5)]


def test_a_frame_that_is_missing_whole_is_damage():
    events, verdict = scan(DATA[: ENDS[2]] + DATA[ENDS[3] :])
    assert len(events) == 2
    assert verdict.word == "damaged"


def test_the_highest_durable_mark_counts_behind_damage_too():
    data, ends = segment_bytes(EVENTS, durable=lambda seq: seq)
    _events, verdict = scan(data[: ends[2]] + b"x" + data[ends[2] + 1 :])
    assert (verdict.word, verdict.next_seq, verdict.durable) == ("damaged", 2, 5)


def test_an_end_of_stream_closes_a_segment():
    events, verdict = scan(DATA + frames.END_OF_STREAM)
    assert same(events, EVENTS)
    assert (verdict.word, verdict.lost_bytes) == ("whole", 0)


@pytest.mark.parametrize("garbage", [b"\0", b"\0" * 4096, b"garbage", frames.END_OF_STREAM])
def test_bytes_behind_the_end_are_torn_and_counted(garbage):
    events, verdict = scan(DATA + frames.END_OF_STREAM + garbage)
    assert same(events, EVENTS)
    assert (verdict.word, verdict.lost_bytes) == ("torn", 8 + len(garbage))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"ARROW1\0\0" * 20, b"\xff" * 100])
def test_what_is_no_segment_is_a_format_error(data):
    with pytest.raises(FormatError):
        opened(data)


def test_huge_lengths_cost_no_memory():
    lying = [frames.CONTINUATION + struct.pack("<i", size) for size in (2**31 - 1, 2**20, -1)]
    made = bytearray(DATA[ENDS[0] : ENDS[1]])
    bodies = [2**62, frames.MAX_FRAME - frames.HEAD, -8, 0]
    frames_lying = [bytes(made[:32]) + struct.pack("<q", n) + bytes(made[40:]) for n in bodies]
    tracemalloc.start()
    for start in lying:
        with pytest.raises(FormatError):
            opened(start + b"x" * 1000)
    for lie in frames_lying:
        events, verdict = scan(DATA[: ENDS[0]] + lie)
        assert not events
        assert verdict.word == "torn"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_frame_larger_than_what_is_read_at_once_is_whole():
    events = [
        event(0, {"x": b"a" * (6 * 2**20)}),
        event(1, {"x": b"b" * (5 * 2**20)}),
        event(2, {"x": 1}),
    ]
    data, _ends = segment_bytes(events, end=True)
    found, verdict = scan(data)
    assert [plain(e) for e in found] == [plain(e) for e in events]
    assert verdict.word == "whole"
    _found, verdict = scan(data[:3000] + b"?" + data[3001:])
    assert [(i.first, i.last) for i in verdict.later] == [(1, 2)]


def test_a_newer_major_version_is_refused_and_says_what_to_do():
    import dataclasses

    newer, _ends = segment_bytes(EVENTS, dataclasses.replace(header(), format="2.0"))
    with pytest.raises(FormatError, match=r"format 2\.0.*newer eventlog"):
        opened(newer)
    minor, _ends = segment_bytes(EVENTS, dataclasses.replace(header(), format="1.7"))
    assert same(scan(minor)[0], EVENTS)


def test_a_header_keeps_any_identity():
    head = header(project="p@q", name="\ud800é\n@crc32:00000000", nested={"a": [1, None]})
    with opened(segment_bytes([], head)[0]) as reader:
        assert reader.header == head


def test_an_identity_that_no_reader_would_take_is_refused_when_it_is_written():
    with pytest.raises(UsageError, match="more than"):
        header(name="x" * 2**20).to_bytes()


def test_a_name_of_a_file_says_nothing_the_header_does():
    head, _raw, _crc = read_header(Bytes({"s": DATA}).open("s"))
    assert head.name == "w0-0.arrows"


# ------------------------------------------------------------------------------ writing


def test_a_segment_that_exists_is_never_opened_for_writing(tmp_path):
    SegmentWriter(str(tmp_path), header()).close()
    with pytest.raises(NotCreated) as error:
        SegmentWriter(str(tmp_path), header())
    assert error.value.errno == errno.EEXIST


def test_a_segment_whose_header_cannot_be_written_leaves_no_file(tmp_path):
    full = OSError(errno.ENOSPC, "no space")
    files = Failing(lambda n, name: full if name == "write" else None)
    with pytest.raises(OSError, match="no space"):
        SegmentWriter(str(tmp_path), header(), files)
    assert not list(tmp_path.iterdir())


def test_short_writes_are_finished(tmp_path):
    files = Failing(lambda n, name: 7 if n % 3 else None, ["write"])
    segment = SegmentWriter(str(tmp_path), header(), files)
    for one in EVENTS:
        segment.append(segment.encoder.event(one))
    segment.end()
    segment.close()
    events, verdict = scan((tmp_path / "w0-0.arrows").read_bytes())
    assert same(events, EVENTS)
    assert verdict.word == "whole"
