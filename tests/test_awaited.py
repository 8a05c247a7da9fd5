"""Tables that are not there: one that never will be is null in the target, and waits for nobody."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import eventlog
from eventlog import blobs, start
from eventlog.audit import verify
from eventlog.catalog import Found, find_all
from eventlog.errors import IntegrityError
from eventlog.event import GAP, make_rows
from eventlog.files import LOCAL
from eventlog.reader import WriterReader, listing
from eventlog.value import loads
from replayers.awaited import Written, come
from replayers.compare import compare
from replayers.replay import Outcome, replay, run_info
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


def sync(found: Found, target: MemoryTarget, state: Path) -> Outcome:
    return replay(found, target, str(state))


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
        assert run._writer is not None
        name = run._writer.name
        run._writer.close()
    assert come(item.folder, name, [2, 3, 4]) == [2, 3, 4]
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
