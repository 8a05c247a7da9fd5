"""The group commit, when an exception from outside ends it: Ctrl-C, no memory."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

from eventlog.audit import verify
from eventlog.errors import JournalError
from eventlog.event import make_rows
from tests.helpers import Failing, values_of, writer
from tests.helpers import read as recovered

EIO = OSError(errno.EIO, "Input/output error")


class Synced(Failing):
    """Remembers which files were synced; `fails` sees each sync of a file, from 1."""

    def __init__(self, fails):
        super().__init__(fails, ["sync"])
        self.paths = set()

    def sync(self, fd):
        super().sync(fd)
        self.paths.add(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))


def full(tmp_path, files):
    """Return a writer with some full segments that no commit has seen."""
    one = writer(tmp_path, files=files, group_seconds=3600.0, segment_bytes=8_000)
    for n in range(40):
        one.append("metric", {"x": n, "t": "t" * 200}, n)
    assert one._chain.retired
    return one


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_an_interrupted_commit_did_not_sync_is_synced_by_the_next(error, at, tmp_path):
    files = Synced(lambda n, name: error() if n == at else None)
    one = full(tmp_path, files)
    with pytest.raises(error):
        one.commit()
    assert one.durable == 0
    one.commit()
    assert one.durable == 40
    assert files.paths >= {path.name for path in tmp_path.glob("*.arrows")}
    one.close()
    assert values_of(recovered(tmp_path, one.name)) == list(range(40))


def test_a_failed_sync_is_final_though_ctrl_c_hid_its_error(tmp_path):
    class Hidden(Synced):
        def sync(self, fd):
            try:
                super().sync(fd)
            finally:
                if len(self.calls) == 1:
                    raise KeyboardInterrupt

    files = Hidden(lambda n, name: EIO if n == 1 else None)
    one = full(tmp_path, files)
    with pytest.raises(KeyboardInterrupt):
        one.commit()
    before = set(tmp_path.glob("*.arrows"))
    with pytest.raises(JournalError):
        one.commit()
    one.commit()
    assert one.durable == 40
    again = {path.name for path in set(tmp_path.glob("*.arrows")) - before}
    assert again
    assert again <= files.paths
    one.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_blob_whose_sync_was_interrupted_is_synced_by_the_next(error, tmp_path):
    files = Synced(lambda n, name: error() if n == 1 else None)
    one = writer(tmp_path, files=files, group_seconds=3600.0)
    digest = one.put_blob(b"b" * 100)
    one.append("metric", {"x": 1}, 1)
    with pytest.raises(error):
        one.commit()
    one.commit()
    assert any(digest in path for path in files.paths)  # it is written anew, under another name
    one.close()


def test_a_run_whose_names_could_not_be_made_durable_does_not_vouch_for_other_writers(tmp_path):
    broken = Failing(lambda n, name: EIO if n > 1 else None, ["sync_folder"])
    one = writer(tmp_path, files=broken, durability="sync")
    other = writer(tmp_path, files=broken, group_seconds=3600.0)
    other.append("metric", {"x": 1}, 1)
    one.append("metric", {"x": 1}, 1)

    def last(seq, named):
        told = {other.name: None, one.name: seq + 1 if named else None}
        return make_rows("state", [("writers", told)])[0]

    one.close(last)
    other.close()
    for path in tmp_path.glob(f"{other.name}-*"):
        path.unlink()  # the power was cut
    report = verify(str(tmp_path))
    assert (report.verdict, report.complete, report.failed) == ("torn", "unknown", False)


def test_the_background_goes_on_when_memory_was_short_once(tmp_path):
    failed = threading.Event()

    def fails(n, name):
        if n == 1:
            failed.set()
            return MemoryError()
        return None

    one = writer(tmp_path, files=Synced(fails), group_seconds=0.01)
    one.append("metric", {"x": 1}, 1)
    assert failed.wait(120)
    end = time.monotonic() + 120
    while one.durable < 1 and time.monotonic() < end:
        time.sleep(0.005)
    assert one.durable == 1
    one.close()
