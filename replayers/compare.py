"""The journal held against a target's read-back: the same multiset of points, or what differs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from eventlog.attempts import attempts
from eventlog.event import CONFIG, METRIC, SUMMARY, SYSTEM, TAG
from eventlog.files import LOCAL, Store
from eventlog.reader import WriterReader, headers
from eventlog.views import View, open_view
from replayers.target import Session, Target, image_schema, with_writer

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = (METRIC, SYSTEM)
SETTINGS = (CONFIG, SUMMARY, TAG)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a target's read-back differs from a view of the journal.

    Attributes
    ----------
    expected, held:
        Points in the image of the view, and points that the target holds.
    missing, superseded, extra:
        Points of the view that it does not hold; points it holds that only the view ``all`` has;
        points it holds that the journal never had.
    examples:
        A few rows of each, for people.
    """

    expected: int
    held: int
    missing: int
    superseded: int
    extra: int
    examples: dict[str, list[dict[str, object]]]

    @property
    def equal(self) -> bool:
        """Whether the target holds exactly the view."""
        return not (self.missing or self.superseded or self.extra)


def compare(
    folder: str,
    target: Target,
    session: Session,
    *,
    view: str = "effective",
    kinds: tuple[str, ...] = POINTS,
    store: Store = LOCAL,
) -> Comparison:
    """Compare every point of a run, bit by bit as far as the target's mapping goes."""
    wanted = image(folder, target, open_view(folder, view, store), kinds, store)
    everything = image(folder, target, open_view(folder, "all", store), kinds, store)
    held = _counted(_only(list(session.read_back()), kinds), folds=False)
    missing = _minus(wanted, held)
    surplus = _minus(held, wanted)
    extra = _minus(held, everything)
    count = _total(extra)
    return Comparison(
        expected=_total(wanted),
        held=_total(held),
        missing=_total(missing),
        superseded=_total(surplus) - count,
        extra=count,
        examples={
            "missing": missing.slice(0, 5).to_pylist(),
            "extra": extra.slice(0, 5).to_pylist(),
        },
    )


def image(
    folder: str, target: Target, view: View, kinds: tuple[str, ...], store: Store = LOCAL
) -> pa.Table:
    """Return the image of a view under the target's mapping, as distinct rows with a ``count``."""
    found = attempts(headers(folder, store))
    tables: list[pa.Table] = []
    for writer in (w for attempt in found for w in attempt.writers):
        reader = WriterReader(folder, writer, skip_missing=True, store=store)
        for table in reader.tables():
            rows = view.rows(writer, table)
            if rows.num_rows:
                tables.append(target.image(with_writer(rows, writer)))
    return _counted(_only(tables, kinds), folds=target.folds)


def _only(tables: list[pa.Table], kinds: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = pa.concat_tables(tables) if tables else image_schema().empty_table()
    return whole.filter(pc.is_in(whole.column("kind"), pa.array(list(kinds))))


def _counted(table: pa.Table, *, folds: bool) -> pa.Table:
    import pyarrow as pa

    names = image_schema().names
    grouped = table.group_by(names).aggregate([([], "count_all")])
    counts = grouped.column("count_all").cast(pa.int64())
    if folds:
        counts = pa.chunked_array([pa.array([1] * grouped.num_rows, pa.int64())])
    return grouped.select(names).append_column("count", counts)


def _minus(left: pa.Table, right: pa.Table) -> pa.Table:
    """Return the rows of `left`, with the count by which they exceed those of `right`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = image_schema().names
    negative = right.set_column(
        right.schema.get_field_index("count"), "count", pc.negate(right.column("count"))
    )
    both = pa.concat_tables([left, negative]).group_by(names).aggregate([("count", "sum")])
    both = both.rename_columns(
        [*names, "count"] if both.column_names[-1] == "count_sum" else both.column_names
    )
    return both.filter(pc.greater(both.column("count"), 0))


def _total(table: pa.Table) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(table.column("count")).as_py() or 0)
