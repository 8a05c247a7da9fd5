"""The system itself says no: to sealing, to reading, to opening; disks and inode tables that are
full, files that may not grow. Every process here is a real one, and so is every error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.audit import FAILURES, verify
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
from tests.faults.test_strace import EVENTS, logged, recovered
from tests.helpers import read, values_of, writer

ROOT = Path(__file__).resolve().parents[2]
STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

#: So many files Python opens at most when it starts: the process that makes the others.
STARTING = 1_500

#: One process is watched. Its children, one a case, use up the calls that are not meant, then do
#: one thing to a folder of their own and say what came of it.
CASES = """
import json, os, sys
from eventlog.errors import EventlogError
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
import eventlog, eventlog.audit

top, what, call, cases, most = *sys.argv[1:4], *map(int, sys.argv[4:6])
spare = os.open(top + "/spare", os.O_RDWR | os.O_CREAT)
sink = os.open("/dev/null", os.O_WRONLY)
def moved():
    os.rename(top + "/spare", top + "/spare")
def removed():
    os.close(os.open(top + "/gone", os.O_CREAT | os.O_WRONLY))
    os.unlink(top + "/gone")
use_up = {
    "read": lambda: os.read(spare, 1),
    "write": lambda: os.write(sink, b"x"),
    "openat": lambda: os.close(os.open("/dev/null", os.O_RDONLY)),
    "rename": moved,
    "unlink": removed,
    "fsync": lambda: os.fsync(spare),
    "fdatasync": lambda: os.fdatasync(spare),
}[call]
def events(folder):
    (name,) = listing(folder).writers
    source = WriterReader(folder, name)
    found = [event.rows[0].value for event in source.events()]
    return {"found": found, "missing": len(source.missing)}
def trained(folder):
    # What a trainer does: nothing may be raised once init has returned.
    run = eventlog.init("p", "n", dir=f"{folder}/journal", id="r", quiet=True)
    try:
        for n in range(EVENTS):
            run.log({"x": n, "t": "text"}, step=n)
        run.finish()
    except BaseException as error:
        return {"raised": repr(error)}
    return {"folder": run.folder}
EVENTS = 12
do = {"seal": lambda folder: seal(folder) and {}, "read": events, "run": trained}[what]
do(f"{top}/0")  # everything is imported now
for case in range(1, cases + 1):
    pid = os.fork()
    if pid == 0:
        out = open(f"{top}/{case}.json", "w")
        for _ in range(most - case - 4 * (call == "openat")):
            use_up()
        try:
            said = do(f"{top}/{case}")
        except (OSError, EventlogError) as error:
            said = {"error": repr(error)}
        json.dump(said, out)
        out.close()
        os._exit(0)
    os.waitpid(pid, 0)
