"""A part of the bench in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def answer(part: str, *arguments: str) -> list[float]:
    """Run ``bench_parts.<part>`` as a program and return the numbers that it prints; end the bench
    if it fails.
    """
    tools = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([tools, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", f"bench_parts.{part}", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{part}: {done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.split()]
