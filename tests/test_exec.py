"""A program with a sync beside it: the program is as it would be alone, whatever the sync meets."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.cli.main import run as cli
from eventlog.resume import EXEC
from replayers import exec_command
from replayers.beside import Beside
from replayers.registry import _memory
from replayers.to_memory import StoredRun
from tests.test_standing import signals

__all__ = ["signals"]  # a fixture is used by its name

Exec = Callable[..., "subprocess.Popen[str]"]

TRAIN = """
import eventlog, sys
run = eventlog.init("p", "n", id="x", quiet=True)
for step in range(50):
    run.log({"loss": step / 7}, step=step)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Exec]:
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, *options: object, **how: object) -> subprocess.Popen[str]:
        to = [] if "--to" in options else ["--to", f"trackio:{tmp_path / 't'}"]
        command = ["exec", *to, *map(str, options), "--", sys.executable, "-c", code]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
        started.append(
            subprocess.Popen(  # type: ignore[call-overload]
                [sys.executable, "-c", RUN, *command],
                cwd=tmp_path,
                env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
                **how,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


#: The command, whether or not this installation knows it by an entry point.
RUN = """
from eventlog.cli import main
from replayers.commands import exec_
main.group.add_command(exec_)
main.main()
"""


def losses(folder: Path) -> list[tuple[int, float]]:
    """Return what a Trackio folder holds."""
    (path,) = folder.glob("*.db")
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    return [(step, json.loads(metrics)["loss"]) for step, metrics in rows]


WHOLE = [(step, step / 7) for step in range(50)]


def test_what_the_program_logs_is_there_when_it_has_ended(tmp_path: Path, start: Exec) -> None:
    done = start(TRAIN + "print('out'); print('err', file=sys.stderr); sys.exit(7)")
    out, err = done.communicate(timeout=180)
    assert (done.returncode, out) == (7, "out\n"), err
    assert "err" in err
    assert losses(tmp_path / "t") == WHOLE
    assert "52 events of 1 runs sent" in err


@pytest.mark.parametrize(
    "name", ["SIGKILL", *(pytest.param(n, marks=pytest.mark.long) for n in ("SIGTERM", "SIGSEGV"))]
)
def test_the_death_of_the_program_is_passed_on(tmp_path: Path, start: Exec, name: str) -> None:
    done = start(TRAIN + f"import os, signal; os.kill(os.getpid(), signal.{name})")
    _out, err = done.communicate(timeout=180)
    assert done.returncode == -getattr(signal, name), err
    assert losses(tmp_path / "t") == WHOLE


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.long) for n in ("SIGINT", "SIGUSR1"))]
)
def test_signals_reach_the_program_once_and_it_decides(
    tmp_path: Path, start: Exec, name: str
) -> None:
    code = f"""
import signal, sys, time
seen = []
signal.signal(signal.{name}, lambda number, frame: seen.append(number))
print("ready", flush=True)
while not seen: time.sleep(0.01)
time.sleep(0.3)
print(len(seen))
sys.exit(3)
"""
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (3, "1\n"), err


