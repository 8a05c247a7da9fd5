"""The command line: what it prints, its exit codes, and that wrong input changes nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

import eventlog
from eventlog import home
from eventlog.cli import output
from tests import warm

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the command line in a process of its own, in an empty folder."""
    (tmp_path / "cwd").mkdir()

    def call(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("EVENTLOG_", "MLFLOW"))}
        return warm.run(
            [*map(str, arguments)],
            cwd=tmp_path / "cwd",
            env={**environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), **variables},
        )

    return call


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of two runs of one name, and one of another project."""
    path = tmp_path / "journal"
    for project, name, id in (("p", "a", "id-one"), ("p", "a", "id-two"), ("q", "b", "other")):
        with eventlog.init(project, name, id=id, dir=path, config={"lr": 0.1}, quiet=True) as run:
            for step in range(20):
                run.log({"loss": 1 / (step + 1), "n": {"x": step}}, step=step)
            run.summary["best"] = 0.5
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_ls_lists_runs_as_a_table_and_as_json(cli: Cli, journal: Path) -> None:
    text = cli("ls", journal)
    assert text.returncode == 0, text.stderr
    assert len(text.stdout.splitlines()) == 4
    assert "finished" in text.stdout
    rows = json.loads(cli("ls", journal, "--json", "--run", "p/*").stdout)
    assert {(r["id"], r["status"], r["points"]) for r in rows} == {
        ("id-one", "finished", 40),
        ("id-two", "finished", 40),
    }


def test_show_tells_a_run_and_takes_a_path_an_id_or_a_name(cli: Cli, journal: Path) -> None:
    by_id = cli("show", "id-o", "--journal", journal)
    assert by_id.returncode == 0, by_id.stderr
    assert "lr = 0.1" in by_id.stdout
    assert "loss=0.05" in by_id.stdout
    by_path = cli("show", journal / "project=q" / "run=other", "--json", "--last", 3)
    told = json.loads(by_path.stdout)
    assert (told["id"], len(told["last"]), told["summary"]) == ("other", 3, {"best": 0.5})
    assert json.loads(cli("show", "q/b", "--journal", journal, "--json").stdout)["id"] == "other"


def test_show_tells_a_table_by_its_size(cli: Cli, tmp_path: Path) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"gen": eventlog.Table(["a", "b"], [[1, 2], [3, 4], [5, 6]])}, step=1)
    assert "gen=table(3 x 2)" in cli("show", tmp_path / "j" / "project=p" / "run=x").stdout


def test_a_folder_that_is_called_like_a_run_does_not_hide_it(
    cli: Cli, journal: Path, tmp_path: Path
) -> None:
    (tmp_path / "cwd" / "b").mkdir()  # of checkpoints, say
    done = cli("show", "b", "--json", EVENTLOG_DIR=str(journal))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == "other"
    (tmp_path / "cwd" / "c").mkdir()
    done = cli("show", "c", EVENTLOG_DIR=str(journal))
    assert done.returncode == 2
    assert "there is no journal here" in done.stderr


def test_an_ambiguous_run_is_wrong_usage_and_names_the_candidates(cli: Cli, journal: Path) -> None:
    done = cli("show", "a", "--journal", journal)
    assert done.returncode == 2
    assert "id-one" in done.stderr
    assert "id-two" in done.stderr


def test_verify_says_ok_and_complete(cli: Cli, journal: Path) -> None:
    done = cli("verify", journal, "--require", "complete", "--json")
    assert done.returncode == 0, done.stderr
    assert [(r["verdict"], r["complete"]) for r in json.loads(done.stdout)] == [
        ("ok", "complete")
    ] * 3


def test_verify_of_a_changed_sealed_file_is_an_integrity_failure(cli: Cli, journal: Path) -> None:
    (path,) = (journal / "project=q" / "run=other" / "sealed").glob("*.parquet")
    numbers = pq.ParquetFile(path).metadata.row_group(0).column(6)
    content = bytearray(path.read_bytes())
    content[numbers.data_page_offset + numbers.total_compressed_size - 5] ^= 1
    path.write_bytes(bytes(content))
    done = cli("verify", journal)
    assert done.returncode == 4
    assert "corrupt" in done.stdout
    assert path.name in done.stderr


def test_verify_of_a_torn_tail_is_no_failure_unless_complete_is_required(
    cli: Cli, tmp_path: Path
) -> None:
    run = eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True)
    run.log({"a": 1}, step=1)
    run.flush()
    (segment,) = Path(str(run.folder)).glob("*.arrows")
    with segment.open("ab") as file:
        file.write(b"\xff\xff\xff\xfftorn")
    done = cli("verify", tmp_path / "j")
    assert (done.returncode, "torn" in done.stdout) == (0, True), done.stderr
    assert cli("verify", tmp_path / "j", "--require", "complete").returncode == 4
    run.finish()


def test_seal_seals_what_a_killed_process_left(cli: Cli, tmp_path: Path) -> None:
    code = f"""
