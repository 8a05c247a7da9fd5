"""What `tools/matrix` does: environments of their own, and the tests in each."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Run the profiles that are named, both by default."""
    profiles = arguments or ["lowest", "capture"]
    codes = []
    for profile in profiles:
        if profile == "lowest":
            python = environment("lowest", sys.executable)
            codes.append(run(python, ["tests", "-n", "2", "--dist", "loadgroup"]))
        elif profile == "capture":
            oldest = os.environ.get("EVENTLOG_PYTHON310") or shutil.which("python3.10")
            if oldest is None:
                print("no python3.10: set EVENTLOG_PYTHON310", file=sys.stderr)
                return 2
            python = environment("capture", oldest)
            tests = sorted(str(p.relative_to(TOP)) for p in (TOP / "tests").glob("test_*.py"))
            tests.remove("tests/test_readme.py")  # its commands need the backends
            tests.remove("tests/test_cli.py")
            codes.append(run(python, [*tests, "-n", "2", "--dist", "loadgroup"]))
        else:
            print("usage: tools/matrix [lowest] [capture]", file=sys.stderr)
            return 2
    return max(codes)


def run(python: Path, arguments: list[str]) -> int:
    """Run pytest with an environment's Python."""
    print(f"pytest with {python}", flush=True)
    return subprocess.run(
        [str(python), "-m", "pytest", *arguments], cwd=TOP, check=False
    ).returncode


def environment(name: str, interpreter: str) -> Path:
    """Return the Python of an environment made from ``requirements-<name>.lock``."""
    lock = TOP / "tools" / f"requirements-{name}.lock"
    folder = TOP / f".venv-{name}"
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {interpreter}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    subprocess.run([*pip, "--require-hashes", "--requirement", str(lock)], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(TOP)], check=True)
    stamp.write_text(wanted)
    return python
