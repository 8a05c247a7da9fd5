"""Who reads, verifies or lists a run while it is written, sealed, compacted and archived misses nothing, sees nothing
twice, and is never told of damage: in turns of single operations, with lists that are late.
"""

from __future__ import annotations

import contextlib
import random

import pytest

from eventlog import reader
from eventlog.archiving import archive
from eventlog.audit import FAILURES, verify
from eventlog.catalog import find_all
from eventlog.compact import compact
from eventlog.delivery import footprint
from eventlog.glance import glance
from eventlog.journal import Options, Writer
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
from tests.faults import turns
from tests.helpers import run_in

SEEDS = 25


class Story:
    """A writer that writes small segments and seals them as it goes on."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.acked = 0
        self.name = ""

    def begin(self, count):
        """Log before anybody reads."""
        self._log(Writer(self.folder, "r", {}, options=Options("os", 2_500)), count).close()

    def _log(self, one, count):
        self.name = one.name
        for _ in range(count):
            one.append("metric", {"x": self.acked}, self.acked)
            self.acked += 1
        return one

    def go_on(self, files):
        """Log, seal, log, seal; the last segment stays open in between."""
        one = Writer(self.folder, "r", {}, options=Options("os", 2_500), files=files)
        for _ in range(4):
            self._log(one, 4)
            seal(self.folder, files=files)
            compact(self.folder, files=files)
        one.close()
        seal(self.folder, files=files)
        compact(self.folder, files=files)


def read(story, store):
    """Return the numbers of a reader that begins now."""
    source = WriterReader(story.folder, story.name, store=store)
    found = [event.rows[0].value for event in source.events()]
    assert source.missing == []
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_reader_beside_sealing_sees_each_event_once_and_no_gap(seed, tmp_path):
    story = Story(tmp_path)

    def reading(store):
        for _ in range(6):
            while not story.name:
                store._turns.pass_on(1)
            acked = story.acked
            found = read(story, store)
            assert found == list(range(len(found)))
            assert len(found) >= acked

    turns.history(random.Random(seed), story.go_on, reading)
    assert read(story, turns.Files()) == list(range(16))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_verify_beside_sealing_finds_no_damage_and_misses_nothing(seed, tmp_path):
    story = Story(tmp_path)
    story.begin(12)
    name = story.name

    def reading(store):
        for _ in range(2):
            report = verify(story.folder, store)
            assert report.verdict not in FAILURES, report
            assert {w.writer: w.events for w in report.writers}[name] == 12
            assert glance(story.folder, store).writers[name] == 12

    turns.history(random.Random(seed), lambda files: seal(story.folder, files=files), reading)


def two_runs(journal):
    """Make two sealed runs of 12 events; return their folders and writers."""
    stories = []
    for run in ("r0", "r1"):
        story = Story(run_in(journal, run))
        one = Writer(story.folder, run, {"project": "p"}, options=Options("os", 2_500))
        story._log(one, 12).close()
        seal(story.folder)
        stories.append(story)
    return stories


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.long) for n in range(6, 100))]
)
def test_who_reads_beside_archiving_sees_each_run_whole(seed, tmp_path):
    stories = two_runs(tmp_path)
    folders = [story.folder for story in stories]
    prints = [footprint(folder) for folder in folders]

    def reading(store):
        for story, print in zip(stories, prints, strict=True):
            assert footprint(story.folder, store) in (print, "")
            assert read(story, store) == list(range(12))
            report = verify(story.folder, store)
            assert report.verdict == "ok", report
            assert glance(story.folder, store).writers == {story.name: 12}
            assert find_all([str(tmp_path)], files=store)[1] == []

    def archiving(files):
        archive(str(tmp_path / "project=p"), folders, unchanged=0, files=files)

    turns.history(random.Random(seed), archiving, reading)
    assert [len(listing(folder).archived) for folder in folders] == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_two_who_archive_at_once_without_a_lock_lose_nothing(seed, tmp_path):
    stories = two_runs(tmp_path)

    def archiving(files):
        files.lock_folder = lambda path: -1
        place, folders = str(tmp_path / "project=p"), [story.folder for story in stories]
        with contextlib.suppress(FileNotFoundError):
            archive(place, folders, unchanged=0, files=files)

    turns.history(random.Random(seed), archiving, archiving)
    for story in stories:
        assert read(story, turns.Files()) == list(range(12))
        assert verify(story.folder).verdict == "ok"
    assert len(list((tmp_path / "project=p" / "sealed").iterdir())) == 1


def test_the_turns_find_a_reader_that_lists_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_TRIES", 1)
    wrong = 0
    for seed in range(40):
        (tmp_path / str(seed)).mkdir()
        story = Story(tmp_path / str(seed))
        story.begin(12)
        try:
            turns.history(
                random.Random(seed),
                lambda files, story=story: seal(story.folder, files=files),
                lambda store, story=story: [read(story, store) for _ in range(3)],
            )
        except (AssertionError, OSError):
            wrong += 1
    assert wrong
