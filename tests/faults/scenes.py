"""What is called while the N-th call to the file system fails, and that for every N."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator

from tests.faults import archived, calls

#: What is called, and the levels or states of the run it is called at.
SCENES: dict[str, tuple[Callable[[str, calls.Faults, str], list[str]], tuple[str, ...]]] = {
    "log": (calls.logging_survives, ("group", "sync", "memory", "os")),
    "tables": (calls.tables_survive, ("group", "sync", "memory", "os")),
    "finish": (calls.finishing_survives, ("group", "sync", "memory", "os")),
    "init again": (calls.continuing_survives, ("group", "memory")),
    "seal": (calls.sealing_survives, ("live",)),
    "compact": (calls.compacting_survives, ("sealed",)),
    "salvage": (calls.salvaging_survives, ("live", "sealed")),
    "verify": (calls.verifying_survives, ("live", "sealed")),
    "read": (calls.reading_survives, ("live", "sealed")),
    "archive": (archived.archiving_survives, ("sealed",)),
    "read archived": (archived.reading_survives, ("events", "key", "verify")),
}
#: Scene, level, error, and how many calls in a row fail (all from there on: a disk that is gone).
CASES = [
    (name, level, error, lasting)
    for name, (_scene, levels) in SCENES.items()
    for level in levels
    for error in calls.ERRORS
    for lasting in (1, 10**6)
]


def everywhere(
    name: str, level: str, error: int | None, lasting: int, *, first: int = 1, step: int = 1
) -> tuple[int, list[str]]:
    """Fail call 1, 2, 3 ... until none failed; return how many, and what was broken."""
    scene, _levels = SCENES[name]
    broken: list[str] = []
    with silent():
        for turn, n in enumerate(itertools.count(first, step)):
            faults = calls.Faults(error, n, lasting)
            with tempfile.TemporaryDirectory(dir=_fast()) as journal:
                found = scene(journal, faults, level)
            where = f"{name} at {level}: {lasting} calls from {n} on, {calls.name_of(error)}"
            broken += [f"{where}: {text}" for text in found]
            if not faults.came():
                return turn, broken
    raise AssertionError


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep warnings, of which each fault makes some, from the terminal."""
    log = logging.getLogger("eventlog")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _fast() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