def test_a_terminal_is_the_programs_and_its_interrupt_comes_once(
    tmp_path: Path, start: Exec
) -> None:
    code = """
import os, signal, sys, time
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
print(sys.stdin.isatty(), sys.stdout.isatty(), os.tcgetpgrp(0) == os.getpgrp(), flush=True)
print(input(), flush=True)
while not seen: time.sleep(0.01)
time.sleep(0.3)
print("seen", len(seen), flush=True)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        to = ["exec", "--to", f"trackio:{tmp_path / 't'}"]
        os.execv(sys.executable, [sys.executable, "-c", RUN, *to, "--", sys.executable, "-c", code])
    text = b""

    def read(word: bytes) -> None:
        nonlocal text
        while word not in text:
            text += os.read(terminal, 1000)

    try:
        read(b"True True True")
        os.write(terminal, b"hello\n")
        read(b"hello\r\nhello")
        os.write(terminal, b"\x03")
        read(b"seen 1")
        _pid, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


def test_input_and_what_else_was_handed_over_are_the_programs(tmp_path: Path, start: Exec) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"more")
    os.close(writing)
    code = f"import os, sys; print(sys.stdin.read(), os.read({reading}, 10).decode())"
    process = start(code, stdin=subprocess.PIPE, pass_fds=(reading,))
    out, err = process.communicate("some", timeout=180)
    os.close(reading)
    assert (process.returncode, out) == (0, "some more\n"), err


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("wanddb", "nothing is sent to wanddb: 'wanddb' is neither a kind of target nor a name"),
        ("mlflow", "nothing is sent to mlflow: mlflow needs an address"),
        pytest.param(
            "mlflow:http://127.0.0.1:9", "MLflow cannot be reached", marks=pytest.mark.long
        ),
    ],
)
def test_a_target_that_is_missing_changes_nothing_but_a_line(
    tmp_path: Path, start: Exec, to: str, says: str
) -> None:
    process = start(TRAIN + "sys.exit(5)", "--to", to, "--drain", 10)
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 5, err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("name", "code"), [("no-such-program", 127), ("folder", 126)])
def test_a_program_that_cannot_be_started_is_said_as_shells_do(
    tmp_path: Path, name: str, code: int
) -> None:
    (tmp_path / "folder").mkdir()
    command = ["exec", "--to", "memory", "--", str(tmp_path / name)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == code
    assert "the program cannot be started" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_sync_dies_with_its_parent_and_the_program_goes_on(tmp_path: Path, start: Exec) -> None:
    process = start("print('ready', flush=True)\ninput()\nprint('done')", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    beside = [pid for pid in children(process.pid) if b"replayers.beside" in command_of(pid)]
    (program,) = set(children(process.pid)) - set(beside)
    assert len(beside) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    while command_of(beside[0]):
        time.sleep(0.02)
    assert command_of(program)
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.close()
    assert process.stdout.readline() == "done\n"


def test_runs_of_other_programs_in_the_journal_are_left_alone(tmp_path: Path, start: Exec) -> None:
    other = TRAIN.replace('"x"', '"other"') + "run.finish()"
    subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
    process = start(TRAIN)
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert losses(tmp_path / "t") == WHOLE


def test_the_sync_beside_does_what_the_options_of_sync_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    class Told:
        def __init__(self, _command: object, _environ: object, what: Any, _drain: object) -> None:
            told.append(json.loads(json.dumps(what)))  # as it goes through the pipe

        def run(self) -> int:
            return 0

    monkeypatch.setattr(exec_command, "Supervisor", Told)
    journal, runs = tmp_path / "j", _memory("beside", lambda *_: b"").runs  # type: ignore[attr-defined]
    for steps in (range(30), range(20, 50)):
        options = [
            "--to",
            "memory:beside",
            "--superseded",
            "new-run",
            "--batch",
            "7",
            "--interval",
            "0.05",
        ]
        assert cli(["exec", *options, "--dir", str(journal), "true"]) == 0
        what = told.pop()
        monkeypatch.setenv(EXEC, what["token"])
        with eventlog.init("p", "n", id="from-name", dir=journal, quiet=True) as run:
            for step in steps:
                run.log({"a": step / 7}, step=step)
        reading, writing = os.pipe()
        os.write(writing, b"drain\n")
        Beside(what, reading).run()
        os.close(reading)
        os.close(writing)
    old, new = runs.values()
    assert (old.replaced_by, points(old), points(new)) == ("memory-" + [*runs][1], 30, 50)
    assert old.sends == 6  # of at most seven rows


def points(stored: StoredRun) -> int:
    return sum(table.num_rows for tables in stored.points.values() for table in tables)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--superseded", "rebuild", "--view", "all"], "goes with the view effective"),
        (["--superseded", "some"], "is not one of"),
        (["--rate", "fast"], "fast"),
    ],
)
def test_what_makes_no_sense_is_said_before_the_program_starts(
    tmp_path: Path, options: list[str], says: str, capsys: Any
) -> None:
    program = ["--to", "memory", "--", "touch", str(tmp_path / "started")]
    assert cli(["exec", *options, *program]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> bytes:
    """Return a process's command line; nothing once it is dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
