"""Trackio as a target: against the real package, its own readers, and its own command line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventlog import frame
from eventlog.errors import UsageError
from eventlog.event import make_rows
from eventlog.value import dumps as typed_json
from replayers import trackio_names as names
from replayers import trackio_worker as worker
from replayers.positions import Positions
from replayers.target import Down, Foreign, Rejected, Retry, RunInfo, RunState, Unauthorised
from replayers.to_trackio import TrackioTarget
from tests import warm
from tests.helpers import examples

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_767_225_600_000_000_000
RUN = RunInfo("run-1", "ppo", "qwen 7b", NOW, owner="ada")


# ------------------------------------------------------------------------------ helpers


def batch(events, writer="w0"):
    """Make a batch of ``(seq, time, step, {kind: {key: value}})``."""
    rows = []
    for seq, moment, step, kinds in events:
        for kind, values in kinds.items():
            made, refused = make_rows(kind, values.items())
            assert not refused
            head = {"seq": seq, "time": moment, "step": step}
            rows += [head | row._asdict() for row in made]
    return of_rows(rows, writer)


def of_rows(rows, writer="w0"):
    schema = frame.schema().with_metadata({"eventlog.writer": writer})
    return pa.Table.from_pylist(rows, schema=schema)


def series(first, last, writer="w0"):
    """Make the events `first` to `last`: always the same for the same seq."""
    return batch([one(seq, writer) for seq in range(first, last + 1)], writer)


def one(seq, writer="w0"):
    rng = random.Random(f"{writer}:{seq}")
    values = {"loss": rng.random(), "lr": 1e-3 / (seq + 1), "n": rng.getrandbits(60)}
    return seq, NOW + seq * 1_000_003, seq // 2, {"metric": values}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One target for all tests: importing Trackio in its child takes most of a second."""
    made = TrackioTarget(str(tmp_path_factory.mktemp("local") / "trackio"), patience=0.3)
    yield made
    made.close()


@pytest.fixture
def folder(shared):
    """An empty Trackio folder."""
    shutil.rmtree(shared.address)
    Path(shared.address).mkdir()
    return Path(shared.address)


@pytest.fixture
def target(shared, folder):
    return shared


def multiset(*tables):
    return Counter(row for t in tables for row in zip(*(c.to_pylist() for c in t.columns)))


def read_back(session):
    return multiset(*session.read_back())


def sql(folder, query, *args, project="ppo"):
    with contextlib.closing(sqlite3.connect(folder / f"{project}.db")) as connection, connection:
        return connection.execute(query, args).fetchall()


def config_of(folder, run_id="run-1"):
    return json.loads(sql(folder, "SELECT config FROM configs WHERE run_id = ?", run_id)[0][0])


def trackio(folder, code, *args):
    """Run code with Trackio's own package on this folder; return what it prints as JSON."""
    start = "import json, sys\nfrom trackio.sqlite_storage import SQLiteStorage\nimport trackio\n"
    out = of_trackio(folder, start + code, *args)
    return json.loads(out) if out else None


def command(folder, *args):
    return json.loads(of_trackio(folder, "from trackio.cli import main; main()", *args, "--json"))


