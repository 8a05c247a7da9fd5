"""Files that unpack to more than they should: refused before they are unpacked."""

from __future__ import annotations

import io
import os
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventlog import footer, pages, sealed, sealedwriter
from eventlog.audit import verify
from eventlog.compact import compact
from eventlog.errors import EventlogError, FormatError
from eventlog.reader import WriterReader, listing
from eventlog.salvage import salvage
from eventlog.seal import seal
from tests.helpers import event, header, put, run_in, segment_bytes, series
from tests.test_seal import segments


def crafted(folder, columns, rows):
    """Put a sealed file in place whose rows nobody sealed, all its checksums right."""
    words = {"key": "x", "kind": "metric", "type": "bytes", "run_id": "run-1", "writer": "w0"}
    schema = sealed.sealed_schema(dictionaries=True)
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(columns[field.name])
        elif field.name in words:
            zeros = pa.array(np.zeros(rows, np.int32))
            arrays.append(pa.DictionaryArray.from_arrays(zeros, pa.array([words[field.name]])))
        elif field.name == "seq":
            arrays.append(pa.array(np.arange(rows)))
        elif field.name == "time":
            arrays.append(pa.array(np.arange(rows)).cast(field.type))
        else:
            arrays.append(pa.nulls(rows, field.type))
    table = pa.Table.from_arrays(arrays, schema=schema)
    path = os.path.join(folder, "sealed", f"w0-0-{rows - 1}.parquet")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    options = {**sealedwriter.options(), "dictionary_pagesize_limit": 2**26}
    with pq.ParquetWriter(path, schema, **options) as out:
        out.write_table(table, row_group_size=rows)
        part = footer.SealedSegment(header(), rows, "whole", 0)
        out.add_key_value_metadata(sealedwriter._metadata([part], [(rows, 0, rows - 1, 0)], []))
    return path


def refused(folder, what):
    tracemalloc.start()
    with pytest.raises(FormatError, match=what):
        list(WriterReader(folder, "w0").tables())
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    before = pa.total_allocated_bytes()
    assert verify(folder).verdict == "corrupt"
    assert pa.total_allocated_bytes() == before


def test_a_page_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    folder = run_in(tmp_path)
    path = crafted(folder, {"data": pa.array([b"\0" * 2**25])}, 1)
    assert os.path.getsize(path) < 100_000
    monkeypatch.setattr("eventlog.sealed.MOST_BYTES", 2**24)
    refused(folder, "unpacks to")


def test_a_long_word_that_repeats_too_often_is_refused(tmp_path):
    folder = run_in(tmp_path)
    zeros = pa.array(np.zeros(100_000, np.int32))
    words = pa.DictionaryArray.from_arrays(zeros, pa.array(["k" * 2**20]))
    path = crafted(folder, {"key": words}, 100_000)  # a hundred gigabytes
    assert os.path.getsize(path) < 1_000_000
    refused(folder, "a column of words takes")


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    folder = run_in(tmp_path)
    crafted(folder, {}, 5000)
    monkeypatch.setattr("eventlog.sealed.MOST_ROWS", 4999)
    refused(folder, "5000 rows")


def test_what_is_sealed_is_far_from_the_bounds(tmp_path):
    folder = segments(tmp_path, series(500))
    seal(folder)
    (name,) = listing(folder).sealed["w0"]
    with open(tmp_path / "sealed" / str(name), "rb") as file:
        ((rows, columns),) = pages.groups(file)
        assert rows == sum(len(e.rows) for e in series(500))
        assert list(columns) == sealed.sealed_schema().names
        meta = pq.ParquetFile(file.name).metadata.row_group(0)
        for at, column in enumerate(columns.values()):
            told = meta.column(at)
            assert column.stop - column.start == told.total_compressed_size
            found = pages.unpacked(file, column)
            assert 0 < found.total <= told.total_uncompressed_size
            assert (found.dictionary > 0) == told.has_dictionary_page


