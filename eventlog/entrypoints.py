"""Entry points: what packages add by a name in a group, ours among them.

`importlib.metadata` knows them all, and reads every installed package's for that: to be imported
and to look takes it longer than a whole sync with nothing to do. So those of our own distribution,
which come first, are read from its folder here, and it is asked only for what is not among them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from typing import Any

#: How the folder of our distribution begins, wherever it is installed.
_OWN, _INFO = "eventlog_journal-", ".dist-info"


def load(group: str, name: str) -> Any:
    """Return what an entry point stands for; None if there is none of this name. Raises what the
    import of its module raises.
    """
    place = _own(group, name)
    if place is not None:
        module, _colon, attribute = place.partition(":")
        return getattr(import_module(module), attribute)
    from importlib import metadata

    for point in metadata.entry_points(group=group, name=name):
        return point.load()
    return None


def summary(group: str, name: str) -> str | None:
    """Return what an entry point of ours is for, in a sentence, without loading it: its module has
    ``SUMMARIES`` of all that it names. None for any other.
    """
    place = _own(group, name)
    if place is None:
        return None
    module, _colon, attribute = place.partition(":")
    told: dict[str, str] = getattr(import_module(module), "SUMMARIES", {})
    return told.get(attribute)


def names(group: str) -> set[str]:
    """Return the names of all entry points of a group."""
    from importlib import metadata

    return {point.name for point in metadata.entry_points(group=group)}


def _own(group: str, name: str) -> str | None:
    """Return ``module:attribute`` of an entry point of ours; None if that cannot be told."""
    for place in sys.path:
        with contextlib.suppress(OSError, ValueError):
            for folder in os.listdir(place or os.curdir):
                if folder.startswith(_OWN) and folder.endswith(_INFO):
                    path = os.path.join(place, folder, "entry_points.txt")
                    with open(path, encoding="utf-8") as file:
                        return _points(file.read(), group).get(name)
    return None


def _points(text: str, group: str) -> dict[str, str]:
    """Return the entry points of one group from the text of an ``entry_points.txt``."""
    found: dict[str, str] = {}
    within = False
    for line in text.splitlines():
        if line.startswith("["):
            within = line.strip() == f"[{group}]"
        elif within and "=" in line:
            name, _sign, place = line.partition("=")
            found[name.strip()] = place.strip()
    return found
