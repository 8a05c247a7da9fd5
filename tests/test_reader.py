"""Reading: every event once, in order; what is missing is said."""

from __future__ import annotations

import errno
import os

import pytest

from eventlog.errors import FormatError
from eventlog.files import Files
from eventlog.reader import WriterReader, headers, listing
from eventlog.seal import seal
from eventlog.segment import Island
from tests.helpers import event, header, put, read, same, segment_bytes, series, values_of, writer
from tests.test_seal import segments


def test_reading_begins_at_any_position(tmp_path):
    folder = segments(tmp_path, series(5), series(5, 5), series(5, 10))
    seal(folder)
    segments(tmp_path / "b", series(5), series(5, 5))
    for start in range(17):
        assert same(read(folder, start=start), series(15)[start:])
        assert same(read(tmp_path / "b", start=start), series(10)[start:])


def test_overlapping_segments_give_each_event_once(tmp_path):
    folder = segments(tmp_path, series(6), series(4, 3), series(5, 3), series(2, 8))
    assert same(read(folder), series(10))


def test_what_is_damaged_in_a_segment_is_read_from_the_one_that_repeats_it(tmp_path):
    folder = segments(tmp_path, series(6), series(4, 3))
    data, ends = segment_bytes(series(6))
    put(folder, "w0-0.arrows", data[: ends[4]] + b"\0" * 300 + data[ends[4] + 300 :])
    assert same(read(folder), series(7))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_missing_segment_is_reported_and_reading_stops_in_front_of_it(sealed, tmp_path):
    folder = segments(tmp_path, series(3), series(4, 3), series(3, 7))
    os.remove(tmp_path / "w0-1.arrows")
    if sealed:
        seal(folder)
    reader = WriterReader(folder, "w0")
    assert same(reader.events(), series(3))
    assert [(m.first, m.last) for m in reader.missing] == [(3, 6)]
    assert reader.next_seq == 3
    reader = WriterReader(folder, "w0", skip_missing=True)
    assert same(reader.events(), [*series(3), *series(3, 7)])
    assert [(m.first, m.last) for m in reader.missing] == [(3, 6)]


def test_a_missing_first_segment_is_missing_from_the_start(tmp_path):
    folder = segments(tmp_path, series(3), series(4, 3))
    os.remove(tmp_path / "w0-0.arrows")
    reader = WriterReader(folder, "w0")
    assert list(reader.events()) == []
    assert [(m.first, m.last) for m in reader.missing] == [(0, 2)]


def test_a_torn_end_is_no_gap_and_says_so(tmp_path):
    data, _ends = segment_bytes(series(4))
    put(tmp_path, "w0-0.arrows", data[:-5])
    reader = WriterReader(str(tmp_path), "w0")
    assert same(reader.events(), series(3))
    assert not reader.missing
    assert reader.verdicts["w0-0.arrows"].word == "torn"


def test_events_behind_damage_are_not_recovered_in_silence(tmp_path):
    data, ends = segment_bytes(series(5))
    put(tmp_path, "w0-0.arrows", data[: ends[2]] + b"\0" + data[ends[2] + 1 :])
    reader = WriterReader(str(tmp_path), "w0", skip_missing=True)
    assert same(reader.events(), series(2))
    assert reader.verdicts["w0-0.arrows"].later == (Island(ends[3], 3, 4),)


def test_a_reader_goes_on_where_it_was_when_the_writer_does(tmp_path):
    one = writer(tmp_path, segment_bytes=4000)
    reader, found = None, []
    for n in range(30):
        one.append("metric", {"x": n}, n)
        if reader is None:
            reader = WriterReader(str(tmp_path), one.name)
        if n % 3 == 0:
            found += values_of(reader.events())
        if n == 20:
            seal(str(tmp_path))
    found += values_of(reader.events())
    assert found == list(range(30))


class Slow(Files):
    """Seals between the listing of the live files and that of the sealed ones, or the opening."""

    def __init__(self, folder, when):
        self.folder, self.when = folder, when

    def names(self, folder):
        found = super().names(folder)
        if self.when == "between" and not folder.endswith("sealed"):
            self.now()
        return found

    def open(self, path):
        if self.when == "open" and path.endswith(".arrows"):
            self.now()
        return super().open(path)

    def size(self, path):
        if self.when == "size" and path.endswith(".arrows"):
            self.now()
        return super().size(path)

    def now(self):
        self.when = ""
        seal(self.folder)


@pytest.mark.parametrize("when", ["between", "open", "size"])
def test_sealing_at_the_worst_moment_loses_nothing(when, tmp_path):
    folder = segments(tmp_path, series(5), series(5, 5))
    store = Slow(folder, when)
    reader = WriterReader(folder, "w0", store=store)
    assert same(reader.events(), series(10))
    assert not reader.missing
    assert store.when == ""
    folder = segments(tmp_path / "b", series(5), series(5, 5))
    assert len(headers(folder, Slow(folder, when))["w0"]) == 2


def test_a_stale_handle_is_opened_again(tmp_path):
    folder = segments(tmp_path, series(5))

    class Stale(Files):
        left = 2

        def open(self, path):
            if self.left:
                self.left -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().open(path)

    assert same(WriterReader(folder, "w0", store=Stale()).events(), series(5))


def test_a_file_that_cannot_be_read_is_an_error_not_an_end(tmp_path):
    folder = segments(tmp_path, series(5))

    class Bad(Files):
        opened = 0

        def open(self, path):
            self.opened += 1
            if self.opened > 1:
                raise OSError(errno.EIO, "Input/output error")
            return super().open(path)

    with pytest.raises(OSError, match="Input/output"):
        list(WriterReader(folder, "w0", store=Bad()).events())


def test_a_segment_that_names_another_writer_is_not_read(tmp_path):
    put(tmp_path, "w0-0.arrows", segment_bytes(series(2), header("w1"))[0])
    assert read(tmp_path, "w0") == []


def test_links_out_of_the_journal_are_not_followed(tmp_path):
    put(tmp_path / "out", "x", segment_bytes(series(2))[0])
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "out" / "x", tmp_path / "run" / "w0-0.arrows")
    with pytest.raises(OSError):
        list(WriterReader(str(tmp_path / "run"), "w0").file(str(tmp_path / "run" / "w0-0.arrows")))
    assert headers(str(tmp_path / "run")) == {}


def test_a_sealed_file_that_is_none_is_a_format_error(tmp_path):
    put(tmp_path, "sealed/w0-0-5.parquet", b"PAR1 no parquet PAR1")
    with pytest.raises(FormatError):
        read(tmp_path, "w0")


def test_a_large_event_of_many_keys_is_one_event(tmp_path):
    many = event(0, {f"k{n}": n for n in range(20_000)}, 1)
    folder = segments(tmp_path, [many, event(1, {"a": 1})])
    seal(folder)
    assert same(read(folder), [many, event(1, {"a": 1})])


def test_headers_are_in_the_order_of_their_numbers_live_or_sealed(tmp_path):
    folder = segments(tmp_path, *(series(2, 2 * n) for n in range(12)), end=False)
    seal(folder)
    found = headers(folder)["w0"]
    assert [h.segment for h in found] == list(range(12))
    assert [h.first_seq for h in found] == list(range(0, 24, 2))


def test_foreign_names_are_no_writers(tmp_path):
    for name in (".nfs0001", "w0-0.arrows.tmp", "notes.txt", "sealed/.tmp-1", "sealed/x.parquet"):
        put(tmp_path, name, b"x")
    assert listing(str(tmp_path)).writers == []
    assert listing(str(tmp_path / "nowhere")).writers == []
