"""Each kind of damage has its verdict, its exit code, and a report that names file and loss."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eventlog.cli.main import run as command
from eventlog.delivery import Cursor, Delivery, Mark, state_folder
from eventlog.event import digest
from eventlog.seal import seal
from tests.helpers import event, header, put, read, run_in, segment_bytes, series

COUNT = 20


def whole(journal):
    folder = run_in(journal)
    parts = [(0, 10), (10, 20)]
    for number, (first, last) in enumerate(parts):
        head = header("w0", number, first)
        data, _ends = segment_bytes(series(last - first, first), head, durable=first, end=True)
        put(folder, head.name, data)
    return folder


def torn(folder):
    path = Path(folder, "w0-1.arrows")
    path.write_bytes(path.read_bytes()[:-300])
    return "w0-1.arrows: ", "from offset"


def corrupt(folder):
    path = Path(folder, "w0-0.arrows")
    data = path.read_bytes()
    path.write_bytes(data[:5000] + b"\0" * 8 + data[5008:])
    return "w0-0.arrows: bad bytes at offset", "valid frames behind them", "are missing"


def missing(folder):
    head = header("w0", 2, 20)
    put(folder, head.name, segment_bytes(series(3, 20), head, durable=20, end=True)[0])
    os.unlink(os.path.join(folder, "w0-1.arrows"))
    return "events 10 to 19 are missing", "w0-1.arrows: no such file"


def gap(folder):
    head = header("w0", 2, 25)
    put(folder, head.name, segment_bytes(series(3, 25), head, durable=25, end=True)[0])
    return "events 20 to 24 are missing", "no file holds them"


def fork(folder):
    head = header("w0", 2, 15)
    put(folder, head.name, segment_bytes([event(n, {"loss": 0.0}) for n in range(15, 22)], head)[0])
    return "w0-1.arrows and w0-2.arrows both hold event 15, and differ", ""


def foreign(folder):
    path = Path(folder, "w0-1.arrows")
    path.write_bytes(b"PK\3\4" + path.read_bytes()[4:])
    return "w0-1.arrows: no segment of an event log starts like this", ""


def restored(folder, durable=20):
    cursor(folder, Mark(acked=20, attempted=20, crc=1, durable=durable))
    os.unlink(os.path.join(folder, "w0-1.arrows"))
    return "mlflow:here was proven to hold 20 events of w0, 10 are here", "restored"


def changed(folder):
    cursor(folder, Mark(acked=20, attempted=20, crc=digest(read(folder)[-1]) ^ 1, durable=20))
    return "event 19 of w0 is not the one that was delivered to mlflow:here", "changed"


def power_cut(folder):
    restored(folder, durable=10)
    return "10 are here: a power cut may have taken the others", ""


def untouched(folder):
    cursor(folder, Mark(acked=20, attempted=20, crc=digest(read(folder)[-1]), durable=20))
    return ("",)


def cursor(folder, mark):
    journal = os.path.dirname(os.path.dirname(folder))
    one = Delivery(state_folder(journal), kind="mlflow", address="here", project="p", run="run-1")
    one.save(Cursor("run-1", "p", "mlflow", "here", writers={"w0": mark}))


@pytest.mark.parametrize(
    ("damage", "verdict", "code"),
    [
        (untouched, "ok", 0),
        (torn, "torn", 0),
        (power_cut, "torn", 0),
        (corrupt, "corrupt", 4),
        (missing, "missing", 4),
        (gap, "gap", 4),
        (fork, "fork", 4),
        (foreign, "corrupt", 4),
        (restored, "restored", 4),
        (changed, "restored", 4),
    ],
)
def test_damage_has_its_verdict(damage, verdict, code, tmp_path, capsys):
    folder = whole(tmp_path)
    said = damage(folder)
    assert command(["verify", str(tmp_path), "--json"]) == code
    out, err = capsys.readouterr()
    (report,) = json.loads(out)
    assert report["verdict"] == verdict
    for text in said:
        assert text in err
    if damage is foreign:
        assert "foreign" in {f["verdict"] for w in report["writers"] for f in w["files"]}
    assert command(["verify", str(tmp_path)]) == code
    assert verdict in capsys.readouterr().out


def test_where_the_good_bytes_of_a_file_end_is_told(tmp_path, capsys):
    folder = run_in(tmp_path)
    data, ends = segment_bytes(series(9))
    put(folder, "w0-0.arrows", data[: ends[5] + 77])
    assert command(["verify", folder, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    (file,) = report["writers"][0]["files"]
    assert (file["offset"], file["lost_bytes"], file["last"]) == (ends[5], 77, 4)
    assert file["segments"] == [0]


def test_a_row_group_that_is_not_what_was_sealed_is_named(tmp_path, capsys):
    import pyarrow.parquet as pq

    folder = whole(tmp_path)
    seal(folder)
    (path,) = Path(folder, "sealed").iterdir()
    good = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(0).column(6).data_page_offset + 60
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert command(["verify", folder]) == 4
    assert "sealed/w0-0-19.parquet" in capsys.readouterr().err
