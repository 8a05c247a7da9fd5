"""The sender: it brings rows to a target until the target, asked anew, holds them.

What may pass is tried again; what is refused for good is set aside; the ledger tells either. It
must never: choose what is sent, move a mark of the cursor.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from eventlog.columns import integers
from eventlog.delivery import Delivery
from eventlog.errors import IntegrityError, TemporaryError
from eventlog.ledger import DELIVERY, MAPPING, QUARANTINE
from replayers.awaited import waiting
from replayers.batches import events, points
from replayers.lease import Lost
from replayers.outcome import Outcome, Settings
from replayers.pace import LONGEST_WISH, Pace, Stopped
from replayers.target import Change, Rejected, Retry, Session

if TYPE_CHECKING:
    import pyarrow as pa

Answer = TypeVar("Answer")


class Sender:
    """Sends the rows of one run to one target.

    Parameters
    ----------
    still_ours:
        Raises `Lost` if the run's lease is another's by now.
    set_aside:
        Called with a writer, the events of it that are refused for good, and those of them that
        only wait for a blob; what it keeps is durable when it returns.
    """

    def __init__(
        self,
        folder: str,
        delivery: Delivery,
        settings: Settings,
        pace: Pace,
        still_ours: Callable[[], None],
        set_aside: Callable[[str, list[int], list[int]], None],
    ) -> None:
        self._folder = folder
        self._delivery = delivery
        self._settings = settings
        self._pace = pace
        self._still_ours = still_ours
        self._set_aside = set_aside

    def deliver(
        self,
        session: Session,
        writer: str,
        rows: pa.Table,
        outcome: Outcome,
        lost: Sequence[Change] = (),
        *,
        how: str = "read back",
    ) -> pa.Table:
        """Send rows and see them confirmed; put into quarantine what is refused for good. Return
        those that are held, and count them in `outcome`. `lost` is what they are without.
        """
        begun = time.time_ns()
        while rows.num_rows:
            try:
                changes = self._send(session, rows, outcome.target)
                break
            except Rejected as error:
                rows = self._quarantine(writer, rows, error, outcome.target)
        else:
            return rows
        seqs = rows.column("seq")
        first, last = seqs[0].as_py(), seqs[-1].as_py()
        changes = [*lost, *changes]
        count, new = events(rows), points(rows)
        outcome.sent += count
        outcome.points += new
        outcome.changes += sum(change.count for change in changes)
        record = self._delivery.record
        span = {"writer": writer, "first_seq": first, "last_seq": last}
        record(
            DELIVERY,
            {**span, "events": count, "points": new, "begun": begun, "how": how},
        )
        for change in changes:
            record(MAPPING, {"writer": writer, **_change(change)})
        return rows

    def _send(self, session: Session, rows: pa.Table, label: str) -> list[Change]:
        """Send until the target, asked anew, holds the rows."""

        def once() -> list[Change]:
            self._pace.take(rows.num_rows)
            self._still_ours()
            changes = session.send(rows)
            if not session.confirm(rows):
                raise Retry(
                    "the target took a batch, and does not hold it when asked",
                    on=label,
                )
            return changes

        return self.again(once)

    def _quarantine(self, writer: str, rows: pa.Table, error: Rejected, label: str) -> pa.Table:
        import numpy as np
        import pyarrow.compute as pc

        seqs = rows.column("seq")
        bad = set(seqs.to_pylist()) & error.seqs
        if not bad:
            raise IntegrityError(
                f"the target refused a batch and named no event of it ({error.what})",
                on=label,
            ) from error
        waits = waiting(self._folder, rows)
        if not bad.isdisjoint(waits):  # of the others it would say the same, one after the other
            bad |= set(waits)
        gone = sorted(bad)
        self._delivery.record(QUARANTINE, {"writer": writer, "seqs": gone, "reason": error.what})
        self._set_aside(writer, gone, sorted(bad & set(waits)))
        refused = pc.is_in(seqs, integers(np.array(gone)))
        return rows.filter(pc.invert(refused))

    def again(self, action: Callable[[], Answer]) -> Answer:
        """Do something that may fail for a while; give up after some tries."""
        low, high = self._settings.backoff
        for attempt in range(1, self._settings.tries + 1):
            try:
                return action()
            except (Stopped, Lost):
                raise
            except TemporaryError as error:
                wished = getattr(error, "after", None) or 0.0
                self._pace.hold(wished)  # all runs of this target are to leave it alone
                if attempt == self._settings.tries or wished > LONGEST_WISH:
                    raise
                pause = min(high, low * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
                self._pace.wait(max(pause, wished))
        raise AssertionError("unreachable")


def _change(change: Change) -> dict[str, Any]:
    fields = dataclasses.asdict(change)
    return {key: value for key, value in fields.items() if value != ""}