import eventlog, os
run = eventlog.init("p", "n", id="x", dir={str(tmp_path / "j")!r})
for step in range(100):
    run.log({{"a": step}}, step=step)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    before = json.loads(cli("ls", tmp_path / "j", "--json").stdout)[0]
    assert before["status"] == "unknown"
    done = cli("seal", tmp_path / "j", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["events"] == 101
    after = json.loads(cli("ls", tmp_path / "j", "--json").stdout)[0]
    assert (after["events"], after["points"]) == (101, 100)
    assert not list((tmp_path / "j").rglob("*.arrows"))
    assert cli("verify", tmp_path / "j").returncode == 0


def test_sync_into_memory_and_status(cli: Cli, journal: Path) -> None:
    done = cli("sync", journal, "--to", "memory", "--json")
    assert done.returncode == 0, done.stderr
    assert {(r["sent"], r["points"], r["exit_code"]) for r in json.loads(done.stdout)} == {
        (24, 40, 0)
    }
    rows = json.loads(cli("status", journal, "--json").stdout)
    assert {(r["target"], r["behind"], r["last_step"]) for r in rows} == {("memory:here", 0, 19)}
    again = json.loads(cli("sync", journal, "--to", "memory", "--json").stdout)
    assert {(r["sent"], r["contacted"]) for r in again} == {(0, False)}


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


WRONG: dict[str, tuple[list[str], int]] = {
    "no journal there": (["ls", "nowhere"], 2),
    "no default journal": (["ls"], 2),
    "a folder that is no journal": (["verify", "{empty}"], 2),
    "a file": (["sync", "{file}", "--to", "memory"], 2),
    "no target": (["sync", "{journal}"], 2),
    "unknown target": (["sync", "{journal}", "--to", "nonsense"], 2),
    "unknown kind": (["sync", "{journal}", "--to", "nonsense:x"], 2),
    "mlflow without an address": (["sync", "{journal}", "--to", "mlflow"], 2),
    "mlflow with a folder": (["sync", "{journal}", "--to", "mlflow:file:///tmp/x"], 2),
    "mlflow server down": (["sync", "{journal}", "--to", "mlflow:http://127.0.0.1:{port}"], 75),
    "a mistyped kind": (["sync", "{journal}", "--to", "mlfow:http://u:secret@127.0.0.1"], 2),
    "no kind": (["sync", "{journal}", "--to", "http://u:secret@127.0.0.1"], 2),
    "no address": (["sync", "{journal}", "--to", "mlflow:http://u:secret@[::1"], 2),
    "a mistyped run": (["sync", "{journal}", "--to", "memory", "--run", "nobody*"], 2),
    "unknown run": (["show", "nobody", "--journal", "{journal}"], 2),
    "unknown option": (["ls", "--nonsense"], 2),
    "unknown command": (["nonsense"], 2),
    "unknown view": (["show", "q/b", "--journal", "{journal}", "--view", "x"], 2),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_input_is_one_line_an_exit_code_and_no_change(
    cli: Cli, journal: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file", "journal": journal}
    arguments, code = WRONG[case]
    before = snapshot(tmp_path)
    done = cli(*(a.format(**places, port=free_port()) for a in arguments))
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stdout + done.stderr
    if code == 75:  # the attempt itself is kept beside the journal, and one line a run is said
        assert all("->" in line for line in done.stderr.splitlines()), done.stderr
        assert len(done.stderr.splitlines()) == 3
        return
    assert done.stderr.strip(), "nothing was said"
    if arguments[0] != "nonsense" and "--nonsense" not in arguments and "x" not in arguments:
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("Usage", "Try"))]
        assert len([line for line in lines if line]) == 1, done.stderr
    assert snapshot(tmp_path) == before


def test_a_run_that_is_being_made_is_none_yet_and_no_failure(cli: Cli, journal: Path) -> None:
    folder = journal / "project=p" / "run=new"
    folder.mkdir()
    (folder / ".tmp-1-00-run.json").write_text("{")
    done = cli("ls", journal)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "w-0.arrows").write_text("")  # a copy, say, that brought other files first
    done = cli("ls", journal)
    assert done.returncode == 2
    assert "no run.json" in done.stderr


