"""Events whose blobs have not come: a copy brings a run's files in any order.

A target cannot take a table whose content is not there, and refuses its event. Such an event is in
quarantine as any other; but it is remembered that it waits, and the next sync that finds its blobs
whole sends it, which nobody has to ask for.

Of a blob that found no room on the disk of its writer to the end, the journal records that it was
never written (`eventlog.gaps`). Nothing waits for it: its table is null for every target, and the
rest of its event is sent. Of a writer that was killed before that nothing says whether a copy will
bring the blob yet; the user can (`eventlog sync --without-missing`), and then the cursor remembers
which tables are null in the target, for good: one that comes later changes nothing there.

=======================  =========================================================================
rule                     what it means, in the ledger and in `eventlog diff`
=======================  =========================================================================
``table-never-written``  its writer recorded that it had no room for the table: null
``table-lost``           the table had not come, or not whole, and was not to be waited for: null
=======================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from eventlog import blobs
from eventlog.columns import is_word
from eventlog.errors import FormatError, IntegrityError
from eventlog.event import METRIC, SYSTEM
from eventlog.files import LOCAL, Store
from eventlog.gaps import never_written
from eventlog.layout import BLOBS, is_blob
from eventlog.value import loads
from eventlog.views import View
from replayers.batches import at_seqs
from replayers.target import Change

if TYPE_CHECKING:
    import pyarrow as pa

#: The kinds and types of values of which a target needs the blob: others are a reference there.
_KINDS, _NAMING = (METRIC, SYSTEM), ("table",)
#: The rules by which a table is null.
NEVER, LOST = "table-never-written", "table-lost"

#: A table: the seq of its event, and the SHA-256 of its blob.
Named: TypeAlias = tuple[int, str]
Lost: TypeAlias = Mapping[str, Sequence[Named]]


def waiting(folder: str, rows: pa.Table, store: Store = LOCAL) -> list[int]:
    """Return the events among these rows that have a table whose blob is missing, or not whole."""
    seqs = {seq for seq, digest in _named(rows) if not _is_whole(folder, digest, store)}
    return sorted(seqs)


def come(view: Written, writer: str, seqs: Sequence[int]) -> list[int]:
    """Return those of a writer's events whose every blob is there by now, or never will be."""
    there: set[int] = set()
    try:
        for table in at_seqs(view.folder, writer, seqs):
            rows = view.rows(writer, table)
            there.update(rows.column("seq").to_pylist())
            there.difference_update(waiting(view.folder, rows, view.store))
    except (FormatError, OSError):  # said with the writer
        return []
    return sorted(there)


def still_missing(view: Written, writer: str, seqs: Sequence[int]) -> list[Named]:
    """Return which tables of a writer's events are not there, or not whole. Raises what reading
    the writer raises.
    """
    found: set[Named] = set()
    for table in at_seqs(view.folder, writer, seqs):
        found.update(missing_in(view, writer, table))
    return sorted(found)


def missing_in(view: Written, writer: str, table: pa.Table) -> list[Named]:
    """Return which tables of some events are not there, or not whole."""
    named = set(_named(view.rows(writer, table)))
    return sorted(one for one in named if not _is_whole(view.folder, one[1], view.store))


def not_come(folder: str, lost: Lost, store: Store = LOCAL) -> dict[str, list[Named]]:
    """Return those of the tables that were not waited for which are not there to this day."""
    left = {
        writer: [(seq, digest) for seq, digest in named if not _is_whole(folder, digest, store)]
        for writer, named in lost.items()
    }
    return {writer: named for writer, named in left.items() if named}


