"""What `tools/verl` does: an environment with verl in it, and the tests or the bench there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from environment import run

TOP = Path(__file__).resolve().parent.parent
FOLDER = TOP / ".venv-verl"
LOCKS = [TOP / "tools" / f"requirements-{name}.lock" for name in ("verl", "verl-source")]
TORCH = "torch==2.13.0"
#: One process each: in the first, verl is a stand-in around one file of it.
TESTS = ["tests/integrations", "tests/integrations/verl_package.py"]


def main(arguments: list[str]) -> int:
    """Make the environment if need be, and run what is asked for."""
    python = str(environment())
    if arguments[:1] == ["bench"]:
        commands = [[str(TOP / "tools" / "verl_bench.py"), *arguments[1:]]]
    elif arguments:
        commands = [["-m", "pytest", *arguments]]
    else:
        commands = [["-m", "pytest", "--long", tests] for tests in TESTS]
    codes = [subprocess.run([python, *c], cwd=TOP, check=False).returncode for c in commands]
    return next((code for code in codes if code), 0)


def interpreter() -> str:
    """Return a Python that verl accepts."""
    if sys.version_info < (3, 13):
        return sys.executable
    found = shutil.which("python3.12") or shutil.which("python3.11")
    if found is None:
        sys.exit(
            "tools/verl: verl needs a Python below 3.13, and neither python3.12 nor 3.11 is here"
        )
    return found


def environment() -> Path:
    """Return the Python of the environment."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / "made-from"
    base = interpreter()
    parts = [*LOCKS, TOP / "pyproject.toml"]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    wanted = f"{digest} {base} {TORCH}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making the virtual environment {FOLDER} (some minutes, once)", file=sys.stderr)
    shutil.rmtree(FOLDER, ignore_errors=True)
    run([base, "-m", "venv", str(FOLDER)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for lock in LOCKS:
        run([*pip, "--no-deps", "--require-hashes", "--requirement", str(lock)])
    run([*pip, TORCH])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(TOP)])
    stamp.write_text(wanted)
    return python
