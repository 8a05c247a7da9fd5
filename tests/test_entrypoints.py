"""Entry points are found: ours without looking at every package, and those of others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eventlog import entrypoints


def install(place: Path, name: str, points: str) -> None:
    info = place / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def test_ours_are_found_without_importlib_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[console_scripts]\nx = no:thing\n\n[g]\nx = os.path:join\n\n[h]\nx = no:thing\n"
    install(tmp_path, "eventlog_journal", points)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "none"), str(tmp_path), *sys.path])
    monkeypatch.setitem(sys.modules, "importlib.metadata", None)  # what imports it fails
    assert entrypoints.load("g", "x") is __import__("os").path.join


def test_those_of_others_are_found_and_ours_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "other", "[g]\nx = os.path:split\ny = os.path:split\n")
    install(tmp_path / "b", "eventlog_journal", "[g]\nx = os.path:join\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b"), *sys.path])
    path = __import__("os").path
    assert entrypoints.load("g", "x") is path.join
    assert entrypoints.load("g", "y") is path.split
    assert entrypoints.load("g", "z") is None
    assert entrypoints.names("g") == {"x", "y"}


def test_a_file_that_is_no_text_is_as_if_it_were_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "eventlog_journal", "")
    (tmp_path / "eventlog_journal-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[g]")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert entrypoints._own("g", "x") is None
