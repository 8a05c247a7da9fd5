"""What `tools/test` does inside the environment."""

from __future__ import annotations

import concurrent.futures
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
    # Tests that share a server stay on one worker (tests/conftest.py); more workers than cores,
    # because much of the time goes into waiting for processes that start, die and time out. The
    # other checks take what the tests leave of the cores, one after another.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            others = [(name, pool.submit(check, command)) for name, command in checks]
            code = run("pytest", ["-n", "4", "--dist", "loadgroup", "--durations", "10", *long])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        done = [(name, *other.result()) for name, other in others]
    for _, _, text, _ in done:
        print(text, end="")
    print(", ".join(f"{name} {'FAILED' if bad else 'ok'} ({s:.0f} s)" for name, bad, _, s in done))
    return code or int(any(bad for _, bad, _, _ in done))


def check(command: list[str]) -> tuple[bool, str, float]:
    """Run a check; return whether it failed, what it wrote, and its seconds."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=TOP,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode != 0, done.stdout, time.monotonic() - begun


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
