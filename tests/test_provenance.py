"""Where a run came from: recorded without secrets, without waiting, without failing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types

import pytest

import eventlog
from eventlog import provenance as module
from eventlog.event import NOTE
from eventlog.provenance import packages, provenance, without_secrets
from tests.helpers import read


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A working copy with one commit, which is the working folder."""
    top = tmp_path / "code"
    (top / "deep" / "er").mkdir(parents=True)
    git(top, "init")
    (top / "train.py").write_text("lr = 1\n")
    git(top, "add", "train.py")
    git(top, "commit", "--message", "one")
    git(top, "remote", "add", "origin", "https://user:s3cret@host/repo.git")
    monkeypatch.chdir(top / "deep" / "er")
    return top


def test_the_commit_is_what_git_says_and_the_remote_has_no_credentials(copy):
    told = provenance()["git"]
    assert told["commit"] == git(copy, "rev-parse", "HEAD")
    assert told["branch"] == "trunk"
    assert told["remote"] == "https://***@host/repo.git"
    assert told["folder"] == str(copy)
    assert told["changed"] is False


def test_a_change_of_a_tracked_file_is_told_and_an_untracked_file_is_none(copy):
    (copy / "new.txt").write_text("x")
    assert provenance()["git"]["changed"] is False
    (copy / "train.py").write_text("lr = 2\n")
    assert provenance()["git"]["changed"] is True


def test_packed_refs_a_detached_head_and_a_worktree_are_read(copy, tmp_path, monkeypatch):
    commit = git(copy, "rev-parse", "HEAD")
    git(copy, "pack-refs", "--all")
    assert provenance()["git"]["commit"] == commit
    git(copy, "worktree", "add", str(tmp_path / "other"), "-b", "side/branch")
    monkeypatch.chdir(tmp_path / "other")
    told = provenance()["git"]
    assert (told["commit"], told["branch"]) == (commit, "side/branch")
    assert told["remote"] == "https://***@host/repo.git"
    git(tmp_path / "other", "checkout", "--detach")
    told = provenance()["git"]
    assert told["commit"] == commit
    assert "branch" not in told


def test_without_git_the_commit_is_read_all_the_same(copy, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    told = provenance()["git"]
    assert len(told["commit"]) == 40
    assert told["changed"] is None


def test_a_folder_that_is_no_working_copy_is_said_to_be_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    assert provenance()["git"] == "no working copy of git"


def test_a_working_folder_that_was_deleted_stops_nothing(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = provenance()
    assert told["working_folder"] == ""
    assert "working folder" in told["git"]
    assert told["packages"]


def test_a_file_server_that_is_away_is_waited_for_no_longer_than_said(monkeypatch):
    away = threading.Event()
    monkeypatch.setattr(module, "packages", lambda: away.wait(60))
    begun = time.monotonic()
    try:
        told = provenance(patience=0.05)
    finally:
        away.set()
    assert time.monotonic() - begun < 30  # the call came back though the disk did not
    assert told["packages"] == "not read within 0.05 s"


def test_a_fault_while_reading_is_said(monkeypatch):
    def failing():
        raise OSError(5, "input/output error")

    monkeypatch.setattr(module, "packages", failing)
    assert "input/output error" in provenance()["packages"]


def test_packages_are_those_that_are_installed():
    from importlib import metadata

    found = packages()
    for name in ("pyarrow", "numpy", "click"):
        assert found[name] == metadata.version(name)


def test_schedulers_are_told_by_their_ids_and_no_other_variable_is():
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JWT": "s3cret"}
    told = provenance(environ | {"RAY_JOB_ID": "01", "WANDB_API_KEY": "s3cret"})
    assert told["slurm"] == {"job_id": "7", "job_nodelist": "n[1-2]"}
    assert told["ray"] == {"job_id": "01"}
    assert "s3cret" not in str(told)
    assert not provenance({}).keys() & {"slurm", "ray"}


def test_a_ray_that_breaks_stops_nothing(monkeypatch):
    def broken():
        raise RuntimeError("half up")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=broken))
    assert provenance({"RAY_JOB_ID": "01"})["ray"] == {"job_id": "01", "context": "not read"}


def test_it_is_recorded_once_at_the_start_of_each_attempt(copy, tmp_path):
    run = eventlog.init("p", "n", dir=tmp_path / "journal", quiet=True)
    run.log({"loss": 0.5}, step=1)
    run.finish()
    (first, *others) = read(run.folder)
    told = first.values(NOTE)["provenance"]
    assert told["git"]["commit"] == git(copy, "rev-parse", "HEAD")
    assert told["packages"]["pyarrow"]
    assert told["host"] == os.uname().nodename
    assert not any("provenance" in event.values(NOTE) for event in others)


def test_a_command_line_is_recorded_without_secrets():
    given = ["train.py", "--api-key", "s1", "--token=s2", "--lr", "3e-4", "--password", "12345"]
    given += [
        "--x",
        "http://u:s3@h/",
        "trainer.wandb_proxy=http://u:s4@h",
        "h://a?write_token=s5&b=1",
    ]
    given += ["data.max_token_len=4096", "actor.loss_agg_mode=token-mean", "hub_token=s6"]
    made = without_secrets(given)
    assert not any(f"s{n}" in " ".join(made) for n in range(1, 7))
    assert made[4:6] == ["--lr", "3e-4"]
    assert made[6:8] == ["--password", "***"]
    assert made[8:12] == [
        "--x",
        "http://***@h/",
        "trainer.wandb_proxy=http://***@h",
        "h://a?write_token=***",
    ]
    assert made[12:14] == ["data.max_token_len=4096", "actor.loss_agg_mode=token-mean"]
