"""Events whose blobs have not come: a copy brings a run's files in any order.

A target cannot take a table whose content is not there, and refuses its event. Such an event is in
quarantine as any other; but it is remembered that it waits, and the next sync that finds its blobs
whole sends it, which nobody has to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eventlog import blobs
from eventlog.errors import FormatError, IntegrityError
from eventlog.event import METRIC, SYSTEM
from eventlog.files import LOCAL, Store
from eventlog.value import loads
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
    """Return those of a writer's events whose every blob is there by now."""
    there: set[int] = set()
    try:
        for rows in at_seqs(folder, writer, seqs):
            there.update(rows.column("seq").to_pylist())
            there.difference_update(waiting(folder, rows, store))
    except (FormatError, OSError):  # said with the writer
        return []
    return sorted(there)


def _named(rows: pa.Table) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    named = rows.filter(pc.is_in(rows.column("type"), pa.array(_NAMING, pa.utf8())))
    named = named.filter(pc.is_in(named.column("kind"), pa.array(_KINDS, pa.utf8())))
    for seq, data in zip(*(named.column(n).to_pylist() for n in ("seq", "data")), strict=True):
        try:
            yield seq, str(loads(data)["sha256"])
        except (ValueError, TypeError, LookupError):
            continue  # no reference at all: nothing can come of it


def _is_whole(folder: str, digest: str, store: Store) -> bool:
    try:
        blobs.check(folder, digest, store)
    except IntegrityError:
        return False
    return True
