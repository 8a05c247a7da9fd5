"""Leases: of two syncs one writes, dead holders are followed, paused ones notice."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.identity import process
from replayers import lease as module
from replayers.lease import Held, Lease, Lost, Sightings, kernel_lock

#: Holds a lease and checks it; each line of its output is what happened.
HOLDER = """
import sys, time
from replayers import lease as module
folder, locks, where, period = sys.argv[1:]
if where != "here":
    plain = module.process
    module.process = lambda: {**plain(), "host": where, "boot_id": where}
options = {} if locks == "locks" else {"lock": lambda fd: False}
try:
    with module.Lease(folder, period=float(period), **options) as lease:
        print("held", flush=True)
        while True:
            lease.check()
            print("checked", flush=True)
            time.sleep(0.05)
except module.TemporaryError as error:
    print(type(error).__name__, error, flush=True)
"""


def no_locks(_fd: int) -> bool:
    return False


class Holder:
    """Another process that holds a lease, or tries to."""

    def __init__(self, folder: Path, locks: str, where: str, period: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), locks, where, str(period)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def until(self, word: str) -> str:
        """Return the first line that does not say that all is well."""
        while (line := self.line()) == "checked":
            continue
        assert line.startswith(word), line
        return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[object]:
    made: list[Holder] = []

    def make(locks: str = "locks", where: str = "here", period: float = 0.1) -> Holder:
        made.append(Holder(tmp_path, locks, where, period))
        assert made[-1].line() == "held"
        return made[-1]

    yield make
    for one in made:
        one.close()


def numbers(folder: Path) -> list[int]:
    return sorted(int(p.name[6:-5]) for p in folder.glob("lease-*.held"))


def test_one_after_the_other_takes_the_next_number_and_leaves_one_file(tmp_path: Path) -> None:
    for number in range(5):
        with Lease(str(tmp_path)) as lease:
            lease.check()
            assert lease.locked
            assert numbers(tmp_path) == [number]
    assert [p.read_bytes() for p in tmp_path.glob("lease-*.held")] == [b""]


@pytest.mark.parametrize("lock", [kernel_lock, no_locks])
def test_the_second_says_who_holds_it_and_is_temporary(tmp_path: Path, lock: object) -> None:
    with Lease(str(tmp_path), period=0.5, lock=lock) as first:  # type: ignore[arg-type]
        with pytest.raises(Held, match=f"process {os.getpid()} on ") as caught:
            Lease(str(tmp_path), lock=lock).__enter__()  # type: ignore[arg-type]
        assert caught.value.exit_code == 75
        first.check()
    with Lease(str(tmp_path), lock=lock):  # type: ignore[arg-type]
        pass


def test_a_killed_holder_on_this_machine_is_followed_at_once(tmp_path: Path, holder) -> None:
    holder("locks", period=60.0).signal(signal.SIGKILL)
    with Lease(str(tmp_path), pause=pytest.fail):
        assert numbers(tmp_path) == [1]


def test_a_killed_holder_is_followed_at_once_without_locks_too(tmp_path: Path, holder) -> None:
    holder("none", period=60.0).signal(signal.SIGKILL)
    with Lease(str(tmp_path), lock=no_locks, pause=pytest.fail):
        assert numbers(tmp_path) == [1]


def test_a_paused_holder_with_a_kernel_lock_keeps_the_others_out(tmp_path: Path, holder) -> None:
    one = holder("locks")
    one.signal(signal.SIGSTOP)
    with pytest.raises(Held, match=f"process {one.process.pid} on "):
        Lease(str(tmp_path)).__enter__()
    one.signal(signal.SIGCONT)
    assert one.line() == "checked"


def test_a_killed_holder_elsewhere_is_followed_once_its_beat_stood_still(
    tmp_path: Path, holder
) -> None:
    holder("none", "node2").signal(signal.SIGKILL)
    looks: list[float] = []
    seen = Sightings(lambda: sum(looks))
    with pytest.raises(Held, match="on node2; if it is dead, that is known in") as caught:
        Lease(str(tmp_path), wait=False, sightings=seen).__enter__()
    assert caught.value.again == pytest.approx(0.3)
    with Lease(str(tmp_path), sightings=seen, pause=looks.append) as lease:
        lease.check()
    assert sum(looks) == pytest.approx(0.3)


def test_a_living_holder_elsewhere_is_not_followed_even_where_each_host_locks_for_itself(
    tmp_path: Path, holder
) -> None:
    one = holder("none", "node2", 1.0)
    for lock in (kernel_lock, no_locks):
        with pytest.raises(Held, match=f"process {one.process.pid} on node2"):
            Lease(str(tmp_path), lock=lock).__enter__()
    assert one.line() == "checked"


def test_a_paused_holder_that_was_followed_notices_before_it_goes_on(
    tmp_path: Path, holder
) -> None:
    one = holder("none", "node2")
    one.signal(signal.SIGSTOP)
    with Lease(str(tmp_path), lock=no_locks) as lease:
        one.signal(signal.SIGCONT)
        assert f"process {os.getpid()} on " in one.until("Lost")
        lease.check()
        one.process.wait()
        lease.check()  # its end took nothing away
        assert numbers(tmp_path) == [1]


def test_a_holder_that_is_followed_while_it_looks_names_the_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(str(tmp_path), lock=no_locks), Lease(str(tmp_path), lock=no_locks)
    exists = os.path.exists

    def followed(path: str) -> bool:
        monkeypatch.setattr(os.path, "exists", exists)
        monkeypatch.setattr(module, "provably_gone", lambda _holder: True)
        second.__enter__()
        return exists(path)

    with first:
        monkeypatch.setattr(os.path, "exists", followed)
        with pytest.raises(Lost, match=f"lost to process {os.getpid()} on "):
            first.check()
        second.__exit__(None, None, None)


def test_of_two_that_follow_a_dead_holder_one_gets_the_lease(tmp_path: Path, holder) -> None:
    holder("none", "node2").signal(signal.SIGKILL)
    both = [Holder(tmp_path, "none", where, 0.5) for where in ("node3", "node4")]
    first = [one.line() for one in both]
    assert sorted(line.split()[0] for line in first) == ["Held", "held"], first
    for one in both:
        one.close()


def test_a_gap_between_two_looks_counts_as_one_period(tmp_path: Path) -> None:
    """A server that was away held up the holder's beats as well."""
    now = 0.0
    seen = Sightings(lambda: now)
    assert seen.unchanged("p", b"1", 5.0) == (0.0, False)
    now = 3600.0
    assert seen.unchanged("p", b"1", 5.0) == (5.0, False)
    now = 3602.0
    assert seen.unchanged("p", b"1", 5.0) == (7.0, False)
    assert seen.unchanged("p", b"2", 5.0) == (0.0, True)


