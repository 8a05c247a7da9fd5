"""Tables and large values on a disk without room: they wait, and are never lost in silence."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog import blobs, start
from eventlog.audit import verify
from eventlog.backlog import Backlog, Blob, Pending
from eventlog.errors import JournalError
from eventlog.event import METRIC
from eventlog.files import LOCAL
from eventlog.gaps import gaps, never_written
from eventlog.reader import WriterReader
from eventlog.table import Table
from eventlog.value import loads
from tests.helpers import Failing, read, values_of, writer

LEVELS = ["memory", "os", "group", "sync"]


class Disk(Failing):
    """A disk on which new files cannot be made while it is `full`; with `all`, nothing be written."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        super().__init__(lambda _n, name: self.found(name), ["create", "write", "make_folder"])
        self.number = number
        self.full = self.all = False

    def found(self, name: str) -> Any:
        if self.full and (self.all or name == "create"):
            return OSError(self.number, os.strerror(self.number))
        return None


def begun(folder: Path, disk: Disk, **options: Any) -> Any:
    one = writer(folder, files=disk, **options)
    said: list[str] = []
    one._tell = said.append
    one.said = said
    one.append(METRIC, {"x": 0.0}, 0)
    disk.full = True
    return one


def table(n: int, size: int = 200) -> Table:
    return Table(["text"], [[f"{n}" * size]])


def content(folder: Path, row: Any) -> Table:
    return Table.from_bytes(blobs.get(str(folder), loads(row.data)["sha256"]))


def rows_of(folder: Path, key: str = "t") -> list[Any]:
    return [row for e in read(folder) for row in e.rows if row.key == key and row.kind == METRIC]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("everything", [False, True], ids=["no-inodes", "full"])
def test_tables_wait_for_room_with_one_warning_and_nothing_is_lost(
    level: str, everything: bool, tmp_path: Path
) -> None:
    disk = Disk()
    disk.all = everything
    one = begun(tmp_path, disk, durability=level)
    for n in range(1, 6):
        one.append(METRIC, {"x": float(n), "t": table(n)}, n)
        one.append(METRIC, {"big": f"{n}" * (2**20 + 1)}, n)
    health = one.health()
    assert (health.state, health.waiting_blobs, health.dropped) == ("degraded", 10, 0)
    with pytest.raises(JournalError, match="10 tables or large values wait"):
        one.commit()
    assert one.durable <= 1
    if not everything and level != "memory":
        assert len(rows_of(tmp_path)) == 5, "the events are there, whatever the tables wait for"
    disk.full = False
    one.commit()
    assert one.health() == type(health)("ok", 11, 11, 0, 0, None)
    assert [content(tmp_path, row).data for row in rows_of(tmp_path)] == [
        table(n).data for n in range(1, 6)
    ]
    assert len(one.said) == 1
    assert "training goes on" in one.said[0]
    one.close()
    assert verify(str(tmp_path)).verdict == "ok"
    assert verify(str(tmp_path)).problems == ()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO])
def test_whatever_the_error_is(number: int, tmp_path: Path) -> None:
    disk = Disk(number)
    one = begun(tmp_path, disk)
    one.append(METRIC, {"t": table(1)}, 1)
    disk.full = False
    one.close()
    assert [content(tmp_path, row).data for row in rows_of(tmp_path)] == [table(1).data]
    assert len(one.said) == 1


def test_the_background_writes_what_waits_when_there_is_room(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk, group_seconds=0.01)
    one.append(METRIC, {"t": table(1)}, 1)
    disk.full = False
    end = time.monotonic() + 120
    while one.durable < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert one.health().state == "ok"
    assert one.durable == 2
    one.close()


def test_without_a_background_a_later_log_does(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk, durability="os")
    one.append(METRIC, {"t": table(1)}, 1)
    disk.full = False
    end = time.monotonic() + 120
    while one.health().waiting_blobs and time.monotonic() < end:
        one.append(METRIC, {"x": 1.0}, 1)
        time.sleep(0.01)
    one.append(METRIC, {"x": 1.0}, 1)
    assert one.health().state == "ok"
    one.close()


def test_no_event_that_names_a_blob_that_waits_is_called_durable(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk)
    one.append(METRIC, {"x": 1.0}, 1)
    one.append(METRIC, {"t": table(1)}, 2)
    one.append(METRIC, {"x": 2.0}, 3)
    with pytest.raises(JournalError):
        one.commit()
    assert one.durable == 2
    one.append(METRIC, {"x": 3.0}, 4)
    report = verify(str(tmp_path))
    assert (report.verdict, report.failed) == ("torn", False), "as a SIGKILL would leave it"
    disk.full = False
    one.commit()
    assert one.durable == 5
    one.close()


