"""Write replayers/FIDELITY.md from the tables in the targets' docstrings, where they are kept.

usage: python tools/fidelity_page.py            (tests/test_docs.py checks that the page is current)
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PAGE = TOP / "replayers" / "FIDELITY.md"
SECTIONS = {
    "MLflow": "replayers.mlflow_map",
    "Trackio": "replayers.to_trackio",
    "W&B": "replayers.to_wandb",
}
HEAD = """\
# What each backend holds of a run

A backend cannot hold everything that a journal can. What it is given instead follows from pure,
versioned rules, one table a backend below; the ledger of a sync records each rule that was used,
by key, range and count (`replayers.target.Change`), and `replayers.compare` holds the journal's
image under these rules against what the backend reads back, bit by bit.

A run's superseded points that a target held before they were superseded stay there, unless
`--superseded new-run` or `rebuild` was chosen ([OPERATIONS.md](OPERATIONS.md)); the comparison
counts them apart (`superseded`), and so those that were superseded before they were sent
(`never-sent`). Points that a rule leaves out, and equal points that MLflow folds into one, are
`missing` with that rule as the cause: explained, and no failure.

In every backend a table is null that its writer recorded as dropped for want of room
(`table-never-written`), or that had not come, or not whole, when `sync --without-missing` said not
to wait for it (`table-lost`). This page is made of the docstrings named below.
"""


def page() -> str:
    """Return the page's text."""
    parts = [HEAD]
    for title, name in SECTIONS.items():
        text = textwrap.dedent(inspect.getdoc(importlib.import_module(name)) or "")
        parts.append(f"## {title}\n\n`{name}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
