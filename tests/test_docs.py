"""Pages that are made of the code are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def test_the_fidelity_page_is_made_of_the_docstrings_as_they_are() -> None:
    spec = importlib.util.spec_from_file_location("page", TOP / "tools" / "fidelity_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.page()
    assert (TOP / "replayers" / "FIDELITY.md").read_text() == made, "run tools/fidelity_page.py"
