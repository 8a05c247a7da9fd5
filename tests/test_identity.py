"""Who writes: the launch from what launchers set, and when a process is provably gone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import types

import pytest

from eventlog import identity
from eventlog.identity import Launch, launch, process, provably_gone
from eventlog.layout import is_writer


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Launch()),
        ({"SLURM_JOB_ID": "7"}, Launch("slurm:7.batch", (0,), 0, 1)),
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "2"}
            | {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"},
            Launch("slurm:7.0", (2,), 3, 8),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"},
            Launch(None, (0,), 1, 2),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "j", "TORCHELASTIC_RESTART_COUNT": "3", "WORLD_SIZE": "2"},
            Launch("torchelastic:j", (3,), 0, 2),
        ),
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "TORCHELASTIC_RUN_ID": "j", "RANK": "5"},
            Launch("slurm:7.1 torchelastic:j", (0, 0), 5, 1),
        ),
        ({"RAY_JOB_ID": "05"}, Launch("ray:05", (), 0, 1)),
        (  # an actor, in the step that started Ray on its node
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_RESTART_COUNT": "1"}
            | {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "RAY_JOB_ID": "05"},
            Launch("slurm:7 ray:05", (1,), 0, 1),
        ),
        ({"RAY_JOB_ID": "ffffffff"}, Launch()),  # a worker that Ray started in advance
        ({"RANK": "x", "WORLD_SIZE": "", "SLURM_JOB_ID": ""}, Launch()),
    ],
)
def test_the_launch_is_what_the_launcher_says(environ, expected):
    assert launch(environ) == expected


def test_ray_itself_is_asked_for_job_and_session(monkeypatch):
    node = types.SimpleNamespace(session_name="session_7")
    context = types.SimpleNamespace(get_job_id=lambda: "02000000")
    ray = types.SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    worker = types.SimpleNamespace(global_worker=types.SimpleNamespace(node=node))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray._private.worker", worker)
    expected = Launch("ray:02000000", (), 0, 1, "session_7")
    assert launch({"RAY_JOB_ID": "ffffffff"}) == launch({}) == expected


def test_an_id_from_a_name_is_the_start_of_the_md5_that_verl_makes():
    expected = hashlib.md5(b"ppo/qwen-7b").hexdigest()[:16]
    assert identity.id_from_name("ppo", "qwen-7b") == expected


def test_an_id_from_a_launch_tells_project_name_and_launch_apart():
    made = [
        identity.id_from_launch(*parts)
        for parts in (("a", "b", "c"), ("a", "bc", ""), ("ab", "", "c"))
    ]
    assert len(set(made)) == 3
    assert identity.id_from_launch("a", "b", "c") == made[0]


def test_random_names_are_valid_and_differ():
    names = {identity.random_writer() for _ in range(200)}
    assert len(names) == 200
    assert all(map(is_writer, names))
    assert len({identity.random_id() for _ in range(200)}) == 200


def test_the_owner_is_told_or_the_user(monkeypatch):
    monkeypatch.setenv("EVENTLOG_OWNER", "team")
    assert identity.owner() == "team"
    monkeypatch.delenv("EVENTLOG_OWNER")
    assert identity.owner()


# ------------------------------------------------------------------------------ gone or not


@pytest.fixture
def ended():
    """What a process said of itself that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return process() | {"pid": child.pid, "process_start": 1}


def test_this_process_is_not_gone():
    assert not provably_gone(process())


def test_a_process_that_ended_on_this_boot_is_gone(ended):
    assert provably_gone(ended)


def test_a_pid_that_a_younger_process_has_is_gone():
    mine = process()
    assert provably_gone(mine | {"process_start": mine["process_start"] - 1})


@pytest.mark.parametrize(
    "change",
    [
        {"boot_id": "another"},
        {"boot_id": ""},
        {"pid_namespace": "pid:[1]"},
        {"pid_namespace": ""},
        {"pid": None},
        {"pid": "7"},
        {"pid": 0},
        {"pid": -1},
        {"process_start": None},
    ],
)
def test_without_proof_a_process_is_not_gone(ended, change):
    assert not provably_gone(ended | change)
    assert not provably_gone({})


def test_a_zombie_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    recorded = process() | {"pid": child.pid, "process_start": identity._start_of(child.pid)}
    assert not provably_gone(recorded)
    child.stdin.close()
    deadline = time.monotonic() + 120
    while not provably_gone(recorded) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert provably_gone(recorded)  # though nobody has waited for it yet
    child.wait()


def test_a_process_that_proc_hides_is_not_gone(monkeypatch):
    """With hidepid the processes of other users have no folder in /proc."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    real = open

    def hiding(path, *args, **kwargs):
        if str(path).startswith(f"/proc/{child.pid}/"):
            raise FileNotFoundError(2, "hidden", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", hiding)
    try:
        assert not provably_gone(process() | {"pid": child.pid, "process_start": 1})
    finally:
        monkeypatch.undo()
        child.communicate(b"\n")
    assert provably_gone(process() | {"pid": child.pid, "process_start": 1})
