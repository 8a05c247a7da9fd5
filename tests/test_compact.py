"""Compaction: fewer files of the same rows, at every instant, killed at any moment."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eventlog import pages
from eventlog.audit import verify
from eventlog.compact import compact
from eventlog.event import digest
from eventlog.reader import WriterReader, headers, listing
from eventlog.seal import seal
from eventlog.sealed import SealedFile
from tests.helpers import (
    Failing,
    event,
    header,
    plain,
    put,
    read,
    run_in,
    same,
    segment_bytes,
    series,
    writer,
)
from tests.test_seal import in_parquet, names

COUNT = 12


def sealed_in_parts(folder, count=COUNT, size=2):
    """Seal a writer's events bit by bit, as a run does that goes on."""
    events = series(count)
    for number, at in enumerate(range(0, count, size)):
        part = events[at : at + size]
        head = header("w0", number, part[0].seq)
        put(folder, head.name, segment_bytes(part, head, durable=at, end=True)[0])
        seal(str(folder))
    return str(folder)


def test_files_that_follow_each_other_become_one_of_the_same_rows(tmp_path):
    folder = sealed_in_parts(tmp_path)
    assert len(names(folder)) == 6
    before = headers(folder)
    digests = [digest(e) for e in read(folder)]
    done = compact(folder)
    assert names(folder) == ["sealed/w0-0-11.parquet"]
    assert (done.files, done.removed, done.kept) == (("w0-0-11.parquet",), 6, ())
    assert same(read(folder), series(COUNT))
    assert [digest(e) for e in read(folder)] == digests
    assert headers(folder) == before
    assert verify(folder).verdict == "ok"
    for start in range(COUNT):
        assert same(read(folder, start=start), series(COUNT)[start:])
    assert compact(folder).files == () and names(folder) == ["sealed/w0-0-11.parquet"]


def test_what_is_sealed_later_is_put_behind_it(tmp_path):
    folder = sealed_in_parts(tmp_path)
    compact(folder)
    head = header("w0", 6, COUNT)
    put(folder, head.name, segment_bytes(series(3, COUNT), head, end=True)[0])
    seal(folder)
    compact(folder)
    assert names(folder) == ["sealed/w0-0-14.parquet"]
    assert same(read(folder), series(15))


def test_a_file_that_is_large_enough_is_left_alone(tmp_path, monkeypatch):
    folder = sealed_in_parts(tmp_path)
    rows = sum(len(e.rows) for e in series(4))
    monkeypatch.setattr("eventlog.compact.FULL_ROWS", rows)
    compact(folder)
    made = names(folder)
    assert made == [f"sealed/w0-{n}-{n + 3}.parquet" for n in (0, 4, 8)] or len(made) == 3
    assert compact(folder).files == () and names(folder) == made
    assert same(read(folder), series(COUNT))


def test_a_gap_is_not_closed(tmp_path):
    folder = sealed_in_parts(tmp_path)
    os.unlink(tmp_path / "sealed/w0-4-5.parquet")
    compact(folder)
    assert names(folder) == ["sealed/w0-0-3.parquet", "sealed/w0-6-11.parquet"]
    reader = WriterReader(folder, "w0", skip_missing=True)
    assert [e.seq for e in reader.events()] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert [(m.first, m.last) for m in reader.missing] == [(4, 5)]
    assert verify(folder).verdict == "missing"


def test_a_damaged_file_is_left_as_it_is(tmp_path):
    folder = sealed_in_parts(tmp_path)
    path = tmp_path / "sealed/w0-4-5.parquet"
    good = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(0).column(6).data_page_offset + 60
    bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    path.write_bytes(bad)
    done = compact(folder)
    assert len(done.kept) == 1 and done.kept[0].startswith("w0-4-5.parquet: ")
    assert path.read_bytes() == bad
    assert names(folder) == [f"sealed/w0-{n}.parquet" for n in ("0-3", "4-5", "6-11")]
    assert verify(folder).verdict == "corrupt"


def test_other_writers_stay_apart(tmp_path):
    folder = sealed_in_parts(tmp_path)
    for number, first in enumerate((0, 2)):
        head = header("w1", number, first)
        put(folder, head.name, segment_bytes(series(2, first), head, end=True)[0])
        seal(folder)
    compact(folder)
    assert names(folder) == ["sealed/w0-0-11.parquet", "sealed/w1-0-3.parquet"]


@pytest.mark.parametrize("operation", [*Failing.WRITING, "any"])
def test_a_failure_at_any_operation_leaves_a_folder_that_reads_the_same(operation, tmp_path):
    operations = Failing.WRITING if operation == "any" else [operation]
    for n in itertools.count(1):
        folder = sealed_in_parts(tmp_path / str(n), 6)
        error = OSError(errno.EIO, "Input/output error")
        files = Failing(lambda call, name, n=n, e=error: e if call == n else None, operations)
        try:
            compact(folder, files=files)
        except OSError:
            assert len(files.calls) >= n
        assert same(read(folder), series(6)), n
        assert verify(folder).verdict == "ok"
        compact(folder)
        assert same(read(folder), series(6)), n
        assert names(folder) == ["sealed/w0-0-5.parquet"], n
        if len(files.calls) < n:
            return