def test_a_dictionary_tells_every_word_of_a_row_group_or_nothing(tmp_path):
    folder = segments(tmp_path, [event(n, {f"k{i}": 1.0 for i in range(9)}) for n in range(50)])
    seal(folder)
    path = tmp_path / "sealed/w0-0-49.parquet"
    good = path.read_bytes()
    with open(path, "rb") as file:
        ((_rows, columns),) = pages.groups(file)
        assert pages.words(file, columns["key"]) == [b"k%d" % i for i in range(9)]
        assert pages.words(file, columns["num"]) is None  # it has no dictionary
        first = next(pages._pages(file, columns["key"]))
    for at in range(first.at, first.at + first.packed):
        bad = io.BytesIO(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert pages.words(bad, columns["key"]) is None
    for codec in (1, 4, 99):
        assert pages.words(io.BytesIO(good), columns["key"]._replace(codec=codec)) is None


@pytest.mark.parametrize("limit", [1, 2**20])
def test_a_key_is_found_whether_or_not_a_dictionary_has_it(limit, tmp_path, monkeypatch):
    """Parquet goes on without a dictionary where that has grown too large."""
    monkeypatch.setitem(sealedwriter._PARQUET, "dictionary_pagesize_limit", limit)
    folder = segments(tmp_path, [event(n, {f"k{n}": float(n), "x": 1.0}) for n in range(3000)])
    seal(folder)
    for key, count in (("x", 3000), ("k0", 1), ("k2999", 1), ("nothing", 0)):
        reader = WriterReader(folder, "w0", key=key)
        assert sum(table.num_rows for table in reader.tables()) == count


def test_footers_that_are_none_are_refused(tmp_path):
    folder = segments(tmp_path, series(20))
    seal(folder)
    good = (tmp_path / "sealed/w0-0-19.parquet").read_bytes()
    rng = random.Random(1)
    for _ in range(2000):
        at = rng.randrange(len(good) - 2500, len(good))
        bad = good[:at] + rng.randbytes(rng.choice([1, 1, 4])) + good[at + 1 :]
        file = io.BytesIO(bad[: rng.choice([len(bad), len(bad), len(bad) - 9])])
        try:
            for _rows, columns in pages.groups(file):
                for column in columns.values():
                    pages.unpacked(file, column)
        except ValueError:
            continue


def test_a_folder_of_sealed_files_that_is_a_link_is_none(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = segments(tmp_path / "other", series(4))
    seal(other)
    folder = run_in(tmp_path)
    put(folder, "w0-0.arrows", segment_bytes(series(4), end=True)[0])
    os.symlink(elsewhere, os.path.join(folder, "sealed"))
    with pytest.raises((OSError, EventlogError)):
        seal(folder)
    assert compact(folder).files == ()
    assert os.listdir(elsewhere) == []
    os.unlink(os.path.join(folder, "sealed"))
    os.symlink(os.path.join(other, "sealed"), os.path.join(folder, "sealed"))
    assert listing(folder).sealed == {}
    new = run_in(tmp_path / "new")
    os.symlink(elsewhere, os.path.join(new, "sealed"))
    with pytest.raises(OSError):
        salvage(folder, new)
    assert os.listdir(elsewhere) == []


def test_lengths_of_four_gigabytes_take_no_memory(tmp_path):
    data, ends = segment_bytes(series(3))
    big = b"\xff\xff\xff\xff" + b"\xff\xff\xff\x7f"
    for n, content in enumerate(
        [
            big + data[8:],
            data[: ends[1] + 4] + b"\xff\xff\xff\x7f" + data[ends[1] + 8 :],
            data[: ends[1] + 32] + b"\xff" * 7 + b"\x7f" + data[ends[1] + 40 :],
        ]
    ):
        folder = run_in(tmp_path / str(n))
        put(folder, "w0-0.arrows", content)
        tracemalloc.start()
        verify(folder)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
