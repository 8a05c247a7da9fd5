"""What a sealed file tells that its events add up to: the same as reading them, or nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import eventlog
from eventlog import audit, tally
from eventlog.archiving import archive
from eventlog.catalog import find_all
from eventlog.compact import compact
from eventlog.event import STATE, make_rows
from eventlog.glance import Glance, glance
from eventlog.seal import seal
from eventlog.sealed import SealedFile
from eventlog.sealedwriter import SealedWriter

READ = sys.modules["eventlog.glance"]


def read(folder: str, monkeypatch: pytest.MonkeyPatch) -> Glance:
    """Return the glance at a run of which every event is read."""
    with monkeypatch.context() as patch:
        patch.setattr(READ, "_told", lambda *_: None)
        return glance(folder)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has everything fail that reads rows of sealed files."""

    def forbid() -> None:
        monkeypatch.setattr(SealedFile, "rows", lambda *_: pytest.fail("rows were read"))

    return forbid


def make(journal: Path, name: str, exit_code: int | None = 0, *, steps: int = 30) -> str:
    run = eventlog.init("p", name, id=name, dir=journal, quiet=True, config={"lr": 0.1})
    for step in range(steps):
        run.log({"loss": 1 / (step + 1), "text": "x"}, step=None if step % 7 == 3 else steps - step)
    run.log({"none": None})
    run.finish(exit_code)
    assert run.folder is not None
    return run.folder


@pytest.mark.parametrize("exit_code", [0, 1, None])
@pytest.mark.parametrize("rows", [7, 131_072])
def test_a_run_that_is_sealed_is_shown_without_reading_a_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unread: Callable[[], None],
    exit_code: int | None,
    rows: int,
) -> None:
    monkeypatch.setattr("eventlog.sealedwriter.GROUP_ROWS", rows)
    make(tmp_path, "a", exit_code)
    folder = make(tmp_path, "a", 1 - (exit_code or 0))  # a second attempt
    whole = read(folder, monkeypatch)
    assert whole.status == ("finished" if exit_code == 1 else "failed")
    assert (whole.points, whole.last_step, len(whole.attempts)) == (122, 30, 2)
    unread()
    assert glance(folder) == whole


@pytest.mark.parametrize("tail", [8, 64, 2**15])
def test_a_footer_of_any_size_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: Callable[[], None], tail: int
) -> None:
    folder = make(tmp_path, "a")
    whole = read(folder, monkeypatch)
    monkeypatch.setattr("eventlog.sealed._TAIL", tail)
    unread()
    assert glance(folder) == whole


def test_compacted_and_archived_files_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: Callable[[], None]
) -> None:
    monkeypatch.setattr("eventlog.options.SEGMENT_BYTES", 4096)
    folders = [make(tmp_path, name) for name in "ab"]
    looks = [read(folder, monkeypatch) for folder in folders]
    compact(folders[0])
    archive(str(tmp_path / "project=p"), folders, unchanged=0)
    found, bad = find_all([str(tmp_path)])
    assert not bad
    assert not list(tmp_path.glob("project=p/run=*/sealed/*.parquet"))
    assert [read(item.folder, monkeypatch) for item in found] == looks
    unread()
    assert [glance(item.folder) for item in found] == looks


def test_a_run_that_goes_on_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a")
    run = eventlog.init("p", "a", id="a", dir=tmp_path, quiet=True)
    run.log({"loss": 1.0}, step=99)
    assert run.folder is not None
    look = glance(run.folder)
    assert (look.status, look.last_step) == ("running", 99)
    assert look == read(run.folder, monkeypatch)
    run.finish()


def sealed_anew(folder: str, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    """Have the one sealed file of a run tell something else of its events."""
    (path,) = Path(folder).glob("sealed/*.parquet")
    with SealedFile(str(path)) as file, SealedWriter(str(path.parent)) as out:
        for group in range(len(file.groups)):
            out.add(file.checked(group))
        monkeypatch.setattr("eventlog.sealedwriter.to_metadata", told)
        out.finish(str(path), file.segments)


def test_a_file_without_a_tally_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, "a")
    look = glance(folder)
    sealed_anew(folder, monkeypatch, lambda *_: {})
    assert glance(folder) == look
    assert audit.verify(folder).verdict == "ok"


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "7", '{"points": 1}', '{"points": "1", "last": 1, "step": null}'),
        '{"points": 1, "last": 1, "step": 1.5}',
        '{"points": 1, "last": 1, "step": 1, "state": "finished"}',
        '{"points": 1, "last": 1, "step": 1, "state": ["finished"]}',
        "[" * 100_000,
    ],
)
def test_a_tally_that_is_none_is_as_if_it_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    folder = make(tmp_path, "a")
    look = glance(folder)

    def told(_told: Any, crc32: str) -> dict[str, str]:
        check = tally._check(text.encode(), crc32.encode())
        return {"eventlog.tally": text, "eventlog.tally_crc32": check}

    sealed_anew(folder, monkeypatch, told)
    assert glance(folder) == look


def test_a_tally_of_other_rows_or_with_a_flipped_bit_does_not_count(tmp_path: Path) -> None:
    (path,) = Path(make(tmp_path, "a")).glob("sealed/*.parquet")
    meta = pq.read_metadata(path).metadata
    assert tally.in_metadata(meta) == json.loads(meta[b"eventlog.tally"])
    for key in (b"eventlog.tally", b"eventlog.crc32", b"eventlog.tally_crc32"):
        for at in range(len(meta[key])):
            flipped = bytearray(meta[key])
            flipped[at] ^= 1
            assert tally.in_metadata({**meta, key: bytes(flipped)}) is None
    assert tally.in_metadata({**meta, b"eventlog.crc32": b"00000000"}) is None


def test_verify_finds_a_tally_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, "a")
    assert audit.verify(folder).verdict == "ok"
    plain = tally.to_metadata
    sealed_anew(folder, monkeypatch, lambda told, crc32: plain({**told, "points": 1}, crc32))
    report = audit.verify(folder)
    assert report.verdict == "corrupt"
    assert "add up to something else" in str(report)


def test_an_exit_code_of_a_stranger_with_any_number_of_digits_stops_no_sealing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = eventlog.init("p", "a", id="a", dir=tmp_path, quiet=True)
    run._writer.append_rows(make_rows(STATE, {"exit_code": 2**40_000 + 1}.items())[0], None)
    run._writer.close()
    assert run.folder is not None
    seal(run.folder)
    look = glance(run.folder)
    assert (look.exit_code, look) == (None, read(run.folder, monkeypatch))
    assert audit.verify(run.folder).verdict == "ok"
    run.finish()
