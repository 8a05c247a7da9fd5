"""The scripts of replayers/OPERATIONS.md do what they say, as far as one machine can show it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import eventlog
from eventlog.delivery import Delivery, state_folder
from replayers.lease import Lease
from replayers.prometheus import exposition

PAGE = (Path(__file__).resolve().parent.parent / "replayers" / "OPERATIONS.md").read_text()
#: `eventlog`, and programs that a test machine has not, standing in for what they would do here.
PROGRAMS = {
    "runuser": '#!/bin/sh\n[ "$1 $2 $3" = "-u alice --" ] || exit 9\nshift 3\nexec "$@"\n',
    "logger": '#!/bin/sh\ncat >> "$LOGGED"\n',
}


def block(name: str) -> str:
    """Return the script or unit of that name."""
    (found,) = re.findall(rf"```\w+\n((?:#!/bin/sh\n)?# {re.escape(name)}.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine on which the scripts are installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = (
        "from eventlog.cli import main; from replayers.commands import exec_; "
        "main.group.add_command(exec_); main.main()"
    )
    programs = {**PROGRAMS, "eventlog": f'#!/bin/sh\nexec {sys.executable} -c "{command}" "$@"\n'}
    for name in ("job.sh", "epilog.sh", "cron.sh", "metrics.sh"):
        programs[name] = block(name)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    with eventlog.init("p", "n", id="x", dir=tmp_path / "alice" / "eventlog-data", quiet=True) as r:
        r.log({"loss": 1.0}, step=1)
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TRACKER": f"trackio:{tmp_path / 't'}",
        "LOGGED": str(tmp_path / "logged"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


def run(machine: dict[str, str], cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=machine, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_job_has_the_exit_code_of_its_program(machine: dict[str, str], tmp_path: Path) -> None:
    code = "import eventlog, sys; eventlog.init('p', 'm', quiet=True).log({'x': 1}); sys.exit(9)"
    done = run(machine, tmp_path, "job.sh", sys.executable, "-c", code)
    assert done.returncode == 9, done.stderr
    assert "of 1 runs sent" in done.stderr
    assert list((tmp_path / "t").glob("*.db"))


def test_the_epilog_ends_well_whatever_happens(machine: dict[str, str], tmp_path: Path) -> None:
    job = {**machine, "SLURM_JOB_USER": "alice", "EVENTLOG_JOURNALS": str(tmp_path)}
    done = run(job, tmp_path, "epilog.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "ok" in (tmp_path / "logged").read_text()
    for broken in ({"SLURM_JOB_USER": "nobody"}, {"TRACKER": "no such thing"}):
        assert run({**job, **broken}, tmp_path, "epilog.sh").returncode == 0
    assert "neither a kind of target" in (tmp_path / "logged").read_text()


def test_cron_is_silent_unless_somebody_must_look(machine: dict[str, str], tmp_path: Path) -> None:
    journal = tmp_path / "alice" / "eventlog-data"
    state = Delivery(
        state_folder(str(journal)), kind="memory", address="here", project="p", run="x"
    )
    state.prepare()
    with Lease(state.folder):
        held = run(machine, tmp_path, "cron.sh", str(journal), "--to", "memory")
    assert (held.returncode, held.stdout, held.stderr) == (0, "", "")
    down = run(machine, tmp_path, "cron.sh", str(journal), "--to", "trackio:http://127.0.0.1:9")
    assert (down.returncode, down.stdout) == (0, ""), down.stderr
    wrong = run(machine, tmp_path, "cron.sh", str(journal), "--to", "wanddb")
    assert wrong.returncode == 2
    assert "neither a kind of target" in wrong.stdout
    done = run(machine, tmp_path, "cron.sh", str(journal), "--to", "memory")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "name", ["eventlog-sync.service", "eventlog-once.service", "eventlog-once.timer"]
)
def test_the_units_are_whole_and_their_commands_are_ours(name: str, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block(name))
    assert unit["Unit"]["Description"]
    if name.endswith(".service"):
        program, command, _journal, *options = unit["Service"]["ExecStart"].split()
        assert (Path(program).name, command) == ("eventlog", "sync")
        from replayers.sync_command import sync

        known = {text for option in sync.params for text in option.opts}
        assert {x for x in options if x.startswith("--")} <= known
    if shutil.which("systemd-analyze"):
        (tmp_path / name).write_text(block(name))
        said = run(dict(os.environ), tmp_path, "systemd-analyze", "verify", f"./{name}")
        assert "Unknown" not in said.stderr


def test_metrics_are_whole_or_those_of_before(machine: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "metrics" / "eventlog.prom"
    file.parent.mkdir()
    done = run(machine, tmp_path, "metrics.sh", str(tmp_path / "alice/eventlog-data"), str(file))
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert 'eventlog_run_events{project="p",name="n",run="x"}' in text
    done = run(machine, tmp_path, "metrics.sh", str(tmp_path / "nowhere"), str(file))
    assert done.returncode == 2
    assert [(path, path.read_text()) for path in file.parent.iterdir()] == [(file, text)]


def test_the_rules_name_metrics_that_there_are() -> None:
    known = set(re.findall(r"^# TYPE (\w+)", exposition([]), re.MULTILINE))
    named = set(re.findall(r"\beventlog_\w+", block("eventlog.rules.yml")))
    assert named
    assert named <= known, named - known


def test_the_page_names_every_exit_code_as_the_program_does() -> None:
    from eventlog.errors import EXIT_ORDER

    told = {int(n) for cell in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.M) for n in cell.split(",")}
    assert told == {*EXIT_ORDER, 130}
