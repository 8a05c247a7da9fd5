"""Columns to and from numpy: the values that pyarrow gives, and pandas is never imported."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import columns

KINDS = [pa.int64(), pa.int32(), pa.float64(), pa.timestamp("ns", "UTC")]
some = st.lists(st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)), max_size=40)


@given(some, st.sampled_from(KINDS), st.integers(0, 9), st.booleans())
def test_numbers_are_those_that_arrow_holds(values, kind, offset, chunked):
    array = pa.array(values, pa.int64()).cast(kind).slice(offset)
    column = pa.chunked_array([array, array], kind) if chunked else array
    wanted = [n or 0 for n in values[offset:]] * (2 if chunked else 1)
    assert columns.numbers(column).tolist() == wanted
    assert columns.present(column).tolist() == [n is not None for n in column.to_pylist()]
    assert columns.numbers(pa.chunked_array([], kind)).tolist() == []


def test_columns_of_other_types_have_no_numbers():
    for column in (pa.array(["a"]), pa.array([True])):
        with pytest.raises(TypeError):
            columns.numbers(column)


@given(st.lists(st.one_of(st.none(), st.booleans()), max_size=40), st.integers(0, 9))
def test_truths_are_those_that_arrow_holds(values, offset):
    array = pa.array(values, pa.bool_()).slice(offset)
    wanted = [bool(v) for v in values[offset:]]
    assert columns.truths(array).tolist() == wanted
    assert columns.booleans(np.array(wanted, bool)).to_pylist() == wanted


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=9))
def test_text_becomes_arrows_and_is_found(words):
    array = columns.texts(words)
    array.validate(full=True)
    assert array.to_pylist() == words
    nulls = pa.chunked_array([array, pa.nulls(2, pa.utf8())])
    for column in (nulls, nulls.dictionary_encode()):
        for word in ["nowhere", "\udcff", *words]:
            found = columns.is_word(column, word, "a").to_pylist()
            assert found == [w in (word, "a") for w in column.to_pylist()]
    assert columns.repeated("é", 3).to_pylist() == ["é"] * 3
    assert columns.integers(np.arange(6)[::2]).to_pylist() == [0, 2, 4]


PROGRAM = """
import os, sys
import eventlog

def step(what):
    assert "pandas" not in sys.modules, what

folder = None
for attempt in range(2):
    os.environ["EVENTLOG_ATTEMPT"] = str(attempt)
    run = eventlog.init("p", "n", id="r", dir="j", quiet=True, resume="allow")
    step("init")
    for n in range(40):
        run.log({"loss": n / 7, "text": "x" if n % 9 else None}, step=n)
    run.log({"rows": eventlog.Table(columns=["a"], data=[[1]])}, step=40)
    run.config["lr"] = run.summary["best"] = 0.5
    step("log")
    folder = run.folder
    assert len(eventlog.read_series("p/n", "loss", journal="j")) in (40, 80), "live"
    step("live")
    run.finish()
    step("finish")
from eventlog.seal import seal
seal(folder, abandoned=True)
step("seal")
assert len(eventlog.read_series("p/n", "loss", journal="j", view="all")) == 80
assert len(eventlog.read_series("p/n", "loss", journal="j")) in (40, 80)
assert len(eventlog.read_series("p/n", "nothing", journal="j")) == 0
step("read")
from eventlog.audit import verify
assert not verify(folder).failed
step("verify")
from eventlog.compact import compact
compact(folder)
from eventlog.glance import glance
glance(folder)
step("compact and glance")
"""


def test_nothing_that_a_trainer_or_a_reader_calls_imports_pandas(tmp_path):
    """pyarrow does for many of its calls where pandas is installed, as it is here."""
    subprocess.run([sys.executable, "-c", "import pandas"], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


SYNCING = """
import os, sys, traceback

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            traceback.print_stack()
            os._exit(3)

sys.meta_path.insert(0, Watcher())
import eventlog
from eventlog.catalog import find_all
from eventlog.seal import seal
from replayers.replay import Settings, replay
from replayers.to_memory import MemoryTarget

target = MemoryTarget()
for attempt in range(2):
    os.environ["EVENTLOG_ATTEMPT"] = str(attempt)
    run = eventlog.init("p", "n", id="r", dir="j", quiet=True, resume="allow")
    for n in range(40):
        run.log({"loss": n / 7, "text": "x" if n % 9 else None}, step=n)
    run.log({"rows": eventlog.Table(columns=["a"], data=[[1]])}, step=40)
    run.config["lr"] = run.summary["best"] = 0.5
    (item,), _bad = find_all(["j"])
    assert replay(item, target, "state").sent, "live"
    run.finish()
    seal(item.folder, abandoned=True)
    assert replay(item, target, "state").contacted, "sealed"
(run,) = target.runs.values()
for state in ("state", "lost", "other"):
    target = MemoryTarget() if state == "other" else target
    replay(item, target, state, settings=Settings(repair=True, keys=("loss",) if state == "other" else None))
"""


def test_a_sync_of_live_and_of_sealed_runs_imports_no_pandas(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SYNCING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
