"""One run on its way into one target: how far it is, what went wrong, when it may go on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import threading
import time
import traceback
from collections.abc import Callable

from eventlog.catalog import Found
from eventlog.errors import EventlogError, TemporaryError
from replayers.pace import Backoff, Pace, Stopped
from replayers.replay import Outcome, Progress, Replayer, Settings, delivery_of, unchanged
from replayers.target import Target

#: What the system says of a full disk: of the state folder, say.
FULL = (errno.ENOSPC, errno.EDQUOT)


class Stream:
    """One run and one target. Only the thread that has taken it touches it, but for `wake`.

    Attributes
    ----------
    outcome:
        What was done so far in all calls, by those too that failed; None before the first one
        ended.
    error, exit_code, reason:
        Why it stands still: what was raised, its exit code, and what to say of it; None, 0 and
        None while all is well.
    not_before:
        When it may be tried again, by `time.monotonic`, in seconds.
    behind_since:
        When something new was first seen that the target does not hold yet; None if there is
        nothing.
    seconds:
        How long was worked on it.
    """

    def __init__(
        self,
        found: Found,
        state: str,
        settings: Settings,
        pace: Pace,
        progress: Progress = lambda settled, events: None,
    ) -> None:
        self.found = found
        self.state = state
        self.settings = settings
        self.progress = self._progressing(progress)
        #: Events that the call under way has settled, and how many were left when it was last told.
        self.under_way = self.known_behind = 0
        self.pace = pace
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.exit_code = 0
        self.reason: str | None = None
        #: What was said of it last, while it goes on failing.
        self.told: str | None = None
        self.not_before = 0.0
        self.behind_since: float | None = time.monotonic()
        self.worked = 0.0
        self.seconds = 0.0
        self.backoff = Backoff()
        self.queued = self.busy = False
        self._woken = threading.Event()
        self._target: Target | None = None
        self._replayer: Replayer | None = None
        self._settled: Outcome | None = None

    @property
    def open(self) -> bool:
        """Whether it holds a lease and a session."""
        return self._replayer is not None

    def _progressing(self, plain: Progress) -> Progress:
        def progress(settled: int, events: int) -> None:
            before = self.outcome.settled if self.outcome else 0
            self.under_way = max(0, settled - before)
            self.known_behind = max(0, events - settled)
            plain(settled, events)

        return progress

    def wake(self) -> None:
        """Say that the run has changed."""
        self._settled = None
        self._woken.set()
        if self.behind_since is None:
            self.behind_since = time.monotonic()

    def settled(self, target: Target) -> bool:
        """Return whether the target has the run as it is, as far as that can be told without it;
        the first `step`, if nobody wakes the run before it, does not ask again. For the thread
        that adds it, before the lane works.
        """
        try:
            self._settled = self._unchanged(target)
        except (OSError, EventlogError):
            self._settled = None
        return self._settled is not None

    def step(self, target: Target, enough: Callable[[], bool]) -> bool:
        """Bring what is new into the target, under a lease; return whether there is more.

        What goes wrong is in `error`, `exit_code` and `reason` afterwards, and nothing is raised
        but what ends the process.
        """
        begun = time.monotonic()
        self._woken.clear()
        before = (self.error, self.exit_code, self.reason)
        self.error, self.exit_code, self.reason = None, 0, None
        try:
            known, self._settled = self._settled, None
            outcome = known or self._unchanged(target) or self._opened(target).run(enough)
        except Exception as error:
            if os.environ.get("EVENTLOG_DEBUG") and not isinstance(error, (EventlogError, OSError)):
                traceback.print_exc()
            if self._replayer is not None and self._replayer.cut_short is not None:
                self._add(self._replayer.cut_short)
            self.failed(error)
            if isinstance(error, Stopped) and before[0] is not None:
                self.error, self.exit_code, self.reason = before  # that says more
            return False
        finally:
            self.under_way = 0
            self.worked = time.monotonic()
            self.seconds += self.worked - begun
        self._add(outcome)
        more = outcome.more or self._woken.is_set()
        if not more:
            self.behind_since = None
        self.backoff.reset()
        return more

    def _add(self, outcome: Outcome) -> None:
        self.outcome = _sum(self.outcome, outcome)
        self.known_behind = max(0, outcome.events - outcome.settled)

    def close(self) -> None:
        """Let go of lease and session."""
        replayer, self._replayer, self._target = self._replayer, None, None
        if replayer is not None:
            # What it had to make durable is: the last words of a ledger's segment are none of it.
            with contextlib.suppress(OSError, EventlogError):
                replayer.__exit__(None, None, None)

    def _unchanged(self, target: Target) -> Outcome | None:
        if self.open or self.settings.repair or self.settings.retry_quarantined:
            return None
        delivery = delivery_of(self.found, target, self.state)
        return unchanged(self.found, delivery, self.settings)

    def _opened(self, target: Target) -> Replayer:
        if self._replayer is not None and self._target is not target:
            self.close()
        if self._replayer is None:
            replayer = Replayer(
                self.found,
                target,
                self.state,
                settings=self.settings,
                progress=self.progress,
                pace=self.pace,
                wait=False,
            )
            self._replayer, self._target = replayer.__enter__(), target
        return self._replayer

    def failed(self, error: Exception) -> None:
        """Note why it stands still, and let go of everything."""
        self.close()
        self.error = error
        if isinstance(error, EventlogError):
            self.exit_code, self.reason = error.exit_code, str(error)
        elif isinstance(error, OSError):
            # A write that fails names no file, and what is written is the state.
            self.reason = f"{error.strerror or error}: {error.filename or self.state}"
            self.exit_code = TemporaryError.exit_code if error.errno in FULL else 1
        else:
            self.reason = f"this is a bug in the replayer: {type(error).__name__}: {error}"
            self.exit_code = 1


def _sum(before: Outcome | None, now: Outcome) -> Outcome:
    """Return the outcome of several calls."""
    if before is None:
        return now
    return dataclasses.replace(
        now,
        sent=before.sent + now.sent,
        points=before.points + now.points,
        changes=before.changes + now.changes,
        repaired=before.repaired + now.repaired,
        contacted=before.contacted or now.contacted,
        notes=[*before.notes, *(note for note in now.notes if note not in before.notes)],
    )
