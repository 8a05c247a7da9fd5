"""The commands in `tools/`: what a worker process of theirs does first is to import the command's
own file, under another name, and that must not begin it anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
COMMANDS = [p for p in sorted(TOOLS.iterdir()) if p.is_file() and not p.suffix]


def test_there_are_commands():
    assert {"bench", "crash", "demo", "kill", "test"} <= {path.name for path in COMMANDS}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_begins_only_where_it_was_called(path):
    last = ast.parse(path.read_text()).body[-1]
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    assert "sys.exit(" in ast.unparse(last)
