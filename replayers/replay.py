"""Bringing a run into a target, exactly once: the loop under its lease.

For each batch (`replayers.loop`): what is to be sent is made durable, then the mark *attempted*;
the batch is sent; the target is asked anew whether it holds it; the ledger tells it; the cursor
moves. Killed anywhere, the next call asks the target what it holds of the events between the marks,
and sends what it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import Delivery, footprint
from eventlog.event import RUNNING
from eventlog.files import LOCAL, Files
from eventlog.identity import provably_gone
from replayers.about import run_info
from replayers.lease import Lease
from replayers.outcome import BATCH_ROWS, DEFAULT_VIEW, Outcome, Progress, Settings
from replayers.pace import Pace
from replayers.superseding import APPEND
from replayers.target import Target

if TYPE_CHECKING:
    from replayers.loop import Loop

__all__ = [
    "BATCH_ROWS",
    "Outcome",
    "Progress",
    "Replayer",
    "Settings",
    "delivery_of",
    "replay",
    "run_info",
    "unchanged",
]


def replay(
    found: Found,
    target: Target,
    state: str,
    *,
    settings: Settings | None = None,
    progress: Progress = lambda settled, events: None,
    files: Files = LOCAL,
) -> Outcome:
    """Bring a run into a target. Where nothing has changed since it was last done, nothing is
    contacted, read or written.

    Raises
    ------
    TemporaryError
        If the target cannot take more now, or another sync has the lease; what is settled stays.
    IntegrityError
        If the journal is not the one that was delivered, or the target holds foreign rows.
    AuthenticationError
    """
    settings = settings or Settings()
    if not (settings.repair or settings.retry_quarantined):
        quiet = unchanged(found, delivery_of(found, target, state), settings)
        if quiet is not None:
            return quiet
    with Replayer(
        found, target, state, settings=settings, progress=progress, files=files
    ) as replayer:
        return replayer.run()


class Replayer:
    """A run and a target under one lease, held from ``with`` to its end.

    `run` may be called again and again while the run is being written: the session stays open.

    Parameters
    ----------
    pace:
        When rows may be sent; ending its ``stop`` ends a call between two batches.
    wait:
        Whether to wait for a lease whose holder may be dead (`replayers.lease`).
    """

    def __init__(
        self,
        found: Found,
        target: Target,
        state: str,
        *,
        settings: Settings | None = None,
        progress: Progress = lambda settled, events: None,
        pace: Pace | None = None,
        wait: bool = True,
        files: Files = LOCAL,
    ) -> None:
        self.delivery = delivery_of(found, target, state)
        self._lease = Lease(self.delivery.folder, wait=wait)
        self._parts = (found, target, settings or Settings(), progress, pace or Pace(), files)
        self._loop: Loop | None = None
        #: What the last call had done when an exception ended it; None if none did.
        self.cut_short: Outcome | None = None

    def __enter__(self) -> Replayer:
        self.delivery.prepare()
        self._lease.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.delivery.close()
        finally:
            self._lease.__exit__(kind, error, traceback)

    def run(self, enough: Callable[[], bool] = lambda: False) -> Outcome:
        """Send what is new; see `replay`. Behind a batch, `enough` may end the call early."""
        found, target, settings, progress, pace, files = self._parts
        self.cut_short = None
        if self._loop is None:
            from replayers.loop import Loop  # what a run without anything new does not need

            self._loop = Loop(
                found, target, self.delivery, settings, progress, pace, self._lease.check, files
            )
        try:
            return self._loop.run(enough)
        except BaseException:
            # Nobody knows what was stored: the next call reads the cursor and asks the target.
            self.cut_short, self._loop = self._loop.outcome, None
            raise


def delivery_of(found: Found, target: Target, state: str) -> Delivery:
    """Return cursor and ledger of a run and target."""
    run = found.run
    return Delivery(
        state, kind=target.kind, address=target.address, project=run.project, run=run.id
    )


def unchanged(found: Found, delivery: Delivery, settings: Settings | None = None) -> Outcome | None:
    """Return what a sync (None: as the last one) would find, if the run's files are as
    the last one left them and nothing was left to be done; None otherwise. It reads folders and the
    cursor, no event.
    """
    cursor, known = delivery.load()
    wanted = settings and (settings.view, settings.superseded)
    if settings and settings.keys is not None and list(settings.keys) != cursor.keys:
        return None
    if wanted not in (None, (cursor.view or DEFAULT_VIEW, cursor.superseded or APPEND)):
        return None
    if not known or not cursor.footprint or cursor.footprint != footprint(found.folder):
        return None
    if cursor.status == RUNNING:
        from eventlog.reader import headers

        parts = headers(found.folder)
        last = [attempt.writers for attempt in attempts(parts)][-1:]
        if all(provably_gone(parts[w][-1].identity) for writers in last for w in writers):
            return None
    settled = sum(mark.acked for mark in cursor.writers.values())
    return Outcome(
        found.run.id,
        f"{delivery.kind}:{delivery.address}",
        known_as=cursor.known_as,
        settled=settled,
        events=settled,
        quarantined=sum(map(len, cursor.quarantined.values())),
    )
