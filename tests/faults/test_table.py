"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "tests" / "faults" / "README.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TABLE)
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


def functions(path: str) -> set[str]:
    """Return the names of a test file's functions."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted({path for path, _name in NAMED}))
def test_every_test_that_the_table_names_exists(path):
    assert {name for file, name in NAMED if file == path} <= functions(path)


def test_every_fault_of_the_table_has_a_test():
    assert len(ROWS) > 30
    assert [row for row in ROWS if "::test_" not in row] == []
    assert {name for _path, name in NAMED if re.search(r"_\d+$", name)} == set()
