"""Two syncs of one run at once, on one machine and as if on two with a disk without locks."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eventlog
from eventlog.delivery import state_folder
from eventlog.layout import escape

STEPS = 60
#: What the kernel answers where a file system has no locks.
NO_LOCKS = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=flock"]
NO_LOCKS += ["-e", "inject=flock:error=ENOLCK", "-P"]

Sync = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sync(tmp_path: Path) -> Iterator[Sync]:
    started: list[subprocess.Popen[str]] = []
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        for step in range(STEPS):
            run.log({"loss": step / 7}, step=step)

    def start(*options: object, locks: bool = True) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "eventlog.cli.main", "sync", str(tmp_path / "j")]
        command += ["--to", f"trackio:{tmp_path / 't'}", *map(str, options)]
        target = f"trackio:{tmp_path / 't'}"
        state = Path(state_folder(str(tmp_path / "j"))) / escape(target) / "p" / "x"
        # Trackio locks files of its own, and would wait for ever.
        started.append(
            subprocess.Popen(
                command if locks else [*NO_LOCKS, str(state / "lease.lock"), *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def steps(folder: Path) -> list[int]:
    path = folder / "p.db"
    if not path.exists():
        return []
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
        try:
            return sorted(s for (s,) in connection.execute("SELECT step FROM metrics"))
        except sqlite3.OperationalError:
            return []


def under_way(folder: Path) -> None:
    """Wait until a slow sync is in the middle of its work."""
    while not 0 < len(steps(folder)) < STEPS:
        time.sleep(0.02)


def process_of(tmp_path: Path) -> int:
    """Return the process that holds the lease."""
    import json

    (path,) = (tmp_path / "j" / "_replay").rglob("lease-*.held")
    return int(json.loads(path.read_text())["pid"])


#: Half a minute: while it lasts another sync starts, which takes a busy machine some seconds.
SLOW = ("--rate", 2, "--batch", 1)


def test_the_second_says_who_holds_the_lease_and_follows_once_he_is_killed(
    tmp_path: Path, sync: Sync
) -> None:
    first = sync(*SLOW)
    under_way(tmp_path / "t")
    second = sync()
    _out, err = second.communicate(timeout=180)
    assert second.returncode == 75, err
    assert f"another sync holds this run and target (process {first.pid} on " in err
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = sync()
    _out, err = third.communicate(timeout=180)
    assert third.returncode == 0, err
    assert steps(tmp_path / "t") == list(range(STEPS))


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is missing")
def test_without_locks_a_paused_holder_is_followed_and_notices(tmp_path: Path, sync: Sync) -> None:
    first = sync(*SLOW, locks=False)
    under_way(tmp_path / "t")
    holder = process_of(tmp_path)
    os.kill(holder, signal.SIGSTOP)
    second = sync(locks=False)
    _out, err = second.communicate(timeout=120)  # three periods of the holder
    assert second.returncode == 0, err
    assert steps(tmp_path / "t") == list(range(STEPS))
    os.kill(holder, signal.SIGCONT)
    _out, err = first.communicate(timeout=180)
    assert first.returncode == 75, err
    assert "the lease on this run and target was lost to " in err
    assert steps(tmp_path / "t") == list(range(STEPS))
