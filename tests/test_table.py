"""Tables: rows of anything that can be logged, data frames too, kept once as a blob."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import polars as pl
import pytest

import eventlog
from eventlog import blobs
from eventlog.errors import IntegrityError, UsageError
from eventlog.table import Table, as_table
from tests.helpers import read, values_of


@pytest.fixture
def run(tmp_path):
    run = eventlog.init("p", "n", dir=tmp_path, quiet=True)
    yield run
    run.finish()


def kept(run, key):
    """Return the tables that were logged under a key."""
    references = values_of(read(run.folder), key)
    return [Table.from_bytes(blobs.get(run.folder, r["sha256"])) for r in references]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(UsageError, match="a row of 1 values in a table of 2 columns"):
        Table(["a", "b"], [[1]])


def test_a_frame_of_pandas_is_kept_as_a_table(run):
    frame = pd.DataFrame({"text": ["a", None], "score": [0.5, np.nan], 3: [1, 2]})
    run.log({"frame": frame, "loss": 0.5}, step=1)
    (table,) = kept(run, "frame")
    assert table.columns == ["text", "score", "3"]
    assert table.data[0] == ["a", 0.5, 1]
    assert table.data[1][1] != table.data[1][1]
    assert values_of(read(run.folder), "loss") == [0.5]


def test_pandas_own_missing_value_is_none(run):
    run.log({"frame": pd.DataFrame({"n": pd.array([1, None], dtype="Int64")})}, step=1)
    assert kept(run, "frame")[0].data == [[1], [None]]


def test_a_frame_of_polars_is_kept_as_a_table(run):
    run.log({"frame": pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})}, step=1)
    assert kept(run, "frame")[0].data == [[1, "x"], [2, "y"]]


def test_what_is_no_frame_is_left_as_it_is():
    class DataFrame:
        """Only called so."""

    for value in (DataFrame(), 1.0, [1], pd.Series([1.0])):
        assert as_table(value) is value


def test_a_frame_that_breaks_costs_only_itself(run, caplog):
    class DataFrame:
        columns = ("a",)

        def itertuples(self, **_how):
            raise RuntimeError("broken")

    with caplog.at_level(logging.WARNING):
        run.log({"frame": DataFrame(), "loss": 0.5}, step=1)
    assert values_of(read(run.folder), "loss") == [0.5]
    assert values_of(read(run.folder), "frame") == [None]
    assert "broken; null was kept in its place" in caplog.text


def test_the_same_rows_logged_twice_are_one_blob(run):
    for step in (1, 2):
        run.log({"t": Table(["a"], [["x" * 2000]])}, step=step)
    first, second = values_of(read(run.folder), "t")
    assert first["sha256"] == second["sha256"]


def test_a_blob_of_any_size_takes_little_memory(tmp_path):
    """A stranger's journal may have one of a terabyte; verify reads it piece by piece."""
    name = "a" * 64
    (tmp_path / "blobs").mkdir()
    with open(tmp_path / "blobs" / name, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(IntegrityError, match=r"1,099,511,627,776 bytes is too large"):
        blobs.get(str(tmp_path), name)
    sha, _path = blobs.put(str(tmp_path), b"x" * 100)
    assert blobs.get(str(tmp_path), sha, most=100) == b"x" * 100
    assert blobs.get(str(tmp_path), sha, most=None) == b"x" * 100
    with pytest.raises(IntegrityError, match="at most 99 are"):
        blobs.get(str(tmp_path), sha, most=99)
