"""The cursor held against the journal: is this the journal that was delivered?

A journal may be shorter than its cursor for three reasons. Somebody else's journal of the same run
(one on each node's own disk, with one state folder for all): the cursor is not meant. A power cut
that took what was delivered before it was durable: nothing is wrong, it is recorded and goes on.
Anything else, a restored backup or a copy in part: refused.

**A power cut** is believed only if nothing contradicts it: the machine has been booted anew since
the writer started (or it is another machine), and everything that it knew to be durable when it was
delivered is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from eventlog.delivery import Cursor, Mark
from eventlog.errors import IntegrityError
from eventlog.event import digest
from eventlog.files import LOCAL, Store
from eventlog.identity import process
from eventlog.listing import listing
from eventlog.reader import WriterReader
from eventlog.segment import WHOLE, Header


@dataclasses.dataclass(frozen=True)
class Loss:
    """Events `first` to `last` of a writer that a target holds and the journal has no more."""

    writer: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Bound:
    """What `bind` found.

    Attributes
    ----------
    cursor:
        The cursor to go on with.
    other:
        The cursor was that of another journal of this run: nothing is known of this one.
    losses:
        What a power cut took, as far as no earlier call knew it.
    """

    cursor: Cursor
    other: bool = False
    losses: tuple[Loss, ...] = ()


def bind(
    folder: str,
    cursor: Cursor,
    parts: Mapping[str, Sequence[Header]],
    *,
    target: str,
    state: str,
    store: Store = LOCAL,
) -> Bound:
    """Hold a cursor against the journal in `folder`.

    Parameters
    ----------
    parts:
        What `eventlog.reader.headers` returns for the folder.
    target, state:
        What messages call the target, and its state folder.

    Raises
    ------
    IntegrityError
        If the journal is not the one that was delivered.
    """
    delivered = {writer for writer, mark in cursor.writers.items() if mark.acked}
    if delivered and parts and delivered.isdisjoint(listing(folder, store).writers):
        fresh = dataclasses.replace(
            cursor,
            state="",
            writers={},
            quarantined={},
            awaited={},
            footprint="",
            status="",
            rewound=False,
            view="",
            restarts={},
        )
        return Bound(fresh, other=True)
    losses = []
    for writer in sorted(delivered):
        mark = cursor.mark(writer)
        event = next(WriterReader(folder, writer, start=mark.acked - 1, store=store).events(), None)
        if event is None or event.seq != mark.acked - 1:
            have = _have(folder, writer, store)
            if have != mark.lost:
                _check_lost(folder, writer, mark, have, parts, target, state)
                losses.append(Loss(writer, have, mark.acked - 1))
                cursor = cursor.with_mark(writer, dataclasses.replace(mark, lost=have))
        elif digest(event) != mark.crc:
            raise IntegrityError(
                f"event {event.seq} of writer {writer} is not the one that was delivered to "
                f"{target}: the journal was changed",
                on=folder,
                hint="bring the original journal back",
            )
        elif mark.lost is not None:  # a whole copy has come
            cursor = cursor.with_mark(writer, dataclasses.replace(mark, lost=None))
    return Bound(cursor, losses=tuple(losses))


def _check_lost(
    folder: str,
    writer: str,
    mark: Mark,
    have: int,
    parts: Mapping[str, Sequence[Header]],
    target: str,
    state: str,
) -> None:
    headers = parts.get(writer, ())
    lost = mark.lost is None and headers and have >= mark.durable
    if lost and _booted_anew(headers[-1]):
        return
    raise IntegrityError(
        f"{target} was proven to hold {mark.acked} events of writer {writer}, and this journal "
        f"has {have}: it was restored or copied in part",
        on=folder,
        hint=f"bring the whole journal back, or remove the state folder {state} to have the "
        "target asked anew",
    )


def _have(folder: str, writer: str, store: Store) -> int:
    """Return the seq behind the last event of a writer."""
    reader = WriterReader(folder, writer, skip_missing=True, store=store)
    for _table in reader.tables():
        pass
    return reader.next_seq


def _booted_anew(header: Header) -> bool:
    """Return whether the machine of a writer may have lost power since it started."""
    boot = process()["boot_id"]
    return not boot or header.identity.get("boot_id") != boot


def durable_events(reader: WriterReader, cursor: Mark) -> int:
    """Return how many events the writer knew to be durable, as far as a reader has read it."""
    verdicts = reader.verdicts.values()
    sealed = listing(reader.folder).parquet(reader.writer)
    known = [v.next_seq if v.word == WHOLE else v.durable for v in verdicts]
    known += [cursor.durable, *(name.last + 1 for name in sealed)]
    return min(max(known), max(cursor.acked, cursor.durable))