def test_a_folder_without_permission_is_one_line(cli: Cli, journal: Path) -> None:
    if os.geteuid() == 0:  # root may read everything: ask as somebody else
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "ls", str(journal.parent)],
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0, "pytest's folders are closed to others"
        return
    journal.chmod(0)
    done = cli("ls", journal)
    journal.chmod(0o700)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_damaged_run_does_not_hide_the_others(cli: Cli, journal: Path) -> None:
    (journal / "project=q" / "run=other" / "run.json").write_text("{")
    done = cli("ls", journal, "--json")
    assert done.returncode == 4
    assert len(json.loads(done.stdout)) == 2
    assert len(done.stderr.splitlines()) == 1
    synced = cli("sync", journal, "--to", "memory", "--json")
    assert synced.returncode == 4
    assert [r["exit_code"] for r in json.loads(synced.stdout)] == [0, 0]


def test_a_damaged_file_does_not_hide_the_other_runs(cli: Cli, journal: Path) -> None:
    (path,) = (journal / "project=q" / "run=other" / "sealed").iterdir()
    whole = path.read_bytes()
    rows, footer = 100, whole.index(b"eventlog.segments")
    # `ls` reads no rows of what is sealed: damage of them is for `verify` to find.
    for command, at in ((["ls"], footer), (["status"], rows), (["sync", "--to", "memory"], rows)):
        content = bytearray(whole)
        content[at : at + 40] = bytes(b ^ 255 for b in content[at : at + 40])
        path.write_bytes(content)
        done = cli(*command, journal, "--json")
        assert done.returncode == 4
        reports = {r["id"]: r for r in json.loads(done.stdout)}
        assert {"id-one", "id-two"} <= set(reports)
        assert f"q/b{'' if len(command) == 1 else ' -> memory:here'}: " in done.stderr
    # Nobody reads what is printed: the exit code is the same.
    line = f"{sys.executable} -m eventlog.cli.main sync {journal} --to memory | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr


def test_status_says_what_it_cannot_read(cli: Cli, journal: Path) -> None:
    (journal / "project=q" / "run=other" / "run.json").write_text("{")
    done = cli("status", journal, "--json")
    assert done.returncode == 4
    assert len(json.loads(done.stdout)) == 2
    assert "run.json is damaged" in done.stderr


def test_a_project_that_cannot_be_read_does_not_hide_the_others(journal: Path) -> None:
    from eventlog.catalog import find_all
    from eventlog.files import Files

    class Closed(Files):
        def names(self, folder: str) -> list[str]:
            if folder.endswith("project=q"):
                raise PermissionError(13, "Permission denied", folder)
            return super().names(folder)

    found, bad = find_all([str(journal)], files=Closed())
    assert sorted(item.run.id for item in found) == ["id-one", "id-two"]
    assert [item.folder for item in bad] == [str(journal / "project=q")]


