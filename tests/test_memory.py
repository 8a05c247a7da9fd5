"""Memory is flat: what reads a run takes as much for a long one as for a short one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.event import make_rows
from eventlog.frame import Encoder
from eventlog.seal import seal
from eventlog.shape import Shape
from tests.helpers import NOW, header, put, run_in

ROOT = Path(__file__).resolve().parents[1]
KEYS = [f"actor/metric_{i}" for i in range(20)]
PROGRAM = """
import os, resource, sys
import numpy, pyarrow, pyarrow.compute, pyarrow.parquet
pyarrow.array([1]).to_numpy()
from eventlog import archiving, audit, glance, reader, seal, series, views
from eventlog.cli import commands
what, folder = sys.argv[1:]
KEY = "actor/metric_0"

def drain():
    (writer,) = reader.listing(folder).writers
    for table in reader.WriterReader(folder, writer).tables():
        pass

def runs():
    return sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.startswith("run="))

def archives():
    archiving.archive(folder, runs(), unchanged=0)
    for run in runs():
        assert len(series.series(run, KEY)) and audit.verify(run).verdict == "ok"

def show():
    from eventlog.cli.main import run
    assert run(["show", folder, "--json"]) == 0

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{
    "read": drain,
    "verify": lambda: audit.verify(folder),
    "seal": lambda: seal.seal(folder, abandoned=True),
    "view": lambda: views.open_view(folder),
    "glance": lambda: glance.glance(folder),
    "show": show,
    "archives": archives,
}[what]()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024, file=sys.stderr)
"""


def make_run(journal, steps, run="run-1"):
    """Write a run of one segment, `steps` events of twenty metrics."""
    folder = run_in(journal, run)
    head = dataclasses.replace(header(), run=run)
    raw, seed = head.to_bytes()
    rows, _refused = make_rows("metric", dict.fromkeys(KEYS, 0.5).items())
    shape, encoder = Shape(rows, with_step=True), Encoder(seed)
    frames = [raw]
    for n in range(steps):
        values = [n / (7 + i) for i in range(20)]
        frames.append(shape.frame(encoder, n, NOW + n * 10**8, n, values))
    put(folder, head.name, b"".join(frames))
    return folder


def megabytes(what, folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, folder],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("long"), 40_000)


@pytest.mark.parametrize(
    "what",
    [
        "read",
        "verify",
        "view",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("glance", "show", "seal")),
    ],
)
def test_a_run_of_eight_hundred_thousand_points_fits_into_150_megabytes(what, long_run):
    assert megabytes(what, long_run) <= 150
    if what == "seal":
        for again in ("read", "verify", "view", "glance", "show"):
            assert megabytes(again, long_run) <= 150, again


@pytest.fixture(scope="module")
def many_runs(tmp_path_factory, repeats):
    """Make sealed runs of a project, sixteen thousand points each; ten million of them in all, or a
    slice; return the project's folder.
    """
    journal = tmp_path_factory.mktemp("many")
    folders = [make_run(journal, 800, f"r{n}") for n in range(repeats(6, 600))]
    for folder in folders:
        seal(folder, abandoned=True)
    return str(Path(folders[0]).parent)


def test_an_archive_of_many_runs_is_made_read_and_verified_in_150_megabytes(many_runs):
    assert megabytes("archives", many_runs) <= 150
    (made,) = Path(many_runs, "sealed").iterdir()
    assert made.name.startswith("runs-")
