"""Who writes: the launch, the process, and whether that process is provably gone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import Any

#: Variables that name a run elsewhere; ``init`` records them. Never keys or tokens.
ELSEWHERE = (
    "WANDB_PROJECT",
    "WANDB_ENTITY",
    "WANDB_RUN_ID",
    "WANDB_NAME",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "TRACKIO_PROJECT",
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a program by its launcher.

    Attributes
    ----------
    id:
        The same in every process of the launch and after every restart of it, such as
        ``slurm:1234.0``; None where the launcher gives none.
    restart:
        How many times it was started again, one number a launcher; () where none counts.
    rank, world:
        This process among all of the launch.
    session:
        What the processes of one start have in common, and no other start has, where ``id`` and
        ``restart`` alone do not say so: Ray numbers the jobs of each new cluster from 1. None
        where nothing says it.
    """

    id: str | None = None
    restart: tuple[int, ...] = ()
    rank: int = 0
    world: int = 1
    session: str | None = None


def launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Return the launch of this process from what SLURM, torchrun and Ray set.

    torchrun's placeholder id ``none`` is no id. Under SLURM without ``srun`` the job alone names
    the launch. Ray's actors run in whatever SLURM step started Ray on their node: its step, rank
    and size say nothing of them.
    """
    parts: list[str] = []
    restart: list[int] = []
    ray, session = ray_job(environ)
    if job := environ.get("SLURM_JOB_ID"):
        step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or "batch"
        parts.append(f"slurm:{job}" if ray else f"slurm:{job}.{step}")
        restart.append(_number(environ, "SLURM_RESTART_COUNT", 0))
    elastic = environ.get("TORCHELASTIC_RUN_ID")
    if elastic is not None:
        if elastic and elastic != "none":
            parts.append(f"torchelastic:{elastic}")
        restart.append(_number(environ, "TORCHELASTIC_RESTART_COUNT", 0))
    if ray:
        parts.append(f"ray:{ray}")
    rank = _number(environ, "RANK", 0 if ray else _number(environ, "SLURM_PROCID", 0))
    world = _number(environ, "WORLD_SIZE", 1 if ray else _number(environ, "SLURM_NTASKS", 1))
    return Launch(" ".join(parts) or None, tuple(restart), rank, max(world, 1), session)


def ray_job(environ: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """Return the Ray job that this process belongs to, and the session of its cluster; None for
    what is not known.

    Ray itself is asked if it runs in this process: workers that it starts in advance have the
    nil id in ``RAY_JOB_ID``, and drivers have none.
    """
    job, session = environ.get("RAY_JOB_ID") or None, None
    if job is not None and not job.lower().strip("f"):
        job = None
    ray, worker = sys.modules.get("ray"), sys.modules.get("ray._private.worker")
    try:
        if ray is not None and ray.is_initialized():
            job = str(ray.get_runtime_context().get_job_id()) or job
            session = str(worker.global_worker.node.session_name) or None  # type: ignore[union-attr]
    except Exception:  # a Ray that is half up, or one that keeps this elsewhere
        return job, session
    return job, session


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        return default


def id_from_name(project: str, name: str) -> str:
    """Return the 16 hexadecimal characters that name a run of this project and name for ever:
    the start of ``md5("<project>/<name>")``, as verl's change made them.
    """
    text = f"{project}/{name}".encode("utf-8", "surrogatepass")
    return hashlib.md5(text, usedforsecurity=False).hexdigest()[:16]


def id_from_launch(project: str, name: str, launch_id: str) -> str:
    """Return the run id that every rank of a launch makes alike, after a restart too."""
    parts = "\0".join((project, name, launch_id)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(parts).hexdigest()[:16]


def random_id() -> str:
    """Return a run id that nobody else has: 16 hexadecimal characters."""
    return os.urandom(8).hex()


def random_writer() -> str:
    """Return a writer's name that nobody else has: 12 of ``[a-z0-9]``, 62 bits."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    number = int.from_bytes(os.urandom(8), "little")
    return "".join(digits[number // 36**i % 36] for i in range(12))


def owner() -> str:
    """Return who owns what this process logs: ``EVENTLOG_OWNER``, else the user's name."""
    named = os.environ.get("EVENTLOG_OWNER")
    if named:
        return named
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in the container
        return f"uid{os.getuid()}" if hasattr(os, "getuid") else "unknown"


# ------------------------------------------------------------------------------ processes


def process() -> dict[str, Any]:
    """Return what identifies this process for as long as the machine is up, and its host."""
    import socket

    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "pid_namespace": _pid_namespace(),
        "boot_id": _boot_id(),
        "process_start": _start_of(pid),
    }


def provably_gone(recorded: Mapping[str, Any]) -> bool:
    """Return whether the process that `process` described cannot be running any more.

    True only on the same boot and in the same pid namespace, where no such process is left or
    its pid belongs to a younger one. A pid alone proves nothing.
    """
    found = _process_of(recorded)
    if found is None:
        return False
    pid, start = found
    now = _start_of(pid)
    if now is None:
        return not _is_there(pid)
    return now != start


def provably_there(recorded: Mapping[str, Any]) -> bool:
    """Return whether the process that `process` described is running, on this machine."""
    found = _process_of(recorded)
    return found is not None and _start_of(found[0]) == found[1]


def _process_of(recorded: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return pid and start of a process that ran on this boot and in this pid namespace; None for
    any other.
    """
    boot = _boot_id()
    space = _pid_namespace()
    if not boot or recorded.get("boot_id") != boot:
        return None
    if not space or recorded.get("pid_namespace") != space:
        return None
    pid, start = recorded.get("pid"), recorded.get("process_start")
    if not isinstance(pid, int) or not isinstance(start, int) or pid <= 0:
        return None
    return pid, start


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if that cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] in (b"Z", b"X"):  # dead, and only waiting for its parent to notice
            return None
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _is_there(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except FileNotFoundError:  # none, or /proc hides the processes of others (hidepid)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True
    except (OSError, IndexError):
        return True
