"""The cursor against the journal: lost tails go on, restored and changed journals are refused."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.delivery import Delivery, footprint
from eventlog.errors import IntegrityError
from eventlog.files import Files
from eventlog.journal import Options, Writer
from eventlog.seal import seal
from replayers import binding
from replayers.replay import Outcome, Settings, replay
from replayers.to_memory import MemoryTarget
from tests import helpers
from tests.model import rows_of

QUICK = Settings(batch_rows=7, tries=2, backoff=(0.0, 0.001))


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def sync(found: Found, target: MemoryTarget, state: str, **more: Any) -> Outcome:
    return replay(found, target, state, settings=QUICK, **more)


def the_run(journal: Path) -> Found:
    (found,), _bad = find_all([str(journal)])
    return found


def live(journal: Path, events: int = 20, durability: str = "os") -> Writer:
    """A writer that has not ended: what it knew to be durable is what `commit` made so."""
    folder = helpers.run_in(journal, "run-1")
    writer = Writer(
        folder,
        "run-1",
        {"project": "p", "name": "n"},
        options=Options(durability=durability, group_seconds=1e6),
    )
    for step in range(events):
        writer.append("metric", {"a": float(step)}, step)
    return writer


def cut(found: Found, keep: int) -> None:
    """Take the last events from the only segment, as a power cut does."""
    (name,) = (n for n in os.listdir(found.folder) if n.endswith(".arrows"))
    path = os.path.join(found.folder, name)
    with open(path, "rb") as file:
        content = file.read()
    _raw, _crc, ends = _ends(content)
    with open(path, "wb") as file:
        file.write(content[: ends[keep]] + content[ends[keep] : ends[keep] + 40])


def _ends(content: bytes) -> tuple[bytes, int, list[int]]:
    import io

    from eventlog import frame
    from eventlog.segment import read_header

    _header, raw, crc = read_header(io.BytesIO(content))
    ends = [len(raw)]
    while (head := frame.read_head(content[ends[-1] : ends[-1] + frame.HEAD])) is not None:
        ends.append(ends[-1] + head.size)
    return raw, crc, ends


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has been booted anew since whoever wrote the journal."""
    monkeypatch.setattr(binding, "process", lambda: {"boot_id": "another boot"})


