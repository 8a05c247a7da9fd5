"""One metric as Arrow: the rows of one key, live, sealed, of several attempts, in any file."""

from __future__ import annotations

import pytest

import eventlog
from eventlog.errors import UsageError
from eventlog.frame import schema, to_events
from eventlog.reader import WriterReader
from eventlog.seal import seal
from eventlog.series import series
from tests.helpers import event, plain, run_in, writer
from tests.test_seal import segments


def wanted(events, key):
    kept = [(e, [row for row in e.rows if row.key == key]) for e in events]
    return [plain(e._replace(rows=tuple(rows))) for e, rows in kept if rows]


def found(table):
    return list(map(plain, to_events(table)))


def events(count=300):
    odd = {3: {"text": "é"}, 7: {"loss": 2**60 + 1, "x": b"\xff"}, 150: {"loss": float("nan")}}
    return [event(n, odd.get(n, {"loss": n / 7, "lr": 3e-4}), n or None) for n in range(count)]


@pytest.mark.parametrize("key", ["loss", "lr", "text", "x", "none of them"])
def test_the_rows_of_a_key_are_those_of_the_run_to_the_bit(key, tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.sealedwriter.GROUP_ROWS", 64)
    monkeypatch.setattr("eventlog.segment._CHUNK", 20_000)
    folder = segments(tmp_path, events()[:200], events()[200:])
    for _ in range(2):
        table = series(folder, key)
        assert table.schema.names == [*schema().names, "writer"]
        assert found(table) == wanted(events(), key)
        assert set(table.column("writer").to_pylist()) <= {"w0"}
        seal(folder)
    for start in (1, 63, 64, 199, 299, 300):
        reader = WriterReader(folder, "w0", start=start, key=key)
        assert [plain(e) for t in reader.tables() for e in to_events(t)] == wanted(
            events()[start:], key
        )
        assert reader.next_seq == 300


def test_columns_that_were_not_asked_for_are_not_there(tmp_path):
    folder = segments(tmp_path, events())
    for _ in range(2):
        reader = WriterReader(folder, "w0", columns=["num", "step"])
        tables = list(reader.tables())
        assert {tuple(t.schema.names) for t in tables} == {("seq", "step", "num")}
        assert sum(t.num_rows for t in tables) == sum(len(e.rows) for e in events())
        seal(folder)


def test_the_effective_series_leaves_out_what_was_logged_again(tmp_path):
    folder = run_in(tmp_path)
    for number, (first, last) in enumerate([(0, 9), (5, 15)]):
        attempt = {"key": f"a{number}", "launch": "l", "restart": [number], "start": number + 1}
        one = writer(folder, identity={"project": "p", "name": "n", "attempt": attempt})
        for n in range(first, last):
            one.append("metric", {"loss": n + 100 * number}, n)
        one.close()
    steps = series(folder, "loss").column("step").to_pylist()
    assert steps == list(range(15))
    assert len(series(folder, "loss", view="all")) == 19
    assert eventlog.read_series("p/n", "loss", journal=str(tmp_path)).equals(series(folder, "loss"))
    with pytest.raises(UsageError):
        series(folder, "loss", view="nothing")
