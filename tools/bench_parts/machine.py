"""The machine that is measured on, and what else it was busy with; never its name."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

_PACKAGES = "pyarrow numpy duckdb trackio wandb mlflow tensorboardX"
#: Linux's clock of a process's CPU time is made of its id: see clock_getcpuclockid(3).
_SCHED = 2


def describe() -> list[str]:
    """Return what matters of the machine and the programs, a line each."""
    found = []
    for name in _PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release().split('-')[0]}, {platform.machine()}"
    return [f"{os.cpu_count()} cores, {_processor()}, {system}", f"{python}; {', '.join(found)}"]


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def family(pid: int) -> list[int]:
    """Return a process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            child = int(name)
            with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_of(pids: list[int]) -> int:
    """Return the nanoseconds of CPU time that living processes have used, all threads."""
    import time

    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~pid << 3) | _SCHED)
    return total


class Load:
    """What share of the machine's CPU time other processes used, None where it is not known."""

    def __init__(self) -> None:
        self.share: float | None = None


@contextlib.contextmanager
def other_load() -> Iterator[Load]:
    """Measure what others did while this ran: all that was busy, less our own family."""
    load = Load()
    if not sys.platform.startswith("linux"):
        yield load
        return
    before = _busy(), _ours()
    yield load
    (busy, total), ours = _busy(), _ours()
    passed = total - before[0][1]
    if passed > 0:
        load.share = max(0.0, (busy - before[0][0] - (ours - before[1])) / passed)


def _busy() -> tuple[float, float]:
    """Return the seconds that all cores were busy, and all that passed."""
    with open("/proc/stat", encoding="utf-8") as file:
        fields = [int(x) for x in file.readline().split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / tick, sum(fields) / tick


def _ours() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
