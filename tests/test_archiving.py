"""Archives: many runs in one file, at every instant readable, killed at any moment."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import duckdb
import pytest

import eventlog
from eventlog import pages
from eventlog.archive import open_sealed
from eventlog.archived import archived
from eventlog.archiving import archive
from eventlog.audit import verify
from eventlog.catalog import Found, find_all
from eventlog.cli.main import run as command
from eventlog.delivery import footprint
from eventlog.errors import FormatError, TemporaryError
from eventlog.files import Files
from eventlog.glance import glance
from eventlog.layout import archived_path
from eventlog.reader import WriterReader, headers, listing
from eventlog.runfile import RunFile, claim, read_all
from eventlog.salvage import salvage
from eventlog.seal import seal
from eventlog.sealed import SealedFile
from eventlog.segment import Header, check_format
from eventlog.series import series as read_series
from replayers.replay import replay
from replayers.to_memory import MemoryTarget
from tests.helpers import Failing, plain, put, read, run_in, same, segment_bytes, series

OPERATIONS = (*Failing.WRITING, "remove_folder", "lock_folder")


def sealed_run(journal, run, count=6, parts=1):
    """Make a run of one writer, sealed in parts."""
    folder = run_in(journal, run)
    events, size = series(count), count // parts
    for number, at in enumerate(range(0, count, size)):
        head = Header(run, f"w{run}", number, at, {"project": "p", "name": "n", "rank": 0})
        put(folder, head.name, segment_bytes(events[at : at + size], head, durable=at, end=True)[0])
        seal(folder)
    return folder


def three(journal, parts=1):
    return [sealed_run(journal, f"r{n}", parts=parts) for n in range(3)]


def files_of(folder):
    top = Path(folder)
    return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())


def archives(journal):
    return sorted(p.name for p in Path(journal, "project=p", "sealed").glob("runs-*"))


def project(journal):
    return os.path.join(journal, "project=p")


def what(folder):
    """Return all that is seen of a run."""
    parts = headers(folder)
    events = {w: [plain(e) for e in WriterReader(folder, w).events()] for w in parts}
    look, report = glance(folder), verify(folder)
    told = [(w.writer, w.events, w.rows, w.verdict, w.declared) for w in report.writers]
    table = read_series(folder, "loss").to_pylist()
    return parts, events, look, (report.verdict, report.complete, told), str(table)


class Fails(Failing):
    """Fails the operations that archiving adds, too."""

    def remove_folder(self, path):
        self._count("remove_folder")
        super().remove_folder(path)


def test_everything_that_is_seen_of_a_run_stays_as_it_was(tmp_path):
    folders = three(tmp_path)
    before = [(what(folder), footprint(folder)) for folder in folders]
    done = archive(project(tmp_path), folders, unchanged=0)
    assert (done.runs, done.removed, done.left, len(done.archives)) == (
        ("r0", "r1", "r2"),
        3,
        {},
        1,
    )
    assert [(what(folder), footprint(folder)) for folder in folders] == before
    names = [f"run=r{n}/run.json" for n in range(3)]
    assert files_of(project(tmp_path)) == sorted([*names, f"sealed/{done.archives[0]}"])
    again = archive(project(tmp_path), folders, unchanged=0)
    assert (again.archives, again.left, again.removed) == ((), {}, 0)


def test_many_files_of_a_run_are_one_part_each_writer(tmp_path):
    folders = three(tmp_path, parts=3)
    before = [what(folder) for folder in folders]
    archive(project(tmp_path), folders, unchanged=0)
    assert [what(folder) for folder in folders] == before
    assert [len(names) for f in folders for names in archived(f).values()] == [1, 1, 1]


def test_a_part_is_read_without_the_row_groups_of_others(tmp_path, monkeypatch):
    folders = three(tmp_path)
    archive(project(tmp_path), folders, unchanged=0)
    asked = []
    plain_rows = SealedFile.rows

    def rows(self, group, columns=None):
        asked.append(self._first + group)
        return plain_rows(self, group, columns)

    monkeypatch.setattr(SealedFile, "rows", rows)
    assert same(read(folders[1]), series(6))
    assert set(asked) == {1}


def test_who_knows_no_archives_is_told_so_and_shows_no_empty_run(tmp_path):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    told = json.loads(Path(folders[0], "run.json").read_text())
    assert (told["id"], told["archives"]) == ("r0", [name])
    with pytest.raises(FormatError, match="newer"):
        check_format(told["format"])  # all that readers of format 1.0 look at
    with pytest.raises(FormatError, match="newer"):
        SealedFile(os.path.join(project(tmp_path), "sealed", name))
    run, names = read_all(folders[0])
    assert (run, names) == (RunFile("r0", "p", "n"), (name,))
    claim(folders[0], run)  # a run that goes on finds itself


def test_a_run_goes_on_in_its_folder_and_is_one_run(tmp_path):
    journal = str(tmp_path)
    for name in ("a", "b"):
        with eventlog.init("p", name, id=name, dir=journal, quiet=True) as run:
            run.log({"loss": 1.0}, step=0)
    folders = [str(tmp_path / "project=p" / f"run={n}") for n in ("a", "b")]
    archive(project(journal), folders, unchanged=0)
    run = eventlog.init("p", "a", dir=journal, resume="allow", quiet=True)
    assert (run.id, run.attempt) == ("a", 2)
    run.log({"loss": 0.5}, step=1)
    assert read_series(folders[0], "loss").column("num").to_pylist() == [1.0, 0.5]
    left = archive(project(journal), folders, unchanged=0).left
    assert "not sealed" in left["a"]
    run.finish()
    assert verify(folders[0]).complete == "complete"
    assert [a.ordinal for a in glance(folders[0]).attempts] == [1, 2]
    with eventlog.init("p", "c", id="c", dir=journal, quiet=True) as run:
        run.log({"loss": 3.0}, step=0)
    folders.append(str(tmp_path / "project=p" / "run=c"))
    before = [what(folder) for folder in folders]
    assert archive(project(journal), folders, unchanged=0).runs == ("a", "c")
    assert [what(folder) for folder in folders] == before
    assert sorted(read_all(folders[0])[1]) == archives(journal) and len(archives(journal)) == 2


def test_a_sync_after_archiving_sends_nothing(tmp_path):
    for name in ("a", "b"):
        with eventlog.init("p", name, id=name, dir=tmp_path / "j", quiet=True) as run:
            run.log({"loss": 1.0}, step=0)
    found, _bad = find_all([str(tmp_path / "j")])
    target, state = MemoryTarget(), str(tmp_path / "state")
    assert [replay(one, target, state).sent > 0 for one in found] == [True, True]
    archive(project(tmp_path / "j"), [one.folder for one in found], unchanged=0)
    target.open = None  # whoever asks it anything fails
    again = [replay(one, target, state) for one in found]
    assert [(one.sent, one.settled == one.events) for one in again] == [(0, True)] * 2


def test_a_sync_that_begins_after_archiving_sends_everything(tmp_path):
    folders = three(tmp_path / "j")
    archive(project(tmp_path / "j"), folders, unchanged=0)
    target = MemoryTarget()
    for one in find_all([str(tmp_path / "j")])[0]:
        assert replay(one, target, str(tmp_path / "state")).settled == 6


def test_sql_over_the_archive_by_hive_path_finds_each_row_once(tmp_path):
    folders = [*three(tmp_path), sealed_run(tmp_path, "other")]
    rows = sum(e.rows.__len__() for e in series(6))
    archive(project(tmp_path), folders[:3], unchanged=0)
    query = f"FROM read_parquet('{tmp_path}/project=*/**/*.parquet', hive_partitioning=false)"
    assert duckdb.sql(f"SELECT count(*) {query}").fetchall() == [(4 * rows,)]
    query = f"FROM read_parquet('{tmp_path}/project=*/sealed/*.parquet')"
    found = duckdb.sql(f"SELECT project, run_id, count(*) {query} GROUP BY ALL ORDER BY ALL")
    assert found.fetchall() == [("p", f"r{n}", rows) for n in range(3)]
    loss = duckdb.sql(f"SELECT num {query} WHERE run_id = 'r1' AND key = 'loss' ORDER BY seq")
    assert [v for (v,) in loss.fetchall()] == [n / 7 for n in range(6)]


# ------------------------------------------------------------------------------ who is left alone


def test_what_changed_not_long_ago_is_left_alone_and_a_dry_run_changes_nothing(tmp_path):
    folders = three(tmp_path)
    before = files_of(tmp_path)
    done = archive(project(tmp_path), folders)
    assert (done.runs, set(done.left), done.wrong) == ((), {"r0", "r1", "r2"}, ())
    plan = archive(project(tmp_path), folders, unchanged=0, dry_run=True)
    assert (plan.runs, plan.archives, plan.removed) == (("r0", "r1", "r2"), (), 3)
    assert files_of(tmp_path) == before
    assert set(os.listdir(project(tmp_path))) == {"run=r0", "run=r1", "run=r2"}


def test_one_run_alone_large_runs_and_runs_with_segments_are_left_alone(tmp_path, monkeypatch):
    folders = three(tmp_path)
    assert "no other" in archive(project(tmp_path), folders[:1], unchanged=0).left["r0"]
    put(folders[0], "wx-0.arrows", segment_bytes(series(1))[0])
    monkeypatch.setattr("eventlog.archiving.LARGE_ROWS", 10)
    done = archive(project(tmp_path), folders, unchanged=0)
    assert ["not sealed" in done.left["r0"], "large" in done.left["r1"]] == [True, True]
    assert done.archives == () and done.wrong == ()


def test_a_damaged_file_is_left_alone_and_told_and_the_others_are_archived(tmp_path):
    folders = [*three(tmp_path), sealed_run(tmp_path, "r3")]
    path = Path(folders[1], "sealed", "wr1-0-5.parquet")
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    done = archive(project(tmp_path), folders, unchanged=0)
    assert (done.runs, done.wrong) == (("r0", "r2", "r3"), ("r1",))
    assert path.read_bytes() == data


def test_an_archive_ends_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("eventlog.archivewriter.MOST_PARTS", 2)
    folders = [sealed_run(tmp_path, f"r{n}") for n in range(5)]
    done = archive(project(tmp_path), folders, unchanged=0)
    assert (len(done.archives), len(done.runs), list(done.left)) == (2, 4, ["r4"])
    assert all(same(read(folder), series(6)) for folder in folders)


def test_a_second_process_is_told_that_there_is_one(tmp_path):
    folders = three(tmp_path)
    fd = Files().lock_folder(project(tmp_path))
    with pytest.raises(TemporaryError, match="another process"):
        archive(project(tmp_path), folders, unchanged=0)
    os.close(fd)
    assert len(archive(project(tmp_path), folders, unchanged=0).archives) == 1


# ------------------------------------------------------------------------------ kills and failures


def copied(tmp_path, n):
    """Return a new copy of one project, and its runs' folders."""
    if n == 1 or not os.path.exists(tmp_path / "first"):
        three(tmp_path / "first")
    journal = tmp_path / str(n)
    shutil.copytree(tmp_path / "first", journal)
    return journal, [os.path.join(project(journal), f"run=r{n}") for n in range(3)]