def test_a_run_that_was_copied_by_itself_has_its_state_beside_it(
    cli: Cli, journal: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    copy = (journal / "project=q" / "run=other").rename(tmp_path / "deep" / "er" / "run=other")
    assert cli("sync", copy, "--to", "memory").returncode == 0
    assert (tmp_path / "deep" / "er" / "_replay").is_dir()
    assert not (tmp_path / "deep" / "_replay").exists()


def test_a_target_that_is_down_is_not_waited_for_by_every_run(cli: Cli, tmp_path: Path) -> None:
    for n in range(8):
        with eventlog.init("p", "n", id=f"id-{n}", dir=tmp_path / "j", quiet=True) as run:
            run.log({"a": 1.0}, step=1)
    done = cli("sync", tmp_path / "j", "--to", f"mlflow:http://127.0.0.1:{free_port()}", "--json")
    assert done.returncode == 75
    assert [r["exit_code"] for r in json.loads(done.stdout)] == [75] * 8
    assert len(done.stderr.splitlines()) == 4
    assert "5 more runs not tried" in done.stderr


def test_a_newer_format_is_refused_with_a_clear_error(cli: Cli, journal: Path) -> None:
    path = journal / "project=q" / "run=other" / "run.json"
    path.write_text(path.read_text().replace('"1.0"', '"2.0"'))
    done = cli("show", "other", "--journal", journal / "project=q")
    assert done.returncode != 0
    done = cli("ls", journal)
    assert "newer" in done.stderr


def test_control_characters_in_names_do_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    with eventlog.init("p", "\x1b[31mred\n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"\x1b]0;title\x07": "\x1b[2J"})
    for command in (["ls", tmp_path / "j"], ["show", "x", "--journal", tmp_path / "j"]):
        done = cli(*command)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
        assert "\x07" not in done.stdout


def test_a_closed_pipe_is_no_error(journal: Path) -> None:
    command = f"{sys.executable} -m eventlog.cli.main ls {journal} --json | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_help_is_there_for_every_command(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("eventlog")
    for command in ("ls", "show", "sync", "status", "seal", "verify"):
        done: Any = cli(command, "--help")
        assert done.returncode == 0
        assert "--json" in done.stdout


def test_sync_json_reports_a_lease_held_by_another_sync(cli: Cli, journal: Path) -> None:
    from eventlog.delivery import Delivery, state_folder
    from replayers.lease import Lease

    delivery = Delivery(
        state_folder(str(journal)), kind="memory", address="here", project="q", run="other"
    )
    delivery.prepare()
    with Lease(delivery.folder):
        done = cli("sync", journal, "--to", "memory", "--json")
    assert done.returncode == 3
    assert sorted(r["exit_code"] for r in json.loads(done.stdout)) == [0, 0, 75]
    assert f"process {os.getpid()}" in done.stderr


def test_a_table_stands_in_columns_whatever_the_names_are(cli: Cli, tmp_path: Path) -> None:
    for n, name in enumerate(("plain", "模型训练实验", "🚀 go")):
        with eventlog.init("p", name, id=f"x{n}", dir=tmp_path / "j", quiet=True) as run:
            run.log({"a": 1.0})
    lines = cli("ls", tmp_path / "j").stdout.splitlines()
    assert len({cell_len(line.partition("finished")[0]) for line in lines[1:]}) == 1


def test_what_an_encoding_cannot_write_is_escaped(tmp_path: Path) -> None:
    with eventlog.init("p", "模型", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"a": 1.0})
    done = subprocess.run(
        [sys.executable, "-m", "eventlog.cli.main", "ls", tmp_path / "j"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u6a21\\u578b" in done.stdout


@pytest.mark.parametrize("command", ["ls", "verify", "status", "seal", "compact"])
def test_a_journal_without_runs_is_said_to_have_none(
    cli: Cli, tmp_path: Path, command: str
) -> None:
    home.prepare(str(tmp_path / "j"))
    done = cli(command, tmp_path / "j")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no runs" in done.stderr


def test_on_a_terminal_long_names_are_cut_and_elsewhere_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["n" * 300, "模" * 60, 7], ["short", "-", 12]]
    output.print_table(["NAME", "TARGET", "EVENTS"], rows)
    assert "n" * 300 in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    output.print_table(["NAME", "TARGET", "EVENTS"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert min(len(line.rstrip()) for line in lines[1:]) > 40
    assert "nnn..." in lines[1]
    monkeypatch.setenv("COLUMNS", "10")
    output.print_table(["NAME", "TARGET", "EVENTS"], rows)
    assert max(map(cell_len, capsys.readouterr().out.splitlines())) <= 20 + 2 + 20 + 2 + 6


def test_values_are_shown_as_what_they_are_to_a_reader() -> None:
    table = {"columns": ["a"], "rows": 2, "sha256": "0" * 64, "size": 9}
    values = [np.float32(0.2), table, {"rows": 2}, "a\nb", np.arange(2), 1e-6]
    shown = ["0.2", "table of 2 rows", "{'rows': 2}", "a\\nb", "array([0, 1])", "1e-06"]
    assert list(map(output.short, values)) == shown


def test_a_run_is_meant_where_a_folder_or_a_file_has_its_name(
    cli: Cli, journal: Path, tmp_path: Path
) -> None:
    (tmp_path / "cwd" / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "cwd" / "other").write_text("no journal")
    (tmp_path / "cwd" / "q" / "b").mkdir(parents=True)
    for name in ("b", "other", "q/b"):
        for command in ("status", "show"):
            done = cli(command, name, "--json", EVENTLOG_DIR=str(journal))
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert [item["id"] for item in (told if command == "status" else [told])] == ["other"]
    done = cli("status", "./b", EVENTLOG_DIR=str(journal))
    assert done.returncode == 2
    assert "there is no journal here" in done.stderr
    (tmp_path / "cwd" / "nobody").mkdir()
    done = cli("status", "nobody", EVENTLOG_DIR=str(journal))
    assert done.returncode == 2
    assert "there is no journal here" in done.stderr


def lying(journal: Path, how: str) -> Path:
    """Have the folder of a run say that it is another one; return it."""
    folder = journal / "project=q" / "run=other"
    fields = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**fields, "id": "id-three"}))
    return folder.rename(folder.with_name("run=id-three")) if how == "renamed" else folder


@pytest.mark.parametrize("how", ["in place", "renamed"])
@pytest.mark.parametrize("command", ["ls", "show", "verify", "sync", "status", "diff"])
def test_a_run_json_that_names_another_run_is_an_integrity_error(
    cli: Cli, journal: Path, command: str, how: str
) -> None:
    folder = lying(journal, how)
    place = folder if command in ("show", "diff") else journal
    to = ["--to", "memory"] if command in ("sync", "diff") else []
    done = cli(command, place, *to)
    assert done.returncode == 4, (done.stdout, done.stderr)
    assert "run.json says that this is the run 'id-three'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["in place", "renamed", "by itself"])
@pytest.mark.parametrize("command", ["verify", "sync", "status"])
def test_a_run_json_that_names_another_project_is_an_integrity_error(
    cli: Cli, journal: Path, tmp_path: Path, command: str, how: str
) -> None:
    folder = journal / "project=q" / "run=other"
    fields = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**fields, "project": "mine"}))
    place = journal
    if how == "renamed":
        folder.parent.rename(journal / "project=mine")
    elif how == "by itself":
        place = folder.rename(tmp_path / "elsewhere")
    before = (sorted(journal.rglob("*")), sorted(place.rglob("*")))
    done = cli(command, place, *(["--to", "memory"] if command == "sync" else []), "--run", "other")
    assert done.returncode == 4, (done.stdout, done.stderr)
    assert "run.json says that this run is of the project 'mine'" in done.stderr
    assert "Traceback" not in done.stderr
    if how == "in place":  # not even a cursor
        assert before == (sorted(journal.rglob("*")), sorted(place.rglob("*")))


def test_a_run_json_that_names_another_run_gives_no_series(journal: Path) -> None:
    folder = lying(journal, "renamed")
    with pytest.raises(eventlog.errors.IntegrityError, match=r"run\.json says"):
        eventlog.read_series(str(folder), "loss")
