"""Segments whose header is destroyed: their frames are found and copied, and what is not known is
said.
"""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.audit import FAILURES, verify
from eventlog.compact import compact
from eventlog.fingerprint import seed_of
from eventlog.reader import headers
from eventlog.salvage import salvage
from eventlog.series import series as one_metric
from tests.helpers import event, header, plain, put, read, run_in, segment_bytes, series
from tests.test_salvage import state

ATTEMPT = {"key": "a", "launch": "l", "restart": [1], "start": 1, "evidence": "restart"}
SAID = {"project": "p", "name": "n", "host": "node7", "attempt": ATTEMPT}


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_a_checksum_tells_its_seed(data, seed):
    assert seed_of(zlib.crc32(data, seed), zlib.crc32(data), len(data)) == seed


def parts(tmp_path, destroyed, how, count=30, cut=10):
    """Make a run of segments of `cut` events each; destroy the header of some of them."""
    folder = run_in(tmp_path / "old")
    for number, first in enumerate(range(0, count, cut)):
        head = header("w0", number, first, **SAID)
        data, ends = segment_bytes(series(cut, first), head, end=True, durable=count)
        if number in destroyed:
            data = how(data, ends)
        put(folder, head.name, data)
    return folder


def zeros(data, ends):
    return bytes(ends[0]) + data[ends[0] :]


def half_a_page(data, ends):
    return bytes(640) + data[640:]


def flipped(data, ends):
    return data[:300] + bytes([data[300] ^ 1]) + data[301:]


def cut_off(data, ends):
    return data[ends[0] :]


HOWS = [zeros, half_a_page, flipped, cut_off]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("destroyed", [(0,), (1,), (2,), (0, 2)])
def test_other_segments_prove_what_a_destroyed_header_said(how, destroyed, tmp_path):
    folder, new = parts(tmp_path, destroyed, how), run_in(tmp_path / "new")
    assert verify(folder).verdict in FAILURES
    before = state(tmp_path / "old")
    done = salvage(folder, new)
    assert state(tmp_path / "old") == before
    (one,) = done.writers
    assert (one.events, one.lost, done.whole) == (30, (), True)
    assert [b.name for b in one.bad] == [f"w0-{n}.arrows" for n in destroyed]
    assert all("header is destroyed" in b.what and "proves" in b.what for b in one.bad)
    assert [plain(e) for e in read(new)] == [plain(e) for e in series(30)]
    assert headers(new) == {"w0": [header("w0", n, n * 10, **SAID) for n in range(3)]}
    report = verify(new)
    assert report.verdict not in FAILURES, report
    compact(new)
    assert one_metric(new, "loss").num_rows == 30
    assert salvage(folder, new).changed is False


@pytest.mark.parametrize("how", HOWS)
def test_a_run_of_one_segment_keeps_what_its_names_tell(how, tmp_path):
    folder, new = parts(tmp_path, (0,), how, 10), run_in(tmp_path / "new")
    done = salvage(folder, new)
    (one,) = done.writers
    assert (one.events, one.lost) == (10, ())
    assert "what it said is not known" in one.bad[0].what
    assert [plain(e) for e in read(new)] == [plain(e) for e in series(10)]
    ((found,),) = headers(new).values()
    assert found == header("w0", 0, 0, project="p", name="n")
    assert verify(new).verdict not in FAILURES


def test_damage_behind_a_destroyed_header_is_lost_and_said(tmp_path):
    def how(data, ends):
        return bytes(ends[3] - 5) + data[ends[3] - 5 : ends[5] + 700] + b"?" + data[ends[5] + 701 :]

    folder, new = parts(tmp_path, (1,), how), run_in(tmp_path / "new")
    (one,) = salvage(folder, new).writers
    assert [(gap.first, gap.last) for gap in one.lost] == [(10, 12), (15, 15)]
    assert [e.seq for e in read(new)] == [*range(10), 13, 14, *range(16, 30)]
    assert verify(new).verdict == "salvaged"


@pytest.mark.parametrize("others", [True, False])
def test_one_frame_alone_is_proven_by_the_header_or_not_at_all(others, tmp_path):
    folder = run_in(tmp_path / "old")
    for number in range(2 if others else 1):
        head = header("w0", number, number, **SAID)
        data, ends = segment_bytes([event(number, {"x": 1.5})], head, end=True)
        put(folder, head.name, data if number else zeros(data, ends))
    new = run_in(tmp_path / "new")
    done = salvage(folder, new)
    (one,) = done.writers
    if others:
        assert (one.events, done.whole) == (2, True)
    else:
        assert (one.events, done.whole) == (0, False)
        assert "no two frames prove" in one.bad[0].what


def test_frames_that_a_value_quotes_are_not_taken_for_its_own(tmp_path):
    """Somebody logged a whole segment as bytes."""
    quoted = segment_bytes(series(5, 100), header("w9", 3, 100, **SAID))[0]
    data, ends = segment_bytes([event(n, {"x": quoted, "n": n}) for n in range(4)], end=True)
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", zeros(data, ends))
    (one,) = salvage(folder, new).writers
    assert (one.events, one.lost) == (4, ())
    assert [e.seq for e in read(new)] == [0, 1, 2, 3]


def test_heads_that_lie_about_their_size_take_no_hours(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.headless._PATIENCE", 2**20)
    data, ends = segment_bytes(series(1))
    lie = data[ends[0] : ends[0] + 32] + (2**16).to_bytes(8, "little")
    lie += data[ends[0] + 40 : ends[0] + 640]
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", lie * 1000)
    (one,) = salvage(folder, new).writers
    assert one.events == 0 and "no two frames prove" in one.bad[0].what


def test_a_header_of_another_writer_or_version_is_not_destroyed(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    data, _ends = segment_bytes(series(5), header("w1", 0, 0, **SAID))
    put(folder, "w0-0.arrows", data)
    newer = header("w2", 0, 0, **SAID)
    object.__setattr__(newer, "format", "2.0")
    put(folder, "w2-0.arrows", segment_bytes(series(5), newer)[0])
    done = salvage(folder, new)
    assert [(w.writer, w.events) for w in done.writers] == [("w0", 0), ("w2", 0)]
    assert "names the writer w1" in done.writers[0].bad[0].what
    assert "format 2.0" in done.writers[1].bad[0].what
    assert not done.whole and not os.path.exists(os.path.join(new, "sealed"))