def test_a_kill_at_any_operation_leaves_a_project_that_reads_the_same(tmp_path, repeats):
    whole = series(6)
    for n in itertools.count(1, repeats(6, 1)):
        journal, folders = copied(tmp_path, n)
        before = [footprint(folder) for folder in folders]
        pid = os.fork()
        if pid == 0:
            files = Fails(lambda call, name, n=n: os._exit(9) if call == n else None, OPERATIONS)
            try:
                archive(project(journal), folders, unchanged=0, files=files)
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert all(same(read(folder), whole) for folder in folders), n
        assert [verify(folder).verdict for folder in folders] == ["ok"] * 3, n
        assert [footprint(folder) for folder in folders] == before, n
        found, bad = find_all([str(journal)])
        assert (len(found), bad) == (3, []), n
        archive(project(journal), folders, unchanged=0)
        left = [name for name in files_of(journal) if ".tmp-" not in name]
        assert len(left) == 4 and len(archives(journal)) == 1, (n, left)
        assert all(same(read(folder), whole) for folder in folders), n
        if not killed:
            assert n > 15
            return
        shutil.rmtree(journal)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_failure_of_any_operation_removes_nothing_that_is_not_elsewhere(tmp_path, error, repeats):
    whole = series(6)
    for n in itertools.count(repeats(error % 2 + 1, 1), repeats(9, 1)):
        journal, folders = copied(tmp_path, n)
        failure = OSError(error, os.strerror(error))
        files = Fails(lambda call, name, n=n, e=failure: e if call == n else None, OPERATIONS)
        try:
            archive(project(journal), folders, unchanged=0, files=files)
        except OSError:
            assert len(files.calls) >= n
        assert [name for name in files_of(journal) if ".tmp-" in name] == []
        assert all(same(read(folder), whole) for folder in folders), n
        assert [verify(folder).verdict for folder in folders] == ["ok"] * 3, n
        archive(project(journal), folders, unchanged=0)
        assert len(files_of(journal)) == 4, n
        assert all(same(read(folder), whole) for folder in folders), n
        if len(files.calls) < n:
            return
        shutil.rmtree(journal)


