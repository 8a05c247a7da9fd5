"""Sealing: the same rows, never of a segment that lives, killed at any moment without harm."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from eventlog import frame as frames
from eventlog import pages, sealedwriter
from eventlog.archive import sealed_segments
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
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
    values_of,
    writer,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder):
    return sorted(os.path.relpath(p, folder) for p in Path(folder).rglob("*") if p.is_file())


def segments(folder, *parts, writer="w0", end=True, durable=0):
    """Put segments of a writer in a folder, each made of a series of events."""
    for number, events in enumerate(parts):
        head = header(writer, number, events[0].seq)
        put(folder, head.name, segment_bytes(events, head, end=end, durable=durable)[0])
    return str(folder)


def in_parquet(folder):
    """Return the seqs that a program sees that reads all Parquet files."""
    found = []
    for path in sorted(Path(folder, "sealed").glob("*.parquet")):
        found += pq.ParquetFile(path).read(["seq"]).column(0).to_pylist()
    return sorted(found)


def test_sealed_rows_are_the_live_rows_to_the_bit(tmp_path):
    nan = np.uint64(0x7FF0DEAD0000BEEF).view(np.float64)
    odd = {
        "nan": float(nan),
        "-0": -0.0,
        "inf": -np.inf,
        "none": None,
        "text": "é\ud800",
        "b": b"\0",
    }
    events = [*series(300), event(300, odd, None), event(301, {"big": 10**400}, 2**63 - 1)]
    folder = segments(tmp_path, events)
    live = list(WriterReader(folder, "w0").tables())
    done = seal(folder)
    assert (done.files, done.events, done.removed) == (("w0-0-301.parquet",), 302, 1)
    sealed = list(WriterReader(folder, "w0").tables())
    assert {t.schema for t in live} == {t.schema for t in sealed} == {frames.schema()}
    assert same(read(folder), events)
    assert names(folder) == ["sealed/w0-0-301.parquet"]


def test_a_row_group_has_one_page_of_numbers(tmp_path):
    """Many small pages compress a tenth worse, and each costs its header."""
    folder = segments(
        tmp_path, [event(n, {f"k{i}": n * i / 7 for i in range(100)}) for n in range(500)]
    )
    seal(folder)
    path = tmp_path / "sealed/w0-0-499.parquet"
    with open(path, "rb") as file:
        ((rows, columns),) = pages.groups(file)
        found = list(pages._pages(file, columns["num"]))
    known = "max_rows_per_page" in sealedwriter.options()
    assert rows == 50_000 and len(found) == 1 if known else len(found) < 5


def test_row_groups_hold_whole_events_and_are_bounded_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.sealedwriter.GROUP_BYTES", 2_000_000)
    monkeypatch.setattr("eventlog.segment._CHUNK", 500_000)
    events = [event(n, {"a": n, "x": b"z" * 100_000}, n) for n in range(60)]
    folder = segments(tmp_path, events)
    seal(folder)
    groups = pq.ParquetFile(tmp_path / "sealed/w0-0-59.parquet").metadata
    assert groups.num_row_groups > 2
    assert same(read(folder), events)
    assert same(read(folder, start=31), events[31:])


def test_a_live_writers_segment_is_never_sealed(tmp_path):
    one = writer(tmp_path, segment_bytes=4000)
    for n in range(20):
        one.append("metric", {"x": n}, n)
    live = max(listing(str(tmp_path)).segments[one.name])
    seal(str(tmp_path))
    assert listing(str(tmp_path)).segments[one.name] == (live,)
    one.append("metric", {"x": 20}, 20)
    assert values_of(read(tmp_path)) == list(range(21))


@pytest.mark.parametrize("level", ["os", "memory", "group", "sync"])
def test_a_writer_whose_full_segments_are_sealed_before_it_syncs_them_is_well(level, tmp_path):
    one = writer(tmp_path, durability=level, segment_bytes=2_500)
    for n in range(12):
        one.append("metric", {"x": n}, n)
        if n % 4 == 3:
            seal(str(tmp_path))
    one.commit()
    assert (one.health().state, one.health().durable) == ("ok", 12)
    one.close()
    assert values_of(read(tmp_path)) == list(range(12))


def test_a_live_segment_that_happens_to_end_like_a_closed_one_is_not_sealed(tmp_path):
    one = writer(tmp_path)
    one.append("metric", {"x": frames.END_OF_STREAM}, 0)
    assert (tmp_path / f"{one.name}-0.arrows").read_bytes().endswith(frames.END_OF_STREAM)
    assert seal(str(tmp_path)).files == ()
    one.append("metric", {"x": 1}, 0)
    assert len(read(tmp_path)) == 2


def test_what_a_killed_process_left_is_sealed(tmp_path):
    code = (
        "import os, sys; from eventlog.journal import Writer\n"
        "w = Writer(sys.argv[1], 'r', {}); w.append('metric', {'x': 1}, 0); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    done = seal(str(tmp_path))
    assert (len(done.files), done.removed) == (1, 1)
    assert values_of(read(tmp_path)) == [1]


def test_what_another_machine_left_open_is_sealed_only_when_told(tmp_path):
    folder = segments(tmp_path, series(3), end=False)
    assert seal(folder).files == ()
    assert seal(folder, abandoned=True).files == ("w0-0-2.parquet",)


def test_a_torn_segment_stays_beside_its_parquet(tmp_path):
    folder = segments(tmp_path, series(5), series(3, 5))
    path = tmp_path / "w0-0.arrows"
    torn = path.read_bytes()[:-8] + b"torn"
    path.write_bytes(torn)
    done = seal(folder)
    assert (done.removed, done.kept) == (1, ("w0-0.arrows",))
    assert names(folder) == ["sealed/w0-0-7.parquet", "w0-0.arrows"]
    assert path.read_bytes() == torn
    assert same(read(folder), series(8))
    (part, _other) = sealed_segments(str(tmp_path / "sealed/w0-0-7.parquet"))
    assert (part.verdict, part.lost_bytes) == ("torn", 4)
    data, _ends = segment_bytes(series(2, 8), head := header("w0", 2, 8), end=True)
    put(folder, head.name, data)
    seal(folder)
    assert in_parquet(folder) == sorted(e.seq for e in series(10) for _ in e.rows)


def test_a_tail_written_again_is_sealed_once(tmp_path):
    folder = segments(tmp_path, series(6), series(4, 3), series(2, 7))
    seal(folder)
    assert same(read(folder), series(9))
    assert in_parquet(folder) == sorted(e.seq for e in series(9) for _ in e.rows)


def test_a_tail_written_again_is_in_no_two_parquet_files_when_sealed_later(tmp_path):
    folder = segments(tmp_path, series(6))
    seal(folder)
    segments(tmp_path, series(1), series(4, 3))
    os.remove(tmp_path / "w0-0.arrows")
    seal(folder)
    assert same(read(folder), series(7))
    assert in_parquet(folder) == sorted(e.seq for e in series(7) for _ in e.rows)


def test_a_fork_is_evidence_and_stays(tmp_path):
    folder = segments(tmp_path, series(4), [event(3, {"other": 1}), *series(2, 4)])
    before = names(folder)
    done = seal(folder)
    assert done.files == ()
    assert names(folder) == before


@pytest.mark.parametrize("operation", ["any", "create", "sync", "replace", "remove"])
def test_a_failure_at_any_operation_leaves_a_folder_that_reads_the_same(operation, tmp_path):
    operations = Failing.WRITING if operation == "any" else [operation]
    for n in itertools.count(1):
        folder = segments(tmp_path / str(n), series(4), series(3, 4), series(2, 7))
        error = OSError(errno.EIO, "Input/output error")
        files = Failing(lambda call, name, n=n: error if call == n else None, operations)
        try:
            seal(folder, files=files)
        except OSError:
            assert len(files.calls) >= n
        assert same(read(folder), series(9)), n
        seal(folder)
        assert same(read(folder), series(9)), n
        assert names(folder) == ["sealed/w0-0-8.parquet"], n
        if len(files.calls) < n:
            return


def test_a_kill_at_any_operation_leaves_a_folder_that_reads_the_same(tmp_path):
    for n in itertools.count(1):
        folder = segments(tmp_path / str(n), series(4), series(3, 4))
        pid = os.fork()
        if pid == 0:
            files = Failing(lambda call, name, n=n: os._exit(9) if call == n else None)
            try:
                seal(folder, files=files)
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert same(read(folder), series(7)), n
        head = header("w0", 2, 7)
        put(folder, head.name, segment_bytes(series(2, 7), head, end=True)[0])
        seal(folder)
        assert same(read(folder), series(9)), n
        assert not [name for name in names(folder) if name.endswith(".arrows")], n
        assert in_parquet(folder) == sorted(e.seq for e in series(9) for _ in e.rows), n
        if not killed:
            return


def test_what_a_killed_sealing_left_long_ago_is_cleared_and_what_is_young_is_not(tmp_path):
    folder = segments(tmp_path, series(3))
    old, young = (put(folder, f"sealed/.tmp-{name}", b"x") for name in ("old", "young"))
    os.utime(old, (0, 0))
    seal(folder)
    assert not os.path.exists(old)
    assert os.path.exists(young)


def test_two_that_seal_at_once_make_no_double(tmp_path):
    folder = segments(tmp_path, *(series(20, 20 * n) for n in range(10)))
    troubles = []

    def work():
        try:
            seal(folder)
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles
    seal(folder)
    assert same(read(folder), series(200))
    assert in_parquet(folder) == sorted(e.seq for e in series(200) for _ in e.rows)


def test_readers_in_a_loop_against_sealing_in_a_loop_see_no_gap_and_no_double(tmp_path):
    one = writer(tmp_path, segment_bytes=30_000)
    stop, troubles, total = threading.Event(), [], 1500

    def sealing():
        while not stop.is_set():
            seal(str(tmp_path))

    def reading():
        while not stop.is_set():
            low = one.seq
            reader = WriterReader(str(tmp_path), one.name)
            found = values_of(reader.events())
            if reader.missing or found != list(range(len(found))) or len(found) < low:
                troubles.append((low, len(found), reader.missing))

    threads = [threading.Thread(target=sealing), *(threading.Thread(target=reading) for _ in "ab")]
    one.append("metric", {"x": 0}, 0)
    for thread in threads:
        thread.start()
    for n in range(1, total):
        one.append("metric", {"x": n}, n)
    one.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert not troubles
    seal(str(tmp_path))
    assert values_of(read(tmp_path)) == list(range(total))


def test_a_flipped_byte_in_a_sealed_file_never_changes_what_is_read_in_silence(tmp_path):
    from eventlog.audit import verify

    events = series(8)
    folder = segments(tmp_path, events)
    seal(folder)
    path = tmp_path / "sealed/w0-0-7.parquet"
    good = path.read_bytes()
    unnoticed = 0
    for at in range(0, len(good), max(len(good) // 150, 1)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        try:
            found = [plain(e) for e in read(folder)]
        except Exception as error:
            assert type(error).__name__ == "FormatError", (at, error)
            continue
        if found != [plain(e) for e in events]:
            unnoticed += not verify(folder).failed
    assert not unnoticed


# ------------------------------------------------------------------------------ other programs


@pytest.fixture
def journal(tmp_path):
    for project, run in (("p/1", "123"), ("p/1", "é b"), ("q", "2026-01-01")):
        folder = run_in(tmp_path, run, project)
        one = writer(folder, run=run)
        for n in range(4):
            one.append("metric", {"loss": n / 2, "n": n}, n)
        one.close()
        seal(folder)
    return str(tmp_path)


def test_duckdb_reads_the_sealed_files_with_hive_partitions(journal):
    files = f"{journal}/project=*/run=*/sealed/*.parquet"
    rows = duckdb.sql(
        f"SELECT project, run_id, count(*), sum(num) FROM read_parquet('{files}', "
        "hive_partitioning=true, hive_types_autocast=false) WHERE key = 'loss' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert rows == [("p/1", "123", 4, 3.0), ("p/1", "é b", 4, 3.0), ("q", "2026-01-01", 4, 3.0)]
    assert duckdb.sql(f"SELECT count(*) FROM '{files}'").fetchall() == [(24,)]


def test_polars_reads_the_sealed_files_with_hive_partitions(journal):
    files = f"{journal}/project=*/run=*/sealed/*.parquet"
    found = pl.scan_parquet(files, hive_partitioning=True, try_parse_hive_dates=False)
    rows = found.select("project", "run_id").unique().sort("run_id").collect().rows()
    assert rows == [("p/1", "123"), ("q", "2026-01-01"), ("p/1", "é b")]
    assert found.select(pl.len()).collect().item() == 24


def test_pyarrow_and_pandas_read_the_sealed_files_as_a_data_set(journal):
    files = [str(p) for p in Path(journal).rglob("*.parquet")]
    table = ds.dataset(files, format="parquet", partitioning="hive").to_table()
    assert table.num_rows == 24
    assert {"run_id", "writer"} <= set(table.column_names)
    assert pq.read_table(files[0]).num_rows == 8
    assert pd.read_parquet(files).shape[0] == 24


def test_stock_pyarrow_reads_a_live_segment_batch_by_batch(tmp_path):
    one = writer(tmp_path, durability="os")
    for n in range(5):
        one.append("metric", {"x": n, "t": "a"}, n)
    with pa.OSFile(str(tmp_path / f"{one.name}-0.arrows")) as file:
        reader = pa.ipc.open_stream(file)
        seqs = [batch.column("seq").to_pylist() for batch in reader]
    assert seqs == [[n, n] for n in range(5)]
    assert reader.schema.equals(frames.schema())


def test_a_limit_is_one_for_all_writers_together(tmp_path):
    """A run of many ranks and restarts may have left hundreds of them; `init` is to stay short."""
    for number in range(6):
        segments(tmp_path, series(10), writer=f"w{number}")
    size = sum(path.stat().st_size for path in tmp_path.glob("*.arrows"))
    done = seal(str(tmp_path), limit_bytes=size // 2)
    assert (len(done.files), done.removed) == (3, 3)
    assert len(list(tmp_path.glob("*.arrows"))) == 3
    assert seal(str(tmp_path)).removed == 3
