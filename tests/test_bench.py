"""`tools/bench` runs and tells what it should; what it measures is no matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
TINY = ["--rounds", "1", "--scale", "0.005"]


def bench(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(TOP / "tools" / "bench_run.py"), *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())  # nothing is left behind
    return done.stdout


@pytest.mark.parametrize(
    "part",
    [
        *"append keys scan seal query".split(),
        *(pytest.param(part, marks=pytest.mark.long) for part in ("sync", "many", "watch")),
    ],
)
def test_a_part_of_the_bench_runs_and_its_output_is_readable(part: str, tmp_path: Path) -> None:
    few = ["--ways", "os.write,eventlog"] if part == "append" else []
    text = bench(part, *TINY, *few, folder=tmp_path)
    assert " bars are missed" in text
    assert max(map(len, text.splitlines())) <= 100, text


def test_no_event_of_many_threads_is_lost(tmp_path: Path) -> None:
    (found,) = json.loads(bench("threads", *TINY, "--json", folder=tmp_path))["parts"]
    (lost,) = [bar for bar in found["bars"] if bar["what"].startswith("events lost")]
    assert lost["found"]["most"] == 0
    assert all(
        len(row) == len(table["columns"]) for table in found["tables"] for row in table["rows"]
    )


def test_a_way_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(TOP / "tools" / "bench_run.py"), "append", "--ways", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nosuch" in done.stderr
