"""Verification: each kind of damage gets its word, and what is no damage gets none."""

from __future__ import annotations

import os

import pyarrow.parquet as pq
import pytest

from eventlog.audit import verify
from eventlog.event import make_rows
from eventlog.seal import seal
from tests.helpers import event, header, put, segment_bytes, series, writer
from tests.test_seal import segments


def judged(folder):
    report = verify(str(folder))
    return report.verdict, report.failed


def finish(one, others=None):
    known = {one.name: one.seq + 1, **(others or {})}
    fields = {"state": "finished", "exit_code": 0, "writers": known}
    one.close(lambda seq, named: make_rows("state", fields.items())[0])


def before(seq):
    """Return the durable mark of a writer that commits after each event."""
    return seq


@pytest.mark.parametrize("sealed", [False, True])
def test_a_run_that_is_whole_is_ok(sealed, tmp_path):
    folder = segments(tmp_path, series(4), series(4, 3), series(3, 7))
    if sealed:
        seal(folder)
    report = verify(folder)
    assert (report.verdict, report.failed) == ("ok", False)
    (one,) = report.writers
    assert (one.events, one.rows) == (10, 40)
    assert not one.problems


def test_a_live_run_is_ok_and_its_completeness_unknown(tmp_path):
    one = writer(tmp_path)
    one.append("metric", {"x": 1}, 0)
    report = verify(str(tmp_path))
    assert (report.verdict, report.complete) == ("ok", "unknown")


def test_a_torn_tail_is_no_failure(tmp_path):
    data, _ends = segment_bytes(series(4))
    for cut in (1, 300, 700):
        put(tmp_path, "w0-0.arrows", data[:-cut])
        report = verify(str(tmp_path))
        assert (report.verdict, report.failed) == ("torn", False)
        assert report.writers[0].files[0].lost_bytes > 0


@pytest.mark.parametrize("sealed", [False, True])
def test_a_torn_segment_with_its_successor_is_no_failure(sealed, tmp_path):
    folder = segments(tmp_path, series(4), series(4, 4))
    with open(tmp_path / "w0-0.arrows", "ab") as file:
        file.write(b"torn")
    if sealed:
        seal(folder)
    assert judged(folder) == ("torn", False)


def flipped(tmp_path, frame, durable):
    data, ends = segment_bytes(series(6), durable=durable)
    at = ends[frame] + 700
    return put(tmp_path, "w0-0.arrows", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_flip_below_the_durable_mark_is_corruption(tmp_path):
    flipped(tmp_path, 2, lambda seq: 3 if seq == 5 else 0)
    assert judged(tmp_path) == ("corrupt", True)


def test_a_hole_above_the_durable_mark_is_an_unacknowledged_tail(tmp_path):
    flipped(tmp_path, 2, lambda seq: min(seq, 2))
    assert judged(tmp_path) == ("torn", False)


def test_a_flip_with_a_later_segment_behind_it_is_corruption(tmp_path):
    segments(tmp_path, series(6), series(4, 6), durable=before)
    flipped(tmp_path, 2, 0)
    assert judged(tmp_path) == ("corrupt", True)


def test_a_missing_segment_is_missing(tmp_path):
    folder = segments(tmp_path, series(3), series(3, 3), series(3, 6), durable=before)
    os.remove(tmp_path / "w0-1.arrows")
    report = verify(folder)
    assert report.verdict == "missing"
    assert "3 to 5" in report.writers[0].problems[0]


def test_a_missing_segment_is_missing_though_the_last_one_is_torn(tmp_path):
    folder = segments(tmp_path, series(3), series(3, 3), series(3, 6), durable=before)
    os.remove(tmp_path / "w0-1.arrows")
    with open(tmp_path / "w0-2.arrows", "ab") as file:
        file.write(b"torn")
    assert verify(folder).verdict == "missing"


@pytest.mark.parametrize("marks", [3, 0])
def test_segments_that_ended_and_were_lost_above_the_durable_mark_are_a_tail(marks, tmp_path):
    """A full segment has its end of stream too, whatever the power took of those around it."""
    folder = segments(tmp_path, series(3), series(3, 3), series(3, 6), durable=marks)
    os.remove(tmp_path / "w0-1.arrows")
    report = verify(folder)
    assert (report.verdict, report.failed) == ("torn", False)
    assert "3 to 5 are missing" in report.writers[0].problems[0]


def test_a_cut_frame_that_looks_like_an_end_of_stream_proves_nothing(tmp_path):
    """The first four bytes of a frame came, and the sector behind them is zeros."""
    one = writer(tmp_path)
    one.append("metric", {"x": "a" * (2**20 + 1)}, 0)
    path = tmp_path / f"{one.name}-0.arrows"
    with open(path, "ab") as file:
        file.write(b"\xff" * 4 + b"\0" * 600)
    (blob,) = (tmp_path / "blobs").iterdir()
    blob.unlink()
    assert judged(tmp_path) == ("torn", False)


def test_a_run_that_finished_made_all_before_its_last_event_durable(tmp_path):
    one = writer(tmp_path, durability="os", segment_bytes=2_000)
    for n in range(9):
        one.append("metric", {"x": n}, n)
    finish(one)
    path = tmp_path / f"{one.name}-0.arrows"
    path.unlink()
    report = verify(str(tmp_path))
    assert report.verdict == "missing"
    assert max(file.durable for file in report.writers[0].files) == 9


def test_every_flipped_bit_of_the_only_header_is_a_failure(tmp_path):
    data, ends = segment_bytes(series(3))
    words = set()
    for bit in range(0, ends[0] * 8, 37):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        put(tmp_path, "w0-0.arrows", bytes(changed))
        words.add(judged(tmp_path))
    for bit in range(64):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        put(tmp_path, "w0-0.arrows", bytes(changed))
        words.add(judged(tmp_path))
    assert words == {("corrupt", True)}


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, segment_bytes([])[0][:100]])
def test_a_segment_that_was_never_begun_is_no_failure(content, tmp_path):
    folder = segments(tmp_path, series(3), end=False)
    put(folder, "w0-1.arrows", content)
    assert judged(folder)[1] is False


