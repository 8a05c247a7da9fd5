"""Events whose blobs have not come: a copy brings a run's files in any order.

A target cannot take a table whose content is not there, and refuses its event. Such an event is in
quarantine as any other; but it is remembered that it waits, and the next sync that finds its blobs
whole sends it, which nobody has to ask for.

Of a blob that found no room on the disk of its writer to the end, the journal records that it was
never written (`eventlog.gaps`). Nothing waits for it: its table is null for every target, and the
rest of its event is sent.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eventlog import blobs
from eventlog.errors import FormatError, IntegrityError
from eventlog.event import METRIC, SYSTEM
from eventlog.files import LOCAL, Store
from eventlog.gaps import never_written
from eventlog.layout import BLOBS, is_blob
from eventlog.value import loads
from eventlog.views import View
from replayers.batches import at_seqs

if TYPE_CHECKING:
    import pyarrow as pa

#: The kinds and types of values of which a target needs the blob: others are a reference there.
_KINDS, _NAMING = (METRIC, SYSTEM), ("table",)


def waiting(folder: str, rows: pa.Table, store: Store = LOCAL) -> list[int]:
    """Return the events among these rows that have a table whose blob is missing, or not whole."""
    seqs = {seq for seq, digest in _named(rows) if not _is_whole(folder, digest, store)}
    return sorted(seqs)


def come(folder: str, writer: str, seqs: Sequence[int], store: Store = LOCAL) -> list[int]:
    """Return those of a writer's events whose every blob is there by now, or never will be."""
    there: set[int] = set()
    view = Written(folder, store=store)
    try:
        for table in at_seqs(folder, writer, seqs):
            rows = view.rows(writer, table)
            there.update(rows.column("seq").to_pylist())
            there.difference_update(waiting(folder, rows, store))
    except (FormatError, OSError):  # said with the writer
        return []
    return sorted(there)


@dataclasses.dataclass(frozen=True)
class Written:
    """A view in which tables that were never written are null.

    Only where a blob is not there it is looked for what was recorded of it; `view` is None for
    every row.
    """

    folder: str
    view: View | None = None
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
        absent = {digest: seq for seq, digest in _named(rows) if not self._is_there(digest)}
        if not absent:
            return rows
        never = self._never(writer, min(absent.values())) & absent.keys()
        return _nulled(rows, never) if never else rows

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


def _nulled(rows: pa.Table, never: frozenset[str]) -> pa.Table:
    """Return rows with the tables of these blobs as null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    gone = pa.array([digest in never for digest in _digests(rows)], pa.bool_())
    for name, value in (("type", "null"), ("num", None), ("data", None)):
        at = rows.schema.get_field_index(name)
        field = rows.schema.field(at)
        column = pc.if_else(gone, pa.scalar(value, field.type), rows.column(at))
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


def _named(rows: pa.Table) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    named = rows.filter(pc.is_in(rows.column("type"), pa.array(_NAMING, pa.utf8())))
    seqs = named.column("seq").to_pylist()
    yield from ((seq, digest) for seq, digest in zip(seqs, _digests(named), strict=True) if digest)


def _is_whole(folder: str, digest: str, store: Store) -> bool:
    try:
        blobs.check(folder, digest, store)
    except IntegrityError:
        return False
    return True
