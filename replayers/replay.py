"""The loop: read, map, send, confirm, advance; for one run and one target.

For each batch: what is to be sent is made durable, then the mark *attempted*; the batch is sent;
the target is asked anew whether it holds it; the ledger tells it; the cursor moves. Killed
anywhere, the next call asks the target what it holds of the events between the marks, and sends
what it does not.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import DELIVERY, MAPPING, QUARANTINE, Cursor, Delivery, Mark
from eventlog.errors import IntegrityError, TemporaryError
from eventlog.event import METRIC, NOTE, digest
from eventlog.files import LOCAL
from eventlog.frame import to_events
from eventlog.glance import Glance, glance
from eventlog.layout import SEALED
from eventlog.reader import Missing, WriterReader, headers, listing
from eventlog.views import View, open_view
from replayers.lease import Lease, Lost
from replayers.pace import LONGEST_WISH, Pace, Stopped
from replayers.positions import Positions
from replayers.target import (
    Change,
    Rejected,
    Retry,
    RunInfo,
    RunState,
    Session,
    Target,
    with_writer,
)

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a batch: some 1,000 events of twenty metrics.
BATCH_ROWS = 20_000
#: How often a batch is tried, and how long it is waited between, in seconds.
TRIES = 5
BACKOFF = (0.2, 10.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the loop behaves."""

    view: str = "effective"
    batch_rows: int = BATCH_ROWS
    tries: int = TRIES
    backoff: tuple[float, float] = BACKOFF
    adopt_by_name: bool = False


@dataclasses.dataclass
class Outcome:
    """What one call did.

    Attributes
    ----------
    sent, points:
        Events and rows of metrics that were sent.
    settled:
        Events that the target is proven to hold, or that the view leaves out, of `events`, which
        counts those that are missing as well.
    quarantined:
        Events that the target will never take, in this and earlier calls.
    missing:
        Events that no file of the journal holds, by writer: the loop stops in front of them.
    contacted:
        Whether the target was asked anything.
    more:
        Whether the call ended early, as it was asked to.
    notes:
        What people should know beside.
    """

    run: str
    target: str
    known_as: str | None = None
    sent: int = 0
    points: int = 0
    settled: int = 0
    events: int = 0
    quarantined: int = 0
    changes: int = 0
    missing: dict[str, list[Missing]] = dataclasses.field(default_factory=dict)
    contacted: bool = False
    more: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


Answer = TypeVar("Answer")

#: Called with (settled, events) now and then.
Progress = Callable[[int, int], None]


def replay(
    found: Found,
    target: Target,
    state: str,
    *,
    settings: Settings | None = None,
    progress: Progress = lambda settled, events: None,
) -> Outcome:
    """Bring a run into a target.

    Raises
    ------
    TemporaryError
        If the target cannot take more now, or another sync has the lease; what is settled stays.
    IntegrityError
        If the journal is not the one that was delivered, or the target holds foreign rows.
    AuthenticationError
    """
    with Replayer(found, target, state, settings=settings, progress=progress) as replayer:
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
    ) -> None:
        self.delivery = Delivery(
            state,
            kind=target.kind,
            address=target.address,
            project=found.run.project,
            run=found.run.id,
        )
        self._lease = Lease(self.delivery.folder, wait=wait)
        self._parts = (found, target, settings or Settings(), progress, pace or Pace())
        self._loop: _Replay | None = None

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
        found, target, settings, progress, pace = self._parts
        if self._loop is None:
            self._loop = _Replay(
                found, target, self.delivery, settings, progress, pace, self._lease.check
            )
        try:
            return self._loop.run(enough)
        except BaseException:
            # Nobody knows what was stored: the next call reads the cursor and asks the target.
            self._loop = None
            raise


