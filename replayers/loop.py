"""The loop of one run and one target: read, map, send, confirm, advance.

For each batch: what is to be sent is made durable, then the mark *attempted*; the batch is sent;
the target is asked anew whether it holds it; the ledger tells it; the cursor moves. Killed
anywhere, the next call asks the target what it holds of the events between the marks, and sends
what it does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import Delivery, footprint
from eventlog.event import RUNNING, digest
from eventlog.files import Files
from eventlog.frame import to_events
from eventlog.glance import Glance, sum_up
from eventlog.identity import provably_there
from eventlog.listing import listing
from eventlog.reader import Missing, WriterReader, unreadable
from eventlog.tally import Tally, count
from replayers.awaited import Written, come, still_missing
from replayers.batches import (
    at_positions,
    at_seqs,
    batches,
    gathered,
    last_metric,
    start_of_last,
    upto,
    without,
)
from replayers.binding import durable_events
from replayers.keys import check_keys, shown
from replayers.outcome import DEFAULT_VIEW, Outcome, Progress, Settings, rows_at_once
from replayers.pace import Pace
from replayers.passage import Passage
from replayers.replacing import find_generation, mark_former, supersede
from replayers.target import RunState, Target

if TYPE_CHECKING:
    import pyarrow as pa


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
        self.folder = found.folder
        self.target = target
        self.settings = settings
        self.progress = progress
        self.pace = pace
        self.footprint = ""
        self.tallies: dict[str, Tally] = {}
        self.way = Passage(found, target, delivery, settings, pace, still_ours, files)

    @property
    def outcome(self) -> Outcome:
        """What the last call did, or the one that is under way."""
        return self.way.outcome

    # ---------------------------------------------------------------- the whole

    def run(self, enough: Callable[[], bool]) -> Outcome:
        """Send what is new; behind a batch, `enough` may end it early."""
        way = self.way
        self.enough, self.moved, self.beyond = enough, False, False
        self.footprint = footprint(self.folder)
        way.begin()
        self._choose_keys()
        self._note_view()
        lost = self._unreadable()
        for writer, reason in lost.items():
            self.outcome.missing[writer] = [Missing(0, -1, reason)]
        try:
            find_generation(way)
            self._supersede(ended=False)
            for writer in self._writers():
                self._retry(writer)
            if not self._send_all():
                return self.outcome
            if self.settings.without_missing:
                self._give_up_missing()
            seen = sum_up(way.parts, {w: self._tally(w) for w in way.parts}, lost)
            ended = seen.status != RUNNING and not self.outcome.missing
            if ended and self._supersede(ended=True) and not self._send_all():
                return self.outcome
            way.known = not self.beyond
            self._settle_view()
            if not self.outcome.missing:
                mark_former(way)
                if way.cursor.state != _final_state(seen):
                    self._finish(seen)
                self._rest(seen)
        finally:
            self._count()
        return self.outcome

    def _supersede(self, *, ended: bool) -> bool:
        again = supersede(self.way, ended=ended)
        if again:
            self.tallies = {}
        return again

    def _send_all(self) -> bool:
        """Send what is new of every writer; return False if the call is to end early."""
        for writer in self._writers():
            self._writer(writer)
            if self.outcome.more:
                return False
        return True

    def _unreadable(self) -> dict[str, str]:
        known = set(listing(self.folder).writers) <= set(self.way.parts)
        return {} if known else unreadable(self.folder)

    def _rest(self, seen: Glance) -> None:
        """Remember that everything is settled, so that the next call need not look."""
        way = self.way
        done = seen.ends == self._acked() and not way.cursor.awaited
        print = self.footprint if done else ""
        if (way.cursor.footprint, way.cursor.status) != (print, seen.status):
            way.save(dataclasses.replace(way.cursor, footprint=print, status=seen.status))

    def _acked(self) -> dict[str, int]:
        way = self.way
        marks = {w: way.cursor.mark(w) for w in way.parts}
        return {w: mark.acked for w, mark in marks.items()}

    def _writers(self) -> list[str]:
        """Return the writers in the order in which their events are sent."""
        return [writer for attempt in attempts(self.way.parts) for writer in attempt.writers]

    def _count(self) -> None:
        way = self.way
        outcome = self.outcome
        outcome.known_as = way.cursor.known_as
        outcome.settled = sum(self._acked().values())
        ends = self._ends()
        for writer, gaps in outcome.missing.items():
            ends[writer] = max(ends.get(writer, 0), *(gap.last + 1 for gap in gaps))
        outcome.events = max(sum(ends.values()), outcome.settled)
        if way.nothing_chosen():
            outcome.notes.append(
                f"no metric of it so far matches the keys that are sent ({shown(way.cursor.keys)})"
            )
        outcome.quarantined = sum(len(v) for v in way.cursor.quarantined.values())
        waits = sum(len(v) for v in way.cursor.awaited.values())
        if waits:
            outcome.notes.append(
                f"{waits} events wait for tables that have not come, or not whole (if nothing "
                "will bring them: --without-missing sends the rest, for good)"
            )

    def _ends(self) -> dict[str, int]:
        """Return the seq behind the last event of each writer, as far as names and cursor say."""
        way = self.way
        found = listing(self.folder)
        ends = {}
        for writer, parts in way.parts.items():
            sealed = [name.last + 1 for name in found.parquet(writer)]
            acked = way.cursor.mark(writer).acked
            ends[writer] = max([acked, *sealed, *(part.first_seq for part in parts)])
        return ends

    # ---------------------------------------------------------------- one writer

    def _choose_keys(self) -> None:
        """Take the choice of metrics with the first delivery, and refuse another one later."""
        way = self.way
        wanted = self.settings.keys
        if wanted is None or list(wanted) == way.cursor.keys:
            return
        check_keys(wanted, way.cursor, self.outcome.target)
        way.tell({"keys": list(wanted)})
        way.save(dataclasses.replace(way.cursor, keys=list(wanted)))

    def _tally(self, writer: str) -> Tally:
        """Return what the events of a writer before its mark add up to."""
        if writer not in self.tallies:
            mark = self.way.cursor.mark(writer)
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
        way = self.way
        reader = WriterReader(self.folder, writer, start=way.cursor.mark(writer).acked)
        most = rows_at_once(self.settings, self.target)
        for whole in gathered(reader.tables(), most):
            for table in batches(whole, most):
                if self.moved and self.enough():
                    self.outcome.more = True
                    return
                self.pace.wait(0)
                self._batch(writer, table, way.sent.rows(writer, table))
                self.moved = True
                done = sum(self._acked().values())
                self.progress(done, max(sum(self._ends().values()), done))
        if reader.missing:
            self.outcome.missing[writer] = reader.missing
        ranges = way.held.ranges(writer)
        if ranges and ranges[-1][1] >= reader.next_seq:
            self.beyond = True  # the rest of a copy may come: the target has to be asked again
            self.outcome.notes.append(
                f"it holds events {reader.next_seq} to {ranges[-1][1]} of writer {writer}, which "
                "this journal does not have (a copy in part, or a tail that was lost)"
            )
        mark = way.cursor.mark(writer)
        durable = durable_events(reader, mark)
        if durable != mark.durable:
            way.save(way.cursor.with_mark(writer, dataclasses.replace(mark, durable=durable)))

    def _note_view(self) -> None:
        """Find out whether another view was settled before; see `_settle_view`."""
        way = self.way
        before = way.cursor.view or DEFAULT_VIEW
        if before == self.settings.view or not any(self._acked().values()):
            return
        # Only what superseded something makes the views two.
        if len(attempts(way.parts)) == 1 and not way.rewinds():
            return
        if self.settings.view == "all":
            way.widened = True
            return
        self.outcome.notes.append(
            f"the view {before} was sent before: superseded points that it holds stay there "
            "(eventlog diff names them)"
        )

    def _settle_view(self) -> None:
        """Send what a narrower view left out, or is to be repaired; remember the view."""
        way = self.way
        if self.settings.repair:
            self._mend("repaired")
        elif way.widened:
            self._mend("left out before")
        if way.cursor.view != self.settings.view:
            if way.cursor.view:
                way.tell({"view": self.settings.view, "before": way.cursor.view})
            way.save(dataclasses.replace(way.cursor, view=self.settings.view))

    def _mend(self, how: str) -> None:
        """Send the events of which the target lacks something, and see what differs then."""
        way = self.way
        session = way.session()
        found = way.compared()
        if found.positions:
            way.sender.again(session.held)  # what a session remembers of the run counts no more
        for writer in found.positions.writers():
            for table in at_positions(self.folder, writer, found.positions):
                for part in batches(table, rows_at_once(self.settings, self.target)):
                    rows = way.sent.rows(writer, part)
                    way.durable.make(writer)
                    way.deliver(writer, part, rows, how=how)
        self.outcome.repaired = len(found.positions)
        way.delivery.sync_ledger()
        if found.positions:
            found = way.compared()
        self.outcome.unexplained = sum(c.count for c in found.causes if not c.explained)
        if self.outcome.unexplained:
            self.outcome.notes.append(
                f"{self.outcome.unexplained} differences are left that sending cannot mend "
                "(eventlog diff shows them)"
            )

    def _retry(self, writer: str) -> None:
        """Send again what the target refused: all of it, if that is wished, in batches of one
        event; else what waited for blobs that have come.
        """
        if not self.settings.retry_quarantined:
            self._retry_come(writer)
            return
        for table in at_seqs(self.folder, writer, self.way.cursor.quarantined.get(writer, [])):
            for part in batches(table, 1):
                self._retry_batch(writer, part)

    def _retry_come(self, writer: str) -> None:
        way = self.way
        whole = Written(self.folder, lost=way.cursor.without)
        seqs = come(whole, writer, way.cursor.awaited.get(writer, []))
        for table in at_seqs(self.folder, writer, seqs):
            for part in batches(table, rows_at_once(self.settings, self.target)):
                self._retry_batch(writer, part)

    def _give_up_missing(self) -> None:
        """Send what waits for tables without those that are not there: the user knows that nothing
        will bring them. A writer that runs may hold them in memory.
        """
        way = self.way
        for writer in self._writers():
            awaited = way.cursor.awaited.get(writer, [])
            if awaited and provably_there(way.parts[writer][-1].identity):
                self.outcome.notes.append(
                    f"writer {writer} still runs, and may yet write its tables: it is waited for them"
                )
            elif awaited:
                whole = Written(self.folder, lost=way.cursor.without)
                lost = still_missing(whole, writer, awaited)
                way.without(writer, lost)
                self._retry_come(writer)
                self.outcome.notes.append(
                    f"sent without {len(lost)} tables of writer {writer}, recorded as lost"
                )

    def _retry_batch(self, writer: str, table: pa.Table) -> None:
        way = self.way
        rows = way.sent.rows(writer, table)
        done = set(table.column("seq").to_pylist())
        if rows.num_rows:
            way.durable.make(writer)
            held = way.deliver(writer, table, rows, how="retried")
            refused = set(rows.column("seq").to_pylist()).difference(held.column("seq").to_pylist())
            done -= refused
        if done:
            way.delivery.sync_ledger()
            way.save(way.cursor.without_quarantined(writer, sorted(done)))

    def _batch(self, writer: str, table: pa.Table, rows: pa.Table) -> None:
        """Settle the events of `table`, of which `rows` are to be in the target."""
        way = self.way
        sent = way.cursor.mark(writer).sent
        if rows.num_rows:
            way.session()  # the first time it learns what is held
            new = without(rows, way.held.ranges(writer))
            # What is left out is held already.
            sent = last_metric(rows, sent) if new.num_rows < rows.num_rows else sent
            rows = new
        last = to_events(table.slice(start_of_last(table)))[-1]
        tally = dataclasses.replace(self._tally(writer))
        count(tally, table)
        if rows.num_rows:
            way.durable.make(writer)
            mark = way.cursor.mark(writer)
            attempted = dataclasses.replace(mark, attempted=max(mark.attempted, last.seq + 1))
            way.save(way.cursor.with_mark(writer, attempted))
            sent = last_metric(way.deliver(writer, table, rows), sent)
        steps = table.column("step").drop_null()
        step = steps[-1].as_py() if len(steps) else way.cursor.mark(writer).step
        mark = way.cursor.mark(writer)
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
        way.delivery.sync_ledger()
        way.save(way.cursor.with_mark(writer, settled))
        self.tallies[writer] = tally

    def _finish(self, seen: Glance) -> None:
        """Tell the target how the run stands."""
        way = self.way
        way.still_ours()
        session = way.session()
        final = _final_state(seen)
        way.sender.again(lambda: session.close(RunState(seen.status, seen.ended, seen.exit_code)))
        way.tell({"state": final})
        way.save(dataclasses.replace(way.cursor, state=final))
        way.let_go()  # what comes later opens another


def _final_state(seen: Glance) -> str:
    return f"{seen.status} {seen.exit_code} {seen.ended}"
