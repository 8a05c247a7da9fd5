"""The commands of the replay side, one module each: what the entry points name.

A module is loaded when its command is asked for: the others take time to load, too.
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


def __getattr__(name: str) -> Any:
    """Return a command."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