"""


def cases(tmp_path, what, call, injection, count):
    """Prepare a folder a case, do one thing to each under its fault; return what each said."""
    one = writer(tmp_path / "0", durability="os", segment_bytes=3_000)
    for n in range(EVENTS):
        one.append("metric", {"x": n, "t": "text"}, n)
    one.close()
    if what == "read":
        seal(str(tmp_path / "0"))
    for case in range(1, count + 1):
        shutil.copytree(tmp_path / "0", tmp_path / str(case))
    most = STARTING if call in ("openat", "read") else count
    most *= 2 if what == "run" else 1
    program = [sys.executable, "-B", "-c", CASES, str(tmp_path), what, call, str(count), str(most)]
    quick = [] if "KILL" in injection else ["--seccomp-bpf"]
    command = ["strace", "-f", *quick, "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    fault, lasting = injection.removesuffix(":+"), "+" * injection.endswith(":+")
    command += ["-e", f"inject={call}:{fault}:when={most}{lasting}"]
    done = subprocess.run([*command, *program], cwd=ROOT, check=False)
    assert done.returncode == 0
    told = {}
    for case in range(1, count + 1):
        path = tmp_path / f"{case}.json"
        told[case] = json.loads(path.read_text()) if path.exists() and path.stat().st_size else None
    return told


@STRACE
@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("rename", "error=EIO"),
        ("unlink", "error=EROFS:+"),
        ("write", "error=ENOSPC"),
        ("write", "signal=KILL"),
        ("fdatasync", "error=EIO"),
        ("fsync", "error=EIO"),
        ("openat", "error=EMFILE"),
    ],
    ids=str,
)
def test_sealing_that_is_refused_or_killed_at_any_call_loses_nothing(
    call, fault, tmp_path, repeats
):
    count = repeats(7, 25) if call in ("openat", "write") else repeats(5, 8)
    told = cases(tmp_path, "seal", call, fault, count)
    reached = 0
    for case in told:
        folder = tmp_path / str(case)
        assert values_of(read(folder)) == list(range(EVENTS)), case
        assert verify(str(folder)).verdict == "ok"
        left = bool(listing(str(folder)).segments)
        reached += left or told[case] is None or "error" in told[case]
        seal(str(folder))
        assert values_of(read(folder)) == list(range(EVENTS)), case
        assert not listing(str(folder)).segments
    assert reached


@STRACE
@pytest.mark.parametrize(
    ("call", "error", "lasting"),
    [
        ("read", "ESTALE", ""),
        ("read", "ESTALE", ":+"),
        ("read", "EIO", ""),
        ("read", "EIO", ":+"),
        ("openat", "ESTALE", ""),
        ("openat", "EIO", ""),
    ],
)
def test_reading_under_a_stale_handle_or_a_bad_disk_gives_all_or_says_so(
    call, error, lasting, tmp_path, repeats
):
    told = cases(tmp_path, "read", call, f"error={error}{lasting}", repeats(6, 12))
    whole = [case for case, said in told.items() if said.get("found") == list(range(EVENTS))]
    for case, said in told.items():
        assert case in whole or "error" in said or said["missing"], (case, said)
    if (call, lasting) == ("read", ""):
        assert whole  # tried again
    else:
        assert len(whole) < len(told)  # some told of it


@STRACE
@pytest.mark.parametrize(
    ("error", "when"),
    [
        ("EMFILE", ""),
        ("EROFS", "+"),
        *(
            pytest.param(error, when, marks=pytest.mark.long)
            for error in ("EMFILE", "ENFILE", "EACCES", "EIO")
            for when in ("", "+")
            if (error, when) != ("EMFILE", "")
        ),
    ],
)
def test_a_file_that_cannot_be_opened_at_any_index_loses_nothing(error, when, tmp_path):
    injection = f"error={error}:when={STARTING}{when}"
    told = logged(tmp_path, injection, cases=16, most=STARTING, call="openat")
    for case, one in told.items():
        assert one["ended"], case  # training went on
        found = recovered(tmp_path / str(case))
        assert found == list(range(len(found))), case
        assert one["durable"] <= one["acked"] <= len(found), case
        if not when:
            assert (found, one["durable"]) == (list(range(EVENTS)), EVENTS), case


@STRACE
@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("openat", "error=EMFILE"),
        *(
            pytest.param("openat", f"error={error}{when}", marks=pytest.mark.long)
            for error in ("ENFILE", "EACCES", "EIO")
            for when in ("", ":+")
        ),
        pytest.param("write", "retval=0", marks=pytest.mark.long),
    ],
)
def test_a_trainer_goes_on_whatever_call_fails_and_its_journal_is_well(
    call, fault, tmp_path, repeats
):
    """`init`, `log` and `finish`, as users call them: `init` alone may refuse."""
    told = cases(tmp_path, "run", call, fault, repeats(12, 40))
    logged_all = 0
    for case, said in told.items():
        assert said is not None and "raised" not in said, (case, said)
        if "error" in said or not listing(said["folder"]).writers:
            continue
        found = [e.rows[0].value for e in read(said["folder"]) if e.rows[0].key == "x"]
        assert found == list(range(len(found))), case
        assert verify(said["folder"]).verdict not in FAILURES, case
        logged_all += len(found) == EVENTS
        if not fault.endswith("+"):
            assert len(found) == EVENTS, case
    assert logged_all


@STRACE
@pytest.mark.parametrize("when", ["", pytest.param("+", marks=pytest.mark.long)])
def test_a_write_that_takes_nothing_at_any_index_loses_nothing(when, tmp_path):
    """A write may take less than it was given, nothing even; the disk that is full does so."""
    told = logged(tmp_path, f"retval=0:when=20{when}", cases=20, most=20, call="write")
    for case, one in told.items():
        found = recovered(tmp_path / str(case))
        assert one["ended"], case
        assert found == list(range(len(found))), case
        assert one["durable"] <= one["acked"] <= len(found), case
        if not when:
            assert (found, one["durable"]) == (list(range(EVENTS)), EVENTS), case


@STRACE
@pytest.mark.parametrize(
    "call", ["write", "fdatasync", pytest.param("fsync", marks=pytest.mark.long)]
)
def test_a_stale_handle_at_any_write_or_sync_loses_nothing(call, tmp_path):
    told = logged(tmp_path, "error=ESTALE:when=20", cases=20, most=20, call=call)
    for case, one in told.items():
        assert recovered(tmp_path / str(case)) == list(range(EVENTS)), case
        assert (one["ended"], one["durable"]) == (True, EVENTS), case


@STRACE
def test_a_disk_that_says_it_wrote_what_it_did_not_is_found_out(tmp_path):
    told = logged(tmp_path, "retval=100:when=20", cases=20, most=20, call="write")
    found_out = 0
    for case in told:
        folder = str(tmp_path / str(case))
        (name,) = listing(folder).writers or [""]
        found = values_of(WriterReader(folder, name).events()) if name else []
        assert found == list(range(len(found))), case
        verdict = verify(folder).verdict
        assert verdict != "ok" or len(found) == EVENTS, case
        found_out += verdict != "ok"
    assert found_out


@STRACE
@pytest.mark.parametrize("error", ["ENOLCK", pytest.param("EOPNOTSUPP", marks=pytest.mark.long)])
def test_a_file_system_without_locks_is_no_trouble_to_logging_sealing_and_reading(error, tmp_path):
    program = """