def test_what_a_copy_brought_again_is_read_once_and_goes_again(tmp_path):
    folders = three(tmp_path)
    shutil.copytree(folders[0], tmp_path / "copy")
    segment = segment_bytes(series(6), Header("r1", "wr1", 0, 0, {"a": 1}), end=True)[0]
    archive(project(tmp_path), folders, unchanged=0)
    shutil.copytree(tmp_path / "copy", folders[0], dirs_exist_ok=True)  # its run.json, too
    put(folders[1], "wr1-0.arrows", segment)
    assert [same(read(folder), series(6)) for folder in folders] == [True] * 3
    assert [verify(folder).verdict for folder in folders] == ["ok"] * 3
    assert read_all(folders[0])[1] == ()
    done = archive(project(tmp_path), folders, unchanged=0)
    assert (done.archives, done.removed, list(done.left)) == ((), 1, ["r1"])
    assert read_all(folders[0])[1] == tuple(archives(tmp_path))
    assert seal(folders[1]).files == ()  # nothing of it is sealed twice


def test_a_segment_that_an_archive_repeats_goes_when_it_is_sealed_again(tmp_path):
    identity = {"project": "p", "name": "n", "rank": 0}
    head = Header("r0", "wr0", 0, 0, identity)
    folders = three(tmp_path)
    archive(project(tmp_path), folders, unchanged=0)
    put(folders[0], head.name, segment_bytes(series(6), head, durable=0, end=True)[0])
    done = seal(folders[0])
    assert (done.files, done.removed) == ((), 1)
    assert same(read(folders[0]), series(6))


