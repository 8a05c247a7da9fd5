"""Memory is flat: what reads a run takes as much for a long one as for a short one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.event import make_rows
from eventlog.frame import Encoder
from eventlog.shape import Fitted, Shape
from tests.helpers import NOW, header, put, run_in

ROOT = Path(__file__).resolve().parents[1]
KEYS = [f"actor/metric_{i}" for i in range(20)]
PROGRAM = """
import resource, sys
import numpy, pyarrow, pyarrow.compute, pyarrow.parquet
pyarrow.array([1]).to_numpy()
from eventlog import audit, glance, reader, seal, series, views
from eventlog.cli import commands
what, folder = sys.argv[1:]

def drain():
    (writer,) = reader.listing(folder).writers
    for table in reader.WriterReader(folder, writer).tables():
        pass

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
}[what]()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) // 1024, file=sys.stderr)
"""


def make_run(journal, steps):
    """Write a run of one segment, `steps` events of twenty metrics."""
    folder = run_in(journal)
    head = header()
    raw, seed = head.to_bytes()
    rows, _refused = make_rows("metric", dict.fromkeys(KEYS, 0.5).items())
    shape, encoder = Shape(rows, with_step=True), Encoder(seed)
    frames = [raw]
    for n in range(steps):
        values = [n / (7 + i) for i in range(20)]
        frames.append(shape.frame(encoder, n, NOW + n * 10**8, n, Fitted(values)))
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
