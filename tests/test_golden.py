"""The golden journal of format 1: read for ever, value by value; its frames made the same today."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog import audit, catalog, runfile
from eventlog.frame import Encoder
from eventlog.reader import WriterReader
from eventlog.seal import seal
from eventlog.segment import SegmentReader
from tests.golden import make_v1
from tests.helpers import plain

GOLDEN = Path(make_v1.HERE)
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
(FOUND,) = catalog.find(str(GOLDEN))


def test_the_golden_run_is_found_and_named():
    assert FOUND.run == runfile.RunFile("golden-é", "gold", "first")
    assert (Path(FOUND.folder) / "run.json").read_bytes() == make_v1.RUN.to_bytes()


@pytest.mark.parametrize("writer", sorted(EXPECTED))
def test_every_event_is_what_it_was(writer):
    found = [make_v1.describe(e) for e in WriterReader(FOUND.folder, writer).events()]
    assert found == EXPECTED[writer]
    assert len(found) == {"live": 12, "sealed": 6, "torn": 5}[writer]


def test_every_value_is_what_was_logged():
    for event, given in zip(
        WriterReader(FOUND.folder, "sealed").events(), make_v1.events(0), strict=True
    ):
        assert plain(event) == plain(given)
        assert [repr(row.value) for row in event.rows] == [repr(row.value) for row in given.rows]


@pytest.mark.parametrize(
    ("name", "word", "lost"),
    [("live-0.arrows", "whole", 0), ("live-1.arrows", "open", 0), ("torn-0.arrows", "torn", None)],
)
def test_every_segment_has_its_verdict(name, word, lost):
    with SegmentReader(os.path.join(FOUND.folder, name)) as reader:
        count = sum(span.count for span in reader.spans())
    assert reader.verdict.word == word
    assert reader.verdict.durable == reader.header.first_seq + count - 3
    assert (
        (reader.verdict.lost_bytes == lost) if lost is not None else reader.verdict.lost_bytes > 0
    )
    assert reader.header.identity == make_v1.IDENTITY


def test_the_journal_is_judged_as_it_was():
    report = audit.verify(FOUND.folder)
    assert (report.verdict, report.complete) == ("torn", "unknown")
    assert not report.problems


@pytest.mark.parametrize("name", ["live-0.arrows", "live-1.arrows"])
def test_frames_made_today_are_the_same_bytes(name):
    data = Path(FOUND.folder, name).read_bytes()
    with SegmentReader(os.path.join(FOUND.folder, name)) as reader:
        start, first = len(reader.header_bytes), reader.header.first_seq
        encoder = Encoder(reader._seed)
    made = b""
    for event in make_v1.events(first):
        encoder.mark(max(event.seq - 2, 0))
        made += encoder.event(event)
    assert data[start : start + len(made)] == made


def test_golden_files_can_be_sealed_today(tmp_path):
    folder = shutil.copytree(FOUND.folder, tmp_path / "run")
    seal(str(folder), abandoned=True)
    for writer, events in EXPECTED.items():
        found = WriterReader(str(folder), writer).events()
        assert [make_v1.describe(e) for e in found] == events


def test_golden_files_are_never_made_again():
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in GOLDEN.rglob("*") if p.is_file()}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden.make_v1"], cwd=root, capture_output=True
    )
    assert done.returncode == 2
    after = {p: hashlib.sha256(p.read_bytes()).digest() for p in GOLDEN.rglob("*") if p.is_file()}
    assert before == after