def test_a_file_that_an_archive_contradicts_is_kept_and_told(tmp_path):
    folders = three(tmp_path)
    archive(project(tmp_path), folders, unchanged=0)
    head = Header("r0", "wr0", 0, 0, {"project": "p", "name": "n"})
    elsewhere = run_in(tmp_path / "elsewhere", "r0")
    put(elsewhere, head.name, segment_bytes(series(7)[1:], Header("r0", "wr0", 0, 1), end=True)[0])
    put(elsewhere, head.name, segment_bytes(_changed(), head, end=True)[0])
    seal(elsewhere)
    shutil.copytree(Path(elsewhere, "sealed"), Path(folders[0], "sealed"))
    done = archive(project(tmp_path), folders, unchanged=0)
    assert done.wrong == ("r0",) and "differs" in done.left["r0"]
    assert os.path.exists(os.path.join(folders[0], "sealed", "wr0-0-5.parquet"))
    assert verify(folders[0]).verdict == "fork"


def _changed():
    return [one._replace(time=one.time + (one.seq == 3)) for one in series(6)]


# ------------------------------------------------------------------------------ damage, hostile


def test_damage_in_an_archive_is_told_with_the_file_and_the_run(tmp_path):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    path = Path(project(tmp_path), "sealed", name)
    data = bytearray(path.read_bytes())
    found = {"ok": 0, "corrupt": 0}
    with open_sealed(os.path.join(folders[1], archived(folders[1])["wr1"][0].path)) as file:
        start = min(c.start for c in file._places()[1].columns.values())
        stop = max(c.stop for c in file._places()[1].columns.values())
    data[(start + stop) // 2] ^= 4
    path.write_bytes(data)
    for number, folder in enumerate(folders):
        report = verify(folder)
        assert report.verdict == ("corrupt" if number == 1 else "ok")
        found[report.verdict] += 1
        problems = [p for w in report.writers for p in w.problems]
        assert all(f"{name}/run=r1/wr1-0-5.parquet" in p for p in problems[-1:])
    assert found == {"ok": 2, "corrupt": 1}


def test_a_run_whose_archive_is_not_here_says_so_everywhere(tmp_path, capsys):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    path = Path(project(tmp_path), "sealed", name)
    whole = path.read_bytes()
    for content, why in ((None, "is not here"), (whole[:-9], "cannot be read")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        found, bad = find_all([str(tmp_path)])
        assert found == [] and len(bad) == 3
        assert all(name in str(one.error) and why in str(one.error) for one in bad)
        for verb in ("ls", "verify"):
            assert command([verb, str(tmp_path)]) == 4
            assert why in capsys.readouterr().err
        path.write_bytes(whole)
    found, bad = find_all([str(tmp_path)])
    assert (len(found), bad) == (3, [])


def test_a_copy_of_any_prefix_is_a_journal(tmp_path):
    folders = three(tmp_path / "a")
    archive(project(tmp_path / "a"), folders, unchanged=0)
    names = files_of(tmp_path / "a")
    for order in (names, names[::-1]):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        for count, name in enumerate(order, 1):
            (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tmp_path / "a" / name, tmp_path / "b" / name)
            if not os.path.isdir(project(tmp_path / "b")):
                continue
            for one in find_all([str(tmp_path / "b")])[0]:
                assert isinstance(one, Found)
                assert same(read(one.folder), series(6)), (count, name)
    assert len(find_all([str(tmp_path / "b")])[0]) == 3


def test_salvage_brings_back_what_an_archive_holds_and_names_one_it_cannot_read(tmp_path):
    folders = three(tmp_path / "a")
    (name,) = archive(project(tmp_path / "a"), folders, unchanged=0).archives
    target = str(tmp_path / "b" / "project=p" / "run=r0")
    done = salvage(folders[0], target)
    assert done.whole and same(read(target), series(6))
    assert headers(target) == headers(folders[0])
    assert read_all(target)[1] == ()
    Path(project(tmp_path / "a"), "sealed", name).unlink()
    done = salvage(folders[1], str(tmp_path / "b" / "project=p" / "run=r1"))
    assert not done.whole and name in done.bad_archives[0]


@pytest.mark.parametrize("column", ["seq", "time", "key", "num", "data", "writer"])
def test_what_a_damaged_archive_repeats_is_kept(column, tmp_path):
    """An archiving that was killed left the runs' own files; then the archive was damaged."""
    folders = three(tmp_path)
    own = {p: p.read_bytes() for f in folders for p in Path(f, "sealed").iterdir()}
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    for path, content in own.items():
        path.parent.mkdir()
        path.write_bytes(content)
    where = Path(project(tmp_path), "sealed", name)
    whole = bytearray(where.read_bytes())
    with open(where, "rb") as file:
        *_some, page = pages._pages(file, pages.groups(file)[1].columns[column])
    whole[page.at] ^= 1
    where.write_bytes(whole)
    done = archive(project(tmp_path), folders, unchanged=0)
    assert (done.wrong, done.removed) == (("r1",), 2)
    (kept,) = Path(folders[1], "sealed").iterdir()
    assert kept.read_bytes() == own[kept]
    assert all(same(read(folder), series(6)) for folder in folders)


class Unread(Files):
    """A disk that does not give some files."""

    def __init__(self, *names):
        self._names = names

    def open(self, path):
        if os.path.basename(path) in self._names:
            raise OSError(errno.EIO, "the disk", path)
        return super().open(path)


def test_a_run_is_not_without_events_because_the_disk_does_not_give_its_archive(
    tmp_path, monkeypatch
):
    """Who asks in such a moment hears of it; whose events are elsewhere hears nothing."""
    mine, others = three(tmp_path), [sealed_run(tmp_path, f"o{n}") for n in range(2)]
    (name,) = archive(project(tmp_path), mine, unchanged=0).archives
    (other,) = archive(project(tmp_path), others, unchanged=0).archives
    for bad in ([name], [name, "run.json"]):
        store = Unread(*bad)
        for look in (
            lambda: listing(mine[0], store),
            lambda: list(WriterReader(mine[0], "wr0", store=store).events()),
            lambda: read_series(mine[0], "loss", store=store),
            lambda: verify(mine[0], store),
        ):
            monkeypatch.setattr("eventlog.archive._runs", {})  # what was kept of the footers
            with pytest.raises(OSError, match="the disk"):
                look()
    monkeypatch.setattr("eventlog.archive._runs", {})
    assert same(WriterReader(mine[0], "wr0", store=Unread(other)).events(), series(6))
    monkeypatch.setattr("eventlog.archive._runs", {})
    found, unreadable = find_all([str(tmp_path)], files=Unread(name))
    assert (len(found), len(unreadable)) == (2, 3)


def test_links_out_of_the_journal_are_not_followed(tmp_path):
    folders = three(tmp_path / "a")
    archive(project(tmp_path / "a"), folders, unchanged=0)
    place = Path(project(tmp_path / "a"), "sealed")
    (name,) = os.listdir(place)
    os.rename(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert listing(folders[0]).writers == []
    place.unlink()
    place.mkdir()
    (place / name).symlink_to(tmp_path / "elsewhere" / name)
    assert listing(folders[0]).writers == []
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="folder of sealed files"):
        archive(
            project(tmp_path / "a"),
            [sealed_run(tmp_path / "a", f"n{n}") for n in range(2)],
            unchanged=0,
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "r1"),
        ("run", ""),
        ("run", 7),
        ("file", "../../x.parquet"),
        ("file", "wr0-0-9.parquet"),
        ("groups", 0),
        ("groups", 2),
        ("groups", -1),
        ("groups", 10**30),
        ("size", "x"),
        ("modified", None),
        ("segments", [{"header": {}}]),
        ("segments", 3),
        ("lost", [["a", 1, 2]]),
        ("lost", 5),
    ],
)
def test_an_archive_that_lies_is_refused(tmp_path, monkeypatch, field, value):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    lie(tmp_path, name, monkeypatch, {field: value})
    found, bad = find_all([str(tmp_path)])
    for one in found:  # a part's own metadata are looked at when it is read
        lied = one.run.id == ("r1" if field == "run" else "r0")
        assert verify(one.folder).verdict == ("corrupt" if lied else "ok")
        assert lied or glance(one.folder).events == 6
    assert len(bad) == (3 if field in ("file", "groups", "size", "modified") else len(bad))