@pytest.mark.parametrize("content", [b"[", b"[]", b"{}", b'{"period": 1e999}', b'{"pid": {}}'])
def test_a_file_that_says_nothing_is_watched_like_any_other(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease-7.held").write_bytes(content)
    (tmp_path / "lease-x.held").write_bytes(content)
    (tmp_path / "lease-.held").write_bytes(content)
    looks: list[float] = []
    seen = Sightings(lambda: sum(looks))
    with Lease(str(tmp_path), sightings=seen, pause=looks.append):
        assert sum(looks) == pytest.approx(3 * module.PERIOD)


def test_an_old_list_of_names_gives_nobody_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the list and the new file others came and went, and one of them is there."""
    with Lease(str(tmp_path)):
        pass  # number 0, let go
    (tmp_path / "lease-4.held").write_text(json.dumps({**process(), "period": 60.0}))
    plain = os.listdir
    lists = iter([["lease-0.held"]])
    monkeypatch.setattr(os, "listdir", lambda path: next(lists, None) or plain(path))
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        Lease(str(tmp_path), wait=False, lock=no_locks).__enter__()
    assert (tmp_path / "lease-4.held").stat().st_size
    assert not (tmp_path / "lease-1.held").exists()


def test_a_state_folder_that_is_removed_under_a_holder_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with Lease(str(folder)) as lease:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(Lost, match="nobody: its file is gone"):
            lease.check()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(_fd: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Lease(str(tmp_path)) as lease:
        assert not lease.locked
        lease.check()
