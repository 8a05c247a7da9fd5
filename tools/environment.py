"""The virtual environment that the commands in this folder run in: made from the lock file, once.

A stamp in the environment says which lock and which Python it was made from; it is written last,
so that an environment whose making was interrupted is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
LOCK = TOP / "tools" / "requirements.lock"
#: verl as a folder to read, not a package: tests load one file of it, which needs nothing of it.
VERL_LOCK = TOP / "tools" / "requirements-verl-source.lock"
FOLDER = TOP / ".venv"
OLDEST = (3, 11)


def enter(script: str, arguments: list[str]) -> None:
    """Run `script` again with the environment's Python, making the environment first if need be.

    Returns at once if this Python is already the environment's.
    """
    if sys.version_info < OLDEST:
        version = ".".join(map(str, OLDEST))
        sys.exit(f"{script}: needs Python {version} or newer, this is {sys.version.split()[0]}")
    python = FOLDER / "bin" / "python"
    if Path(sys.prefix).resolve() == FOLDER.resolve():
        return
    with _alone():
        if _stamp() != _wanted():
            _make(python)
    # Hundreds of processes start in a test run: each would compile everything anew without its cache.
    left_out = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment["VIRTUAL_ENV"] = str(FOLDER)
    environment["PATH"] = f"{FOLDER / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    os.execve(python, [str(python), script, *arguments], environment)


def _wanted() -> str:
    parts = (LOCK, VERL_LOCK, TOP / "pyproject.toml")
    lock = hashlib.sha256(b"".join(part.read_bytes() for part in parts))
    return f"{lock.hexdigest()} {sys.version_info[:3]} {TOP}"


def _stamp() -> str:
    try:
        return (FOLDER / "made-from").read_text()
    except OSError:
        return ""


def _make(python: Path) -> None:
    print(f"making the virtual environment {FOLDER} (some minutes, once)", file=sys.stderr)
    begun = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(FOLDER)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--require-hashes", "--requirement", str(LOCK)])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(TOP)])
    folder = ["--target", str(FOLDER / "verl-source"), "--no-deps", "--ignore-requires-python"]
    run([*pip, *folder, "--require-hashes", "--requirement", str(VERL_LOCK)])
    (FOLDER / "made-from").write_text(_wanted())
    print(f"made in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def run(command: list[str]) -> None:
    """Run a command and be silent about it unless it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-20:]), file=sys.stderr)
        sys.exit(f"this command failed ({done.returncode}): {' '.join(command)}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time make the environment."""
    try:
        import fcntl
    except ImportError:  # no Unix: nothing else is promised there
        yield
        return
    with open(TOP / ".venv.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
