"""Tables that are not there: one that never will be is null in the target, and waits for nobody."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog import blobs, start
from eventlog.audit import verify
from eventlog.catalog import Found, find_all
from eventlog.errors import IntegrityError
from eventlog.event import GAP, make_rows
from eventlog.files import LOCAL
from eventlog.reader import WriterReader, listing
from eventlog.value import loads
from eventlog.views import All
from replayers.awaited import Written, come
from replayers.compare import Comparer, compare
from replayers.loop import Loop
from replayers.plan import plan
from replayers.replay import Outcome, Settings, delivery_of, replay, run_info
from replayers.target import Change, Rejected, RunInfo
from replayers.to_memory import MemorySession, MemoryTarget
from tests.model import rows_of


class Reading(MemoryTarget):
    """Needs the content of tables, as real targets do."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        plain = session.send

        def send(batch: Any) -> list[Change]:
            for row in batch.to_pylist():
                if row["type"] == "table":
                    try:
                        blobs.get(self.folder, loads(row["data"])["sha256"])
                    except IntegrityError as error:
                        raise Rejected(str(error), seqs=[row["seq"]]) from error
            return plain(batch)

        session.send = send  # type: ignore[method-assign]
        return session


def sync(found: Found, target: MemoryTarget, state: Path, **settings: Any) -> Outcome:
    return replay(found, target, str(state), settings=Settings(**settings))


#: Logs tables on a disk that has no room for them, and is killed.
KILLED = """
import errno, os, signal, sys
import eventlog
from eventlog.files import LOCAL
create = LOCAL.create
def full(path):
    if os.sep + "blobs" + os.sep in path and not full.room:
        raise OSError(errno.ENOSPC, "No space left on device")
    return create(path)
full.room = True
LOCAL.create = full
run = eventlog.init("p", "n", id="x", dir=sys.argv[1], quiet=True)
for step in range(4):
    run.log({"loss": step, "t": eventlog.Table(["a"], [[step]])}, step=step)
    full.room = False
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal whose process was killed while three of four tables waited for room."""
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, "-c", KILLED, folder], check=False)
    assert done.returncode == -signal.SIGKILL
    return folder


def copy_of(journal: Path, to: Path) -> Found:
    shutil.copytree(journal, to)
    (item,), _bad = find_all([str(to)])
    return item


def test_a_table_that_was_never_written_is_null_and_the_rest_of_its_event_is_sent(
    tmp_path: Path, monkeypatch: Any
) -> None:
    run = eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True)
    start._unregister(run)
    run.log({"loss": 0.5, "t": eventlog.Table(["a"], [["there"]])}, step=0)

    create = LOCAL.create

    def full(path: str) -> int:
        if f"{os.sep}blobs{os.sep}" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path)

    with monkeypatch.context() as patch:
        patch.setattr(LOCAL, "create", full)
        for step in range(1, 4):
            run.log({"loss": step, "t": eventlog.Table(["a"], [[step]])}, step=step)
        (item,), _bad = find_all([str(tmp_path / "j")])
        target = Reading(item.folder)
        outcome = sync(item, target, tmp_path / "state")
        assert (outcome.quarantined, len(outcome.notes)) == (3, 1)
        assert plan(item, target, str(tmp_path / "state"), Settings()).events == 0
        assert run._writer is not None
        name = run._writer.name
        run._writer.close()
    for state, mappings in (("state", 3), ("none", 3)):
        told = plan(item, target, str(tmp_path / state), Settings())
        assert told.mappings == {"table-never-written": mappings}
    assert told.events == len(list(WriterReader(item.folder, name).events()))
    assert come(Written(item.folder), name, [2, 3, 4]) == [2, 3, 4]
    outcome = sync(item, target, tmp_path / "state")
    assert (outcome.quarantined, outcome.notes) == (0, [])
    assert not sync(item, target, tmp_path / "state").contacted
    found = compare(item.folder, target, target.open(run_info(item, None)))
    assert found.equal, found
    kept = [row[-1] for row in rows_of(target.runs["x"]).values() if "t" in row]
    assert [value is None for value in kept] == [False, True, True, True]


def test_a_table_that_a_copy_has_not_brought_is_not_null(tmp_path: Path) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"t": eventlog.Table(["a"], [[1]])}, step=0)
    (item,), _bad = find_all([str(tmp_path / "j")])
    for blob in (Path(item.folder) / "blobs").iterdir():
        blob.unlink()
    (name,) = listing(item.folder).writers
    for table in WriterReader(item.folder, name).tables():
        assert Written(item.folder).rows(name, table).equals(table)


def test_a_gap_of_a_stranger_hides_no_table_that_is_missing_and_stops_no_sync(
    tmp_path: Path,
) -> None:
    run = eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True)
    run.log({"loss": 0.5, "t": eventlog.Table(["a"], [["gone"]])}, step=0)
    odd = {"values": [1], "blobs": [1, None, ["x"], "no digest"], "first_step": "zero"}
    run._writer.append_rows(make_rows(GAP, odd.items())[0], None)
    run.finish()
    (found,), _bad = find_all([str(tmp_path / "j")])
    shutil.rmtree(tmp_path / "j" / "project=p" / "run=x" / "blobs")
    assert "a blob cannot be read" in " ".join(verify(found.folder).problems)
    target = Reading(found.folder)
    outcome = sync(found, target, tmp_path / "s")
    assert (outcome.settled, outcome.quarantined) == (outcome.events, 1)


