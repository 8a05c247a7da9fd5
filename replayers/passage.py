"""The way of one run into one target: what is known of it, and the session that is open there.

The cursor and where it is kept, the view that is sent, the target's run and what it holds. It must
never: choose which events are sent, move a mark of the cursor.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eventlog.catalog import Found
from eventlog.columns import numbers
from eventlog.delivery import Cursor, Delivery
from eventlog.errors import IntegrityError
from eventlog.event import NOTE
from eventlog.files import Files
from eventlog.ledger import LOSS
from eventlog.listing import listing
from eventlog.reader import WriterReader, headers
from eventlog.segment import Header
from eventlog.views import View
from replayers.about import run_info
from replayers.awaited import Named, Written, not_come
from replayers.batches import metrics
from replayers.binding import bind
from replayers.compare import Comparer, Difference
from replayers.durable import Durable
from replayers.keys import Chosen, only
from replayers.outcome import Outcome, Settings
from replayers.pace import Pace
from replayers.positions import Positions
from replayers.sender import Sender
from replayers.sent_view import open_sent, with_rewinds
from replayers.target import Session, Target, with_writer

if TYPE_CHECKING:
    import pyarrow as pa


class Passage:
    """One run and one target, under the lease of whoever made this.

    Attributes
    ----------
    parts:
        The headers of the run's files by writer, as of the last `begin`.
    known:
        Whether the cursor tells all that the target may hold.
    held:
        What the target said to hold, if it had to be asked; what was sent since is not in it.
    widened:
        Whether a narrower view was sent before than is to be sent now.
    """

    def __init__(
        self,
        found: Found,
        target: Target,
        delivery: Delivery,
        settings: Settings,
        pace: Pace,
        still_ours: Callable[[], None],
        files: Files,
    ) -> None:
        self.found = found
        self.folder = found.folder
        self.target = target
        self.delivery = delivery
        self.settings = settings
        self.still_ours = still_ours
        self.parts: dict[str, list[Header]] = {}
        self.cursor, there = delivery.load()
        self.known = there and not self.cursor.unproven
        self.durable = Durable(found.folder, files)
        self.held = Positions()
        self.widened = False
        self.outcome = Outcome(found.run.id, f"{target.kind}:{target.address}")
        self.sender = Sender(found.folder, delivery, settings, pace, still_ours, self._set_aside)
        self._session: Session | None = None

    def begin(self) -> None:
        """Look at the run's files anew.

        Raises
        ------
        IntegrityError
            If this is not the journal that was delivered, or its run.json is another run's.
        """
        self.outcome = Outcome(self.found.run.id, f"{self.target.kind}:{self.target.address}")
        self.widened = False
        self.parts = headers(self.folder)
        self.found.run.check(self.folder, self.parts)
        for name in ("view", "chosen", "sent"):
            vars(self).pop(name, None)
        self._bind()

    # ---------------------------------------------------------------- journal and cursor

    def _bind(self) -> None:
        """Refuse a journal that is not the one that was delivered."""
        target = self.outcome.target
        bound = bind(
            self.folder, self.cursor, self.parts, target=target, state=self.delivery.folder
        )
        if bound.other:
            self.outcome.notes.append(
                f"the state folder tells of another journal of this run: {target} is asked anew "
                "what it holds"
            )
            self.known = False
        for loss in bound.losses:
            self.outcome.notes.append(
                f"events {loss.first} to {loss.last} of writer {loss.writer} were delivered and "
                "then lost by the journal's disk (power?); the target has them, the journal not"
            )
            self.delivery.record(LOSS, dataclasses.asdict(loss))
        if bound.losses:
            self.delivery.sync_ledger()
            self.save(bound.cursor)
        self.cursor = bound.cursor

    def save(self, cursor: Cursor) -> None:
        """Put a cursor in place, durable. Raises `replayers.lease.Lost`, `OSError`."""
        self.still_ours()
        self.cursor = dataclasses.replace(cursor, synced=time.time_ns(), unproven=not self.known)
        self.delivery.save(self.cursor)

    def tell(self, told: dict[str, Any]) -> None:
        """Have the ledger tell something, durable."""
        self.delivery.record(NOTE, told)
        self.delivery.sync_ledger()

    def _set_aside(self, writer: str, seqs: list[int], waiting: list[int]) -> None:
        self.save(self.cursor.with_quarantined(writer, seqs, waiting))

    def without(self, writer: str, tables: Sequence[Named]) -> None:
        """Wait for these tables of a writer no longer: they are null in the target."""
        seqs = sorted({seq for seq, _digest in tables})
        self.tell({"writer": writer, "seqs": seqs, "without": len(tables)})
        self.save(self.cursor.with_lost(writer, tables))
        vars(self).pop("sent", None)

    def start_again(self, cursor: Cursor, told: dict[str, Any]) -> None:
        """Take a cursor that knows nothing to be held. What was attempted before is asked for, and
        a table that has come after all is sent.
        """
        self.tell(told)
        self.save(dataclasses.replace(cursor, without=not_come(self.folder, cursor.without)))
        vars(self).pop("sent", None)
        self.known, self.held = False, Positions()
        self.let_go()

    # ---------------------------------------------------------------- the view

    @functools.cached_property
    def view(self) -> View:
        """The view that is sent, as of this call."""
        note = functools.partial(self.delivery.record, NOTE)
        view, self.cursor = open_sent(
            self.folder, self.settings.view, self.parts, self.cursor, note
        )
        return view

    @functools.cached_property
    def chosen(self) -> View:
        """The view without the metrics that the target does not get."""
        return only(self.view, tuple(self.cursor.keys))

    @functools.cached_property
    def sent(self) -> Written:
        """What of the view the target gets."""
        return Written(self.folder, self.chosen, self.cursor.without)

    def nothing_chosen(self) -> bool:
        """Return whether metrics were looked at, and the target was to get none of them."""
        chosen = vars(self).get("chosen")
        never = all(mark.sent is None for mark in self.cursor.writers.values())
        return never and isinstance(chosen, Chosen) and chosen.nothing

    def rewinds(self) -> bool:
        """Return whether the run ever said that it went back."""
        self.cursor = with_rewinds(self.folder, self.parts, self.cursor)
        return self.cursor.rewound

    # ---------------------------------------------------------------- the target

    def session(self) -> Session:
        """Return the open session; on the first call ask the target what it holds."""
        if self._session is None:
            self._session = self._open()
            self.outcome.contacted = True
            # Without a cursor, or killed between two marks, only the target knows.
            unsure = not self.known or any(
                m.attempted > m.acked for m in self.cursor.writers.values()
            )
            if unsure:
                self.held = self.sender.again(self._session.held)
                # What is held may be of a narrower view, and be told only by writer.
                if self.settings.view == "all" and not self.cursor.view:
                    self.widened |= len(self.held) > 0
            self._check_target(self._session)
            self._say_which(self._session)
            if self._session.known_as != self.cursor.known_as:
                self.save(
                    dataclasses.replace(
                        self.cursor, known_as=self._session.known_as, rules=self.target.rules
                    )
                )
        return self._session

    def let_go(self) -> None:
        """Have the next call open another session."""
        self._session = None

    def _open(self) -> Session:
        former = self.cursor.replaced[-1][0] if self.cursor.replaced else ""
        info = run_info(
            self.found,
            self.cursor.known_as,
            adopt_by_name=self.settings.adopt_by_name and not self.cursor.generation,
            generation=self.cursor.generation,
            replaces=former,
            shown_as=self.cursor.shown_as,
        )
        target = self.target
        return self.sender.again(lambda: target.open(info))

    def _say_which(self, session: Session) -> None:
        """Say which run of the target is gone on with: for each attempt that is new to it."""
        found_by = getattr(session, "found_by", None)
        there = listing(self.folder).writers
        if found_by and any(writer not in self.cursor.writers for writer in there):
            self.outcome.notes.append(
                f"goes on with the run {session.known_as}, found by {found_by}"
            )

    def _check_target(self, session: Session) -> None:
        """Refuse a target that no longer holds what it was seen to hold: it was emptied, deleted
        or restored, and what lies in front of the cursor would never be sent again.
        """
        if self.settings.repair or self.widened or getattr(session, "notices_loss", False):
            return
        for writer, mark in self.cursor.writers.items():
            if mark.sent is None:
                continue
            table = next(WriterReader(self.folder, writer, start=mark.sent).tables(), None)
            if table is None:
                continue
            first = table.slice(0, int(numbers(table.column("seq")).searchsorted(mark.sent + 1)))
            rows = metrics(self.sent.rows(writer, first))
            if rows.num_rows and not self.sender.again(
                functools.partial(session.confirm, with_writer(rows, writer))
            ):
                raise IntegrityError(
                    f"the target was seen to hold event {mark.sent} of writer {writer}, and holds "
                    "it no more; nothing was sent",
                    on=f"{self.outcome.target} run {session.known_as}",
                    hint="bring its data back, or remove the state folder "
                    f"{self.delivery.folder} to have everything sent that it does not hold",
                )

    def deliver(
        self, writer: str, table: pa.Table, rows: pa.Table, *, how: str = "read back"
    ) -> pa.Table:
        """Send what is to be sent of a table of one writer, which is durable, and see it confirmed;
        return those rows that are held.
        """
        batch = with_writer(rows, writer)
        lost = self.sent.changes(writer, table)
        return self.sender.deliver(self.session(), writer, batch, self.outcome, lost, how=how)

    def compared(self) -> Difference:
        """Compare the target's read-back with what is sent."""
        comparer = Comparer(
            self.folder, self.target, self.session(), self.chosen, cursor=self.cursor
        )
        return comparer.run()
