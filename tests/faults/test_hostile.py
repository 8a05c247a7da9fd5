"""Hostile files: an error or a value, bounded memory, nothing read or written outside a journal.

`tools/fuzz` looks for more, guided by coverage; what it found once is read here for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog.cli import main
from eventlog.errors import EventlogError
from eventlog.event import Event, Row
from eventlog.files import Files
from tests.faults import hostile, surfaces
from tests.helpers import header, put, run_in, segment_bytes, series

ROOT = Path(__file__).resolve().parents[2]
#: Inputs of a surface with --long, as many as fit into about a second; half of them without.
COUNTS = {
    "run": 40,
    "sealing": 25,
    "compacting": 25,
    "archive": 40,
    "archiving": 12,
    "salvaging": 25,
    "sealed": 300,
    "segment": 500,
    "ledger": 200,
}
IN_BOUNDS = "import sys\nfrom tests.faults import surfaces\nsurfaces.slice_of({!r}, 1, {})"


@pytest.mark.parametrize("name", surfaces.SURFACES)
def test_changed_bytes_with_good_checksums_are_read_or_refused_in_bounded_memory(name, repeats):
    program = IN_BOUNDS.format(name, COUNTS.get(name, 3000) // repeats(2, 1))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", sorted(hostile.FOUND.glob("*-*")), ids=lambda path: path.name)
def test_what_was_found_once_is_read_or_refused(path):
    name = path.name.rpartition("-")[0]
    surfaces.SURFACES[name].read(path.read_bytes())


def test_the_changes_get_past_the_checksums():
    surface = surfaces.SURFACES["segment"]
    (whole, *_) = surface.first()
    raw = bytearray(whole)
    raw[-20] ^= 1
    assert surface.mend(bytes(raw)) != bytes(raw)
    run = surfaces.SURFACES["run"]
    assert all(run.mend(data) == data for data in run.first())


def test_a_link_out_of_the_journal_is_not_followed(tmp_path):
    secret, _ = segment_bytes(series(3), header("w0"), end=True)
    (tmp_path / "outside").write_bytes(secret)
    folder = tmp_path / "run"
    (folder / "blobs").mkdir(parents=True)
    for name in ("w0-0.arrows", "run.json", "blobs/" + "a" * 64):
        (folder / name).symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "w1-0.arrows")
    hostile.look(str(folder), Files())
    assert hostile._events(str(folder)) == {"w0": [], "w1": []}
    with pytest.raises(EventlogError):
        hostile.blobs.get(str(folder), "a" * 64)


@pytest.mark.parametrize("command", [["ls"], ["show"], ["verify"], ["show", "--json"]])
def test_the_command_line_shows_a_run_with_values_that_are_none(command, tmp_path, capsys):
    rows = Row("x", "metric", "str", None, b"\xf4"), Row("c", "config", "json", None, b"[")
    folder = run_in(tmp_path)
    put(folder, "w0-0.arrows", segment_bytes([Event(0, 1, 3, rows)], header("w0"), end=True)[0])
    assert main.run([*command, folder]) == 0
    assert capsys.readouterr().out