@pytest.mark.usefixtures("rebooted")
def test_a_tail_that_a_power_cut_took_after_it_was_delivered_is_recorded_and_goes_on(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    assert sync(found, target, state).points == 20
    cut(found, 15)
    outcome = sync(found, target, state)
    assert (outcome.sent, outcome.missing) == (0, {})
    assert "events 15 to 19" in outcome.notes[0]
    delivery = Delivery(state, kind="memory", address="here", project="p", run="run-1")
    (loss,) = [entry for entry in delivery.ledger() if entry["kind"] == "loss"]
    assert (loss["first"], loss["last"]) == (15, 19)
    assert sync(found, target, state).notes == []  # known, and said once
    # The run goes on: a second attempt has a writer of its own.
    live(tmp_path / "j", 5)
    assert sync(found, target, state).points == 5
    assert len(rows_of(target.runs["run-1"])) == 25


@pytest.mark.usefixtures("rebooted")
def test_a_lost_tail_that_comes_back_with_a_whole_copy_is_no_loss(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    shutil.copytree(found.folder, tmp_path / "whole")
    cut(found, 15)
    assert sync(found, target, state).notes
    shutil.rmtree(found.folder)
    shutil.copytree(tmp_path / "whole", found.folder)
    assert sync(found, target, state).sent == 0
    delivery = Delivery(state, kind="memory", address="here", project="p", run="run-1")
    assert {mark.lost for mark in delivery.load()[0].writers.values()} == {None}


def test_on_the_same_boot_no_power_was_cut_and_a_shorter_journal_is_refused(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    writer = live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    cut(found, 15)
    with pytest.raises(IntegrityError, match="restored or copied in part"):
        sync(found, target, state)
    assert writer.seq == 20


@pytest.mark.usefixtures("rebooted")
def test_a_journal_without_what_was_durable_is_no_power_cut(tmp_path: Path, state: str) -> None:
    target = MemoryTarget()
    writer = live(tmp_path / "j")
    writer.commit()
    writer.append("metric", {"a": 1.0}, 21)  # it carries the mark
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    cut(found, 15)
    with pytest.raises(IntegrityError, match="restored or copied in part"):
        sync(found, target, state)


@pytest.mark.usefixtures("rebooted")
@pytest.mark.parametrize("sealed", [False, True])
def test_a_writer_that_ended_lost_nothing_to_a_power_cut(
    tmp_path: Path, state: str, sealed: bool
) -> None:
    target = MemoryTarget()
    writer = live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    backup = tmp_path / "backup"
    shutil.copytree(found.folder, backup)
    for n in range(5):
        writer.append("metric", {"a": 1.0}, 21 + n)
    writer.close()
    if sealed:
        seal(found.folder)
    assert sync(found, target, state).points == 25
    shutil.rmtree(found.folder)
    shutil.copytree(backup, found.folder)
    with pytest.raises(IntegrityError, match="restored or copied in part"):
        sync(found, target, state)


def test_a_copied_journal_and_its_state_are_synced_from_where_they_are(tmp_path: Path) -> None:
    """Both go on after the copy, each with its own cursor: the target holds the union, once."""
    target = MemoryTarget()
    here, there = tmp_path / "here", tmp_path / "there"
    live(here, 10).close()
    sync(the_run(here), target, str(here / "_replay"))
    shutil.copytree(here, there)
    copied = the_run(there)
    assert sync(copied, target, str(there / "_replay")).sent == 0
    live(there, 5).close()
    live(here, 7).close()
    assert sync(copied, target, str(there / "_replay")).points == 5
    assert sync(the_run(here), target, str(here / "_replay")).points == 7
    assert sync(copied, target, str(tmp_path / "third")).sent == 0  # without state: it is asked
    assert len(rows_of(target.runs["run-1"])) == 22


def test_a_copy_in_part_with_a_lost_cursor_says_what_it_does_not_have(
    tmp_path: Path, state: str
) -> None:
    target = MemoryTarget()
    live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    shutil.rmtree(state)
    shutil.copytree(found.folder, tmp_path / "whole")
    cut(found, 15)
    outcome = sync(found, target, state)
    assert outcome.sent == 0
    assert "holds events 15 to 19" in outcome.notes[0]
    # The rest of the copy comes: the target has it already.
    shutil.copytree(tmp_path / "whole", found.folder, dirs_exist_ok=True)
    again = sync(found, target, state)
    assert (again.sent, again.settled) == (0, 20)
    quiet = sync(found, target, state)
    assert (quiet.sent, quiet.contacted) == (0, False)


# ------------------------------------------------------------------------------ durability


class Broken(Files):
    """Syncs of files fail with one error."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_cannot_be_made_durable_is_not_sent(tmp_path: Path, state: str, number: int) -> None:
    target = MemoryTarget()
    live(tmp_path / "j")
    found = the_run(tmp_path / "j")
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        sync(found, target, state, files=Broken(number))
    assert str(caught.value.filename).endswith(".arrows")
    assert "run-1" not in target.runs or not rows_of(target.runs["run-1"])
    assert sync(found, target, state).points == 20


@pytest.mark.parametrize("number", [errno.EROFS, errno.EINVAL])
def test_a_file_system_that_cannot_sync_is_no_failure(
    tmp_path: Path, state: str, number: int
) -> None:
    live(tmp_path / "j")
    files = Broken(number)
    assert sync(the_run(tmp_path / "j"), MemoryTarget(), state, files=files).points == 20
    assert files.syncs == 1  # a file that has not grown is synced once


# ------------------------------------------------------------------------------ nothing to do


def snapshot(folder: str) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in Path(folder).rglob("*")
    }


def test_a_sync_with_nothing_to_do_writes_nothing_and_reads_no_event(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        for step in range(30):
            run.log({"loss": step / 7}, step=step)
    found = the_run(tmp_path / "j")
    first = sync(found, target, state)
    before = snapshot(state), snapshot(str(tmp_path / "j"))
    monkeypatch.setattr("eventlog.reader.WriterReader.tables", lambda self: pytest.fail("it read"))
    second = sync(found, target, state)
    assert (second.settled, second.events, second.sent) == (first.settled, first.events, 0)
    assert (snapshot(state), snapshot(str(tmp_path / "j"))) == before


def test_a_run_whose_process_died_in_silence_is_looked_at_again(tmp_path: Path, state: str) -> None:
    code = f"""
import eventlog, os, sys
run = eventlog.init("p", "n", id="x", dir={str(tmp_path / "j")!r}, quiet=True)
run.log({{"a": 1.0}}, step=1)
print("ready", flush=True)
sys.stdin.read()
os._exit(1)
"""
    target = MemoryTarget()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    assert target.runs["x"].state.status == "running"  # type: ignore[union-attr]
    mark = footprint(found.folder)
    process.communicate()
    assert footprint(found.folder) == mark
    sync(found, target, state)
    assert target.runs["x"].state.status == "unknown"  # type: ignore[union-attr]


def test_a_live_run_is_read_from_its_cursor_on(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    writer = live(tmp_path / "j", 500)
    found = the_run(tmp_path / "j")
    sync(found, target, state)
    starts = []
    from eventlog.reader import WriterReader

    plain = WriterReader.__init__

    def init(self: Any, *args: Any, start: int = 0, **more: Any) -> None:
        starts.append(start)
        plain(self, *args, start=start, **more)

    monkeypatch.setattr(WriterReader, "__init__", init)
    writer.append("metric", {"a": 1.0}, 501)
    outcome = sync(found, target, state)
    assert (outcome.sent, outcome.events) == (1, 501)
    assert [start for start in starts if start < 499] == [0]  # the first event: who it is elsewhere
