"""The commands of the replay side, one module each: what the entry points name.

A module is loaded when its command is asked for: the others take time to load, too. A list of
commands takes what it says of each from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "config": "replayers.config_command",
    "diff": "replayers.diff_command",
    "exec_": "replayers.exec_command",
    "status": "replayers.status_command",
    "sync": "replayers.sync_command",
}
#: The first sentence of each one's help.
SUMMARIES = {
    "config": "Settings: arguments, then variables, then eventlog.toml.",
    "diff": "Compare every point of RUN with what a target reads back; nothing is written.",
    "exec_": "Run a program, and send what it logs while it runs.",
    "status": "Show how far each target is with each run.",
    "sync": "Bring runs into backends, exactly once.",
}


def __getattr__(name: str) -> Any:
    """Return a command."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
