"""The rows of one key in a sealed file, by several threads: the same rows and the same errors."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventlog import lookup, pages, sealedwriter
from eventlog.archiving import archive
from eventlog.errors import FormatError
from eventlog.frame import to_events
from eventlog.reader import WriterReader
from eventlog.seal import seal
from eventlog.sealed import SealedFile
from tests.helpers import event, plain, run_in
from tests.test_archiving import sealed_run
from tests.test_seal import segments

COUNT = 300


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr("eventlog.sealedwriter.GROUP_ROWS", 64)
    monkeypatch.setattr("eventlog.segment._CHUNK", 20_000)


@pytest.fixture(params=[1, 2, 4])
def threads(request, monkeypatch):
    monkeypatch.setattr(lookup, "cores", lambda: request.param)
    return request.param


def events(values):
    return [event(n, {"loss": values(n), "lr": 3e-4}, n or None) for n in range(COUNT)]


def sealed(folder, made):
    folder = segments(folder, made[:200], made[200:])
    seal(folder)
    (path,) = Path(folder, "sealed").iterdir()
    return folder, path


def rows(folder, key="loss"):
    reader = WriterReader(folder, "w0", key=key)
    return [plain(e) for table in reader.tables() for e in to_events(table)]


def wanted(made, key="loss"):
    return [plain(e._replace(rows=tuple(r for r in e.rows if r.key == key))) for e in made]


ODD = {1: None, 2: 2**70, 3: "é", 4: b"\xff", 5: True, 6: float("nan"), 7: [1, (2,)]}


@pytest.mark.parametrize("kind", ["floats", "all types", "one key"])
def test_rows_are_the_same_with_any_number_of_threads(kind, threads, tmp_path):
    made = events((lambda n: ODD.get(n % 9, n)) if kind == "all types" else (lambda n: n / 7))
    if kind == "one key":
        made = [e._replace(rows=e.rows[:1]) for e in made]
    folder, _path = sealed(run_in(tmp_path), made)
    assert rows(folder) == wanted(made)
    other = sealed_run(tmp_path, "other")
    archive(str(Path(folder).parent), [folder, other], unchanged=0)
    assert not Path(folder, "sealed").exists()
    assert rows(folder) == wanted(made)
    assert not [t for t in threading.enumerate() if t.name.startswith("eventlog-ahead")]


def changed(path, change):
    """Write a sealed file anew with other columns, all else as it was."""
    file = pq.ParquetFile(path, read_dictionary=["key", "kind", "type", "run_id", "writer"])
    told, groups = file.metadata.metadata, range(file.metadata.num_row_groups)
    tables = [change(n, file.read_row_group(n)) for n in groups]
    with pq.ParquetWriter(path, tables[0].schema, **sealedwriter.options()) as out:
        for table in tables:
            out.write_table(table, row_group_size=table.num_rows)
        keep = [k for k in told if k.startswith(b"eventlog.")]
        out.add_key_value_metadata({k: told[k] for k in keep})


def with_words(table, name, words, *, nullable=False):
    words = pa.array(words).dictionary_encode()
    at = table.schema.get_field_index(name)
    return table.set_column(at, pa.field(name, words.type, nullable=nullable), words)


def test_rows_of_another_writer_are_left_out(threads, tmp_path):
    made = events(float)
    folder, path = sealed(tmp_path, made)
    others = range(10, COUNT)

    def change(_group, table):
        seqs = table.column("seq").to_pylist()
        writers = ["other" if seq in others else "w0" for seq in seqs]
        return with_words(table, "writer", writers)

    changed(path, change)
    assert rows(folder) == wanted(made)[:10]


@pytest.mark.parametrize("name", ["key", "writer", "type"])
def test_a_null_where_none_may_be_is_damage(name, threads, tmp_path):
    folder, path = sealed(tmp_path, events(float))

    def change(_group, table):
        words = [None, None, *table.column(name).to_pylist()[2:]]
        return with_words(table, name, words, nullable=True)

    changed(path, change)
    with pytest.raises(FormatError, match=r"null"):
        rows(folder)


def test_what_is_before_the_damage_is_read(threads, tmp_path):
    folder, path = sealed(tmp_path, events(lambda n: n / 7))
    good = path.read_bytes()
    with open(path, "rb") as file:
        groups = pages.groups(file)
        before = sum(group.rows for group in groups[:6]) // 2
        for column in ("num", "key", "step"):
            place = groups[6].columns[column]
            (*_some, last) = pages._pages(file, place)
            at = last.at + last.packed // 2
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            found, reader = [], WriterReader(folder, "w0", key="loss")
            with pytest.raises(FormatError):
                for table in reader.tables():
                    found += table.column("seq").to_pylist()
            # The last event may be held back: the damaged row group could have gone on with it.
            assert found == list(range(len(found)))
            assert before - 1 <= len(found) <= before


def test_a_page_that_lies_about_its_size_is_found_in_its_turn(threads, tmp_path, monkeypatch):
    folder, _path = sealed(tmp_path, events(float))
    real = SealedFile.unpacked

    def unpacked(self, group, columns):
        if group == 6:
            raise FormatError("row group 6 unpacks to a terabyte", on=self.path)
        return real(self, group, columns)

    monkeypatch.setattr(SealedFile, "unpacked", unpacked)
    found = []
    with pytest.raises(FormatError, match="terabyte"):
        for table in WriterReader(folder, "w0", key="loss").tables():
            found += table.column("seq").to_pylist()
    assert len(found) >= 6 * 32 - 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), FormatError("another file")])
@pytest.mark.parametrize("good", [0, 1])
def test_a_file_that_cannot_be_opened_again_is_read_all_the_same(
    error, good, tmp_path, monkeypatch
):
    monkeypatch.setattr(lookup, "cores", lambda: 4)
    made = events(float)
    folder, _path = sealed(tmp_path, made)
    real, calls = SealedFile.again, []

    def again(self):
        calls.append(self)
        if len(calls) > good:
            raise error
        return real(self)

    monkeypatch.setattr(SealedFile, "again", again)
    assert rows(folder) == wanted(made)
    assert len(calls) == good + 1
