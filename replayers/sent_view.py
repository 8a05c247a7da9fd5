"""Which view of a run a sync sends, and where attempts were found to start again when it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eventlog.attempts import attempts
from eventlog.columns import is_word
from eventlog.delivery import Cursor
from eventlog.event import STATE
from eventlog.mentions import may_mention
from eventlog.reader import WriterReader
from eventlog.segment import Header
from eventlog.views import All, Effective, Restart, View, effective, open_view
from replayers.outcome import DEFAULT_VIEW


def with_rewinds(folder: str, parts: Mapping[str, Sequence[Header]], cursor: Cursor) -> Cursor:
    """Return the cursor, which knows then whether the run ever said that it went back."""
    if cursor.rewound or not any(_rewinds_ahead(folder, writer, cursor) for writer in parts):
        return cursor
    return dataclasses.replace(cursor, rewound=True)


def _rewinds_ahead(folder: str, writer: str, cursor: Cursor) -> bool:
    import pyarrow.compute as pc

    start = cursor.mark(writer).acked
    if not may_mention(folder, writer, "rewind", start=start):
        return False
    for table in WriterReader(folder, writer, start=start).tables():
        stated = is_word(table.column("kind"), STATE)
        if pc.any(pc.and_(stated, is_word(table.column("key"), "rewind"))).as_py():
            return True
    return False


def open_sent(
    folder: str,
    name: str,
    parts: Mapping[str, Sequence[Header]],
    cursor: Cursor,
    note: Callable[[dict[str, Any]], None],
) -> tuple[View, Cursor]:
    """Return the view of this name, and the cursor with what was found for it.

    Parameters
    ----------
    note:
        Called for each attempt that is found to start again, with what the ledger is to tell.
    """
    if name != DEFAULT_VIEW:
        return open_view(folder, name), cursor
    # What one attempt logged is superseded only where it said that it went back.
    if len(attempts(parts)) == 1:
        cursor = with_rewinds(folder, parts, cursor)
        if not cursor.rewound:
            return All(DEFAULT_VIEW), cursor
    view = effective(folder, recorded=recorded_restarts(cursor), ripe=True)
    return view, _with_restarts(cursor, view, note)


def _with_restarts(
    cursor: Cursor, view: Effective, note: Callable[[dict[str, Any]], None]
) -> Cursor:
    """Remember where attempts start again: what is delivered on it cannot be taken back."""
    told = dict(cursor.restarts)
    for key, found in view.restarts.items():
        if found.step is None or found.how not in ("data", "stated"):
            continue
        if tuple(told.get(key, ())) != (found.step, found.how):
            told[key] = (found.step, found.how)
            note({"attempt": key, "starts_again_at": found.step, "found": found.how})
    return dataclasses.replace(cursor, restarts=told)


def recorded_restarts(cursor: Cursor) -> dict[str, Restart]:
    """Return where attempts start again, as the deliveries of this cursor took it."""
    found = {}
    for key, told in cursor.restarts.items():
        try:
            step, how = told
            found[str(key)] = Restart(int(step), str(how))
        except (TypeError, ValueError):
            continue
    return found
