"""What a sync would do: read from journal, cursor and ledger; no target is contacted."""

from __future__ import annotations

import dataclasses
from collections import Counter

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.delivery import Delivery
from eventlog.ledger import DELIVERY
from eventlog.reader import WriterReader, headers
from eventlog.views import open_view
from replayers.batches import batches, points
from replayers.batches import events as count
from replayers.outcome import Settings, rows_at_once
from replayers.replay import delivery_of, unchanged
from replayers.target import Rejected, Target, with_writer


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
    if known and unchanged(found, delivery) is not None:
        return Plan(run.id, run.project, run.name, label, first=False)
    view = open_view(found.folder, settings.view)
    events = new = size = 0
    rules: Counter[str] = Counter()
    for writer in (w for a in attempts(headers(found.folder)) for w in a.writers):
        reader = WriterReader(found.folder, writer, start=cursor.mark(writer).acked)
        for whole in reader.tables():
            for table in batches(whole, rows_at_once(settings, target)):
                rows = view.rows(writer, table)
                events += count(rows)
                new += points(rows)
                size += rows.nbytes
                changes = getattr(target, "changes", None)
                if changes is not None and rows.num_rows:
                    try:
                        found_here = changes(with_writer(rows, writer))
                    except Rejected as error:
                        rules["refused"] += len(error.seqs)
                        continue
                    for change in found_here:
                        rules[change.rule] += change.count
    pace = _pace(delivery)
    seconds = None if pace is None else round(pace * new, 1)
    return Plan(
        run.id, run.project, run.name, label, not known, events, new, size, dict(rules), seconds
    )


def _pace(delivery: Delivery) -> float | None:
    """Return how many seconds a point took so far; None if nobody knows."""
    spent = sent = 0
    for entry in delivery.ledger():
        begun, count = entry.get("begun"), entry.get("points")
        if entry["kind"] == DELIVERY and isinstance(begun, int) and isinstance(count, int):
            spent += max(0, entry["time"] - begun)
            sent += count
    return spent / 1e9 / sent if sent else None