@dataclasses.dataclass(frozen=True)
class Written:
    """A view in which tables that were never written, or that are not waited for, are null.

    Only where a blob is not there it is looked for what was recorded of it.

    Attributes
    ----------
    view:
        What is left of a run; None for every row.
    lost:
        The tables that are not waited for, as `eventlog.delivery.Cursor.without` has them.
    """

    folder: str
    view: View | None = None
    lost: Lost = dataclasses.field(default_factory=dict)
    store: Store = LOCAL
    _known: dict[str, tuple[int, frozenset[str]]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """That of the view."""
        return "all" if self.view is None else self.view.name

    def rows(self, writer: str, table: pa.Table) -> pa.Table:
        """Return the rows that belong to the view, in order."""
        rows = table if self.view is None else self.view.rows(writer, table)
        gone = self._gone(writer, rows)
        return _nulled(rows, gone.keys()) if gone else rows

    def changes(self, writer: str, table: pa.Table) -> list[Change]:
        """Return by rule and key which tables of the view `rows` has as null."""
        rows = table if self.view is None else self.view.rows(writer, table)
        gone = self._gone(writer, rows)
        found: dict[tuple[str, str], list[int]] = {}
        if gone:
            seqs, keys = (rows.column(name).to_pylist() for name in ("seq", "key"))
            for seq, key, digest in zip(seqs, keys, _digests(rows), strict=True):
                if (seq, digest) in gone:
                    found.setdefault((gone[seq, digest], key), []).append(seq)
        return [
            Change(rule, key, seqs[0], seqs[-1], len(seqs))
            for (rule, key), seqs in sorted(found.items())
        ]

    def _gone(self, writer: str, rows: pa.Table) -> dict[Named, str]:
        """Return the tables that are null, and by which rule."""
        named = set(_named(rows))
        if not named:
            return {}
        lost = named.intersection(self.lost.get(writer, ()))
        gone = dict.fromkeys(lost, LOST)
        absent = {one for one in named - lost if not self._is_there(one[1])}
        if absent:
            never = self._never(writer, min(seq for seq, _digest in absent))
            gone |= {one: NEVER for one in absent if one[1] in never}
        return gone

    def _is_there(self, digest: str) -> bool:
        if not is_blob(digest):
            return True
        try:
            self.store.size(os.path.join(self.folder, BLOBS, digest))
        except FileNotFoundError:
            return False
        except OSError:  # whoever reads it says so
            return True
        return True

    def _never(self, writer: str, seq: int) -> frozenset[str]:
        """Return what a writer recorded behind `seq`; once for all later events."""
        known = self._known.get(writer)
        if known is None or seq < known[0]:
            known = seq, never_written(self.folder, writer, self.store, start=seq)
            self._known[writer] = known
        return known[1]


def _nulled(rows: pa.Table, gone: Collection[Named]) -> pa.Table:
    """Return rows with these tables as null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seqs = rows.column("seq").to_pylist()
    mask = pa.array([one in gone for one in zip(seqs, _digests(rows), strict=True)], pa.bool_())
    for name, value in (("type", "null"), ("num", None), ("data", None)):
        at = rows.schema.get_field_index(name)
        field = rows.schema.field(at)
        column = pc.if_else(mask, pa.scalar(value, field.type), rows.column(at))
        rows = rows.set_column(at, field, column)
    return rows


def _digests(rows: pa.Table) -> Iterator[str]:
    """Yield for each row the blob that it names, "" if none."""
    columns = (rows.column(n).to_pylist() for n in ("kind", "type", "data"))
    for kind, word, data in zip(*columns, strict=True):
        try:
            named = kind in _KINDS and word in _NAMING
            yield str(loads(data)["sha256"]) if named else ""
        except (ValueError, TypeError, LookupError):
            yield ""  # no reference at all: nothing can come of it


def _named(rows: pa.Table) -> Iterator[Named]:
    named = rows.filter(is_word(rows.column("type"), *_NAMING))
    seqs = named.column("seq").to_pylist()
    yield from ((seq, digest) for seq, digest in zip(seqs, _digests(named), strict=True) if digest)


def _is_whole(folder: str, digest: str, store: Store) -> bool:
    try:
        blobs.check(folder, digest, store)
    except IntegrityError:
        return False
    return True