# ------------------------------------------------------------------------------ --without-missing


def tables_of(target: MemoryTarget) -> dict[int, bool]:
    """Return by step whether the table that the target holds is one, and not null."""
    found = {row[2]: row for row in rows_of(target.runs["x"]).values() if "t" in row}
    return {step: row[-1] is not None for step, row in found.items()}


def causes(item: Found, target: MemoryTarget, state: Path) -> dict[str | None, int]:
    cursor, _known = delivery_of(item, target, str(state)).load()
    session = target.open(run_info(item, None))
    found = Comparer(item.folder, target, session, All(), cursor=cursor).run()
    assert found.explained, found
    return {cause.cause: cause.count for cause in found.causes}


def test_what_a_killed_writer_never_wrote_is_waited_for_until_the_user_says_otherwise(
    killed: Path, tmp_path: Path
) -> None:
    item = copy_of(killed, tmp_path / "j")
    assert verify(item.folder).verdict == "torn"
    target, state = Reading(item.folder), tmp_path / "s"
    for _again in range(2):
        outcome = sync(item, target, state)
        assert outcome.quarantined == 3
        assert "--without-missing" in " ".join(outcome.notes)
    told = plan(item, target, str(state), Settings(without_missing=True))
    outcome = sync(item, target, state, without_missing=True)
    assert (outcome.quarantined, outcome.sent) == (0, 3)
    assert (told.events, told.points, told.mappings) == (3, outcome.points, {"table-lost": 3})
    assert tables_of(target) == {0: True, 1: False, 2: False, 3: False}
    assert causes(item, target, state) == {"table-lost": 3}
    told = list(delivery_of(item, target, str(state)).ledger())
    assert [e["count"] for e in told if e.get("rule") == "table-lost"] == [3]
    assert [len(e["seqs"]) for e in told if "without" in e] == [3]
    assert not sync(item, target, state).contacted
    assert not sync(item, target, state, without_missing=True).contacted


def test_without_missing_is_done_in_one_sync_and_only_where_a_table_is_missing(
    killed: Path, tmp_path: Path
) -> None:
    item = copy_of(killed, tmp_path / "j")
    target = Reading(item.folder)
    told = plan(item, target, str(tmp_path / "s"), Settings(without_missing=True))
    outcome = sync(item, target, tmp_path / "s", without_missing=True)
    assert (told.events, told.mappings) == (outcome.sent, {"table-lost": 3})
    assert (outcome.quarantined, outcome.settled) == (0, outcome.events)
    assert tables_of(target) == {0: True, 1: False, 2: False, 3: False}
    assert "sent without 3 tables" in " ".join(outcome.notes)


def test_a_table_that_comes_is_sent_and_one_that_comes_too_late_changes_nothing(
    killed: Path, tmp_path: Path
) -> None:
    item = copy_of(killed, tmp_path / "j")
    target, state = Reading(item.folder), tmp_path / "s"
    sync(item, target, state)
    content = {}  # what the process had in memory: some other copy of it, say
    for step in range(1, 4):
        data = eventlog.Table(["a"], [[step]]).to_bytes()
        content[step] = data
    blobs.put(item.folder, content[2])
    outcome = sync(item, target, state, without_missing=True)
    assert outcome.quarantined == 0
    assert tables_of(target) == {0: True, 1: False, 2: True, 3: False}
    for data in content.values():
        blobs.put(item.folder, data)
    sync(item, target, state, repair=True)
    assert causes(item, target, state) == {"table-lost": 2}
    # A target that has nothing of it gets all.
    other = Reading(item.folder)
    sync(item, other, tmp_path / "other", without_missing=True)
    assert all(tables_of(other).values())


def test_a_kill_between_the_decision_and_the_delivery_is_made_up_for(
    killed: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    item = copy_of(killed, tmp_path / "j")
    target, state = Reading(item.folder), tmp_path / "s"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_retry_batch", die)
        with pytest.raises(KeyboardInterrupt):
            sync(item, target, state, without_missing=True)
    assert sync(item, target, state).quarantined == 0
    assert causes(item, target, state) == {"table-lost": 3}


def test_a_writer_that_runs_may_yet_write_its_tables(tmp_path: Path, monkeypatch: Any) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"t": eventlog.Table(["a"], [[1]])}, step=0)
        shutil.rmtree(tmp_path / "j" / "project=p" / "run=x" / "blobs")
        (item,), _bad = find_all([str(tmp_path / "j")])
        outcome = sync(item, Reading(item.folder), tmp_path / "s", without_missing=True)
        assert outcome.quarantined == 1
        assert "still runs" in " ".join(outcome.notes)