class _Replay:
    def __init__(
        self,
        found: Found,
        target: Target,
        delivery: Delivery,
        settings: Settings,
        progress: Progress,
        pace: Pace,
        still_ours: Callable[[], None],
    ) -> None:
        self.found = found
        self.folder = found.folder
        self.target = target
        self.delivery = delivery
        self.settings = settings
        self.progress = progress
        self.pace = pace
        self.still_ours = still_ours
        self.cursor, self.known = delivery.load()
        self.held = Positions()
        self.outcome = Outcome(found.run.id, f"{target.kind}:{target.address}")
        self._session: Session | None = None

    # ---------------------------------------------------------------- the whole

    def run(self, enough: Callable[[], bool]) -> Outcome:
        self.outcome = Outcome(self.found.run.id, f"{self.target.kind}:{self.target.address}")
        self.enough, self.moved = enough, False
        vars(self).pop("view", None)
        seen = glance(self.folder)
        self.outcome.events = sum(seen.ends.values())
        self._check_cursor(seen)
        final = _final_state(seen)
        for writer, reason in seen.unreadable.items():
            self.outcome.missing[writer] = [Missing(0, -1, reason)]
        try:
            if self._anything_new(seen):
                for writer in self._writers():
                    self._writer(writer, seen)
                    if self.outcome.more:
                        break
            if self.cursor.state != final and self._all_settled(seen):
                self._finish(seen, final)
        finally:
            self._count(seen)
        return self.outcome

    def _anything_new(self, seen: Glance) -> bool:
        # Not the number of its events: some that were delivered may be missing by now.
        return any(self.cursor.mark(w).acked < end for w, end in seen.ends.items()) or any(
            self.cursor.mark(w).attempted > self.cursor.mark(w).acked for w in seen.writers
        )

    def _all_settled(self, seen: Glance) -> bool:
        # A writer with a gap settles only what lies in front of it.
        return not self.outcome.missing and all(
            self.cursor.mark(w).acked >= end for w, end in seen.ends.items()
        )

    def _writers(self) -> list[str]:
        """Return the writers in the order in which their events are sent."""
        found = attempts(headers(self.folder))
        return [writer for attempt in found for writer in attempt.writers]

    def _count(self, seen: Glance) -> None:
        self.outcome.known_as = self.cursor.known_as
        self.outcome.settled = sum(self.cursor.mark(w).acked for w in seen.writers)
        self.outcome.events = max(self.outcome.events, self.outcome.settled)  # it was written to
        self.outcome.quarantined = sum(len(v) for v in self.cursor.quarantined.values())

    # ---------------------------------------------------------------- journal and cursor

    def _check_cursor(self, seen: Glance) -> None:
        """Refuse a journal that is not the one that was delivered; forget the cursor of another
        journal of this run (one on each node's own disk, say, with one state folder for all).
        """
        delivered = {writer for writer, mark in self.cursor.writers.items() if mark.acked}
        if delivered and seen.writers and delivered.isdisjoint(listing(self.folder).writers):
            self.outcome.notes.append(
                f"the state folder tells of another journal of this run: {self.outcome.target} is "
                "asked anew what it holds"
            )
            self.known = False
            self.cursor = dataclasses.replace(self.cursor, state="", writers={}, quarantined={})
        for writer, mark in self.cursor.writers.items():
            if not mark.acked:
                continue
            reader = WriterReader(self.folder, writer, start=mark.acked - 1)
            event = next(reader.events(), None)
            if event is None or event.seq != mark.acked - 1:
                have = seen.writers.get(writer, 0)
                raise IntegrityError(
                    f"{self.outcome.target} was proven to hold {mark.acked} events of writer "
                    f"{writer}, and this journal has {have}: it was restored or copied in part",
                    on=self.folder,
                    hint="bring the whole journal back, or remove the state folder "
                    f"{self.delivery.folder} to have the target asked anew",
                )
            if digest(event) != mark.crc:
                raise IntegrityError(
                    f"event {event.seq} of writer {writer} is not the one that was delivered to "
                    f"{self.outcome.target}: the journal was changed",
                    on=self.folder,
                    hint="bring the original journal back",
                )

    def _save(self, cursor: Cursor) -> None:
        self.still_ours()
        self.cursor = dataclasses.replace(cursor, synced=time.time_ns())
        self.delivery.save(self.cursor)

    # ---------------------------------------------------------------- one writer

    @functools.cached_property
    def view(self) -> View:
        """The view that is sent, as of this call."""
        return open_view(self.folder, self.settings.view)

    def _writer(self, writer: str, seen: Glance) -> None:
        mark = self.cursor.mark(writer)
        reader = WriterReader(self.folder, writer, start=mark.acked)
        for whole in reader.tables():
            for table in _batches(whole, self.settings.batch_rows):
                if self.moved and self.enough():
                    self.outcome.more = True
                    return
                self.pace.wait(0)
                self._batch(writer, table, self.view.rows(writer, table))
                self.moved = True
                done = sum(self.cursor.mark(w).acked for w in seen.writers)
                self.progress(done, max(self.outcome.events, done))
        if reader.missing:
            self.outcome.missing[writer] = reader.missing

    def _batch(self, writer: str, table: pa.Table, rows: pa.Table) -> None:
        """Settle the events of `table`, of which `rows` are to be in the target."""
        sent = self.cursor.mark(writer).sent
        if rows.num_rows:
            session = self.session()
            new = self._without(writer, rows)
            # What is left out is held already.
            sent = _last_metric(rows, sent) if new.num_rows < rows.num_rows else sent
            rows = new
        last = to_events(table.slice(_start_of_last(table)))[-1]
        if rows.num_rows:
            self._make_durable(writer)
            mark = self.cursor.mark(writer)
            attempted = dataclasses.replace(mark, attempted=max(mark.attempted, last.seq + 1))
            self._save(self.cursor.with_mark(writer, attempted))
            sent = _last_metric(self._deliver(session, writer, with_writer(rows, writer)), sent)
        steps = table.column("step").drop_null()
        step = steps[-1].as_py() if len(steps) else self.cursor.mark(writer).step
        settled = Mark(
            last.seq + 1,
            max(last.seq + 1, self.cursor.mark(writer).attempted),
            digest(last),
            step,
            last.time,
            sent,
        )
        self.delivery.sync_ledger()
        self._save(self.cursor.with_mark(writer, settled))

    def _without(self, writer: str, rows: pa.Table) -> pa.Table:
        """Return the rows of events that the target is not known to hold."""
        if not rows.num_rows or not self.held.ranges(writer):
            return rows
        import numpy as np
        import pyarrow as pa

        seqs = rows.column("seq").to_numpy()
        mask = np.ones(len(seqs), bool)
        for first, last in self.held.ranges(writer):
            mask &= (seqs < first) | (seqs > last)
        return rows.filter(pa.array(mask))

    def _make_durable(self, writer: str) -> None:
        """Sync what is sent: a target must not hold what a power cut can take from the journal."""
        found = listing(self.folder)
        names = [str(n) for n in found.segments.get(writer, ())]
        paths = [os.path.join(self.folder, name) for name in names]
        for path in [*paths, self.folder, os.path.join(self.folder, SEALED)]:
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError:  # sealed in this moment, and so durable
                continue
            try:
                LOCAL.sync(fd)
            except OSError:  # a read-only or remote copy: its keeper answers for it
                pass
            finally:
                os.close(fd)

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
                self.held = self._again(self._session.held)
            self._check_target(self._session)
            if self._session.known_as != self.cursor.known_as:
                self._save(
                    dataclasses.replace(
                        self.cursor, known_as=self._session.known_as, rules=self.target.rules
                    )
                )
        return self._session

    def _check_target(self, session: Session) -> None:
        """Refuse a target that no longer holds what it was seen to hold: it was emptied, deleted
        or restored, and what lies in front of the cursor would never be sent again.
        """
        if getattr(session, "notices_loss", False):
            return
        for writer, mark in self.cursor.writers.items():
            if mark.sent is None:
                continue
            table = next(WriterReader(self.folder, writer, start=mark.sent).tables(), None)
            if table is None:
                continue
            first = table.slice(0, int(table.column("seq").to_numpy().searchsorted(mark.sent + 1)))
            rows = _metrics(self.view.rows(writer, first))
            if rows.num_rows and not self._again(
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
        info = run_info(self.found, self.cursor.known_as, adopt_by_name=self.settings.adopt_by_name)
        target = self.target
        return self._again(lambda: target.open(info))

    def _deliver(self, session: Session, writer: str, rows: pa.Table) -> pa.Table:
        """Send rows and see them confirmed; put into quarantine what is refused for good. Return
        those that are held.
        """
        begun = time.time_ns()
        while rows.num_rows:
            try:
                changes = self._send(session, rows)
                break
            except Rejected as error:
                rows = self._quarantine(writer, rows, error)
        else:
            return rows
        seqs = rows.column("seq")
        first, last = seqs[0].as_py(), seqs[-1].as_py()
        events = len(seqs.unique())
        points = _points(rows)
        self.outcome.sent += events
        self.outcome.points += points
        self.outcome.changes += sum(change.count for change in changes)
        record = self.delivery.record
        span = {"writer": writer, "first_seq": first, "last_seq": last}
        record(
            DELIVERY,
            {**span, "events": events, "points": points, "begun": begun, "how": "read back"},
        )
        for change in changes:
            record(MAPPING, {"writer": writer, **_change(change)})
        return rows

    def _send(self, session: Session, rows: pa.Table) -> list[Change]:
        """Send until the target, asked anew, holds the rows."""

        def once() -> list[Change]:
            self.pace.take(rows.num_rows)
            self.still_ours()
            changes = session.send(rows)
            if not session.confirm(rows):
                raise Retry(
                    "the target took a batch, and does not hold it when asked",
                    on=self.outcome.target,
                )
            return changes

        return self._again(once)

    def _quarantine(self, writer: str, rows: pa.Table, error: Rejected) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        seqs = rows.column("seq")
        bad = sorted(set(seqs.to_pylist()) & error.seqs)
        if not bad:
            raise IntegrityError(
                f"the target refused a batch and named no event of it ({error.what})",
                on=self.outcome.target,
            ) from error
        self.delivery.record(QUARANTINE, {"writer": writer, "seqs": bad, "reason": error.what})
        self._save(self.cursor.with_quarantined(writer, bad))
        return rows.filter(pc.invert(pc.is_in(seqs, pa.array(bad, seqs.type))))

    def _again(self, action: Callable[[], Answer]) -> Answer:
        """Do something that may fail for a while; give up after some tries."""
        low, high = self.settings.backoff
        for attempt in range(1, self.settings.tries + 1):
            try:
                return action()
            except (Stopped, Lost):
                raise
            except TemporaryError as error:
                wished = getattr(error, "after", None) or 0.0
                self.pace.hold(wished)  # all runs of this target are to leave it alone
                if attempt == self.settings.tries or wished > LONGEST_WISH:
                    raise
                pause = min(high, low * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
                self.pace.wait(max(pause, wished))
        raise AssertionError("unreachable")

    def _finish(self, seen: Glance, final: str) -> None:
        """Tell the target how the run stands."""
        self.still_ours()
        session = self.session()
        self._again(lambda: session.close(RunState(seen.status, seen.ended, seen.exit_code)))
        self.delivery.record(NOTE, {"state": final})
        self.delivery.sync_ledger()
        self._save(dataclasses.replace(self.cursor, state=final))
        self._session = None  # it was let go of: what comes later opens another


def _final_state(seen: Glance) -> str:
    return f"{seen.status} {seen.exit_code} {seen.ended}"


def _change(change: Change) -> dict[str, Any]:
    fields = dataclasses.asdict(change)
    return {key: value for key, value in fields.items() if value != ""}


def _metrics(rows: pa.Table) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(pc.equal(rows.column("kind"), METRIC))


def _last_metric(rows: pa.Table, before: int | None) -> int | None:
    """Return the last event of these rows that has metrics, `before` if there is none."""
    found = _metrics(rows).column("seq")
    last: int | None = found[-1].as_py() if len(found) else before
    return last


def _points(rows: pa.Table) -> int:
    return int(_metrics(rows).num_rows)


def _start_of_last(table: pa.Table) -> int:
    import numpy as np

    seqs = table.column("seq").to_numpy()
    return int(np.searchsorted(seqs, seqs[-1]))


def _batches(table: pa.Table, most: int) -> Iterator[pa.Table]:
    """Cut a table into batches of about `most` rows, never within an event."""
    import numpy as np

    seqs = table.column("seq").to_numpy()
    start = 0
    while start < len(seqs):
        stop = min(start + most, len(seqs))
        if stop < len(seqs):
            edge = int(np.searchsorted(seqs, seqs[stop]))
            stop = edge if edge > start else int(np.searchsorted(seqs, seqs[stop], "right"))
        yield table.slice(start, stop - start)
        start = stop


def run_info(found: Found, known_as: str | None, *, adopt_by_name: bool = False) -> RunInfo:
    """Return what a target is told of a run."""
    seen = glance(found.folder)
    return RunInfo(
        id=found.run.id,
        project=found.run.project,
        name=found.run.name,
        created=seen.start,
        owner=seen.owner,
        elsewhere=elsewhere(found.folder),
        known_as=known_as,
        adopt_by_name=adopt_by_name,
    )


def elsewhere(folder: str) -> dict[str, str]:
    """Return the names for other places that the attempts recorded; the last one counts."""
    out: dict[str, str] = {}
    for attempt in attempts(headers(folder)):
        for writer in attempt.writers:
            event = next(WriterReader(folder, writer).events(), None)
            for row in event.rows if event else ():
                if row.kind == NOTE and row.key.startswith("env/"):
                    out[row.key.removeprefix("env/")] = str(row.value)
    return out