def test_a_kill_at_any_operation_leaves_a_folder_that_reads_the_same(tmp_path):
    for n in itertools.count(1):
        folder = sealed_in_parts(tmp_path / str(n), 6)
        pid = os.fork()
        if pid == 0:
            files = Failing(lambda call, name, n=n: os._exit(9) if call == n else None)
            try:
                compact(folder, files=files)
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert same(read(folder), series(6)), n
        assert verify(folder).verdict == "ok", n
        compact(folder)
        left = [name for name in names(folder) if ".tmp-" not in name]
        assert left == ["sealed/w0-0-5.parquet"], n
        assert in_parquet(folder) == sorted(e.seq for e in series(6) for _ in e.rows)
        assert same(read(folder), series(6)), n
        if not killed:
            return


def test_a_file_that_a_larger_one_contradicts_is_kept(tmp_path):
    folder = sealed_in_parts(tmp_path, 6)
    content = (tmp_path / "sealed/w0-2-3.parquet").read_bytes()
    compact(folder)
    other = [event(2, {"loss": 9.0}), event(3, {"loss": 9.5})]
    head = header("w0", 1, 2)
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, head.name, segment_bytes(other, head, end=True)[0])
    seal(str(elsewhere))
    (tmp_path / "sealed/w0-2-3.parquet").write_bytes(
        (elsewhere / "sealed/w0-2-3.parquet").read_bytes()
    )
    done = compact(folder)
    assert len(done.kept) == 1 and "differs" in done.kept[0]
    assert (tmp_path / "sealed/w0-2-3.parquet").exists()
    (tmp_path / "sealed/w0-2-3.parquet").write_bytes(content)
    assert compact(folder).removed == 1
    assert names(tmp_path / "sealed") == ["w0-0-5.parquet"]


@pytest.mark.parametrize("column", ["seq", "time", "key", "num", "data", "writer"])
def test_what_a_damaged_file_repeats_is_kept(column, tmp_path):
    folder = sealed_in_parts(tmp_path, 6)
    small = tmp_path / "sealed/w0-2-3.parquet"
    content = small.read_bytes()
    compact(folder)
    small.write_bytes(content)
    large = tmp_path / "sealed/w0-0-5.parquet"
    whole = bytearray(large.read_bytes())
    with open(large, "rb") as file:
        place = pages.groups(file)[0].columns[column]
        *_some, page = pages._pages(file, place)
    whole[page.at] ^= 1
    large.write_bytes(whole)
    done = compact(folder)
    assert (len(done.kept), done.removed) == (1, 0)
    assert small.read_bytes() == content


def test_a_run_reads_the_same_at_every_instant_of_sealing_and_compacting(tmp_path):
    """Readers, `verify` and lists in a loop, against a writer, sealing and compaction in a loop."""
    folder = run_in(tmp_path)
    one = writer(folder, segment_bytes=3_000, durability="os")
    done = threading.Event()
    logged = [0]
    problems = []

    def reads():
        while not done.is_set():
            before = logged[0]
            found = [e.seq for e in WriterReader(folder, one.name).events()]
            if found != list(range(len(found))) or len(found) < before:
                problems.append((before, len(found)))
            if one.name not in listing(folder).writers:
                problems.append("the writer vanished")
            report = verify(folder)
            if report.failed:
                problems.append(report)

    def tidies():
        while not done.is_set():
            seal(folder)
            compact(folder)

    threads = [threading.Thread(target=target) for target in (reads, reads, tidies)]
    one.append("metric", {"x": 0}, 0)
    for thread in threads:
        thread.start()
    for n in range(1, 250):
        one.append("metric", {"x": n, "crc": zlib.crc32(b"%d" % n)}, n)
        logged[0] = n + 1
        done.wait(0.005)
    done.set()
    for thread in threads:
        thread.join()
    one.close()
    assert not problems, problems[:3]
    seal(folder)
    compact(folder)
    assert [n for n in names(folder) if "sealed" in n] == [f"sealed/{one.name}-0-249.parquet"]
    assert len(read(folder)) == 250


def test_thousands_of_files_are_put_together_with_few_of_them_open(tmp_path, monkeypatch):
    folder = sealed_in_parts(tmp_path, 60, 1)
    open_now, most = [0], [0]

    class Counting(SealedFile):
        def __init__(self, *args):
            super().__init__(*args)
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])

        def close(self):
            open_now[0] -= 1
            super().close()

    monkeypatch.setattr("eventlog.compact.SealedFile", Counting)
    compact(folder)
    assert most == [1]
    assert [plain(e) for e in read(folder)] == [plain(e) for e in series(60)]
    assert len(list(Path(folder, "sealed").iterdir())) == 1