def test_rows_of_another_run_in_a_part_are_damage(tmp_path, monkeypatch):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    lie(tmp_path, name, monkeypatch, {"run": "r9"})
    folder = run_in(tmp_path, "r9")
    report = verify(folder)
    assert report.verdict == "corrupt"
    assert "run_id" in report.writers[0].problems[0]


def lie(journal, name, monkeypatch, fields):
    """Write an archive again whose first part tells something else."""
    import zlib

    import pyarrow.parquet as pq

    path = os.path.join(project(journal), "sealed", name)
    old = pq.ParquetFile(path)
    meta = {k.decode(): v.decode() for k, v in old.metadata.metadata.items()}
    parts = json.loads(meta["eventlog.parts"])
    parts[0] |= fields
    meta["eventlog.parts"] = json.dumps(parts)
    text = (meta["eventlog.parts"] + meta["eventlog.groups"]).encode()
    meta["eventlog.crc32"] = f"{zlib.crc32(text):08x}"
    with pq.ParquetWriter(
        path + ".new", old.schema_arrow, store_schema=False, write_page_checksum=True
    ) as out:
        for group in range(old.num_row_groups):
            out.write_table(old.read_row_group(group))
        out.add_key_value_metadata(meta)
    os.replace(path + ".new", path)


def test_a_footer_that_says_it_is_huge_is_refused_before_it_is_read(tmp_path):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    path = Path(project(tmp_path), "sealed", name)
    path.write_bytes(path.read_bytes()[:-8] + (2**31).to_bytes(4, "little") + b"PAR1")
    _found, bad = find_all([str(tmp_path)])
    assert all("footer" in str(one.error) for one in bad) and len(bad) == 3