import eventlog, sys
for resume in ("auto", "must"):
    with eventlog.init("p", "n", id="r", dir=sys.argv[1], resume="auto", quiet=True) as run:
        for n in range(5):
            run.log({"x": n}, step=n)
        run.flush()
    assert run.health.state == "ok", run.health
from eventlog.cli.main import run
sys.exit(run(["verify", sys.argv[1]]) or run(["seal", sys.argv[1]]))
"""
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "-e", "trace=flock"]
    command += ["-e", f"inject=flock:error={error}", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ no room

GROWING = """
import resource, sys
from eventlog.journal import Options, Writer
from eventlog.errors import JournalError
top, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import os
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in range(first, 7_000, step):
    folder = f"{top}/{limit}"
    os.mkdir(folder)
    one = Writer(folder, "r", {}, options=Options("group", 3_000, 60.0))
    one._arm = lambda: None
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for n in range(8):
        one.append("metric", {"x": n, "t": "text"}, n)
    try:
        one.commit()
        assert limit > 1_500 or one.health().waiting == 0
    except JournalError:
        assert one.health().state == "degraded"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    one.commit()
    assert one.health().state == "ok", one.health()
    one.append("metric", {"x": 8, "t": "text"}, 8)
    one.close()
"""


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2))])
def test_files_that_may_not_grow_beyond_any_size_cost_no_event(first, tmp_path):
    """A true short write at byte N, then EFBIG, as a full disk answers; no root needed."""
    program = [sys.executable, "-c", GROWING, str(tmp_path), str(first * 67), "201"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    limits = sorted(tmp_path.iterdir())
    assert len(limits) > 30
    for folder in limits:
        assert values_of(read(folder)) == list(range(9)), folder.name
        assert verify(str(folder)).verdict not in FAILURES


SMALL = """
import json, os, subprocess, sys
from eventlog.journal import Options, Writer
top, options, larger = sys.argv[1:4]
subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", top], check=True)
folder = top + "/run"
os.mkdir(folder)
one = Writer(folder, "r", {}, options=Options("group", 4_000, 60.0))
one._arm = lambda: None
states = set()
for n in range(200):
    one.append("metric", {"x": n, "t": "text" * 20}, n)
    states.add(one.health().state)
subprocess.run(["mount", "-o", "remount," + larger, top], check=True)
one.commit()
states.add("then " + one.health().state)
one.close()
from eventlog.reader import WriterReader
from eventlog.audit import verify
found = [event.rows[0].value for event in WriterReader(folder, one.name).events()]
print(json.dumps([sorted(states), found, verify(folder).verdict]))
"""


def _namespaces() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.skipif(not _namespaces(), reason="no user namespaces here")
@pytest.mark.parametrize(
    ("options", "larger", "states"),
    [
        ("size=64k", "size=4m", {"ok", "degraded", "then ok"}),
        ("nr_inodes=6", "nr_inodes=300", {"ok", "then ok"}),
    ],
    ids=["small disk", "few inodes"],
)
def test_a_file_system_that_is_full_of_bytes_or_of_files(options, larger, states, tmp_path):
    """With a full inode table the segment that is there goes on."""
    program = ["unshare", "-Urm", sys.executable, "-c", SMALL, str(tmp_path), options, larger]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told, found, verdict = json.loads(done.stdout)
    assert set(told) == states
    assert found == list(range(200))
    assert verdict == "ok"
