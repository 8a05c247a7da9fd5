"""The journal held against a target's read-back: the same multiset of points, or what differs.

Each point of a view is

* ``equal``: held as the target's mapping has it (``causes`` count the rules that changed it);
* ``missing``: not held. Explained where a rule says so (MLflow holds no text, and folds equal
  points), or the event is in quarantine; else ``not-sent`` or no cause;
* ``altered``: not held, but another value at the same key and step is;

and what the target holds beyond the view is

* ``superseded``: a point that was logged and that the view leaves out; of a wider view than the one
  that is sent, also what was superseded before it was sent (``never-sent``), and is not held;
* ``extra``: never logged, as far as this journal knows; explained only where the journal lost its
  tail behind a delivery (``lost-tail``), or for a tag that this run never had, in a target where
  people and runs share tags (``tag-of-others``).

Causes are computed anew from the pure mapping; neither cursor nor ledger is believed about what
the target holds. Only hashes are kept, 16 bytes a point and side, and of long runs in a temporary
file; in memory is what differs, 24 bytes a point. Where something differs, both sides are read a
second time to say what.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventlog.attempts import attempts
from eventlog.columns import booleans, is_word
from eventlog.delivery import Cursor
from eventlog.event import CONFIG, METRIC, SUMMARY, SYSTEM, TAG
from eventlog.files import LOCAL, Store
from eventlog.reader import WriterReader, headers
from eventlog.views import All, View, open_view
from replayers.awaited import Written
from replayers.batches import batches, of_kinds
from replayers.batches import points as metrics
from replayers.multiset import PLACE, Counted, Hashes, Multiset, hashes, side_by_side
from replayers.positions import Positions
from replayers.target import Rejected, Session, Target, with_writer

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = (METRIC, SYSTEM)
SETTINGS = (CONFIG, SUMMARY, TAG)
EQUAL, MISSING, ALTERED, SUPERSEDED, EXTRA = "equal", "missing", "altered", "superseded", "extra"
#: How many rows of each kind of difference are shown.
EXAMPLES = 5
_BATCH = 50_000


@dataclasses.dataclass(frozen=True)
class Cause:
    """So many points are so for one reason; `cause` is None where none is known."""

    kind: str
    cause: str | None
    count: int
    explained: bool


@dataclasses.dataclass
class Difference:
    """How a target's read-back differs from a view of the journal.

    Attributes
    ----------
    points:
        Points in the view, and keys of config, summary and tags.
    expected:
        What they become under the target's mapping, equal ones that it folds counted once.
    held:
        What the target holds.
    causes:
        Why points are as they are; a point that two rules changed is counted by both.
    never_sent:
        Points of the view that were superseded before they were sent, and so are not held.
    examples:
        A few rows of each kind of difference.
    positions:
        The events of which something is missing without explanation, if they were looked for.
    """

    points: int = 0
    expected: int = 0
    held: int = 0
    equal: int = 0
    missing: int = 0
    altered: int = 0
    superseded: int = 0
    never_sent: int = 0
    extra: int = 0
    causes: list[Cause] = dataclasses.field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    positions: Positions = dataclasses.field(default_factory=Positions)

    @property
    def explained(self) -> bool:
        """Whether every difference has a cause that explains it."""
        return all(cause.explained for cause in self.causes)


class Comparer:
    """Compares one run with one target.

    Parameters
    ----------
    cursor:
        How far the target was acknowledged; only to tell what was not sent yet, what is in
        quarantine and what the journal lost.
    sent:
        The view that syncs send, if it is a narrower one: what it leaves out need not be held.
    settings:
        Whether to compare config, summary and tags beside points.
    """

    def __init__(
        self,
        folder: str,
        target: Target,
        session: Session,
        view: View,
        *,
        cursor: Cursor | None = None,
        sent: View | None = None,
        settings: bool = True,
        store: Store = LOCAL,
    ) -> None:
        self._folder = folder
        self._target = target
        self._session = session
        lost = {} if cursor is None else cursor.without
        self._view = Written(folder, view, lost, store)
        self._cursor = cursor
        self._sent = None if sent is None else Written(folder, sent, lost, store)
        self._unsent = Multiset()
        self._tags: set[str] = set()
        self._settings = settings
        self._store = store
        self._rules: Counter[str] = Counter()
        self._refused = 0
        self._newest: dict[tuple[str, str], tuple[int, str, int, pa.Table]] = {}
        self._journal_points: Counter[str] = Counter()

    def run(self, *, details: bool = True) -> Difference:
        """Read both sides and compare; without `details` only counts are found, and what is altered
        counts as extra.

        Raises
        ------
        EventlogError
            What reading either side raises.
        """
        out = Difference()
        wanted, beyond = self._expected(out)
        there = Multiset()
        for table in self._held():
            there.add(hashes(table))
        out.held = len(there)
        lacking, strange = [], []
        for both in side_by_side(wanted, self._unsent, there, beyond):
            missing, extra = self._differing(out, *both)
            lacking.append(missing)
            strange.append(extra)
        missing, extra = Counted.joined(lacking), Counted.joined(strange)
        out.equal = out.expected - out.never_sent - missing.total()
        self._explain(out, len(wanted))
        out.extra = extra.total()
        if details and (missing.total() or out.extra):
            self._details(out, missing, extra)
        return out

    def _differing(
        self, out: Difference, wanted: Counted, unsent: Counted, held: Counted, beyond: Counted
    ) -> tuple[Counted, Counted]:
        """Return what of some hashes is missing, and what is held that was never logged."""
        folds = self._target.folds
        expect = wanted.once() if folds else wanted
        out.expected += expect.total()
        missing, surplus = expect.minus(held), held.minus(expect)
        if unsent.total():
            due = wanted.minus(unsent)
            due_missing = (due.once() if folds else due).minus(held)
            out.never_sent += missing.minus(due_missing).total()
            missing = due_missing
        extra = surplus.minus(beyond)
        out.superseded += surplus.total() - extra.total()
        return missing, extra

    # ---------------------------------------------------------------- both sides

    def _batches(self) -> Iterator[tuple[str, pa.Table]]:
        found = attempts(headers(self._folder, self._store))
        for writer in (w for attempt in found for w in attempt.writers):
            reader = WriterReader(self._folder, writer, skip_missing=True, store=self._store)
            for whole in reader.tables():
                for table in batches(whole, _BATCH):
                    yield writer, table

    def _expected(self, out: Difference) -> tuple[Multiset, Multiset]:
        """Return the image of the view, and that of what the view leaves out."""
        wanted, beyond = Multiset(), Multiset()
        for writer, table in self._batches():
            rows = self._view.rows(writer, table)
            self._journal_points[writer] += metrics(table)
            out.points += self._count(writer, rows)
            for change in self._view.changes(writer, table):
                self._rules[change.rule] += change.count
            points, older = self._split(self._image(writer, rows))
            here = hashes(points)
            wanted.add(here)
            if self._settings:
                beyond.add(hashes(older))
                self._remember(writer, rows)
                self._tags.update(_tags(older))
            if rows.num_rows < table.num_rows:
                whole, settings = self._split(self._image(writer, table))
                beyond.add(_left(hashes(whole), here))
                self._tags.update(_tags(settings))
            if self._sent is not None:
                due = self._sent.rows(writer, rows)
                if due.num_rows < rows.num_rows:
                    self._unsent.add(_left(here, hashes(self._split(self._image(writer, due))[0])))
        for table in self._newest_settings(out):
            wanted.add(hashes(table))
        return wanted, beyond

    def _held(self) -> Iterator[pa.Table]:
        for table in self._session.read_back():
            points, settings = self._split(table)
            yield points
            if self._settings:
                yield settings

    def _split(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return points and settings of an image."""
        kinds = table.column("kind")
        points = table.filter(is_word(kinds, *POINTS, "table"))
        return points, table.filter(is_word(kinds, *SETTINGS))

    def _both(self, writer: str, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        points, settings = self._split(self._image(writer, rows))
        return pa.concat_tables([points, settings]) if self._settings else points

    def _image(self, writer: str, rows: pa.Table) -> pa.Table:
        """Return the image of rows; events that the mapping refuses have none."""
        import pyarrow as pa

        try:
            return self._target.image(with_writer(rows, writer))
        except (ValueError, TypeError, ArithmeticError, LookupError, Rejected):
            parts = []
            for event in batches(rows, 1):
                try:
                    parts.append(self._target.image(with_writer(event, writer)))
                except (ValueError, TypeError, ArithmeticError, LookupError, Rejected):
                    continue
            return pa.concat_tables(parts) if parts else self._target.image(rows.slice(0, 0))

    def _count(self, writer: str, rows: pa.Table) -> int:
        """Count points and the rules that change them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        points = of_kinds(rows, POINTS)
        changes = getattr(self._target, "changes", None)
        if changes is not None and points.num_rows:
            try:
                found = changes(with_writer(points, writer))
            except Rejected as error:
                seqs = pa.array(sorted(error.seqs), pa.int64())
                bad = pc.is_in(points.column("seq"), seqs)
                self._refused += int(pc.sum(bad).as_py() or 0)
                found = changes(with_writer(points.filter(pc.invert(bad)), writer))
            for change in found:
                self._rules[change.rule] += change.count
        return int(points.num_rows)

    # ---------------------------------------------------------------- settings

    def _remember(self, writer: str, rows: pa.Table) -> None:
        """Keep the newest row of each key: within a writer by seq, between writers by time."""
        found = of_kinds(rows, SETTINGS)
        times = found.column("time").cast("int64").to_pylist()
        for i, time in enumerate(times):
            row = found.slice(i, 1)
            place = (row.column("kind")[0].as_py(), row.column("key")[0].as_py())
            known = self._newest.get(place)
            if known is None or known[1] == writer or time >= known[0]:
                self._newest[place] = (time, writer, row.column("seq")[0].as_py(), row)

    def _newest_settings(self, out: Difference) -> Iterator[pa.Table]:
        import pyarrow as pa

        out.points += len(self._newest)
        by_writer: dict[str, list[tuple[int, pa.Table]]] = {}
        for _time, writer, seq, row in self._newest.values():
            by_writer.setdefault(writer, []).append((seq, row))
        for writer, rows in by_writer.items():
            rows.sort(key=lambda pair: pair[0])
            table = pa.concat_tables([row for _seq, row in rows])
            yield self._split(self._image(writer, table))[1]

    # ---------------------------------------------------------------- causes

    def _explain(self, out: Difference, images: int) -> None:
        omits: frozenset[str] = getattr(self._target, "omits", frozenset())
        for rule, count in sorted(self._rules.items()):
            kind = MISSING if rule in omits else EQUAL
            self._add(out, kind, rule, count, explained=True)
        self._add(out, MISSING, "refused", self._refused, explained=True)
        if self._target.folds:
            self._add(out, MISSING, "folded", images - out.expected, explained=True)
        name = "later" if self._view.name == "as-of" else "superseded"
        self._add(out, SUPERSEDED, name, out.superseded, explained=True)
        self._add(out, SUPERSEDED, "never-sent", out.never_sent, explained=True)

    @staticmethod
    def _add(out: Difference, kind: str, cause: str | None, count: int, *, explained: bool) -> None:
        if count > 0:
            out.causes.append(Cause(kind, cause, count, explained))
            if kind == MISSING:
                out.missing += count

    def _details(self, out: Difference, missing: Counted, extra: Counted) -> None:
        """Read both sides again, and say of each row that differs what and why."""
        strangers: list[dict[str, Any]] = []
        places = Multiset()
        tags = 0
        for table in self._held():
            rows = table.filter(_mask(extra, table))
            tags += len(self._of_others(rows))
            places.add(hashes(rows, PLACE))
            strangers += rows.slice(0, EXAMPLES - len(strangers)).to_pylist()
        others = places.counted()
        lost: dict[str | None, int] = {}
        positions: list[tuple[str, int]] = []
        for writer, event in self._events_with(missing):
            rows = self._both(writer, event)
            rows = rows.filter(_mask(missing, rows))
            altered = others.take(hashes(rows, PLACE))
            seq = event.column("seq")[0].as_py()
            cause = self._why(writer, seq)
            out.altered += int(altered.sum())
            left = rows.num_rows - int(altered.sum())
            if left:
                lost[cause] = lost.get(cause, 0) + left
                if cause != "quarantined":
                    positions.append((writer, seq))
            for row, other in zip(rows.to_pylist(), altered.tolist(), strict=True):
                examples = out.examples.setdefault(ALTERED if other else MISSING, [])
                if len(examples) < EXAMPLES:
                    examples.append({**row, "writer": writer, "seq": seq})
        self._add(out, ALTERED, None, out.altered, explained=False)
        for cause, count in lost.items():
            self._add(out, MISSING, cause, count, explained=cause == "quarantined")
        out.extra = len(places) - out.altered
        tail = min(out.extra - tags, self._lost_points()) if out.extra > tags else 0
        self._add(out, EXTRA, "lost-tail", tail, explained=True)
        tags = min(tags, out.extra)
        self._add(out, EXTRA, "tag-of-others", tags, explained=True)
        self._add(out, EXTRA, None, out.extra - tail - tags, explained=False)
        if strangers:
            out.examples[EXTRA] = strangers
        out.positions = Positions(_ranges(positions))

    def _of_others(self, rows: pa.Table) -> list[str]:
        """Return the tags among extra rows that this run never had, where others may set some."""
        if not getattr(self._target, "shares_tags", False):
            return []
        return [key for key in _tags(rows) if key not in self._tags]

    def _events_with(self, missing: Counted) -> Iterator[tuple[str, pa.Table]]:
        """Yield the events of the view that have rows among the missing ones."""
        import numpy as np

        newest = {(w, seq, kind, key) for (kind, key), (_t, w, seq, _r) in self._newest.items()}
        for writer, table in self._batches():
            rows = self._view.rows(writer, table)
            found = hashes(self._both(writer, rows))
            if not np.isin(found["a"], missing.keys["a"]).any():
                continue
            for event in batches(rows, 1):
                part = _without_older(event, writer, newest)
                known = hashes(self._both(writer, part))
                if np.isin(known["a"], missing.keys["a"]).any():
                    yield writer, part

    def _why(self, writer: str, seq: int) -> str | None:
        if self._cursor is None:
            return None
        if seq in self._cursor.quarantined.get(writer, ()):
            return "quarantined"
        return "not-sent" if seq >= self._cursor.mark(writer).acked else None

    def _lost_points(self) -> int:
        """Return how many points were delivered that the journal has lost since."""
        if self._cursor is None:
            return 0
        total = 0
        for writer, mark in self._cursor.writers.items():
            if mark.lost is not None and mark.tally is not None:
                total += max(0, mark.tally["points"] - self._journal_points[writer])
        return total


def _left(whole: Hashes, part: Hashes) -> Hashes:
    """Return what of a whole is not in a part of it."""
    left = Counted.of(whole).minus(Counted.of(part))
    return left.keys.repeat(left.counts)


def _tags(rows: pa.Table) -> list[str]:
    """Return the keys of tags among rows of an image."""
    found: list[str] = of_kinds(rows, (TAG,)).column("key").to_pylist()
    return found


def _mask(wanted: Counted, table: pa.Table) -> pa.Array:
    return booleans(wanted.take(hashes(table)))


def _without_older(
    event: pa.Table, writer: str, newest: set[tuple[str, int, str, str]]
) -> pa.Table:
    """Return an event without the settings that a newer one replaced."""
    import pyarrow as pa

    columns = (event.column(name).to_pylist() for name in ("seq", "kind", "key"))
    keep = [
        kind not in SETTINGS or (writer, seq, kind, key) in newest
        for seq, kind, key in zip(*columns, strict=True)
    ]
    return event if all(keep) else event.filter(pa.array(keep))


def _ranges(positions: list[tuple[str, int]]) -> dict[str, list[tuple[int, int]]]:
    out: dict[str, list[tuple[int, int]]] = {}
    for writer, seq in positions:
        out.setdefault(writer, []).append((seq, seq))
    return out


# ------------------------------------------------------------------------------ points only


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the points of a target's read-back differ from a view of the journal.

    Attributes
    ----------
    expected, held:
        Points in the image of the view, and points that the target holds.
    missing, superseded, extra:
        Points of the view that it does not hold; points it holds that only the view ``all`` has;
        points it holds that the journal never had. An altered point is missing and extra.
    examples:
        A few rows of each, for people.
    """

    expected: int
    held: int
    missing: int
    superseded: int
    extra: int
    examples: dict[str, list[dict[str, Any]]]

    @property
    def equal(self) -> bool:
        """Whether the target holds exactly the view."""
        return not (self.missing or self.superseded or self.extra)


def compare(
    folder: str, target: Target, session: Session, *, view: str = "effective", store: Store = LOCAL
) -> Comparison:
    """Compare every point of a run, bit by bit as far as the target's mapping goes."""
    opened = All() if view == "all" else open_view(folder, view, store)
    comparer = Comparer(folder, target, session, opened, settings=False, store=store)
    found = comparer.run()
    return Comparison(
        expected=found.expected,
        held=found.held,
        missing=found.expected - found.equal,
        superseded=found.superseded,
        extra=found.extra + found.altered,
        examples=found.examples,
    )
