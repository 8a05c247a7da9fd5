"""What verl's config says of the journal, and of where training starts again. Pure but for a look
at the checkpoints' folder; knows neither verl nor a run.

Ray's actors have neither the environment nor the working folder of the driver, so settings travel
in verl's own config, as ``+trainer.eventlog.dir=/scratch/runs``; variables come second.

==============  ==============================================================================
key             what
==============  ==============================================================================
dir             the journal's folder; give an absolute path (``EVENTLOG_DIR``)
run_id          the run's id (``EVENTLOG_RUN_ID``); by default it is made of project and name
project, name   instead of ``trainer.project_name`` and ``trainer.experiment_name``
resume_step     the step of the checkpoint that this launch starts from (``EVENTLOG_RESUME_STEP``);
                by default what the config tells, see `restart`
durability      ``memory``, ``os``, ``group`` or ``sync`` (``EVENTLOG_DURABILITY``)
tags            a list of text, or one text
group           recorded for people and backends, as ``job_type`` and ``notes``
owner           who owns the run (``EVENTLOG_OWNER``)
mode            ``disabled`` records nothing (``EVENTLOG_MODE``)
==============  ==============================================================================
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

_STEP = re.compile(r"global_step_([0-9]+)")
_TRACKER = "latest_checkpointed_iteration.txt"
#: Folders that Ray unpacks for a job and deletes after it.
_FLEETING = ("/runtime_resources/", "/working_dir_files/")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The keys of the table above, None for what the config does not say; `problems` are lines
    for the user.
    """

    dir: str | None = None
    run_id: str | None = None
    project: str | None = None
    name: str | None = None
    resume_step: int | None = None
    durability: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    owner: str | None = None
    mode: str | None = None
    problems: tuple[str, ...] = ()


def settings(config: Any) -> Settings:
    """Return the settings of a config: OmegaConf's, a dict, or None. Never raises: what cannot be
    understood is left out, with a problem that says so.
    """
    problems: list[str] = []
    trainer = _get(config, "trainer")
    try:
        told = trainer.get("eventlog") if isinstance(trainer, Mapping) else None
    except Exception as error:
        return Settings(problems=(_unresolved("trainer.eventlog", error),))
    if told is None:
        return Settings()
    if not isinstance(told, Mapping):
        known = ", ".join(_READERS)
        return Settings(problems=(f"trainer.eventlog is no mapping of {known}: {told!r}",))
    values: dict[str, Any] = {}
    for key in told:
        reader = _READERS.get(str(key))
        try:
            value = told.get(key)
        except Exception as error:
            problems.append(_unresolved(f"trainer.eventlog.{key}", error))
            continue
        if reader is None:
            known = ", ".join(_READERS)
            problems.append(f"trainer.eventlog.{key} is unknown and left out; known are {known}")
        elif value is not None:
            try:
                values[str(key)] = reader(value)
            except ValueError as error:
                problems.append(f"trainer.eventlog.{key}={value!r} was left out: {error}")
            except Exception as error:  # a list of OmegaConf's of which an item is missing
                problems.append(_unresolved(f"trainer.eventlog.{key}", error))
    return Settings(**values, problems=tuple(problems))


def _unresolved(key: str, error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return f"{key} cannot be resolved, and was left out ({first})"


def fleeting(folder: str) -> bool:
    """Return whether Ray deletes a folder when its job ends."""
    return any(part in folder + "/" for part in _FLEETING)


@dataclasses.dataclass(frozen=True)
class Restart:
    """The step of the checkpoint that training starts from, and what told it."""

    step: int
    told_by: str


def restart(config: Any) -> Restart | None:
    """Return where a launch with this config starts again, as verl will find it itself; None where
    it starts anew, only validates, or cannot be told.

    verl builds its logger before it loads the checkpoint, but the config names it: by
    ``trainer.resume_mode`` and, in ``default_local_dir``, the file that names the latest one; or
    by ``resume_from_path``.
    """
    trainer = _get(config, "trainer")
    mode = _get(trainer, "resume_mode") or "auto"
    remote = _get(trainer, "default_hdfs_dir")
    if mode not in ("auto", "resume_path") or only_validates(config) or remote:
        return None
    path = _get(trainer, "resume_from_path")
    # With "auto", the trainers of supervised learning look at the path, those of RL do not.
    if mode == "auto" and (path is None or _get(config, "actor_rollout_ref") is not None):
        folder = _get(trainer, "default_local_dir")
        return _latest(folder) if isinstance(folder, str) else None
    if not isinstance(path, str) or not os.path.isdir(path):
        return None
    steps = _STEP.findall(path)
    return _at(int(steps[-1]), os.path.abspath(path)) if steps else None


def only_validates(config: Any) -> bool:
    """Return whether a launch with this config validates and does not train."""
    return bool(_get(_get(config, "trainer"), "val_only"))


def _latest(folder: str) -> Restart | None:
    tracker = os.path.join(os.path.abspath(folder), _TRACKER)
    try:
        with open(tracker, encoding="ascii") as file:
            step = int(file.read(100))
    except (OSError, ValueError):
        return None
    there = os.path.isdir(os.path.join(folder, f"global_step_{step}"))
    return _at(step, tracker) if there else None


def _at(step: int, told_by: str) -> Restart | None:
    return Restart(step, told_by) if 0 < step < 2**63 else None


def _get(mapping: Any, key: Any) -> Any:
    """Return what a mapping has under a key; None where there is none, or it breaks."""
    if not isinstance(mapping, Mapping):
        return None
    try:
        return mapping.get(key)
    except Exception:  # an interpolation of OmegaConf's that leads nowhere
        return None


# ------------------------------------------------------------------------------ readers


def _text(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple, bool)) or not str(value):
        raise ValueError("it is no text")
    if isinstance(value, float):
        raise ValueError("it was read as a number: quote it twice, '\"...\"'")
    return str(value)


def _folder(value: Any) -> str:
    return os.path.expanduser(_text(value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError("it is no step")
    return value


def _tags(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    try:
        return tuple(str(tag) for tag in value)
    except TypeError:
        raise ValueError("it is no list of text") from None


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"it is none of {', '.join(words)}")
        return str(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "dir": _folder,
    "run_id": _text,
    "project": _text,
    "name": _text,
    "resume_step": _whole,
    "durability": _one_of("memory", "os", "group", "sync"),
    "tags": _tags,
    "group": _text,
    "job_type": _text,
    "notes": _text,
    "owner": _text,
    "mode": _one_of("journal", "disabled"),
}