def of_trackio(folder, code, *args):
    environment = os.environ | {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    done = warm.python(code, *args, imports=warm.TRACKIO, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid, within=60.0):
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


OLD_TRACKIO = tuple(map(int, metadata.version("trackio").split(".")[:2])) < (0, 40)


HOSTILE_KEYS = [
    "_eventlog/time",    "", " ", "a\"b", "it's", "time", "step", "project", "run", "timestamp", "metrics", "__x",
    "____x", "__time", "x/y.z", "nul\0", "é", "🚀", "_type", "1; DROP TABLE metrics", "$.a", "%_",
]  # fmt: skip
PAYLOAD_NAN = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
HOSTILE_VALUES = [
    0.1 + 0.2, -0.0, 0.0, 5e-324, 1.7976931348623157e308, math.nan, PAYLOAD_NAN, math.inf,
    -math.inf, np.float32(0.1), np.float16(0.1), np.float32("nan"), np.float64("-inf"), 2**53 + 1,
    -(2**63), 2**63 - 1, 2**63, 2**64 + 3, -(2**70), 10**5000, np.int64(7), np.uint64(2**64 - 1),
    True, False, None, np.bool_(True), "", "text", "NaN", "Infinity", "-Infinity", "\\NaN",
    "\\\\-Infinity", "nan", "\ud800 lone", "null", "quote\"'\\", b"\x00\xff", 1 + 2j, np.complex64(3j),
    [1, 2.5, None, "NaN", math.nan], (1, (2, 3)), [], [{"a": {"b": np.float32(0.5)}}],
    [{1: "int", "1": "text"}], [{"\udfff": 1}], [{"_type": "trackio.trace", "messages": "none"}],
    [{"_type": "\\trackio.image"}], np.arange(6.0).reshape(2, 3), np.array([math.nan, 1.0]),
    np.array(["a", "b"]), np.zeros(20_000), np.array([], dtype="f4"), [np.array([1, 2], "i2")],
]  # fmt: skip


def hostile(first=0):
    events = [
        (first + i, NOW + i, i - 3, {"metric": {"v": value, "also": float(i)}})
        for i, value in enumerate(HOSTILE_VALUES)
    ]
    at = first + len(events)
    keys = {key: float(i) for i, key in enumerate(HOSTILE_KEYS)}
    events.append((at, -1, -(2**63), {"metric": keys}))
    both = {"metric": {"system/cpu": 1.0, "system/cpu#2": 2.0}, "system": {"cpu": 3.0, "mem": 4}}
    events.append((at + 1, 2**63 - 1, 2**63 - 1, both))
    events.append((at + 2, NOW, None, {"metric": {"no step": 1}, "note": {"n": "left out"}}))
    return batch(events)


# ------------------------------------------------------------------------------ values


def test_what_is_read_back_is_the_image_of_hostile_keys_and_values(target, folder):
    described = batch(
        [
            (
                0,
                NOW,
                None,
                {"config": {"lr": 3e-4, "nan": math.nan, "_Created": "mine", "n": None}},
            ),
            (1, NOW, None, {"summary": {"best": 2**60}, "tag": {"team": "NaN"}}),
        ]
    )
    strange = hostile(first=2)
    many = series(1000, 3999)
    session = target.open(RUN)
    for part in (described, strange, many):
        session.send(part)
        assert session.confirm(part)
    wanted = multiset(*(target.image(part) for part in (described, strange, many)))
    assert read_back(session) == wanted
    assert sum(wanted.values()) == 6 + 2 * len(HOSTILE_VALUES) + len(HOSTILE_KEYS) + 5 + 9000


def _label(value):
    """Name a value: numpy 1 writes a float32 and a float16 of 0.1 alike."""
    return f"{type(value).__name__} {value!r}"


def test_float_bits_and_integers_are_exact_in_the_database(target, folder):
    session = target.open(RUN)
    session.send(hostile())
    rows = [json.loads(row) for (row,) in sql(folder, "SELECT metrics FROM metrics ORDER BY id")]
    stored = [row.get("v") for row in rows]
    by_value = {
        _label(value): kept
        for value, kept in zip(HOSTILE_VALUES, stored)
        if type(value) is not int or value.bit_length() < 100
    }
    for value in (0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308):
        assert struct.pack("<d", by_value[_label(value)]) == struct.pack("<d", value)
    assert by_value[_label(np.float32(0.1))] == float(np.float32(0.1))
    for value in (2**53 + 1, -(2**63), 2**63 - 1):
        assert by_value[_label(value)] == value
        assert type(by_value[_label(value)]) is int
    assert by_value[_label(2**63)] == str(2**63)
    assert by_value["float nan"] == "NaN"
    assert by_value["str 'NaN'"] == "\\NaN"
    assert by_value["bool True"] is True
    assert by_value["NoneType None"] is None


def test_every_change_is_told_once_per_rule_and_key(target):
    session = target.open(RunInfo("Run A", "my.p", "n", NOW))
    changes = {(c.rule, c.key): c for c in session.send(hostile())}
    rules = {rule for rule, _ in changes}
    assert {
        "project-renamed", "run-id-hashed", "nonfinite-as-text", "nan-payload", "string-escaped",
        "int-as-text", "surrogate-escaped", "bytes-as-text", "complex-as-text", "array-as-list",
        "array-as-digest", "dict-key-as-text", "type-escaped", "key-reserved", "key-taken",
        "step-from-seq", "kind-not-held",
    } <= rules  # fmt: skip
    assert changes["key-reserved", "time"].detail == "__time"
    assert changes["nan-payload", "v"].count == 1
    assert ("key-reserved", "also") not in changes
    assert changes["step-from-seq", ""].count == 1
    assert not [c for c in session.send(series(9000, 9010)) if c.rule == "project-renamed"]


def test_times_keep_their_nanoseconds(target, folder):
    session = target.open(RUN)
    times = [NOW, NOW + 1, NOW + 1000, NOW + 999_999_999, 0, -1, -(2**63), 2**63 - 1]
    rows = batch([(i, t, i, {"metric": {"a": 1.0}}) for i, t in enumerate(times)])
    session.send(rows)
    stored = [row[0] for row in sql(folder, "SELECT timestamp FROM metrics ORDER BY id")]
    assert stored[0] == "2026-01-01T00:00:00.000000+00:00"
    assert stored[1] == "2026-01-01T00:00:00.000000001+00:00"
    assert [names.parse_time(text) for text in stored] == times
    assert read_back(session) == multiset(target.image(rows))


def test_trackios_own_readers_show_every_value(target, folder):
    session = target.open(RUN)
    rows = series(0, 2499)
    session.send(rows)
    values = {seq: one(seq)[3]["metric"]["loss"] for seq in range(2500)}
    code = """
run = list(trackio.Api().runs("ppo"))[0]
logs = SQLiteStorage.get_logs("ppo", run.name, run_id=run.id)
print(json.dumps([run.name, run.id, [log["loss"].hex() for log in logs], run.config]))
"""
    name, run_id, logs, config = trackio(folder, code)
    assert (name, run_id) == ("qwen 7b", "run-1")
    assert logs == [value.hex() for value in values.values()]
    assert config["_Username"] == "ada"
    shown = command(
        folder, "get", "metric", "--project", "ppo", "--run", "qwen 7b", "--metric", "loss"
    )
    assert [row["value"] for row in shown["values"]] == list(values.values())
    assert [row["step"] for row in shown["values"]] == [seq // 2 for seq in values]


# ------------------------------------------------------------------------------ exactly once


def test_the_same_batch_three_times_is_held_once(target, folder):
    session = target.open(RUN)
    rows = pa.concat_tables([hostile(), series(200, 2999)])
    for _ in range(3):
        session.send(rows)
        assert session.confirm(rows)
    events = len(set(rows.column("seq").to_pylist()))
    assert sql(folder, "SELECT count(*), count(DISTINCT log_id) FROM metrics") == [(events, events)]
    assert read_back(session) == multiset(target.image(rows))


def test_parts_overlaps_and_a_changed_order_leave_each_event_once(target):
    session = target.open(RUN)
    for first, last in ((50, 99), (0, 59), (20, 79), (0, 99)):
        session.send(series(first, last))
    other = series(0, 30, "w1")
    session.send(other)
    assert session.held() == Positions({"w0": [(0, 99)], "w1": [(0, 30)]})
    assert read_back(session) == multiset(target.image(series(0, 99)), target.image(other))


def test_confirm_sees_a_lost_row_and_a_lost_config(target, folder):
    session = target.open(RUN)
    rows = pa.concat_tables([batch([(0, NOW, None, {"config": {"a": 1}})]), series(1, 20)])
    assert not session.confirm(rows)
    session.send(rows)
    assert session.confirm(rows)
    sql(folder, "DELETE FROM metrics WHERE log_id = 'run-1:w0:000000000007'")
    assert not session.confirm(rows)
    assert session.held() == Positions({"w0": [(1, 6), (8, 20)]})
    gap = pa.concat_tables([series(1, 6), series(8, 20)])
    assert session.confirm(gap)
    session.send(rows)
    assert session.confirm(rows)
    sql(folder, "DELETE FROM configs")
    assert not session.confirm(rows)
    session.send(rows)
    assert session.confirm(rows)


def test_a_gap_filled_by_another_event_is_no_confirmation(target, folder):
    session = target.open(RUN)
    session.send(series(0, 1))
    assert not session.confirm(pa.concat_tables([series(0, 0), series(2, 2)]))


def test_a_run_deleted_in_trackio_is_not_held_and_comes_back(target, folder):
    session = target.open(RUN)
    session.send(series(0, 99))
    trackio(folder, "SQLiteStorage.delete_run('ppo', 'qwen 7b', run_id='run-1')")
    again = target.open(RUN)
    assert again.held() == Positions()
    again.send(series(0, 99))
    assert again.held() == Positions({"w0": [(0, 99)]})


def sender(folder, last):
    """Start a process that sends batches of 100 of its series; return it and its child's pid."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(last)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def wait_for_rows(folder, count):
    """Wait until the database has more than `count` rows (with 0: until it is there at all)."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(sqlite3.OperationalError):
            if (folder / "ppo.db").exists() and not count:
                return
            if sql(folder, "SELECT count(*) FROM metrics")[0][0] > count:
                return
        time.sleep(0.005)
    raise AssertionError("the sender does not send")


@pytest.mark.long
def test_killed_at_any_moment_and_sent_again_every_event_is_there_once(folder, target, repeats):
    rng = random.Random(7)
    last = 3999
    for round_number in range(repeats(2, 6)):
        process, child = sender(folder, last)
        wait_for_rows(folder, 250 * round_number)
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(child if round_number % 3 == 2 else process.pid, signal.SIGKILL)
        if round_number % 3 == 2:
            time.sleep(rng.uniform(0.3, 0.8))  # it starts a new child and goes on
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        assert gone(child)
        process.stdout.close()
    session = target.open(RUN)
    held = session.held()
    assert 0 < len(held) < last + 1
    for first in range(0, last + 1, 500):
        rows = series(first, first + 499)
        session.send(rows)
        assert session.confirm(rows)
    assert session.held() == Positions({"w0": [(0, last)]})
    assert read_back(session) == multiset(target.image(series(0, last)))
    code = """
logs = SQLiteStorage.get_logs("ppo", "qwen 7b", run_id="run-1")
print(json.dumps([[log["loss"].hex(), log["n"], log["step"]] for log in logs]))
"""
    wanted = [one(seq)[3]["metric"] for seq in range(last + 1)]
    assert trackio(folder, code) == [
        [w["loss"].hex(), w["n"], seq // 2] for seq, w in enumerate(wanted)
    ]
    assert sql(folder, "PRAGMA integrity_check") == [("ok",)]


def test_tables_that_a_killed_trackio_left_incomplete_are_completed(target, folder):
    columns = "id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER"
    sql(folder, f"CREATE TABLE metrics ({columns}, metrics TEXT)")
    session = target.open(RUN)
    session.send(series(0, 9))
    assert session.held() == Positions({"w0": [(0, 9)]})


def test_what_a_writer_killed_in_mid_transaction_left_is_rolled_back(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    code = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = DELETE")  # as it is while Trackio makes a database
connection.execute("PRAGMA cache_size = 1")
connection.execute("UPDATE metrics SET step = 7")
connection.execute("CREATE TABLE more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL"
                   " SELECT i + 1 FROM n LIMIT 2000) SELECT i, zeroblob(2000) FROM n")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder / "ppo.db")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "ppo.db-journal").stat().st_size > 0
    session = target.open(RUN)
    assert session.held() == Positions({"w0": [(0, 9)]})
    assert read_back(session) == multiset(target.image(series(0, 9)))


def test_rows_of_a_trackio_before_log_ids_are_somebody_elses(target, folder):
    columns = "id INTEGER PRIMARY KEY, run_id TEXT, timestamp TEXT, run_name TEXT, step INTEGER"
    sql(folder, f"CREATE TABLE metrics ({columns}, metrics TEXT)")
    sql(folder, "INSERT INTO metrics VALUES (1, 'run-1', '2026-01-01', 'qwen 7b', 0, '{}')")
    with pytest.raises(Foreign):
        target.open(RUN)


def test_a_dead_child_is_replaced(target):
    session = target.open(RUN)
    session.send(series(0, 9))
    os.kill(target.store.child, signal.SIGKILL)
    session.send(series(0, 19))
    assert session.held() == Positions({"w0": [(0, 19)]})


def test_the_child_ends_with_the_target(target):
    target.open(RUN)
    child = target.store.child
    assert alive(child)
    target.close()
    assert gone(child)


# ------------------------------------------------------------------------------ locks


def test_a_locked_database_is_retry_and_nothing_is_lost(target, folder):
    session = target.open(RUN)
    session.send(series(0, 99))
    holder = sqlite3.connect(folder / "ppo.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    rows = series(50, 199)
    with pytest.raises(Retry):
        session.send(rows)
    assert not session.confirm(rows)
    assert session.held() == Positions({"w0": [(0, 99)]})  # reading goes on
    holder.execute("ROLLBACK")
    holder.close()
    session.send(rows)
    assert session.confirm(rows)
    assert read_back(session) == multiset(target.image(series(0, 199)))


def test_a_database_held_exclusively_is_retry_for_readers_too(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    holder = sqlite3.connect(folder / "ppo.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("PRAGMA journal_mode = DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(Retry):
            session.held()
        with pytest.raises(Retry):
            session.send(series(10, 19))
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    session.send(series(10, 19))
    assert session.held() == Positions({"w0": [(0, 19)]})


def test_errors_of_trackio_and_the_system_are_told_apart():
    lock = OSError("Could not acquire database lock after 10 seconds")
    assert worker.verdict(lock) == "busy"
    assert worker.verdict(sqlite3.OperationalError("database is locked")) == "busy"
    assert worker.verdict(sqlite3.OperationalError("database or disk is full")) == "busy"
    assert worker.verdict(OSError(28, "No space left on device")) == "busy"
    assert worker.verdict(sqlite3.DatabaseError("file is not a database")) == "failed"
    assert worker.verdict(TypeError("not JSON")) == "refused"
    assert worker.verdict(ImportError("CommitOperationAdd")) == "missing"


def test_reading_goes_on_while_another_process_writes(target, folder):
    process, _ = sender(folder, 3999)
    session, seen = target.open(RUN), []
    try:
        while process.poll() is None:
            seen.append(len(session.held()))
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert session.held() == Positions({"w0": [(0, 3999)]})


# ------------------------------------------------------------------------------ identity


def test_two_projects_that_trackio_takes_for_one_do_not_share_a_database(target, folder):
    for project in ("myp", "my.p", "m y p"):
        session = target.open(RunInfo("same", project, "n", NOW))
        session.send(series(0, 9))
        assert session.held() == Positions({"w0": [(0, 9)]})
    assert len(list(folder.glob("*.db"))) == 3
    assert len(trackio(folder, "print(json.dumps(SQLiteStorage.get_projects()))")) == 3


@settings(max_examples=examples(50, 150), deadline=None)
@example("registry:", "registry")
@given(st.text(max_size=40), st.text(max_size=40))
def test_projects_run_ids_and_keys_are_renamed_one_to_one(a, b):
    def project(name):
        return names.project_name(RunInfo("r", name, "n", 0))

    def run_id(text):
        return names.run_id(RunInfo(text, "p", "n", 0))

    for rename in (project, run_id, names.metric_key, names.config_key):
        assert (rename(a) == rename(b)) == (a == b)
        assert rename(rename(a)) != rename(a) or rename(a) == a
    assert names._PROJECT.fullmatch(project(a))
    assert not project(a).startswith("registry-")
    assert names.metric_key(a) not in names.RESERVED_KEYS
    assert names.config_key(a) not in names.OWN_CONFIG


@pytest.mark.skipif(OLD_TRACKIO, reason="trackio before 0.40 has no canonical_project_name")
def test_trackio_takes_every_project_name_as_it_is(folder):
    wanted = [
        "ppo",
        "",
        "a.b",
        "é",
        "registry-x",
        "m_artifacts",
        "x_system",
        "p" * 300,
        "registry.y",
    ]
    wanted += ["ppo--" + "0" * 16, "_run_artifact_links", "a\n", "default", "-", "Ärger_traces"]
    given_names = [names.project_name(RunInfo("r", name, "n", 0)) for name in wanted]
    code = """
from trackio.utils import canonical_project_name
names = json.loads(sys.argv[1])
for name in names:
    SQLiteStorage.validate_project_name(name)
print(json.dumps([canonical_project_name(name) for name in names]))
"""
    assert trackio(folder, code, json.dumps(given_names)) == given_names
    assert len(set(given_names)) == len(wanted)


@settings(max_examples=examples(40, 100), deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_times_are_one_to_one_and_sort_as_text(a, b):
    assert names.parse_time(names.iso_time(a)) == a
    assert (names.iso_time(a) < names.iso_time(b)) == (a < b)


def log_by_trackio(folder, code):
    trackio(folder, "SQLiteStorage." + code)


def test_rows_that_somebody_else_logged_under_our_run_are_refused(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    log_by_trackio(
        folder, "bulk_log('ppo', 'qwen 7b', [{'a': 1}], [0], log_ids=['x'], run_id='run-1')"
    )
    with pytest.raises(Foreign):
        session.held()
    with pytest.raises(Foreign):
        target.open(RUN)


@pytest.mark.parametrize(
    "code",
    [
        "bulk_log('ppo', 'qwen 7b', [{'a': 1}], [0], run_id='run-1')",
        "bulk_log('ppo', 'o', [{'a': 1}], [0], log_ids=['run-1:w0:000000000000'], run_id='o')",
        "bulk_log('ppo', 'o', [{'a': 1}], [0], log_ids=['run-1:hm'], run_id='run-1')",
        "bulk_log('ppo', 'o', [{'a': 1}], [0], ['2026-01-01T00:00:00+00:00'], "
        "{'_eventlog': {'run': {'id': 'another'}}}, ['run-1:w0:000000000000'], run_id='run-1')",
        "bulk_log_system('ppo', 'qwen 7b', [{'gpu': 1}], run_id='run-1')",
    ],
)
def test_a_run_that_this_journal_did_not_make_is_foreign(target, folder, code):
    log_by_trackio(folder, code)
    with pytest.raises(Foreign):
        target.open(RUN).held()


def test_other_runs_of_the_project_are_left_alone(target, folder):
    log_by_trackio(
        folder, "bulk_log('ppo', 'qwen 7b', [{'a': 1}], [0], config={'x': 1}, run_id='run-10')"
    )
    session = target.open(RUN)
    session.send(series(0, 9))
    target.open(RunInfo("run-1-2", "ppo", "qwen 7b", NOW)).send(series(0, 4))
    assert session.held() == Positions({"w0": [(0, 9)]})
    assert read_back(session) == multiset(target.image(series(0, 9)))
    assert config_of(folder, "run-10") == {"x": 1}


def test_a_run_renamed_in_trackio_keeps_that_name_and_its_rows(target, folder):
    rows = pa.concat_tables([hostile(), series(200, 999)])
    target.open(RUN).send(rows)
    log_by_trackio(folder, "rename_run('ppo', 'qwen 7b', 'better', run_id='run-1')")
    session = target.open(RUN)
    assert len(session.held()) == 0  # Trackio has dropped the log ids
    session.send(rows)
    assert session.confirm(rows)
    session.send(series(1000, 1099))
    assert read_back(session) == multiset(target.image(rows), target.image(series(1000, 1099)))
    assert sql(folder, "SELECT DISTINCT run_name FROM metrics") == [("better",)]
    assert sql(folder, "SELECT run_name FROM configs") == [("better",)]


# ------------------------------------------------------------------------------ config


def test_the_config_is_always_whole_and_an_old_batch_sent_again_changes_nothing(target, folder):
    first = batch([(0, NOW, None, {"config": {"lr": 1, "seed": 2, "d": {"a": 1}}})])
    second = batch([(5, NOW - 10, None, {"config": {"lr": 2}, "summary": {"best": 0.5}})])
    session = target.open(RUN)
    session.send(pa.concat_tables([first, series(1, 4)]))
    target.open(RUN).send(second)
    target.open(RUN).send(first)
    config = config_of(folder)
    assert (config["lr"], config["seed"]) == (2, 2)
    assert config["_Created"] == "2026-01-01T00:00:00.000000+00:00"
    assert config["_eventlog"]["summary"] == {"best": 0.5}
    assert config["_eventlog"]["run"]["id"] == "run-1"
    assert session.confirm(first)
    assert session.confirm(second)


def test_of_two_writers_the_later_value_stays_in_whatever_order_they_come(target, folder):
    early = batch([(9, NOW, None, {"config": {"lr": 1}})], "w1")
    late = batch([(0, NOW + 5, None, {"config": {"lr": 2}})], "w0")
    session = target.open(RUN)
    for rows in (late, early, late, early):
        session.send(rows)
        assert config_of(folder)["lr"] == 2


def test_what_others_wrote_into_the_config_stays(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    config = config_of(folder) | {"note": "by hand"}
    sql(folder, "UPDATE configs SET config = ?", json.dumps(config))
    session.send(batch([(10, NOW, None, {"config": {"lr": 1}})]))
    session.close(RunState("finished"))
    config = config_of(folder)
    assert (config["note"], config["lr"]) == ("by hand", 1)


def test_definitions_tags_and_states_lie_under_eventlog(target, folder):
    rows = batch([(0, NOW, None, {"tag": {"team": "rl"}, "state": {"finish": "ok"}})])
    defined = batch([(1, NOW, None, {"definition": {"val/*": ["epoch"]}})])
    session = target.open(RUN)
    session.send(rows)
    session.send(defined)
    assert session.confirm(defined)
    own = config_of(folder)["_eventlog"]
    assert own["tags"] == {"team": "rl"}
    assert own["states"] == {"finish": "ok"}
    assert own["definitions"] == {"val/*": ["epoch"]}
    assert sql(folder, "SELECT count(*) FROM metrics") == [(0,)]


def test_closing_twice_writes_once(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    session.close(RunState("finished", NOW, 0))
    before = sql(folder, "SELECT id, created_at, config FROM configs")
    session.close(RunState("finished", NOW, 0))
    assert sql(folder, "SELECT id, created_at, config FROM configs") == before
    state = config_of(folder)["_eventlog"]["state"]
    assert state == {"status": "finished", "ended": NOW, "exit_code": 0}
    session.close(RunState("failed", NOW, 1))
    assert config_of(folder)["_eventlog"]["state"]["status"] == "failed"
    assert sql(folder, "SELECT count(*) FROM metrics") == [(10,)]


# ------------------------------------------------------------------------------ tables


def table_rows(columns, data, seq=0):
    content = typed_json({"columns": columns, "data": data})
    sha = hashlib.sha256(content).hexdigest()
    ref = {"sha256": sha, "size": len(content), "rows": len(data), "columns": columns}
    row = {"seq": seq, "time": NOW + seq, "step": 3, "key": "val/generations", "kind": "metric"}
    row |= {"type": "table", "num": None, "data": typed_json(ref)}
    return of_rows([row]), {sha: content}


def with_blobs(folder, blobs):
    return TrackioTarget(str(folder), read_blob=lambda _run, sha: blobs[sha])


GENERATIONS = [["2+2?", "4", 1.0], ["2+3?", "6", math.nan], ["\ud800", "Infinity", -1.5]]


@pytest.mark.skipif(OLD_TRACKIO, reason="trackio before 0.40 cannot list traces")
def test_generations_become_traces_that_trackio_lists(folder):
    rows, blobs = table_rows(["Input", "output", "SCORE"], GENERATIONS)
    target = with_blobs(folder, blobs)
    session = target.open(RUN)
    for _ in range(3):
        session.send(rows)
        assert session.confirm(rows)
    code = "print(json.dumps(SQLiteStorage.get_traces('ppo', 'qwen 7b', sort='step_asc')))"
    traces = sorted(trackio(folder, code), key=lambda trace: trace["index"])
    assert [t["messages"][0]["content"] for t in traces] == ["2+2?", "2+3?", "\\ud800"]
    assert [t["messages"][1] for t in traces][2] == {"role": "assistant", "content": "Infinity"}
    metadata = traces[0]["metadata"]
    assert metadata["source"] == "validation_generations"
    assert (metadata["sample_index"], metadata["score"]) == (0, 1.0)
    assert math.isnan(traces[1]["metadata"]["score"])
    assert (
        len(command(folder, "list", "traces", "--project", "ppo", "--run", "qwen 7b")["traces"])
        == 3
    )
    assert read_back(session) == multiset(target.image(rows))
    target.close()


def test_other_tables_are_inline_and_an_altered_cell_is_seen(folder):
    rows, blobs = table_rows(["a", "b"], [[1, np.float32(0.5)], [2, None]])
    target = with_blobs(folder, blobs)
    session = target.open(RUN)
    session.send(rows)
    (text,) = sql(folder, "SELECT CAST(metrics AS TEXT) FROM metrics")[0]
    value = json.loads(text)["val/generations"]
    assert value["_type"] == "trackio.table"
    assert value["_value"] == [{"a": 1, "b": 0.5}, {"a": 2, "b": None}]
    assert read_back(session) == multiset(target.image(rows))
    sql(folder, "UPDATE metrics SET metrics = ?", text.replace('"a":2', '"a":3'))
    assert read_back(session) != multiset(target.image(rows))
    target.close()


def test_an_altered_or_missing_trace_is_seen(folder):
    rows, blobs = table_rows(["input", "output"], [["a", "b"], ["c", "d"]])
    target = with_blobs(folder, blobs)
    session = target.open(RUN)
    session.send(rows)
    assert read_back(session) == multiset(target.image(rows))
    sql(folder, "DELETE FROM traces WHERE trace_index = 1")
    assert read_back(session) != multiset(target.image(rows))
    target.close()


def test_a_missing_blob_puts_its_event_into_quarantine(folder):
    rows, _ = table_rows(["a"], [[1]], seq=7)
    target = with_blobs(folder, {})
    session = target.open(RUN)
    with pytest.raises(Rejected) as caught:
        session.send(rows)
    assert caught.value.seqs == {7}
    target.close()


def test_without_a_reader_of_blobs_a_table_is_a_reference(target):
    rows, _ = table_rows(["input", "output"], [["a", "b"]])
    session = target.open(RUN)
    assert "table-no-content" in {change.rule for change in session.send(rows)}
    assert session.confirm(rows)
    assert read_back(session) == multiset(target.image(rows))


# ------------------------------------------------------------------------------ poison, environment


def test_rows_that_trackio_refuses_are_found_and_the_others_stay(target):
    deep = 1.0
    for _ in range(300):  # more than Trackio's JSON writer takes, less than the journal's reader
        deep = [deep]
    row = {"time": NOW, "step": 1, "key": "deep", "kind": "metric", "type": "json", "num": None}
    data = json.dumps(deep).encode()
    poison = [of_rows([row | {"seq": seq, "data": data}]) for seq in (30, 71)]
    rows = pa.concat_tables([series(0, 29), poison[0], series(31, 70), poison[1], series(72, 99)])
    session = target.open(RUN)
    with pytest.raises(Rejected) as caught:
        session.send(rows)
    assert caught.value.seqs == {30, 71}
    assert session.held() == Positions({"w0": [(0, 29), (31, 70), (72, 99)]})
    assert not session.confirm(rows)


def test_a_damaged_value_puts_its_event_into_quarantine(target):
    row = {"seq": 4, "time": NOW, "step": 1, "key": "k", "kind": "metric", "num": None}
    bad = of_rows([row | {"type": "json", "data": b"{"}])
    with pytest.raises(Rejected) as caught:
        target.open(RUN).send(pa.concat_tables([series(0, 3), bad]))
    assert caught.value.seqs == {4}


def test_a_type_of_a_later_version_is_kept_as_it_is_stored(target):
    row = {"seq": 0, "time": NOW, "step": 1, "key": "k", "kind": "metric", "num": 1.5}
    rows = of_rows([row | {"type": "posit", "data": b"\x01"}])
    session = target.open(RUN)
    assert "type-unknown" in {change.rule for change in session.send(rows)}
    assert read_back(session) == multiset(target.image(rows))


def test_a_trackio_that_cannot_be_imported_is_a_usage_error_with_the_way_out(
    tmp_path, folder, monkeypatch
):
    (tmp_path / "broken" / "trackio").mkdir(parents=True)
    code = "import os; os.system('echo noise'); os.write(1, b'noise'); print('noise')\n"
    code += "raise ImportError('cannot import name CommitOperationAdd')"
    (tmp_path / "broken" / "trackio" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    broken = TrackioTarget(str(folder))
    with pytest.raises(UsageError, match=r"CommitOperationAdd.*eventlog-journal\[trackio\]"):
        broken.open(RUN)
    broken.close()


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        TrackioTarget(str(tmp_path / "file" / "below"))


def test_nothing_is_printed_and_trackio_is_not_imported_here(target, capfd):
    session = target.open(RUN)
    session.send(hostile())
    session.close(RunState("finished"))
    assert capfd.readouterr() == ("", "")
    assert "trackio" not in sys.modules


def test_a_file_that_is_no_database_is_told_apart_from_a_busy_one(target, folder):
    (folder / "ppo.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(Exception, match="no whole database"):
        target.open(RUN)


# ------------------------------------------------------------------------------ a server


class Server:
    """Trackio's own server on a loopback port."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}?write_token=secret"
        self.folder = folder
        self.process = None

    def start(self):
        code = "import trackio; trackio.show(open_browser=False, block_thread=True, "
        code += f"host='127.0.0.1', server_port={self.port})"
        environment = os.environ | {"TRACKIO_DIR": str(self.folder), "HF_HUB_OFFLINE": "1"}
        environment["TRACKIO_WRITE_TOKEN"] = "secret"
        self.process = warm.start_python(code, imports=warm.TRACKIO, env=environment)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return self
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server")).start()
    yield made
    made.kill()


def test_a_server_holds_the_image_and_each_event_once(server):
    rows, blobs = table_rows(["input", "output", "score"], GENERATIONS, seq=9000)
    target = TrackioTarget(server.address, read_blob=lambda run, sha: blobs[sha])
    described = batch([(9001, NOW, None, {"config": {"lr": 1}, "summary": {"best": 2}})])
    session = target.open(RUN)
    parts = [described, hostile(), series(200, 6999), rows]
    for _ in range(2):
        for part in parts:
            session.send(part)
            assert session.confirm(part)
    session.close(RunState("finished"))
    assert target.open(RUN).held().ranges("w0")[-2:] == ((200, 6999), (9000, 9000))
    assert read_back(session) == multiset(*(target.image(part) for part in parts))
    assert config_of(server.folder)["_eventlog"]["state"]["status"] == "finished"
    assert "secret" not in target.address
    target.close()


def test_a_server_without_the_token_is_unauthorised(server):
    target = TrackioTarget(server.address.replace("secret", "wrong"))
    session = target.open(RunInfo("run-2", "other", "n", NOW))
    with pytest.raises(Unauthorised):
        session.send(series(0, 9))
    target.close()


def test_a_server_finds_the_rows_it_refuses(server):
    data = json.dumps(functools.reduce(lambda inner, _: [inner], range(300), 1.0)).encode()
    row = {"seq": 5, "time": NOW, "step": 1, "key": "deep", "kind": "metric", "type": "json"}
    bad = of_rows([row | {"num": None, "data": data}])
    target = TrackioTarget(server.address)
    session = target.open(RunInfo("run-3", "third", "n", NOW))
    with pytest.raises(Rejected) as caught:
        session.send(pa.concat_tables([series(0, 4), bad, series(6, 9)]))
    assert caught.value.seqs == {5}
    assert session.held() == Positions({"w0": [(0, 4), (6, 9)]})
    target.close()


def test_a_server_killed_between_batches_is_down_and_later_exact(tmp_path):
    server = Server(tmp_path).start()
    target = TrackioTarget(server.address)
    session = target.open(RUN)
    session.send(series(0, 999))
    server.kill()
    with pytest.raises(Down):
        session.send(series(1000, 1999))
    with pytest.raises(Down):
        session.confirm(series(1000, 1999))
    server.start()
    try:
        session.send(series(500, 1999))
        assert session.confirm(series(0, 1999))
        assert read_back(session) == multiset(target.image(series(0, 1999)))
    finally:
        server.kill()
        target.close()


def rebuilt(address):
    """Discard one of two runs of one name; return what is left of both, as positions."""
    target = TrackioTarget(address)
    described = batch([(100, NOW, None, {"config": {"lr": 1}, "summary": {"best": 2}})])
    one, other = (RunInfo(id, "rebuilt", "the same name", NOW) for id in ("run-4", "run-5"))
    for run in (one, other):
        session = target.open(run)
        session.send(pa.concat_tables([series(0, 9), described]))
        session.close(RunState("finished"))
    for _ in range(2):  # killed behind it, it is called again
        target.open(one).discard()
    sessions = [target.open(run) for run in (one, other)]
    found = [(session.held().ranges("w0"), session.found_by) for session in sessions]
    held = read_back(target.open(other))
    target.close()
    return found, held == multiset(target.image(series(0, 9)), target.image(described))


def test_a_run_that_is_discarded_is_gone_and_its_namesake_is_whole(folder):
    assert rebuilt(str(folder)) == ([((), None), (((0, 9),), "its id")], True)
    assert sql(folder, "SELECT count(*) FROM configs", project="rebuilt") == [(1,)]


def test_a_run_of_a_server_that_is_discarded_is_gone_and_its_namesake_is_whole(server):
    assert rebuilt(server.address) == ([((), None), (((0, 9),), "its id")], True)


def test_a_run_that_is_rebuilt_keeps_the_name_that_somebody_gave_it(target, folder):
    session = target.open(RUN)
    assert session.shown_as == ""
    session.send(series(0, 9))
    assert session.shown_as == ""
    log_by_trackio(folder, "rename_run('ppo', 'qwen 7b', 'better', run_id='run-1')")
    again = dataclasses.replace(RUN, shown_as=target.open(RUN).shown_as)
    session.discard()
    session = target.open(again)
    assert session.shown_as == "better"
    session.send(series(0, 4))
    session.close(RunState("finished"))
    for table in ("metrics", "configs"):
        assert sql(folder, f"SELECT DISTINCT run_name FROM {table}") == [("better",)]


@pytest.mark.parametrize(
    ("insert", "what"),
    [
        ("alerts (run_id, timestamp, run_name, title) VALUES ('run-1', 't', 'n', 'x')", "alerts"),
        (
            "run_artifact_links (run_id, artifact_version_id, direction, created_at) "
            "VALUES ('run-1', 1, 'output', 't')",
            "artifacts",
        ),
    ],
)
def test_a_run_to_which_somebody_added_something_is_not_discarded(target, folder, insert, what):
    session = target.open(RUN)
    session.send(series(0, 9))
    sql(folder, f"INSERT INTO {insert}")
    with pytest.raises(Foreign, match=f"somebody added {what} to it; nothing was deleted"):
        session.discard()
    assert session.held() == Positions({"w0": [(0, 9)]})


def test_a_run_cannot_be_discarded_while_somebody_holds_the_database(target, folder):
    session = target.open(RUN)
    session.send(series(0, 9))
    with contextlib.closing(sqlite3.connect(folder / "ppo.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Retry, match="could not delete the run now"):
            session.discard()
        other.execute("ROLLBACK")
    assert session.held() == Positions({"w0": [(0, 9)]})
    session.discard()
    assert session.held() == Positions()


def _send_forever(folder, last):
    target = TrackioTarget(folder)
    session = target.open(RUN)
    print(target.store.child, flush=True)
    held = session.held()
    for first in range(0, last + 1, 100):
        if ("w0", first + 99) not in held:
            rows = series(first, first + 99)
            session.send(rows)
            assert session.confirm(rows)
    target.close()


if __name__ == "__main__":
    _send_forever(sys.argv[1], int(sys.argv[2]))
