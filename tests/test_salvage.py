"""Salvage: what is provably good, with its positions; what is lost is said; the old is untouched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eventlog.audit import verify
from eventlog.cli.main import run as command
from eventlog.compact import compact
from eventlog.errors import IntegrityError, UsageError
from eventlog.reader import WriterReader, headers, listing
from eventlog.salvage import salvage
from eventlog.seal import seal
from tests.helpers import (
    Failing,
    event,
    header,
    plain,
    put,
    read,
    run_in,
    same,
    segment_bytes,
    series,
)

COUNT = 30


def state(folder):
    """Return everything below a folder, with when it was changed."""
    paths = sorted(p for p in Path(folder).rglob("*"))
    return [(str(p), p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in paths]


def damaged(tmp_path, hole=(10, 12), durable=0, end=True):
    """Make a run whose segment has a hole in some events."""
    folder = run_in(tmp_path / "old")
    data, ends = segment_bytes(series(COUNT), durable=durable, end=end)
    first, last = ends[hole[0]], ends[hole[1]]
    put(folder, "w0-0.arrows", data[: first + 9] + b"\0" * (last - first - 9) + data[last:])
    return folder


def seqs(events):
    return [e.seq for e in events]


def test_good_frames_behind_a_hole_are_copied_with_their_positions(tmp_path):
    folder = damaged(tmp_path, durable=25)
    assert verify(folder).verdict == "corrupt"
    before = state(tmp_path / "old")
    new = run_in(tmp_path / "new")
    done = salvage(folder, new)
    assert state(tmp_path / "old") == before
    (one,) = done.writers
    assert (one.events, one.behind_damage) == (28, ((12, 29),))
    assert [(gap.first, gap.last) for gap in one.lost] == [(10, 11)]
    assert "w0-0.arrows" in one.lost[0].reason and "offset" in one.lost[0].reason
    assert listing(new).sealed["w0"] == (("w0", 0, 9), ("w0", 12, 29))
    wanted = [e for e in series(COUNT) if e.seq not in (10, 11)]
    assert [plain(e) for e in read(new)] == [plain(e) for e in wanted]
    report = verify(new)
    assert (report.verdict, report.failed) == ("salvaged", False)
    assert "events 10 to 11 are lost, as recorded" in report.writers[0].problems[0]
    assert headers(new) == headers(folder)
    reader = WriterReader(new, "w0", start=5)
    assert seqs(reader.events()) == [5, 6, 7, 8, 9, *range(12, 30)]
    assert [(gap.first, gap.last) for gap in reader.lost] == [(10, 11)] and not reader.missing


def test_a_second_salvage_changes_nothing(tmp_path):
    folder, new = damaged(tmp_path), run_in(tmp_path / "new")
    first = salvage(folder, new)
    before = state(tmp_path / "new")
    again = salvage(folder, new)
    assert state(tmp_path / "new") == before
    assert (first.changed, again.changed) == (True, False)
    assert again.writers == first.writers


def test_a_whole_run_is_copied_whole(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", segment_bytes(series(COUNT), durable=COUNT, end=True)[0])
    assert salvage(folder, new).whole
    assert same(read(new), series(COUNT))
    assert verify(new).verdict == "ok"


def test_a_row_group_whose_fingerprint_does_not_hold_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.sealedwriter.GROUP_ROWS", 30)
    monkeypatch.setattr("eventlog.segment._CHUNK", 5_000)
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", segment_bytes(series(COUNT), durable=COUNT, end=True)[0])
    seal(folder)
    path = Path(folder, "sealed/w0-0-29.parquet")
    meta = pq.ParquetFile(path).metadata
    assert meta.num_row_groups > 2
    at = meta.row_group(1).column(6).data_page_offset + 60
    good = path.read_bytes()
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    (one,) = salvage(folder, new).writers
    (gap,) = one.lost
    assert [b.name for b in one.bad] == ["sealed/w0-0-29.parquet"]
    assert seqs(read(new)) == [n for n in range(COUNT) if not gap.first <= n <= gap.last]
    assert verify(new).verdict == "salvaged"


def test_a_live_segment_makes_up_for_a_bad_sealed_file(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    data = segment_bytes(series(COUNT), durable=COUNT, end=True)[0]
    put(folder, "w0-0.arrows", data)
    seal(folder)
    path = Path(folder, "sealed/w0-0-29.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    put(folder, "w0-0.arrows", data)
    done = salvage(folder, new)
    assert done.whole and same(read(new), series(COUNT))
    assert [b.name for w in done.writers for b in w.bad] == ["sealed/w0-0-29.parquet"]


def test_events_that_were_durable_and_are_gone_at_the_end_are_recorded(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    data, ends = segment_bytes(series(COUNT), durable=COUNT)
    put(folder, "w0-0.arrows", data[: ends[20] + 100])
    assert verify(folder).verdict == "corrupt"
    (one,) = salvage(folder, new).writers
    assert [(gap.first, gap.last) for gap in one.lost] == [(20, 29)]
    assert verify(new).verdict == "salvaged"
    assert seqs(read(new)) == list(range(20))


def test_a_torn_tail_that_was_never_durable_is_no_loss(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    data, ends = segment_bytes(series(COUNT), durable=5)
    put(folder, "w0-0.arrows", data[: ends[20] + 100])
    done = salvage(folder, new)
    assert done.whole and [b.offset for b in done.writers[0].bad] == [ends[20]]
    assert verify(new).verdict == "ok"


def test_a_missing_segment_is_a_recorded_loss(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    for number, at in enumerate((0, 10, 20)):
        head = header("w0", number, at)
        if number != 1:
            put(folder, head.name, segment_bytes(series(10, at), head, durable=at, end=True)[0])
    assert verify(folder).verdict == "missing"
    (one,) = salvage(folder, new).writers
    assert [(gap.first, gap.last) for gap in one.lost] == [(10, 19)]
    assert verify(new).verdict == "salvaged"
    compact(new)
    assert verify(new).verdict == "salvaged" and len(listing(new).sealed["w0"]) == 2


def test_blobs_are_copied_if_they_are_what_their_names_say(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", segment_bytes(series(3), end=True)[0])
    good, bad = hashlib.sha256(b"good").hexdigest(), hashlib.sha256(b"bad").hexdigest()
    put(folder, f"blobs/{good}", b"good")
    put(folder, f"blobs/{bad}", b"not it")
    put(folder, "blobs/.nfs0001", b"foreign")
    done = salvage(folder, new)
    assert (done.blobs, done.bad_blobs, done.whole) == (1, (bad,), False)
    assert os.listdir(os.path.join(new, "blobs")) == [good]


def test_a_run_without_its_name_is_told_by_its_segments(tmp_path):
    folder, new = run_in(tmp_path / "old"), tmp_path / "new/project=p/run=run-1"
    put(folder, "w0-0.arrows", segment_bytes(series(3), end=True)[0])
    put(folder, "run.json", b"{")
    salvage(folder, str(new))
    assert (
        Path(new, "run.json").read_bytes() == Path(run_in(tmp_path / "x"), "run.json").read_bytes()
    )
    with pytest.raises(IntegrityError):
        salvage(run_in(tmp_path / "other", "run-2"), str(new))
    with pytest.raises(UsageError):
        salvage(folder, os.path.join(folder, "new"))


@pytest.mark.parametrize("kind", ["fail", "kill"])
def test_stopped_at_any_operation_it_goes_on_when_called_again(kind, tmp_path, repeats):
    for n in itertools.count(1, repeats(3, 1)):
        folder = damaged(tmp_path / str(n), durable=25)
        new = str(tmp_path / str(n) / "new/project=p/run=run-1")
        error = OSError(errno.EIO, "Input/output error")
        if kind == "fail":
            files = Failing(lambda call, name, n=n, e=error: e if call == n else None)
            with contextlib.suppress(OSError):
                salvage(folder, new, files)
            stopped = len(files.calls) >= n
        else:
            pid = os.fork()
            if pid == 0:
                files = Failing(lambda call, name, n=n: os._exit(9) if call == n else None)
                try:
                    salvage(folder, new, files)
                finally:
                    os._exit(0)
            stopped = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        salvage(folder, new)
        assert seqs(read(new)) == [*range(10), *range(12, 30)], n
        assert verify(new).verdict == "salvaged", n
        if not stopped:
            return


# ------------------------------------------------------------------------------ the command


def test_the_command_names_what_is_lost_and_leaves_with_3(tmp_path, capsys):
    damaged(tmp_path, durable=25)
    arguments = ["salvage", str(tmp_path / "old"), "--to", str(tmp_path / "new")]
    assert command([*arguments, "--json"]) == 3
    out, err = capsys.readouterr()
    (run,) = json.loads(out)
    assert (run["id"], run["events"], run["changed"]) == ("run-1", 28, True)
    assert "w0-0.arrows at offset" in err
    assert "events 12 to 29 of w0 lie behind damage and were copied" in err
    assert "events 10 to 11 of w0 are lost" in err
    assert command(arguments) == 3
    assert "already there" in capsys.readouterr().out
    assert command(["verify", str(tmp_path / "new")]) == 0
    assert "salvaged" in capsys.readouterr().out


def test_the_command_writes_nowhere_else(tmp_path, capsys):
    folder = damaged(tmp_path)
    put(tmp_path, "foreign/file", b"mine")
    before = state(tmp_path)
    for target in (
        tmp_path / "old",
        tmp_path / "old/new",
        tmp_path / "old/project=p/new",
        tmp_path,
        tmp_path / "foreign",
        tmp_path / "foreign/file",
    ):
        assert command(["salvage", folder, "--to", str(target)]) == 2, target
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path / "old")
    assert command(["salvage", folder, "--to", str(link / "new")]) == 2
    assert state(tmp_path) == before
    assert command(["salvage", "nothing", "--journal", str(tmp_path / "old"), "--to", "x"]) == 2
    assert capsys.readouterr().err.count("eventlog: ") == 8


def test_a_run_of_which_nothing_can_be_read_is_4(tmp_path, capsys):
    folder = run_in(tmp_path / "old")
    put(folder, "w0-0.arrows", b"\xff" * 5000)
    assert command(["salvage", folder, "--to", str(tmp_path / "new")]) == 4
    assert "w0-0.arrows" in capsys.readouterr().err


def test_an_event_that_two_files_tell_differently_is_copied_once(tmp_path):
    folder, new = run_in(tmp_path / "old"), run_in(tmp_path / "new")
    put(folder, "w0-0.arrows", segment_bytes(series(6), end=True)[0])
    head = header("w0", 1, 4)
    other = [event(n, {"loss": -1.0}) for n in range(4, 9)]
    put(folder, head.name, segment_bytes(other, head, end=True)[0])
    assert verify(folder).verdict == "fork"
    salvage(folder, new)
    assert seqs(read(new)) == list(range(9))
