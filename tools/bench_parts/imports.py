"""What a process pays before its first event: bare Python, the import, the first log, the command.

Each is a process of its own, in turn: by the clock, and in CPU time, which other load on the
machine changes less.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from bench_parts.figures import Bar, Found, Spread, Table, short

_FIRST = (
    "import eventlog; run = eventlog.init('bench', 'first', dir='journal', quiet=True, "
    "resume='never'); "
    "run.log({'loss': 0.5}, step=0); import os; os._exit(0)"
)
BARE, OURS, HELP = "python -c pass", "import eventlog", "eventlog --help"
PROGRAMS = {
    BARE: ["-c", "pass"],
    OURS: ["-c", "import eventlog"],
    HELP: ["-m", "eventlog.cli.main", "--help"],
    "import numpy, pyarrow": ["-c", "import numpy, pyarrow"],
    "import, init, first log": ["-c", _FIRST],
}


def measure(rounds: int, scale: float) -> Found:
    """Start each program many times in turn."""
    clock: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    cpu: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for i in range(max(int(rounds * 6 * scale), 2) + 1):
        for name, arguments in PROGRAMS.items():
            passed, used = _start(arguments)
            if i:  # the first time writes byte code and fills caches
                clock[name].append(passed)
                cpu[name].append(used)
    above = {name: _above(clock[name], clock[BARE]) for name in PROGRAMS}
    above_cpu = {name: _above(cpu[name], cpu[BARE]) for name in PROGRAMS}
    bars = [
        Bar("import eventlog above bare Python, ms", 25, above[OURS], ""),
        Bar("import eventlog above bare Python, CPU ms", 25, above_cpu[OURS], ""),
    ]
    rows = [
        [n, short(Spread.of(clock[n]).median), above[n].text(), above_cpu[n].text()]
        for n in PROGRAMS
    ]
    columns = ["program", "ms", "ms above bare Python", "CPU ms above bare Python"]
    note = f"{len(clock[BARE])} starts each; {_import_time()}; {HELP} {_heavy(PROGRAMS[HELP])}"
    return Found("import", bars, [Table("Start of a process", columns, rows, note)])


def _above(of: list[float], bare: list[float]) -> Spread:
    return Spread.of(a - b for a, b in zip(of, bare, strict=True))


def _environment() -> dict[str, str]:
    """Return an environment in which byte code is kept, whatever the caller's says."""
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.abspath("byte-code")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


def _start(arguments: list[str]) -> tuple[float, float]:
    """Return how long a program took, by the clock and of CPU time, in ms."""
    begun = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=nowhere, stderr=nowhere, env=_environment()
        )
        _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"python {' '.join(arguments)} ended with {process.returncode}")
    passed = time.perf_counter() - begun
    return passed * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3


def _trace(arguments: list[str]) -> str:
    """Return what `-X importtime` prints."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        env=_environment(),
    )
    return done.stderr


def _import_time() -> str:
    found = re.findall(r"\|\s+(\d+) \| *(eventlog\S*)$", _trace(PROGRAMS[OURS]), re.MULTILINE)
    return "-X importtime: " + ", ".join(f"{name} {int(us) / 1e3:.1f} ms" for us, name in found)


def _heavy(arguments: list[str]) -> str:
    text = _trace(arguments)
    heavy = ("pyarrow", "numpy", "rich")
    found = [name for name in heavy if re.search(rf"\| +{name}$", text, re.MULTILINE)]
    return f"loads {', '.join(found)}" if found else f"loads none of {', '.join(heavy)}"
