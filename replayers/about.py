"""What a target is told of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eventlog.attempts import attempts
from eventlog.catalog import Found
from eventlog.event import NOTE
from replayers.target import RunInfo

if TYPE_CHECKING:
    from eventlog.segment import Header


def run_info(
    found: Found,
    known_as: str | None,
    *,
    adopt_by_name: bool = False,
    create: bool = True,
    generation: str = "",
    replaces: str = "",
    shown_as: str = "",
) -> RunInfo:
    """Return what a target is told of a run."""
    from eventlog.reader import headers

    parts = headers(found.folder)
    found.run.check(found.folder, parts)
    firsts = [ps[0].identity.get("owner", "") for ps in parts.values()]
    return RunInfo(
        id=found.run.id,
        project=found.run.project,
        name=found.run.name,
        created=min((a.start for a in attempts(parts)), default=0),
        owner=str(firsts[0]) if firsts else "",
        elsewhere=elsewhere(found.folder, parts),
        known_as=known_as,
        adopt_by_name=adopt_by_name,
        create=create,
        generation=generation,
        replaces=replaces,
        shown_as=shown_as,
    )


def elsewhere(folder: str, parts: Mapping[str, Sequence[Header]]) -> dict[str, str]:
    """Return the names for other places that the attempts recorded; the last one counts."""
    from eventlog.reader import WriterReader

    out: dict[str, str] = {}
    for attempt in attempts(parts):
        for writer in attempt.writers:
            event = next(WriterReader(folder, writer).events(), None)
            for row in event.rows if event else ():
                if row.kind == NOTE and row.key.startswith("env/"):
                    out[row.key.removeprefix("env/")] = str(row.value)
    return out
