"""Names: one to one, nothing escapes the journal, foreign files are ignored."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.errors import UsageError
from eventlog.layout import (
    SealedName,
    SegmentName,
    escape,
    is_blob,
    is_writer,
    run_folder,
    sealed_name,
    segment_name,
    unescape,
)
from tests.helpers import examples

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(NAMES)
@settings(max_examples=examples(60, 200))
def test_every_name_has_one_folder_name_and_comes_back(name):
    text = escape(name)
    assert len(text) <= 200
    assert not text.startswith(".")
    assert set(text).isdisjoint('/\\\0:*?"<>| \n')
    assert unescape(text) == (None if "%~" in text else name)


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
@settings(max_examples=examples(40, 100))
def test_different_names_have_different_folders(names):
    assert len({escape(n) for n in names}) == len(names)


@pytest.mark.parametrize("length", [199, 200, 201, 5_000])
def test_a_long_name_is_cut_and_still_the_only_one(length):
    texts = {escape("é" * length + end) for end in "ab"}
    assert len(texts) == 2
    assert all(len(t.encode()) <= 200 for t in texts)


@pytest.mark.parametrize("name", ["..", ".", "../../etc/passwd", "/abs", "a/b", "%~x", "a\0b"])
def test_a_hostile_name_stays_inside_the_journal(name):
    folder = run_folder("/journal", name, name)
    assert os.path.normpath(folder).startswith("/journal/project=")
    assert folder.count("/") == 3


@pytest.mark.parametrize("name", ["", "\ud800"])
def test_what_can_be_no_name_is_refused(name):
    with pytest.raises(UsageError):
        escape(name)


@pytest.mark.parametrize(
    "name",
    [
        ".nfs000012",
        "w0-0.arrows~",
        "w0-0.arrows.tmp",
        ".w0-0.arrows.swp",
        "w0-00.arrows",
        "W0-0.arrows",
        "w0--1.arrows",
        "-0.arrows",
        "w0-0.arrows\n",
        "w" * 17 + "-0.arrows",
        "w0-5-4.parquet",
        "w0-1.parquet",
        "é-0.arrows",
        ".tmp-123",
        "w0-1" + "0" * 30 + ".arrows",
    ],
)
def test_foreign_files_are_ignored(name):
    assert segment_name(name) is None
    assert sealed_name(name) is None


@given(st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True), st.integers(0, 10**18), st.integers(0, 9))
def test_names_of_files_come_back(writer, number, more):
    assert is_writer(writer)
    assert segment_name(str(SegmentName(writer, number))) == (writer, number)
    name = SealedName(writer, number, number + more)
    assert sealed_name(str(name)) == name


def test_a_blob_is_named_after_its_bytes_only():
    assert is_blob("0" * 64)
    assert not any(map(is_blob, ["0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"]))
