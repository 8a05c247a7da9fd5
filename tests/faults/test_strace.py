"""Real system calls fail, or kill the process, at every index: strace stands between a process
that logs and the kernel. What was acknowledged is told through a socket, which no fault touches.

One process is watched; for each case it forks a child, which uses up the calls that its case does
not mean on ``/dev/null``, because strace counts the calls of each process from one.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.audit import FAILURES, verify
from eventlog.reader import WriterReader, listing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

CHILD = """
import os, socket, struct, sys, tempfile
from eventlog.errors import JournalError
from eventlog.journal import Options, Writer
import pyarrow, numpy

top, fd, cases, most, call, events = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7]
told = socket.socket(fileno=fd)
spare = os.open("/dev/null" if call == "write" else top + "/spare", os.O_WRONLY | os.O_CREAT)
use_up = {
    "write": lambda: os.write(spare, b"x"),
    "fdatasync": lambda: os.fdatasync(spare),
    "fsync": lambda: os.fsync(spare),
    "openat": lambda: os.close(os.open("/dev/null", os.O_RDONLY)),
}[call]
with tempfile.TemporaryDirectory() as first:  # everything is imported before a fault comes
    one = Writer(first, "r", {}, options=Options("os"))
    one.append("metric", {"x": 0, "t": "text"}, 0)
    one.close()
for case in range(1, cases + 1):
    pid = os.fork()
    if pid == 0:
        folder = f"{top}/{case}"
        os.mkdir(folder)
        # What a fork does by itself opens a few files as well.
        for _ in range(most - case - 4 * (call == "openat")):
            use_up()
        one = Writer(folder, "r", {}, options=Options("group", 3000, 60.0))
        one._arm = lambda: None
        for n in range(int(events)):
            seq = one.append("metric", {"x": n, "t": "text"}, n)
            told.send(struct.pack("<4q", case, n, -1 if seq is None else seq, one.durable))
            if n % 3 == 2:
                try:
                    one.commit()
                except JournalError:
                    assert one.health().state == "degraded"
                told.send(struct.pack("<4q", case, n, -2, one.durable))
        one.close()
        told.send(struct.pack("<4q", case, int(events), -3, one.durable))
        os._exit(0)
    os.waitpid(pid, 0)
"""
EVENTS = 12


def logged(tmp_path, injection, *, cases, most, call):
    """Run all cases; return for each what was acknowledged, durable, and whether it ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
    program = [sys.executable, "-B", "-c", CHILD, tmp_path, theirs.fileno(), cases, most, call]
    # With --seccomp-bpf only the first call of a process can be killed.
    quick = [] if "KILL" in injection else ["--seccomp-bpf"]
    command = ["strace", "-f", *quick, "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    with subprocess.Popen(
        [*command, "-e", f"inject={call}:{injection}", *map(str, program), str(EVENTS)],
        cwd=ROOT,
        pass_fds=[theirs.fileno()],
    ) as running:
        theirs.close()
        fresh = {"acked": 0, "tried": 0, "durable": 0, "ended": False}
        out = {case: dict(fresh) for case in range(1, cases + 1)}
        while message := ours.recv(32):
            case, n, seq, durable = struct.unpack("<4q", message)
            told = out[case]
            told["tried"] = max(told["tried"], n + 1)
            told["acked"] = max(told["acked"], seq + 1)
            told["durable"] = durable
            told["ended"] = seq == -3
    ours.close()
    assert running.returncode == 0
    return out


def recovered(folder):
    folder = str(folder)
    if not os.path.isdir(folder) or not listing(folder).writers:
        return []
    (name,) = listing(folder).writers
    events = list(WriterReader(folder, name).events())
    assert [e.seq for e in events] == list(range(len(events)))
    assert verify(folder).verdict not in FAILURES
    return [e.rows[0].value for e in events]


def test_a_kill_at_any_write_loses_nothing_that_was_acknowledged(tmp_path):
    told = logged(tmp_path, "signal=KILL:when=60", cases=60, most=60, call="write")
    ends = set()
    for case, one in told.items():
        found = recovered(tmp_path / str(case))
        assert found == list(range(len(found)))
        assert one["acked"] <= len(found) <= one["tried"] + 1, case
        ends.add(one["ended"])
    assert ends == {False, True}


@pytest.mark.parametrize(
    "error", ["ENOSPC", *(pytest.param(e, marks=pytest.mark.long) for e in ("EDQUOT", "EIO"))]
)
def test_a_disk_that_fails_from_any_write_on_loses_nothing_that_was_acknowledged(error, tmp_path):
    told = logged(tmp_path, f"error={error}:when=20+", cases=20, most=20, call="write")
    for case, one in told.items():
        found = recovered(tmp_path / str(case))
        assert found == list(range(len(found))), case
        assert one["ended"], case  # training went on
        assert one["durable"] <= one["acked"] <= len(found) <= EVENTS, case


def test_a_write_that_fails_once_at_any_index_loses_nothing(tmp_path):
    told = logged(tmp_path, "error=EIO:when=20", cases=20, most=20, call="write")
    for case, one in told.items():
        assert recovered(tmp_path / str(case)) == list(range(EVENTS)), case
        assert one["ended"], case
        assert one["durable"] == EVENTS, case


@pytest.mark.parametrize(
    ("when", "call"),
    [
        ("12", "fsync"),
        ("12+", "fdatasync"),
        pytest.param("12", "fdatasync", marks=pytest.mark.long),
        pytest.param("12+", "fsync", marks=pytest.mark.long),
    ],
)
def test_a_sync_that_fails_at_any_index_loses_nothing(call, when, tmp_path):
    told = logged(tmp_path, f"error=EIO:when={when}", cases=12, most=12, call=call)
    for case, one in told.items():
        assert recovered(tmp_path / str(case)) == list(range(EVENTS)), case
        assert one["ended"], case
        assert one["durable"] <= EVENTS
    if when == "12":
        assert {one["durable"] for one in told.values()} == {EVENTS}
    else:
        assert told[1]["durable"] < EVENTS
