"""The loop of one run and one target: read, map, send, confirm, advance.

For each batch: what is to be sent is made durable, then the mark *attempted*; the batch is sent;
the target is asked anew whether it holds it; the ledger tells it; the cursor moves. Killed
anywhere, the next call asks the target what it holds of the events between the marks, and sends
what it does not.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import Cursor, Delivery, footprint
from eventlog.errors import IntegrityError
from eventlog.event import NOTE, RUNNING, STATE, digest
from eventlog.files import Files
from eventlog.frame import to_events
from eventlog.glance import Glance, sum_up
from eventlog.ledger import LOSS
from eventlog.listing import listing
from eventlog.mentions import may_mention
from eventlog.reader import Missing, WriterReader, headers, unreadable
from eventlog.segment import Header
from eventlog.tally import Tally, count
from eventlog.views import All, Effective, Restart, View, effective, open_view
from replayers.about import run_info
from replayers.awaited import Written, come
from replayers.batches import (
    at_positions,
    at_seqs,
    batches,
    gathered,
    last_metric,
    metrics,
    start_of_last,
    upto,
    without,
)
from replayers.binding import bind, durable_events
from replayers.compare import Comparer, Difference
from replayers.durable import Durable
from replayers.keys import Chosen, check_keys, only, shown
from replayers.outcome import DEFAULT_VIEW, Outcome, Progress, Settings, rows_at_once
from replayers.pace import Pace
from replayers.positions import Positions
from replayers.sender import Sender
from replayers.superseding import (
    APPEND,
    NEW_RUN,
    REBUILD,
    anew,
    decided,
    generations,
    next_generation,
    refuse_loss,
    signature,
)
from replayers.target import (
    Absent,
    RunState,
    Session,
    Target,
    with_writer,
)

if TYPE_CHECKING:
    import pyarrow as pa

Answer = TypeVar("Answer")


class Loop:
    """The loop; see `replayers.replay.Replayer`, which holds its lease."""

    def __init__(
        self,
        found: Found,
        target: Target,
        delivery: Delivery,
        settings: Settings,
        progress: Progress,
        pace: Pace,
        still_ours: Callable[[], None],
        files: Files,
    ) -> None:
        self.found = found
        self.folder = found.folder
        self.target = target
        self.delivery = delivery
        self.settings = settings
        self.progress = progress
        self.pace = pace
        self.still_ours = still_ours
        self.footprint = ""
        self.parts: dict[str, list[Header]] = {}
        self.cursor, there = delivery.load()
        #: Whether the cursor tells all that the target may hold.
        self.known = there and not self.cursor.unproven
        self.durable = Durable(found.folder, files)
        self.held = Positions()
        self.tallies: dict[str, Tally] = {}
        self.outcome = Outcome(found.run.id, f"{target.kind}:{target.address}")
        self.sender = Sender(found.folder, delivery, settings, pace, still_ours, self._set_aside)
        self._session: Session | None = None

    # ---------------------------------------------------------------- the whole

    def run(self, enough: Callable[[], bool]) -> Outcome:
        """Send what is new; behind a batch, `enough` may end it early."""
        self.outcome = Outcome(self.found.run.id, f"{self.target.kind}:{self.target.address}")
        self.enough, self.moved = enough, False
        self.widened = False
        self.footprint = footprint(self.folder)
        self.parts = headers(self.folder)
        self.found.run.check(self.folder, self.parts)
        for name in ("view", "chosen", "sent"):
            vars(self).pop(name, None)
        self._bind()
        self._choose_keys()
        self._note_view()
        lost = self._unreadable()
        for writer, reason in lost.items():
            self.outcome.missing[writer] = [Missing(0, -1, reason)]
        try:
            self._find_generation()
            self._supersede(ended=False)
            for writer in self._writers():
                self._retry(writer)
            if not self._send_all():
                return self.outcome
            seen = sum_up(self.parts, {w: self._tally(w) for w in self.parts}, lost)
            ended = seen.status != RUNNING and not self.outcome.missing
            if ended and self._supersede(ended=True) and not self._send_all():
                return self.outcome
            self.known = True
            self._settle_view()
            if not self.outcome.missing:
                self._mark_former()
                if self.cursor.state != _final_state(seen):
                    self._finish(seen)
                self._rest(seen)
        finally:
            self._count()
        return self.outcome

    def _send_all(self) -> bool:
        """Send what is new of every writer; return False if the call is to end early."""
        for writer in self._writers():
            self._writer(writer)
            if self.outcome.more:
                return False
        return True

    def _unreadable(self) -> dict[str, str]:
        known = set(listing(self.folder).writers) <= set(self.parts)
        return {} if known else unreadable(self.folder)

    def _rest(self, seen: Glance) -> None:
        """Remember that everything is settled, so that the next call need not look."""
        done = seen.ends == self._acked() and not self.cursor.awaited
        print = self.footprint if done else ""
        if (self.cursor.footprint, self.cursor.status) != (print, seen.status):
            self._save(dataclasses.replace(self.cursor, footprint=print, status=seen.status))

    def _acked(self) -> dict[str, int]:
        marks = {w: self.cursor.mark(w) for w in self.parts}
        return {w: mark.acked for w, mark in marks.items()}

    def _writers(self) -> list[str]:
        """Return the writers in the order in which their events are sent."""
        return [writer for attempt in attempts(self.parts) for writer in attempt.writers]

    def _count(self) -> None:
        outcome = self.outcome
        outcome.known_as = self.cursor.known_as
        outcome.settled = sum(self._acked().values())
        ends = self._ends()
        for writer, gaps in outcome.missing.items():
            ends[writer] = max(ends.get(writer, 0), *(gap.last + 1 for gap in gaps))
        outcome.events = max(sum(ends.values()), outcome.settled)
        chosen = vars(self).get("chosen")
        never = all(mark.sent is None for mark in self.cursor.writers.values())
        if never and isinstance(chosen, Chosen) and chosen.nothing:
            outcome.notes.append(
                f"no metric of it so far matches the keys that are sent ({shown(self.cursor.keys)})"
            )
        outcome.quarantined = sum(len(v) for v in self.cursor.quarantined.values())
        waits = sum(len(v) for v in self.cursor.awaited.values())
        if waits:
            outcome.notes.append(f"{waits} events wait for blobs that have not come, or not whole")

    def _ends(self) -> dict[str, int]:
        """Return the seq behind the last event of each writer, as far as names and cursor say."""
        found = listing(self.folder)
        ends = {}
        for writer, parts in self.parts.items():
            sealed = [name.last + 1 for name in found.parquet(writer)]
            acked = self.cursor.mark(writer).acked
            ends[writer] = max([acked, *sealed, *(part.first_seq for part in parts)])
        return ends

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
            self._save(bound.cursor)
        self.cursor = bound.cursor

    def _save(self, cursor: Cursor) -> None:
        self.still_ours()
        self.cursor = dataclasses.replace(cursor, synced=time.time_ns(), unproven=not self.known)
        self.delivery.save(self.cursor)

    def _set_aside(self, writer: str, seqs: list[int], waiting: list[int]) -> None:
        self._save(self.cursor.with_quarantined(writer, seqs, waiting))

    # ---------------------------------------------------------------- superseded points

    def _find_generation(self) -> None:
        """Without a cursor: find the newest run of the target that replaced another one."""
        if self.settings.superseded != NEW_RUN or self.known or self.cursor.superseded:
            return
        view = self.view
        there = []
        for generation in [*generations(view), ""] if isinstance(view, Effective) else []:
            info = run_info(self.found, None, create=False, generation=generation)
            try:
                session = self.sender.again(functools.partial(self.target.open, info))
                if getattr(session, "found_by", None) or len(self.sender.again(session.held)):
                    there.append((session.known_as, generation))
            except Absent:
                continue
        if there and there[0][1]:
            former = there[1:2]
            self.cursor = dataclasses.replace(
                self.cursor,
                generation=there[0][1],
                replaced=former,
                unmarked=bool(former),
            )

    def _supersede(self, *, ended: bool) -> bool:
        """Do what was chosen for points that the target holds and that are superseded by now;
        return whether everything is to be sent again. See `replayers.superseding`.
        """
        choice = self.settings.superseded
        if (self.cursor.superseded or APPEND) != choice:
            self.delivery.record(NOTE, {"superseded": choice})
            self._save(dataclasses.replace(self.cursor, superseded=choice))
        if choice == APPEND or not isinstance(view := self.view, Effective):
            return False
        if not self._anything_held():
            return False
        looked = signature(choice, view, ended=ended)
        if self.cursor.looked == looked or not (ended or decided(view)):
            return False
        session, label = self.session(), self.outcome.target
        compare = functools.partial(Comparer, self.folder, self.target, session, self.sent)
        held = compare(settings=False).run(details=False).superseded
        generation = generations(view)[0]
        if not held or (choice == NEW_RUN and self.cursor.generation == generation):
            self._save(dataclasses.replace(self.cursor, looked=looked))
            return False
        told = {"superseded": choice, "points": held, "known_as": session.known_as}
        if choice == REBUILD:
            if self.outcome.missing:
                return False
            for writer in self.parts:
                self.durable.make(writer)  # soon it is the only copy
            refuse_loss(compare().run(details=False), label)
            self._start_again(anew(self.cursor, ""), told)
            self.sender.again(session.discard)  # type: ignore[attr-defined]
            self._save(dataclasses.replace(self.cursor, looked=looked))
            self.outcome.notes.append(f"rebuilt: {held} of its points were superseded")
        else:
            told["generation"] = generation
            self._start_again(next_generation(self.cursor, generation, looked), told)
            self.outcome.notes.append(
                f"a new run replaces {session.known_as}, of which {held} points were superseded"
            )
        return True

    def _anything_held(self) -> bool:
        """Return whether anything was sent; without a cursor only the target knows."""
        attempted = any(mark.attempted for mark in self.cursor.writers.values())
        if attempted or self.known:
            return attempted
        self.session()
        return len(self.held) > 0

    def _start_again(self, cursor: Cursor, told: dict[str, Any]) -> None:
        """Take a cursor that knows nothing to be held. What was attempted before is asked for."""
        self.delivery.record(NOTE, told)
        self.delivery.sync_ledger()
        self._save(cursor)
        self.known, self.held, self.tallies = False, Positions(), {}
        self._session = None

    def _mark_former(self) -> None:
        """Have the run that is replaced say so, now that the new one is complete."""
        if not (self.cursor.unmarked and self.cursor.replaced):
            return
        known_as, generation = self.cursor.replaced[-1]
        by = self.session().known_as
        info = run_info(self.found, known_as or None, create=False, generation=generation)
        try:
            former = self.sender.again(lambda: self.target.open(info))
            self.sender.again(lambda: former.mark_replaced(by))  # type: ignore[attr-defined]
        except Absent:  # somebody deleted it
            by = ""
        self._session = None
        self.delivery.record(NOTE, {"replaced": known_as, "by": by})
        self.delivery.sync_ledger()
        self._save(dataclasses.replace(self.cursor, unmarked=False))

    # ---------------------------------------------------------------- one writer

    @functools.cached_property
    def view(self) -> View:
        """The view that is sent, as of this call."""
        alone = self.settings.view == "effective" and len(attempts(self.parts)) == 1
        # What one attempt logged is superseded only where it said that it went back.
        if alone and not self._rewinds():
            return All("effective")
        if self.settings.view != "effective":
            return open_view(self.folder, self.settings.view)
        recorded = recorded_restarts(self.cursor)
        view = effective(self.folder, recorded=recorded, ripe=True)
        self._record_restarts(view)
        return view

    @functools.cached_property
    def chosen(self) -> View:
        """The view without the metrics that the target does not get."""
        return only(self.view, tuple(self.cursor.keys))

    @functools.cached_property
    def sent(self) -> View:
        """What of the view the target gets."""
        return Written(self.folder, self.chosen)

    def _choose_keys(self) -> None:
        """Take the choice of metrics with the first delivery, and refuse another one later."""
        wanted = self.settings.keys
        if wanted is None or list(wanted) == self.cursor.keys:
            return
        check_keys(wanted, self.cursor, self.outcome.target)
        self.delivery.record(NOTE, {"keys": list(wanted)})
        self.delivery.sync_ledger()
        self._save(dataclasses.replace(self.cursor, keys=list(wanted)))

    def _record_restarts(self, view: Effective) -> None:
        """Remember where attempts start again: what is delivered on it cannot be taken back."""
        told = dict(self.cursor.restarts)
        for key, found in view.restarts.items():
            if found.step is None or found.how not in ("data", "stated"):
                continue
            if tuple(told.get(key, ())) != (found.step, found.how):
                told[key] = (found.step, found.how)
                self.delivery.record(
                    NOTE, {"attempt": key, "starts_again_at": found.step, "found": found.how}
                )
        self.cursor = dataclasses.replace(self.cursor, restarts=told)

    def _rewinds(self) -> bool:
        """Return whether the run ever said that it went back."""
        if not self.cursor.rewound and any(map(self._rewinds_ahead, self.parts)):
            self.cursor = dataclasses.replace(self.cursor, rewound=True)
        return self.cursor.rewound

    def _rewinds_ahead(self, writer: str) -> bool:
        import pyarrow.compute as pc

        start = self.cursor.mark(writer).acked
        if not may_mention(self.folder, writer, "rewind", start=start):
            return False
        for table in WriterReader(self.folder, writer, start=start).tables():
            stated = pc.equal(table.column("kind"), STATE)
            if pc.any(pc.and_(stated, pc.equal(table.column("key"), "rewind"))).as_py():
                return True
        return False

    def _tally(self, writer: str) -> Tally:
        """Return what the events of a writer before its mark add up to."""
        if writer not in self.tallies:
            mark = self.cursor.mark(writer)
            tally = Tally(**mark.tally) if mark.tally is not None else Tally()
            if tally.end != mark.acked:  # the cursor is of an earlier version
                tally = Tally()
                for table in upto(
                    WriterReader(self.folder, writer, skip_missing=True).tables(), mark.acked
                ):
                    count(tally, table)
            self.tallies[writer] = tally
        return self.tallies[writer]

    def _writer(self, writer: str) -> None:
        reader = WriterReader(self.folder, writer, start=self.cursor.mark(writer).acked)
        most = rows_at_once(self.settings, self.target)
        for whole in gathered(reader.tables(), most):
            for table in batches(whole, most):
                if self.moved and self.enough():
                    self.outcome.more = True
                    return
                self.pace.wait(0)
                self._batch(writer, table, self.sent.rows(writer, table))
                self.moved = True
                done = sum(self._acked().values())
                self.progress(done, max(sum(self._ends().values()), done))
        if reader.missing:
            self.outcome.missing[writer] = reader.missing
        ranges = self.held.ranges(writer)
        if ranges and ranges[-1][1] >= reader.next_seq:
            self.outcome.notes.append(
                f"it holds events {reader.next_seq} to {ranges[-1][1]} of writer {writer}, which "
                "this journal does not have (a copy in part, or a tail that was lost)"
            )
        mark = self.cursor.mark(writer)
        durable = durable_events(reader, mark)
        if durable != mark.durable:
            self._save(self.cursor.with_mark(writer, dataclasses.replace(mark, durable=durable)))

    def _note_view(self) -> None:
        """Find out whether another view was settled before; see `_settle_view`."""
        before = self.cursor.view or DEFAULT_VIEW
        if before == self.settings.view or not any(self._acked().values()):
            return
        # Only what superseded something makes the views two.
        if len(attempts(self.parts)) == 1 and not self._rewinds():
            return
        if self.settings.view == "all":
            self.widened = True
            return
        self.outcome.notes.append(
            f"the view {before} was sent before: superseded points that it holds stay there "
            "(eventlog diff names them)"
        )

    def _settle_view(self) -> None:
        """Send what a narrower view left out, or is to be repaired; remember the view."""
        if self.settings.repair:
            self._mend("repaired")
        elif self.widened:
            self._mend("left out before")
        if self.cursor.view != self.settings.view:
            if self.cursor.view:
                self.delivery.record(NOTE, {"view": self.settings.view, "before": self.cursor.view})
                self.delivery.sync_ledger()
            self._save(dataclasses.replace(self.cursor, view=self.settings.view))

    def _mend(self, how: str) -> None:
        """Send the events of which the target lacks something, and see what differs then."""
        session = self.session()
        found = self._compared(session)
        if found.positions:
            self.sender.again(session.held)  # what a session remembers of the run counts no more
        for writer in found.positions.writers():
            for table in at_positions(self.folder, writer, found.positions):
                for part in batches(table, rows_at_once(self.settings, self.target)):
                    rows = self.sent.rows(writer, part)
                    self.durable.make(writer)
                    self._deliver(writer, rows, how=how)
        self.outcome.repaired = len(found.positions)
        self.delivery.sync_ledger()
        if found.positions:
            found = self._compared(session)
        self.outcome.unexplained = sum(c.count for c in found.causes if not c.explained)
        if self.outcome.unexplained:
            self.outcome.notes.append(
                f"{self.outcome.unexplained} differences are left that sending cannot mend "
                "(eventlog diff shows them)"
            )

    def _compared(self, session: Session) -> Difference:
        comparer = Comparer(self.folder, self.target, session, self.sent, cursor=self.cursor)
        return comparer.run()

    def _retry(self, writer: str) -> None:
        """Send again what the target refused: all of it, if that is wished, in batches of one
        event; else what waited for blobs that have come.
        """
        if self.settings.retry_quarantined:
            seqs, most = self.cursor.quarantined.get(writer, []), 1
        else:
            seqs = come(self.folder, writer, self.cursor.awaited.get(writer, []))
            most = rows_at_once(self.settings, self.target)
        for table in at_seqs(self.folder, writer, seqs):
            for part in batches(table, most):
                self._retry_batch(writer, part)

    def _retry_batch(self, writer: str, table: pa.Table) -> None:
        rows = self.sent.rows(writer, table)
        done = set(table.column("seq").to_pylist())
        if rows.num_rows:
            self.durable.make(writer)
            held = self._deliver(writer, rows, how="retried")
            refused = set(rows.column("seq").to_pylist()).difference(held.column("seq").to_pylist())
            done -= refused
        if done:
            self.delivery.sync_ledger()
            self._save(self.cursor.without_quarantined(writer, sorted(done)))

    def _batch(self, writer: str, table: pa.Table, rows: pa.Table) -> None:
        """Settle the events of `table`, of which `rows` are to be in the target."""
        sent = self.cursor.mark(writer).sent
        if rows.num_rows:
            self.session()  # the first time it learns what is held
            new = without(rows, self.held.ranges(writer))
            # What is left out is held already.
            sent = last_metric(rows, sent) if new.num_rows < rows.num_rows else sent
            rows = new
        last = to_events(table.slice(start_of_last(table)))[-1]
        tally = dataclasses.replace(self._tally(writer))
        count(tally, table)
        if rows.num_rows:
            self.durable.make(writer)
            mark = self.cursor.mark(writer)
            attempted = dataclasses.replace(mark, attempted=max(mark.attempted, last.seq + 1))
            self._save(self.cursor.with_mark(writer, attempted))
            sent = last_metric(self._deliver(writer, rows), sent)
        steps = table.column("step").drop_null()
        step = steps[-1].as_py() if len(steps) else self.cursor.mark(writer).step
        mark = self.cursor.mark(writer)
        settled = dataclasses.replace(
            mark,
            acked=last.seq + 1,
            attempted=max(last.seq + 1, mark.attempted),
            crc=digest(last),
            step=step,
            time=last.time,
            sent=sent,
            lost=None,
            tally=dataclasses.asdict(tally),
        )
        self.delivery.sync_ledger()
        self._save(self.cursor.with_mark(writer, settled))
        self.tallies[writer] = tally

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
                self._save(
                    dataclasses.replace(
                        self.cursor, known_as=self._session.known_as, rules=self.target.rules
                    )
                )
        return self._session

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
            first = table.slice(0, int(table.column("seq").to_numpy().searchsorted(mark.sent + 1)))
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

    def _open(self) -> Session:
        former = self.cursor.replaced[-1][0] if self.cursor.replaced else ""
        info = run_info(
            self.found,
            self.cursor.known_as,
            adopt_by_name=self.settings.adopt_by_name and not self.cursor.generation,
            generation=self.cursor.generation,
            replaces=former,
        )
        target = self.target
        return self.sender.again(lambda: target.open(info))

    def _deliver(self, writer: str, rows: pa.Table, *, how: str = "read back") -> pa.Table:
        batch = with_writer(rows, writer)
        return self.sender.deliver(self.session(), writer, batch, self.outcome, how=how)

    def _finish(self, seen: Glance) -> None:
        """Tell the target how the run stands."""
        self.still_ours()
        session = self.session()
        final = _final_state(seen)
        self.sender.again(lambda: session.close(RunState(seen.status, seen.ended, seen.exit_code)))
        self.delivery.record(NOTE, {"state": final})
        self.delivery.sync_ledger()
        self._save(dataclasses.replace(self.cursor, state=final))
        self._session = None  # it was let go of: what comes later opens another


def _final_state(seen: Glance) -> str:
    return f"{seen.status} {seen.exit_code} {seen.ended}"


def recorded_restarts(cursor: Cursor) -> dict[str, Restart]:
    """Return where attempts start again, as the deliveries of this cursor took it."""
    found = {}
    for key, told in cursor.restarts.items():
        try:
            step, how = told
            found[str(key)] = Restart(int(step), str(how))
        except (TypeError, ValueError):
            continue
    return found
