"""Real disks without room or inodes: a small tmpfs in a namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: What each test's program begins with: a small file system, and a writer on it.
BEGIN = """
    import json, os, subprocess, sys
    from eventlog.errors import JournalError
    from eventlog.event import METRIC
    from eventlog.journal import Options, Writer
    from eventlog.reader import WriterReader, listing

    folder, mount = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "-o", mount, "none", folder], check=True)
    said = []
    def writer(**options):
        return Writer(folder, "r", {}, options=Options(group_seconds=60.0, **options),
                      warn=said.append)
    def read(one):
        return [(e.rows[0].kind, e.rows[0].value)
                for e in WriterReader(folder, one.name).events()]
    def answer(**found):
        print(json.dumps(found))
"""


def on_small_disk(folder: Path, mount: str, code: str) -> dict:
    """Run a program with a tmpfs mounted on `folder`; return what it answers."""
    here = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*here, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of its own can be had here")
    program = textwrap.dedent(BEGIN) + textwrap.dedent(code)
    command = [*here, sys.executable, "-c", program, str(folder), mount]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("level", ["memory", "os", "group", "sync"])
def test_a_disk_that_fills_up_and_has_room_again_loses_nothing(level, tmp_path):
    found = on_small_disk(
        tmp_path,
        "size=200k",
        f"""
        one = writer(durability="{level}")
        for n in range(1000):
            one.append(METRIC, {{"x": n, "t": "text"}}, n)
        try:
            one.commit()
        except JournalError:
            pass
        full = one.health()
        subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
        one.commit()
        well = one.health()
        one.append(METRIC, {{"x": 1000, "t": "text"}}, 1000)
        one.close()
        answer(full=full.state, waiting=full.waiting, dropped=full.dropped, well=well.state,
               durable=well.durable, read=[x for _, x in read(one)] == list(range(1001)),
               said=[text for text in said if "training goes on" in text])
        """,
    )
    assert found["full"] == "degraded"
    assert found["waiting"] > 0
    assert (found["well"], found["durable"], found["dropped"]) == ("ok", 1000, 0)
    assert found["read"] is True
    assert len(found["said"]) == 1


def test_what_found_no_room_at_all_is_recorded_with_count_and_range(tmp_path):
    found = on_small_disk(
        tmp_path,
        "size=100k",
        """
        one = writer(memory_bytes=100_000)
        for n in range(2000):
            one.append(METRIC, {"x": n, "t": "text"}, n)
        full = one.health()
        subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
        one.commit()
        one.append(METRIC, {"x": 2000, "t": "text"}, 2000)
        one.close()
        kept = [x for kind, x in read(one) if kind == METRIC]
        (gap,) = [e for e in WriterReader(folder, one.name).events() if e.rows[0].kind == "gap"]
        answer(dropped=full.dropped, kept=kept, gap=gap.values("gap"))
        """,
    )
    kept, gap, dropped = found["kept"], found["gap"], found["dropped"]
    assert kept == [*range(2000 - dropped), 2000]
    assert dropped > 1000
    assert (gap["events"], gap["first_step"], gap["last_step"]) == (dropped, 2000 - dropped, 1999)
    assert gap["first_time"] <= gap["last_time"]


def test_a_disk_without_inodes_takes_all_events_into_the_segment_that_is_there(tmp_path):
    found = on_small_disk(
        tmp_path,
        "size=20m,nr_inodes=4",
        """
        one = writer(segment_bytes=20_000)
        for n in range(10):
            one.append(METRIC, {"x": n}, n)
        others = 0
        try:
            while True:
                open(f"{folder}/other{others}", "x").close()
                others += 1
        except OSError:
            pass
        for n in range(10, 500):
            one.append(METRIC, {"x": n}, n)
        full, segments = one.health(), len(listing(folder).segments[one.name])
        for n in range(others):
            os.unlink(f"{folder}/other{n}")
        one.commit()
        for n in range(500, 600):
            one.append(METRIC, {"x": n}, n)
        one.close()
        answer(state=full.state, segments=segments, said=said,
               after=len(listing(folder).segments[one.name]),
               read=[x for _, x in read(one)] == list(range(600)))
        """,
    )
    assert (found["state"], found["segments"], found["said"]) == ("ok", 1, [])
    assert found["after"] > 1
    assert found["read"] is True


def test_a_journal_that_becomes_read_only_is_waited_for(tmp_path):
    found = on_small_disk(
        tmp_path,
        "size=20m",
        """
        one = writer(segment_bytes=20_000)
        for n in range(10):
            one.append(METRIC, {"x": n}, n)
        one.commit()
        one._chain.abandon()  # an open file for writing would forbid it
        mounted = subprocess.run(["mount", "-o", "remount,ro", folder]).returncode
        for n in range(10, 50):
            one.append(METRIC, {"x": n}, n)
        state = one.health()
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        one.commit()
        one.close()
        answer(mounted=mounted, state=state.state, waiting=state.waiting,
               error=state.error, read=[x for _, x in read(one)] == list(range(50)))
        """,
    )
    assert found["mounted"] == 0
    assert (found["state"], found["waiting"]) == ("degraded", 40)
    assert "Read-only" in found["error"]
    assert found["read"] is True


def test_tables_wait_for_room_while_numbers_are_written(tmp_path):
    found = on_small_disk(
        tmp_path,
        "size=400k",
        """
        from eventlog import blobs
        from eventlog.audit import verify
        from eventlog.table import Table
        from eventlog.value import loads
        one = writer()
        for n in range(20):
            one.append(METRIC, {"x": n, "t": Table(["a"], [[str(n) * 60_000]])}, n)
        full, there = one.health(), read(one)
        subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
        one.commit()
        well = one.health()
        one.close()
        shas = [loads(row.data)["sha256"] for e in WriterReader(folder, one.name).events()
                for row in e.rows if row.key == "t"]
        whole = [Table.from_bytes(blobs.get(folder, sha)).data for sha in shas]
        answer(full=full.state, blobs=full.waiting_blobs, waiting=full.waiting, there=len(there),
               well=well.state, durable=well.durable, verdict=verify(folder).verdict, said=len(said),
               whole=whole == [[[str(n) * 60_000]] for n in range(20)])
        """,
    )
    assert found["full"] == "degraded"
    assert found["blobs"] > 10
    assert (found["there"], found["waiting"]) == (20, 0)
    assert (found["well"], found["durable"], found["verdict"]) == ("ok", 20, "ok")
    assert found["whole"] is True
    assert found["said"] == 1
