"""Faults of the world around a journal: clocks, caches of file attributes, copies, foreign files,
processes that begin at the same moment.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eventlog
from eventlog.audit import FAILURES, verify
from eventlog.catalog import find_all
from eventlog.event import METRIC
from eventlog.files import Files
from eventlog.glance import glance
from eventlog.layout import is_blob, run_folder, sealed_name, segment_name
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
from replayers.compare import compare
from replayers.replay import replay, run_info
from replayers.to_memory import MemoryTarget
from tests.helpers import Bytes, header, read, segment_bytes, series, values_of, writer
from tests.model import rows_of

ROOT = Path(__file__).resolve().parents[2]


def test_a_clock_that_goes_backwards_is_recorded_and_orders_nothing(tmp_path, monkeypatch):
    times = [1_000_000_000 * n for n in (50, 60, 10, 20, 55, -5, 70, 0)]
    one = writer(tmp_path)
    for n, now in enumerate(times):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        one.append("metric", {"x": n}, n)
    one.close()
    monkeypatch.undo()
    for _ in range(2):
        events = read(tmp_path)
        assert [e.time for e in events] == times
        assert values_of(events) == list(range(len(times)))
        assert verify(str(tmp_path)).verdict == "ok"
        assert glance(str(tmp_path)).last == max(times)
        seal(str(tmp_path))


class Late(Files):
    """A file system whose client shows sizes and bytes of a while ago, not always of the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.late = True

    def _cut(self, size: int) -> int:
        return self.rng.randint(0, size) if self.late and self.rng.random() < 0.7 else size

    def size(self, path: str) -> int:
        return self._cut(super().size(path))

    def open(self, path: str):
        with super().open(path) as file:
            data = file.read()
        return io.BytesIO(data[: self._cut(len(data))])


@pytest.mark.parametrize("seed", range(8))
def test_a_reader_on_a_file_system_that_is_late_goes_on_when_more_is_there(seed, tmp_path):
    store = Late(random.Random(seed))
    one = writer(tmp_path, segment_bytes=3_000)
    source = WriterReader(str(tmp_path), one.name, store=store)
    found = []
    for n in range(40):
        one.append("metric", {"x": n}, n)
        if n % 3 == 0:
            found += values_of(source.events())
            assert found == list(range(len(found)))
            source.missing.clear()
    one.close()
    store.late = False
    found += values_of(source.events())
    assert found == list(range(40))
    assert source.missing == []


@given(st.text(max_size=40), st.sampled_from(["", "sealed/", "blobs/"]))
def test_a_file_of_any_other_name_is_none_of_the_journals(name, place):
    known = segment_name(name) or sealed_name(name) or is_blob(name) or name == "run.json"
    if known or not name or set("/\0") & set(name):
        return
    data, _ = segment_bytes(series(3), header("w0"), end=True)
    other, _ = segment_bytes(series(9), header("w0"), end=True)
    store = Bytes({"/r/w0-0.arrows": data, f"/r/{place}{name}": other})
    assert listing("/r", store).writers == ["w0"]
    assert len(list(WriterReader("/r", "w0", store=store).events())) == 3
    assert verify("/r", store).verdict == "ok"


TOGETHER = """
import sys, eventlog
print("ready", flush=True)
sys.stdin.readline()
with eventlog.init("p", "n", id="r", dir=sys.argv[1], quiet=True) as run:
    for n in range(50):
        run.log({"x": n, "who": sys.argv[2]}, step=n)
"""


def test_two_processes_that_begin_one_run_at_the_same_moment_are_both_kept(tmp_path):
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    both = [
        subprocess.Popen(
            [*command, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    for one in both:
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in both:
        one.communicate()
        assert one.returncode == 0
    folder = run_folder(str(tmp_path), "p", "r")
    names = listing(folder).writers
    assert len(names) == 2
    who = set()
    for name in names:
        events = [e for e in read(folder, name) if e.rows[0].kind == METRIC]
        assert values_of(events) == list(range(50))
        assert [e.step for e in events] == list(range(50))
        who |= set(values_of(events, "who"))
    assert who == {"a", "b"}
    assert verify(folder).verdict == "ok"


@pytest.mark.parametrize("seed", range(6))
def test_any_copy_of_a_live_run_is_a_journal_and_is_delivered_once(seed, tmp_path):
    """Files at any prefix, in any order, some not yet copied; then copied again, and whole."""
    rng = random.Random(seed)
    run = eventlog.init("p", "n", id="x", dir=tmp_path / "there", quiet=True)
    small = {"segment_bytes": 6_000}
    run._writer.options = type(run._writer.options)(**small)
    target, state = MemoryTarget(), str(tmp_path / "state")
    here = tmp_path / "here"
    for turn in range(4):
        for step in range(turn * 10, turn * 10 + 10):
            run.log({"a": float(step)}, step=step)
        if turn == 2:
            seal(run.folder)
        copied(rng, tmp_path / "there", here)
        found, _bad = find_all([str(here)])
        for one in found:
            assert verify(one.folder).verdict not in ("corrupt", "fork")
            replay(one, target, state)
            assert len(rows_of(target.runs["x"])) <= turn * 10 + 10
    run.finish()
    shutil.rmtree(here)
    shutil.copytree(tmp_path / "there", here)
    (one,) = find_all([str(here)])[0]
    for _ in range(2):
        replay(one, target, state)
        result = compare(one.folder, target, target.open(run_info(one, None)))
        assert (result.missing, result.extra, result.held) == (0, 0, 40)
    assert verify(one.folder).verdict not in FAILURES


def copied(rng: random.Random, source: Path, target: Path) -> None:
    """Copy as a program does that is cut off: whole files, and the one it was at in part. Like
    rsync it takes small folders' files in the order of their names, and `run.json` is there.
    """
    target.mkdir(exist_ok=True)
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        data = path.read_bytes()
        if path.suffix == ".arrows" and rng.random() < 0.3:
            old = place.stat().st_size if place.exists() else 0
            place.write_bytes(data[: max(old, rng.randint(0, len(data)))])
            return
        part = place.with_name(f".tmp-{os.getpid()}")
        part.write_bytes(data)
        part.replace(place)
