"""The target in replayers/TARGETS.md works when it is pasted, and passes the suite of all targets."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import eventlog
from eventlog.cli.main import group
from eventlog.errors import UsageError
from replayers.conformance import Conformance
from replayers.registry import make_target
from replayers.target import Down, RunInfo

PAGE = (Path(__file__).resolve().parent.parent / "replayers" / "TARGETS.md").read_text()
NAMES = [name for name, _test in inspect.getmembers(Conformance) if name.startswith("test_")]
#: What the default run tries of them.
SLICE = (
    "test_hostile_names_and_values_arrive_once_and_a_second_sync_asks_nothing",
    "test_a_target_that_lost_a_run_is_refused_and_repaired",
    "test_what_somebody_else_wrote_is_refused_or_shown",
)


def block(name: str) -> str:
    (found,) = re.findall(rf"```\w+\n(# {re.escape(name)}\n.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Install the example as a package does; return its tests."""
    names = ("sqlite_target", "test_sqlite_target")
    folder = tmp_path / "site"
    info = folder / "of_a_page-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-page\nVersion: 1\n")
    line = block("pyproject.toml").splitlines()[2].replace('"', "")
    (info / "entry_points.txt").write_text(f"[eventlog.targets]\n{line}\n")
    for name in names:
        (folder / f"{name}.py").write_text(block(f"{name}.py"))
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module(names[1])
    for name in names:
        del sys.modules[name]


def test_it_is_as_short_as_the_page_says() -> None:
    assert "in under a hundred lines" in PAGE
    code = block("sqlite_target.py")
    ast.parse(code)
    assert len([line for line in code.splitlines() if line.strip()]) < 100


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SLICE else pytest.mark.long) for n in NAMES]
)
def test_it_passes_the_suite(
    name: str, installed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = getattr(installed.TestSqlite(), name)
    if test is None:
        return  # as the page says
    backend = installed.SqliteBackend(str(tmp_path / "runs.db"))
    spec = f"sqlitefile:{tmp_path / 'runs.db'}"  # as a user would name it
    monkeypatch.setattr(backend, "target", lambda: make_target(spec, lambda run, digest: b""))
    test(backend, tmp_path)


@pytest.mark.usefixtures("installed")
def test_the_command_knows_it_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with eventlog.init("p", "n", id="x", dir=tmp_path / "j", quiet=True) as run:
        run.log({"loss": 0.5}, step=1)

    def call(*arguments: object) -> int:
        return int(group.main([*map(str, arguments)], standalone_mode=False))

    to = f"sqlitefile:{tmp_path / 'runs.db'}"
    assert call("diff", "x", "--journal", tmp_path / "j", "--to", to) == 4
    assert not (tmp_path / "runs.db").exists(), "a comparison writes nothing"
    assert call("sync", tmp_path / "j", "--to", to) == 0
    assert call("diff", "x", "--journal", tmp_path / "j", "--to", to) == 0
    assert "the same" in capsys.readouterr().err
    with pytest.raises(UsageError, match="needs a file"):
        call("sync", tmp_path / "j", "--to", "sqlitefile")


@pytest.mark.usefixtures("installed")
def test_a_file_that_cannot_be_used_is_temporary(tmp_path: Path) -> None:
    target = make_target(f"sqlitefile:{tmp_path}", lambda run, digest: b"")
    with pytest.raises(Down, match="cannot be used now"):
        target.open(RunInfo("x", "p", "n", 0))