def test_every_flipped_bit_of_what_an_archive_tells_is_found(tmp_path, repeats):
    folders = three(tmp_path)
    (name,) = archive(project(tmp_path), folders, unchanged=0).archives
    path = Path(project(tmp_path), "sealed", name)
    whole = path.read_bytes()
    start = whole.index(b"eventlog.parts")
    step = repeats(97, 3)
    for at in range(
        start, whole.index(b"ARROW", start) if b"ARROW" in whole[start:] else len(whole) - 8, step
    ):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
        found, _bad = find_all([str(tmp_path)])
        for one in found:
            with contextlib.suppress(FormatError):  # where our own reading of footers is stricter
                assert same(read(one.folder), series(6)), at


def test_paths_of_parts_are_taken_apart():
    path = "/j/project=p/run=a/../sealed/runs-0123456789abcdef.parquet/run=a/w0-0-5.parquet"
    where = archived_path(path)
    assert where is not None
    assert where.archive == "/j/project=p/sealed/runs-0123456789abcdef.parquet"
    assert (where.run, str(where.name)) == ("run=a", "w0-0-5.parquet")
    assert archived_path("/j/project=p/run=a/sealed/w0-0-5.parquet") is None


# ------------------------------------------------------------------------------ the command


def test_the_command_says_what_it_did(tmp_path, capsys):
    folders = three(tmp_path)
    assert command(["compact", str(tmp_path), "--runs", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["runs"] == []
    assert "3 runs left alone: it changed not long ago" in told.err
    arguments = ["compact", str(tmp_path), "--runs", "--unchanged", "0", "--json"]
    assert command([*arguments, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)[0]
    assert (plan["dry_run"], plan["runs"], plan["archives"]) == (True, ["r0", "r1", "r2"], [])
    assert command(arguments) == 0
    done = json.loads(capsys.readouterr().out)[0]
    assert (done["project"], len(done["archives"]), done["removed"]) == ("p", 1, 3)
    assert done["bytes"] > 0 and done["rows"] == 3 * sum(len(e.rows) for e in series(6))
    assert command(["compact", str(tmp_path), "--dry-run"]) == 2
    for folder in folders:
        assert command(["show", folder, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["events"] == 6


def test_a_damaged_run_makes_the_command_exit_with_4_and_a_held_lock_with_75(tmp_path, capsys):
    folders = three(tmp_path)
    path = Path(folders[1], "sealed", "wr1-0-5.parquet")
    path.write_bytes(b"PAR1" + path.read_bytes()[4:-30])
    arguments = ["compact", str(tmp_path), "--runs", "--unchanged", "0"]
    fd = Files().lock_folder(project(tmp_path))
    assert command(arguments) == 75
    os.close(fd)
    assert command(arguments) == 4
    assert "r1: left alone" in capsys.readouterr().err
