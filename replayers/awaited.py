"""Events whose blobs have not come: a copy brings a run's files in any order.

A target cannot take a table whose content is not there, and refuses its event. Such an event is in
quarantine as any other; but it is remembered that it waits, and the next sync that finds its blobs
whole sends it, which nobody has to ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eventlog import blobs
from eventlog.errors import FormatError, IntegrityError
from eventlog.files import LOCAL, Store
from eventlog.value import loads
from replayers.batches import of_seqs

if TYPE_CHECKING:
    import pyarrow as pa

#: The types of values that lie in blobs.
_NAMING = ("table", "blob")


def waiting(folder: str, rows: pa.Table, store: Store = LOCAL) -> list[int]:
    """Return the events among these rows of which a blob is missing, or not whole yet."""
    seqs = {seq for seq, digest in _named(rows) if not _is_whole(folder, digest, store)}
    return sorted(seqs)


def come(folder: str, writer: str, seqs: Iterable[int], store: Store = LOCAL) -> list[int]:
    """Return those of a writer's events whose every blob is there by now."""
    try:
        events = of_seqs(folder, writer, seqs)
        return [e.column("seq")[0].as_py() for e in events if not waiting(folder, e, store)]
    except (FormatError, OSError):  # said with the writer
        return []


def _named(rows: pa.Table) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    named = rows.filter(pc.is_in(rows.column("type"), pa.array(_NAMING, pa.utf8())))
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
