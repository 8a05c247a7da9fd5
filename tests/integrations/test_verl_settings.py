"""What verl's config tells: settings that survive any config, and where training starts again."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from eventlog.integrations.verl_settings import Restart, Settings, fleeting, restart, settings


def told(**settings: Any) -> dict[str, Any]:
    return {"trainer": {"eventlog": settings}}


def test_every_setting_is_read_and_a_null_is_none() -> None:
    given = told(
        dir="/scratch/j",
        run_id=123,
        project="p",
        name="n",
        resume_step=800,
        durability="sync",
        tags=["a", 7],
        group="g",
        job_type="t",
        notes=None,
        owner="team",
        mode="disabled",
    )
    assert settings(given) == Settings(
        dir="/scratch/j",
        run_id="123",
        project="p",
        name="n",
        resume_step=800,
        durability="sync",
        tags=("a", "7"),
        group="g",
        job_type="t",
        owner="team",
        mode="disabled",
    )


def test_a_folder_may_be_below_ones_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert settings(told(dir="~/runs")).dir == "/home/ada/runs"


@pytest.mark.parametrize("config", [None, {}, {"trainer": None}, {"trainer": {}}, "text", 7, []])
def test_a_config_that_says_nothing_is_no_problem(config: Any) -> None:
    assert settings(config) == Settings()
    assert restart(config) is None


class Broken(UserDict):
    """A config with an interpolation that leads nowhere."""

    def get(self, key: Any, default: Any = None) -> Any:
        raise KeyError(f"interpolation of {key}")


@pytest.mark.parametrize("config", [Broken(), {"trainer": Broken()}, told(dir=Broken({"a": 1}))])
def test_a_config_that_breaks_stops_nothing(config: Any) -> None:
    assert settings(config).dir is None
    assert restart(config) is None


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("durability", "always", "none of memory, os, group, sync"),
        ("resume_step", "800", "no step"),
        ("resume_step", True, "no step"),
        ("resume_step", -1, "no step"),
        ("run_id", 1.5e300, "quote it"),  # how 16 digits with an e among them are read
        ("dir", ["a"], "no text"),
        ("dir", "", "no text"),
        ("mode", "offline", "none of journal, disabled"),
        ("tags", 5, "no list"),
        ("folder", "x", "is unknown and left out; known are dir, run_id"),
    ],
)
def test_what_is_not_understood_is_left_out_and_said(key: str, value: Any, problem: str) -> None:
    found = settings(told(**{key: value, "group": "g"}))
    assert found == Settings(group="g", problems=found.problems)
    (said,) = found.problems
    assert f"trainer.eventlog.{key}" in said
    assert problem in said


def test_settings_that_are_no_mapping_are_said() -> None:
    (said,) = settings({"trainer": {"eventlog": True}}).problems
    assert "trainer.eventlog is no mapping" in said


def test_folders_that_ray_deletes_are_known() -> None:
    above = "/tmp/ray/session_2026/runtime_resources/working_dir_files/_ray_pkg_1"
    assert fleeting(f"{above}/eventlog-data")
    assert not fleeting("/scratch/ray/eventlog-data")


# ------------------------------------------------------------------------------ the restart step


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (4, 8):
        (tmp_path / f"global_step_{step}").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("8")
    return tmp_path


RL = {"actor_rollout_ref": {"model": {}}}


def trainer(folder: Path, **more: Any) -> dict[str, Any]:
    return {"trainer": {"default_local_dir": str(folder), "resume_mode": "auto", **more}, **RL}


def test_the_latest_checkpoint_is_where_training_starts_again(checkpoints: Path) -> None:
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    assert restart(trainer(checkpoints)) == Restart(8, str(tracker))


def test_a_relative_folder_is_below_the_working_folder(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoints.parent)
    found = restart(trainer(Path(checkpoints.name)))
    assert found is not None
    assert found.step == 8


@pytest.mark.parametrize("tail", ["", "/"])
def test_a_path_that_is_given_is_where_it_starts_again(checkpoints: Path, tail: str) -> None:
    path = f"{checkpoints}/global_step_4{tail}"
    found = restart(trainer(checkpoints, resume_mode="resume_path", resume_from_path=path))
    assert found == Restart(4, str(checkpoints / "global_step_4"))


def test_with_auto_only_trainers_of_supervised_learning_look_at_the_path(checkpoints: Path) -> None:
    config = trainer(checkpoints, resume_from_path=f"{checkpoints}/global_step_4")
    assert restart(config).step == 8  # type: ignore[union-attr]
    del config["actor_rollout_ref"]
    assert restart(config).step == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "more",
    [
        {"resume_mode": "disable"},
        {"resume_mode": "something new"},
        {"val_only": True},
        {"default_hdfs_dir": "hdfs://x"},
        {"default_local_dir": "/nowhere"},
        {"default_local_dir": None},
        {"resume_mode": "resume_path", "resume_from_path": None},
        {"resume_mode": "resume_path", "resume_from_path": "/nowhere/global_step_4"},
        {"resume_mode": "resume_path", "resume_from_path": "/tmp"},
    ],
)
def test_where_it_cannot_be_told_nothing_is(checkpoints: Path, more: dict[str, Any]) -> None:
    assert restart(trainer(checkpoints, **more)) is None


@pytest.mark.parametrize("content", ["", "eight", "0", "-4", "9" * 30, "12"])
def test_a_tracker_that_lies_tells_nothing(checkpoints: Path, content: str) -> None:
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(content)
    assert restart(trainer(checkpoints)) is None
