"""What becomes of points that a target holds already when a later attempt supersedes them.

A choice for each target:

* ``append``: they stay beside the new ones; `eventlog diff` names them.
* ``new-run``: a new run in the target gets the effective view and nothing else. It is known by the
  run's id and a *generation* that follows from the attempt, so that whoever looks finds the same
  one; it names the run that it replaces, which is marked as replaced once the new one is complete.
* ``rebuild``: what was made in the target is deleted and sent anew, under the same identity. Only
  if the target's read-back shows nothing that this journal does not have.

When: where the last attempt starts again at a step that the data show or that was said outright, as
soon as something delivered is superseded; where it starts afresh, superseding point by point, once
it has ended. What an attempt supersedes after that stays (append), so that there is one generation
an attempt and rewind, and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

from eventlog.delivery import Cursor, Mark
from eventlog.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from eventlog.views import Effective
    from replayers.compare import Difference

APPEND, NEW_RUN, REBUILD = "append", "new-run", "rebuild"
CHOICES = (APPEND, NEW_RUN, REBUILD)


def check_choice(choice: str, target: object, label: str, view: str) -> None:
    """Refuse what a target cannot do.

    Raises
    ------
    UsageError
    """
    if choice not in CHOICES:
        raise UsageError(
            f"there is no superseded = {choice!r}", on=label, hint=f"one of {', '.join(CHOICES)}"
        )
    able = getattr(target, "superseded", frozenset((APPEND,)))
    if choice != APPEND and choice not in able:
        others = " or ".join(c for c in CHOICES if c == APPEND or c in able)
        why = getattr(target, "never", {}).get(choice)
        raise UsageError(
            f"--superseded {choice} cannot be done there" + (f": {why}" if why else ""),
            on=label,
            hint=f"this target can do {others}",
        )
    check_view(choice, view, label)


def check_view(choice: str, view: str, label: str | None = None) -> None:
    """Refuse a choice that does not go with the view that is sent. Raises `UsageError`."""
    if choice != APPEND and view != "effective":
        raise UsageError(
            f"--superseded {choice} goes with the view effective", on=label, hint="leave out --view"
        )


def generations(view: Effective) -> list[str]:
    """Return the generations that a run may have beside its first one, the latest first."""
    back = view.rewinds()
    found = []
    for later, attempt in enumerate(view.attempts):
        for count in range(0 if later else 1, back.get(attempt.key, 0) + 1):
            text = json.dumps([attempt.key, count])
            found.append("r" + hashlib.sha256(text.encode()).hexdigest()[:12])
    return found[::-1]


def decided(view: Effective) -> bool:
    """Return whether it is known from where the last attempt goes on, while it still runs."""
    last = view.attempts[-1].key
    restart = view.restarts.get(last)
    known = restart is not None and restart.how in ("data", "stated") and restart.step is not None
    return known or bool(view.rewinds().get(last))


def signature(choice: str, view: Effective, *, ended: bool) -> str:
    """Return what has to change before it is worthwhile to look again."""
    restart = view.restarts.get(view.attempts[-1].key)
    told = None if restart is None else [restart.step, restart.how]
    text = json.dumps([choice, generations(view)[:1], told, ended and not decided(view)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_loss(found: Difference, label: str) -> None:
    """See that this journal has everything that a target holds of a run.

    Raises
    ------
    IntegrityError
    """
    if found.extra:
        raise IntegrityError(
            f"not rebuilt: the target holds {found.extra} points or settings that this journal does "
            "not have; nothing was deleted",
            on=label,
            hint="eventlog diff shows them; --superseded new-run leaves the old run as it is",
        )


def anew(cursor: Cursor, looked: str) -> Cursor:
    """Return the cursor of a target that must be asked what it holds, whatever it held before."""
    unsure = {w: Mark(attempted=max(1, mark.attempted)) for w, mark in cursor.writers.items()}
    return dataclasses.replace(
        cursor,
        known_as=None,
        state="",
        writers=unsure,
        quarantined={},
        awaited={},
        footprint="",
        status="",
        looked=looked,
    )


def next_generation(cursor: Cursor, generation: str, looked: str) -> Cursor:
    """Return the cursor of a new run that replaces the one that was sent to so far."""
    former = (cursor.known_as or "", cursor.generation)
    return dataclasses.replace(
        anew(cursor, looked),
        generation=generation,
        replaced=[*cursor.replaced, former],
        unmarked=True,
        shown_as="",
    )