def test_what_finds_no_memory_either_is_null_and_counted(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk, memory_bytes=6_000)
    for n in range(1, 21):
        one.append(METRIC, {"x": float(n), "t": table(n)}, n)
    waiting = one.health().waiting_blobs
    assert 0 < waiting < 15
    disk.full = False
    one.append(METRIC, {"x": 21.0}, 21)
    one.close()
    assert values_of(read(tmp_path)) == [float(n) for n in range(22)]
    rows = rows_of(tmp_path)
    assert [row.type for row in rows] == ["table"] * waiting + ["null"] * (20 - waiting)
    for n, row in enumerate(rows[:waiting], 1):
        assert content(tmp_path, row).data == table(n).data
    found = [gap for t in WriterReader(str(tmp_path), one.name).tables() for gap in gaps(t)]
    assert sum(gap["values"] for gap in found) == 20 - waiting
    assert found[0]["first_step"] == waiting + 1
    assert found[-1]["last_step"] == 20
    assert found[0]["reason"] == "No space left on device"
    report = verify(str(tmp_path))
    assert report.verdict == "ok"
    assert "values between the steps" in " ".join(report.writers[0].problems)
    assert len(one.said) == 2
    assert f"{20 - waiting} tables or large values were lost, " in one.said[1]


def test_what_finds_no_room_until_the_end_is_recorded_as_never_written(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk)
    for n in range(1, 4):
        one.append(METRIC, {"x": float(n), "t": table(n)}, n)
    names = {loads(row.data)["sha256"] for row in rows_of(tmp_path)}
    one.close()
    assert one.durable == 5
    assert never_written(str(tmp_path), one.name) == names
    (gap,) = [gap for t in WriterReader(str(tmp_path), one.name).tables() for gap in gaps(t)]
    assert (gap["values"], gap["first_step"], gap["last_step"]) == (3, 1, 3)
    report = verify(str(tmp_path))
    assert (report.verdict, report.problems) == ("ok", ())
    assert (
        "3 tables or large values between the steps 1 and 3 found no room"
        in report.writers[0].problems[0]
    )
    assert [text for text in one.said if "training goes on" in text] == one.said[:1]
    assert "3 tables or large values were lost" in one.said[1]
    assert len(one.said) == 2
    # What is there all the same, from another copy say, is checked.
    for n in range(1, 4):
        blobs.put(str(tmp_path), table(n).to_bytes())
    assert verify(str(tmp_path)).verdict == "ok"
    damaged = tmp_path / "blobs" / sorted(names)[1]
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    report = verify(str(tmp_path))
    assert (report.verdict, len(report.problems)) == ("torn", 1)
    assert "its name says" in report.problems[0]


def test_a_disk_that_is_gone_to_the_end_takes_no_training_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = eventlog.init("p", "n", dir=tmp_path, quiet=True)
    start._unregister(run)
    run.log({"x": 0.0}, step=0)
    disk = Disk()
    disk.full = disk.all = True
    for name in ("create", "write", "make_folder"):
        monkeypatch.setattr(LOCAL, name, getattr(disk, name))
    for n in range(3):
        run.log({"x": float(n), "t": eventlog.Table(["a"], [[n]])}, step=n)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    run.finish()
    assert values_of(read(str(run.folder))) == [0.0]


def test_the_same_table_that_waits_is_kept_once(tmp_path: Path) -> None:
    disk = Disk()
    one = begun(tmp_path, disk)
    for n in range(5):
        one.append(METRIC, {"t": table(1)}, n)
    assert one.health().waiting_blobs == 1
    disk.full = False
    one.close()
    assert verify(str(tmp_path)).verdict == "ok"


@pytest.mark.parametrize("written", [False, True])
def test_an_interrupted_account_of_what_was_lost_is_given_once(written: bool) -> None:
    class Sink:
        gaps = 0
        interrupted = False

        def write(self, event: Pending) -> None:
            if not self.interrupted:
                self.interrupted = True
                self.gaps += written
                raise KeyboardInterrupt
            self.gaps += 1

        def written(self) -> int:
            return self.gaps

    sink, full = Sink(), Backlog(0)
    full.keep("0" * 64, Blob(b"x", 0, 0, 1), "no room")
    with pytest.raises(KeyboardInterrupt):
        full.drain(sink, 2**20)
    assert full.drain(sink, 2**20)
    assert sink.gaps == 1


def test_tables_leave_half_of_the_memory_to_events(tmp_path: Path) -> None:
    disk = Disk()
    disk.all = True
    one = begun(tmp_path, disk, memory_bytes=20_000)
    for n in range(1, 31):
        one.append(METRIC, {"x": float(n)}, n)
        one.append(METRIC, {"t": table(n, 2_000)}, n)
    health = one.health()
    assert 0 < health.waiting_blobs <= 5
    assert health.waiting > 30
    disk.full = False
    one.close()
    assert verify(str(tmp_path)).verdict == "ok"


def test_a_handler_of_a_signal_that_logs_a_table_has_it_counted(tmp_path: Path) -> None:
    """In the middle of an append of the same thread nothing can be put into the backlog."""
    disk = Disk()
    one = begun(tmp_path, disk)
    write = disk.write

    def interrupted(fd: int, data: bytes) -> int:
        disk.write = write  # type: ignore[method-assign]
        one.append(METRIC, {"t": table(1)}, 7)
        return write(fd, data)

    disk.write = interrupted  # type: ignore[method-assign]
    one.append(METRIC, {"x": 1.0}, 1)
    disk.full = False
    one.close()
    assert [row.type for row in rows_of(tmp_path)] == ["null"]
    found = [gap for t in WriterReader(str(tmp_path), one.name).tables() for gap in gaps(t)]
    assert [(gap["values"], gap["first_step"]) for gap in found] == [(1, 7)]
