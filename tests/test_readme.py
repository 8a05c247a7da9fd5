"""What the README shows works when it is pasted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

TOP = Path(__file__).resolve().parent.parent
README = (TOP / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_example_and_its_commands_work_when_pasted(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The command that needs MLflow, which takes seconds to import, starts cold with --long."""
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    commands = [line.removeprefix("$ ") for line in blocks("console")[0].splitlines()]
    assert len(commands) == 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "eventlog"
        if "mlflow" in command and not pytestconfig.getoption("--long"):
            shown = warm.run(arguments, imports=warm.MLFLOW, cwd=tmp_path)
        else:
            shown = subprocess.run(
                [sys.executable, "-m", "eventlog.cli.main", *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        assert shown.returncode == 0, (command, shown.stderr)
        assert "qwen-7b" in shown.stdout, command


def test_every_file_and_command_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert (TOP / path).exists(), path
    for path in re.findall(r"(?:tools|tests)/[\w/.]+", README):
        assert (TOP / path.rstrip(".")).exists(), path


def test_the_readme_names_every_exit_code_and_variable() -> None:
    from eventlog.errors import EXIT_ORDER

    for code in EXIT_ORDER:
        assert re.search(rf"\b{code} \w", README), code
    source = "".join(p.read_text() for p in (TOP / "eventlog").rglob("*.py"))
    for name in set(re.findall(r"EVENTLOG(_[A-Z_]+)", source)) - {"_DEBUG"}:
        assert name in README, name