def test_two_files_that_differ_in_an_event_are_a_fork(tmp_path):
    folder = segments(tmp_path, series(4), [event(3, {"other": 1}), *series(2, 4)])
    report = verify(folder)
    assert report.verdict == "fork"
    assert "event 3" in report.writers[0].problems[0]


def test_two_files_that_agree_are_no_fork(tmp_path):
    folder = segments(tmp_path, series(6), series(4, 3))
    assert judged(folder) == ("ok", False)


@pytest.mark.parametrize("harm", ["remove", "change"])
def test_a_blob_that_is_missing_or_changed_is_a_failure(harm, tmp_path):
    one = writer(tmp_path)
    one.append("metric", {"x": "a" * (2**20 + 1)}, 0)
    finish(one)
    assert judged(tmp_path) == ("ok", False)
    (blob,) = (tmp_path / "blobs").iterdir()
    if harm == "remove":
        blob.unlink()
    else:
        blob.write_bytes(b"b" * (2**20 + 1))
    report = verify(str(tmp_path))
    assert report.verdict == "missing"
    assert "blob" in report.problems[0]


def test_a_reference_to_a_file_outside_the_journal_is_not_followed(tmp_path):
    from eventlog.value import Stored, dumps

    secret = put(tmp_path, "secret", b"secret")
    reference = Stored("blob", None, dumps({"sha256": secret, "size": 6, "type": "str"}))
    opened = []

    class Watching(type(writer(tmp_path)._files)):
        def open(self, path):
            opened.append(path)
            return super().open(path)

    put(tmp_path / "run", "w0-0.arrows", segment_bytes([event(0, {"x": reference})])[0])
    report = verify(str(tmp_path / "run"), Watching())
    assert report.verdict == "missing"
    assert secret not in opened


# ------------------------------------------------------------------------------ complete or not


def test_a_run_that_declared_all_it_has_is_complete(tmp_path):
    one = writer(tmp_path)
    one.append("metric", {"x": 1}, 0)
    finish(one)
    assert verify(str(tmp_path)).complete == "complete"
    seal(str(tmp_path))
    assert verify(str(tmp_path)).complete == "complete"


def test_a_writer_that_declared_nothing_leaves_completeness_unknown(tmp_path):
    one, other = writer(tmp_path), writer(tmp_path)
    for w in (one, other):
        w.append("metric", {"x": 1}, 0)
    other.close()
    finish(one, {other.name: None})
    report = verify(str(tmp_path))
    assert (report.verdict, report.complete) == ("ok", "unknown")


def test_a_writer_that_lacks_what_it_declared_is_a_failure(tmp_path):
    one = writer(tmp_path)
    one.append("metric", {"x": 1}, 0)
    known = {one.name: 9}
    one.append_rows(make_rows("state", [("exit_code", 0), ("writers", known)])[0], None)
    one.close()
    report = verify(str(tmp_path))
    assert (report.verdict, report.complete) == ("missing", "incomplete")


def test_a_writer_that_was_declared_and_has_no_file_is_a_failure(tmp_path):
    one, other = writer(tmp_path), writer(tmp_path)
    for w in (one, other):
        w.append("metric", {"x": 1}, 0)
    other.close()
    finish(one, {other.name: None})
    os.remove(tmp_path / f"{other.name}-0.arrows")
    report = verify(str(tmp_path))
    assert report.verdict == "missing"
    assert other.name in report.problems[0]


def test_damage_of_one_writer_says_nothing_of_the_others(tmp_path):
    folder = segments(tmp_path, series(3), series(3, 3), series(3, 6), durable=before)
    os.remove(tmp_path / "w0-1.arrows")
    put(folder, "w1-0.arrows", segment_bytes(series(2), header("w1"), end=True)[0])
    report = verify(folder)
    assert {w.writer: w.verdict for w in report.writers} == {"w0": "missing", "w1": "ok"}
    assert report.verdict == "missing"


def test_a_damaged_parquet_file_is_corrupt(tmp_path):
    folder = segments(tmp_path, series(50))
    seal(folder)
    path = tmp_path / "sealed/w0-0-49.parquet"
    data = path.read_bytes()
    columns = [pq.ParquetFile(path).metadata.row_group(0).column(i) for i in range(10)]
    starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
    pages = [at + c.total_compressed_size - 3 for at, c in zip(starts, columns, strict=True)]
    footer = [data.index(b"eventlog.groups") + 22, data.index(b"first_seq"), len(data) - 6]
    for at in (1, *pages, *footer):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert judged(folder) == ("corrupt", True), at
    path.write_bytes(data[: len(data) // 2])
    assert judged(folder) == ("corrupt", True)
