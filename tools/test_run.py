"""What `tools/test` does inside the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from environment import TOP

#: Debian packages that tests need, and a file by which each is known to be there.
PACKAGES = {
    "postgresql": "/usr/lib/postgresql/*/bin/postgres",
    "rsync": "/usr/bin/rsync",
    "strace": "/usr/bin/strace",
}
CHECKED = ["eventlog", "replayers", "tests", "tools"]


def main(arguments: list[str]) -> int:
    """Run the checks; return 0 if all of them pass."""
    install()
    long = ["--long", "--timeout", "3600"] if arguments == ["--long"] else []
    if arguments and not long:
        return run("pytest", arguments)
    checks = [
        ("linter", ["ruff", "check", "--quiet", *CHECKED, "tools/demo", "tools/test"]),
        ("formatter", ["ruff", "format", "--quiet", "--check", *CHECKED]),
        ("types", ["mypy", "--no-error-summary"]),
    ]
    failed = []
    for name, command in checks:
        begun = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], cwd=TOP, check=False).returncode
        print(f"{name}: {'ok' if not code else 'FAILED'} ({time.monotonic() - begun:.0f} s)")
        failed += [name] if code else []
    # Tests that share a server stay on one worker (tests/conftest.py); more workers than cores,
    # because much of the time goes into waiting for processes that start, die and time out.
    code = run("pytest", ["-n", "4", "--dist", "loadgroup", "--durations", "10", *long])
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return code or int(bool(failed))


def run(module: str, arguments: list[str]) -> int:
    """Run a module of the environment in the checkout's top folder."""
    sys.stdout.flush()
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=TOP, check=False
    ).returncode


def install() -> None:
    """Install Debian packages where this is root with apt; elsewhere tests skip by name."""
    wanted = [name for name, pattern in PACKAGES.items() if not list(Path("/").glob(pattern[1:]))]
    if not wanted:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        print(f"not installed, so that tests skip: {', '.join(wanted)}", file=sys.stderr)
        return
    print(f"installing {', '.join(wanted)} from Debian", file=sys.stderr)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
        subprocess.run(
            ["apt-get", "--quiet", "--quiet", *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
