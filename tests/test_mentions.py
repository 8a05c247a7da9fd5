"""Whether a key may occur: never no where it does, whatever the run lies in."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventlog import mentions
from eventlog.mentions import may_mention
from eventlog.reader import listing
from eventlog.seal import seal
from tests.helpers import run_in, writer


@pytest.fixture(params=["live", "sealed"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    folder = run_in(tmp_path)
    one = writer(folder)
    for step in range(40):
        one.append("metric", {"a": 1.0, "b": "text"}, step)
    one.append("state", {"rewind": 7}, None)
    one.append("metric", {"a": 2.0}, 41)
    one.close()
    if request.param == "sealed":
        assert seal(folder).rows == 82
    return folder


@pytest.mark.parametrize("chunk", [7, 8, 11, 64, 2**20])
def test_a_key_that_occurs_is_found_wherever_a_chunk_ends(
    folder: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mentions, "_CHUNK", chunk)
    (name,) = listing(folder).writers
    for key in ("rewind", "a", "b"):
        assert may_mention(folder, name, key)
        assert may_mention(folder, name, key, start=40)
    assert not may_mention(folder, name, "rewound")
    assert not may_mention(folder, "another", "rewind")


def test_what_cannot_be_read_may_hold_anything(folder: str) -> None:
    (name,) = listing(folder).writers
    for path in Path(folder).rglob(f"{name}-*"):
        path.chmod(0)
        path.rename(path.with_name(path.name + "~"))
        path.with_name(path.name).symlink_to("nowhere")  # which no reader follows
    assert may_mention(folder, name, "anything")
