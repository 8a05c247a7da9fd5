"""Cursor and ledger: exact, checked, bound to one journal."""

from __future__ import annotations

import os

import pytest

from eventlog.delivery import (
    Cursor,
    Delivery,
    Mark,
    cursor_bytes,
    deliveries,
    parse_cursor,
    state_folder,
)
from eventlog.errors import FormatError

CURSOR = Cursor(
    "run-1",
    "pé",
    "mlflow",
    "http://host:5000/é",
    known_as="abc",
    rules="r1",
    state='{"a": "b"}',
    synced=5,
    writers={"w0": Mark(3, 5, 123, 7, 9), "w1": Mark()},
    quarantined={"w0": [1, 2]},
)


def delivery(state, run="run-1"):
    return Delivery(str(state), kind="mlflow", address="http://host", project="p", run=run)


def test_a_cursor_comes_back_as_it_was():
    assert parse_cursor(cursor_bytes(CURSOR)) == CURSOR


def test_every_changed_byte_of_a_cursor_is_noticed():
    content = cursor_bytes(CURSOR)
    unnoticed = []
    for at in range(len(content)):
        for byte in {*(content[at] ^ 1 << bit for bit in range(8)), *b' \n\t"x0'} - {content[at]}:
            changed = content[:at] + bytes([byte]) + content[at + 1 :]
            try:
                parse_cursor(changed)
            except FormatError as error:
                assert error.hint is None
            else:
                unnoticed.append((at, byte))
    assert not unnoticed


def test_every_cut_of_a_cursor_is_noticed(tmp_path):
    content = cursor_bytes(CURSOR)
    for cut in range(len(content)):
        with pytest.raises(FormatError):
            parse_cursor(content[:cut])


def test_a_damaged_cursor_is_as_good_as_none(tmp_path):
    one = delivery(tmp_path)
    one.save(one.load()[0].with_mark("w0", Mark(3, 3, 1)))
    assert one.load()[1]
    path = os.path.join(one.folder, "cursor.json")
    with open(path, "r+b") as file:
        file.seek(40)
        file.write(b"~")
    cursor, there = one.load()
    assert not there
    assert cursor.writers == {}


def test_a_cursor_of_a_newer_version_is_refused_and_not_overwritten(tmp_path, monkeypatch):
    import eventlog.delivery as module

    one = delivery(tmp_path)
    monkeypatch.setattr(module, "FORMAT", "2.0")
    one.save(CURSOR)
    with pytest.raises(FormatError) as error:
        one.load()
    assert error.value.hint


def test_a_cursor_of_another_run_is_none(tmp_path):
    one = delivery(tmp_path)
    one.save(CURSOR)  # project pé
    assert not one.load()[1]


def test_marks_and_quarantine_are_added_without_changing_the_cursor():
    moved = CURSOR.with_mark("w0", Mark(9, 9)).with_quarantined("w0", [2, 7])
    assert (moved.mark("w0").acked, moved.mark("new")) == (9, Mark())
    assert moved.quarantined["w0"] == [1, 2, 7]
    assert CURSOR.mark("w0").acked == 3


def test_the_ledger_keeps_what_was_recorded_in_order(tmp_path):
    one = delivery(tmp_path)
    for n in range(5):
        one.record("delivery", {"writer": "w0", "first": n, "odd": object() if n == 3 else None})
    one.sync_ledger()
    one.close()
    again = delivery(tmp_path)
    again.record("note", {"first": 5})
    again.close()
    found = list(delivery(tmp_path).ledger())
    assert [fields["first"] for fields in found] == [0, 1, 2, 3, 4, 5]
    assert "refused" in found[3]
    assert found[5]["kind"] == "note"


def test_all_cursors_of_a_state_are_found_and_damaged_ones_left_out(tmp_path):
    for run in ("a", "b/c", "d"):
        one = delivery(tmp_path, run)
        one.save(one.load()[0])
    with open(os.path.join(delivery(tmp_path, "d").folder, "cursor.json"), "wb") as file:
        file.write(b"{")
    assert sorted(c.run for c in deliveries(str(tmp_path))) == ["a", "b/c"]


def test_the_state_lies_in_the_journal_or_where_it_was_told(tmp_path, monkeypatch):
    assert state_folder(str(tmp_path)) == str(tmp_path / "_replay")
    later = tmp_path / "not" / "there yet"
    assert state_folder(str(later)) == str(later / "_replay")
    assert state_folder(str(tmp_path), str(tmp_path / "x")) == str(tmp_path / "x")
    monkeypatch.setenv("EVENTLOG_STATE", str(tmp_path / "y"))
    assert state_folder(str(tmp_path)) == str(tmp_path / "y")
