"""What a sync would do: read from journal, cursor and ledger; no target is contacted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.columns import booleans, numbers
from eventlog.delivery import Cursor, Delivery
from eventlog.identity import provably_there
from eventlog.ledger import DELIVERY
from eventlog.reader import WriterReader, headers
from eventlog.views import Effective, effective, open_view
from replayers.awaited import Written, come, missing_in
from replayers.batches import at_seqs, batches, points
from replayers.batches import events as count
from replayers.keys import check_keys, only
from replayers.outcome import DEFAULT_VIEW, Settings, rows_at_once
from replayers.replay import delivery_of, unchanged
from replayers.sent_view import recorded_restarts
from replayers.target import Rejected, Target, with_writer

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done for one run and target.

    Attributes
    ----------
    events, points, bytes:
        What would be sent, `bytes` as it lies in memory. Without a cursor, or behind a sync that
        was killed, the target is asked first and some of it may be there.
    first:
        Whether nothing is known of an earlier sync.
    mappings:
        How often each rule of the target would change a value.
    seconds:
        How long that took per point in earlier deliveries, times the points; None if there were
        none.
    superseded:
        The choice for superseded points that the target holds (`replayers.superseding`): whether it
        holds some is asked when it is synced.
    keys:
        Globs of the metrics that are sent; () for all of them (`replayers.keys`).
    """

    id: str
    project: str
    name: str
    target: str
    first: bool
    events: int = 0
    points: int = 0
    bytes: int = 0
    mappings: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    superseded: str = "append"
    keys: tuple[str, ...] = ()


def plan(found: Found, target: Target, state: str, settings: Settings) -> Plan:
    """Return what a sync of this run would do now.

    Raises
    ------
    EventlogError, OSError
        If the run cannot be read.
    """
    delivery = delivery_of(found, target, state)
    cursor, known = delivery.load()
    run = found.run
    label = f"{target.kind}:{target.address}"
    if known and unchanged(found, delivery, settings) is not None:
        return Plan(
            run.id,
            run.project,
            run.name,
            label,
            first=False,
            superseded=settings.superseded,
            keys=tuple(cursor.keys),
        )
    keys = tuple(cursor.keys) if settings.keys is None else settings.keys
    if list(keys) != cursor.keys:
        check_keys(keys, cursor, label)
    view = Written(found.folder, only(open_view(found.folder, settings.view), keys), cursor.without)
    left_out = _left_out(found, cursor, settings)
    parts = headers(found.folder)
    events = new = size = 0
    rules: Counter[str] = Counter()

    def add(writer: str, table: pa.Table, *, new_ones: bool) -> None:
        nonlocal events, new, size
        sent = view
        if settings.without_missing and not provably_there(parts[writer][-1].identity):
            lost = [*view.lost.get(writer, ()), *missing_in(view, writer, table)]
            sent = dataclasses.replace(view, lost={**view.lost, writer: lost})
        rows = sent.rows(writer, table)
        if left_out and new_ones:
            rows = _wanted(rows, cursor.mark(writer).acked, left_out.superseded(writer, rows))
        events += count(rows)
        new += points(rows)
        size += rows.nbytes
        for change in sent.changes(writer, table):
            rules[change.rule] += change.count
        changes = getattr(target, "changes", None)
        if changes is not None and rows.num_rows:
            try:
                for change in changes(with_writer(rows, writer)):
                    rules[change.rule] += change.count
            except Rejected as error:
                rules["refused"] += len(error.seqs)

    for writer in (w for a in attempts(parts) for w in a.writers):
        start = 0 if left_out else cursor.mark(writer).acked
        for whole in WriterReader(found.folder, writer, start=start).tables():
            for table in batches(whole, rows_at_once(settings, target)):
                add(writer, table, new_ones=True)
        for table in at_seqs(found.folder, writer, _again(cursor, writer, view, settings)):
            add(writer, table, new_ones=False)
    pace = _pace(delivery)
    seconds = None if pace is None else round(pace * new, 1)
    return Plan(
        run.id,
        run.project,
        run.name,
        label,
        not known,
        events,
        new,
        size,
        dict(rules),
        seconds,
        settings.superseded,
        keys,
    )


def _again(cursor: Cursor, writer: str, view: Written, settings: Settings) -> list[int]:
    """Return the events in quarantine that would be sent again."""
    waiting = cursor.awaited.get(writer, [])
    if settings.retry_quarantined:
        return cursor.quarantined.get(writer, [])
    whole = Written(view.folder, lost=view.lost)
    return waiting if settings.without_missing else come(whole, writer, waiting)


def _left_out(found: Found, cursor: Cursor, settings: Settings) -> Effective | None:
    """Return the view that was sent before, if a wider one is to be sent now."""
    before = cursor.view or DEFAULT_VIEW
    if settings.view == before or settings.view != "all" or not cursor.writers:
        return None
    return effective(found.folder, recorded=recorded_restarts(cursor), ripe=True)


def _wanted(rows: pa.Table, acked: int, superseded: Any) -> pa.Table:
    """Return the rows that were not sent: new ones, and what was superseded then."""
    new = numbers(rows.column("seq")) >= acked
    return rows.filter(booleans(new if superseded is None else new | superseded))


def _pace(delivery: Delivery) -> float | None:
    """Return how many seconds a point took so far; None if nobody knows."""
    spent = sent = 0
    for entry in delivery.ledger():
        begun, count = entry.get("begun"), entry.get("points")
        if entry["kind"] == DELIVERY and isinstance(begun, int) and isinstance(count, int):
            spent += max(0, entry["time"] - begun)
            sent += count
    return spent / 1e9 / sent if sent else None
