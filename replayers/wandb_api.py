"""A run in W&B as it is read: asked of the server anew each time, nothing kept.

The line count of a real server lags behind, and a client that begins to write on a stale count
overwrites rows. So after a session that did not end well the count must first stand still for
``settle`` seconds, and it must never be less than what was confirmed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from replayers.positions import Positions
from replayers.target import Foreign, Retry, RunInfo
from replayers.wandb_child import WandbChild
from replayers.wandb_map import position
from replayers.wandb_state import RunRecord
from replayers.wandb_values import canonical

_PAGE = 1000
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 2.0

#: What the server says of a run; see `replayers.wandb_worker.Worker.look`.
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run lies, and how long to wait for a server that says nothing new."""

    entity: str
    project: str
    run: str
    settle: float
    patience: float


class WandbRun:
    """One run, read through the child. `known_as` is its path ``entity/project/id``."""

    def __init__(self, child: WandbChild, place: Place, run: RunInfo) -> None:
        self._child = child
        self._place = place
        self._info = run
        self._hello()

    def _hello(self) -> None:
        place = self._place
        names = self._child.ask("hello", entity=place.entity, project=place.project, run=place.run)
        self.known_as = f"{names['entity']}/{place.project}/{place.run}"

    def look(self) -> Found | None:
        """Return what the server has of the run, None if nothing, and check that it is ours."""
        if not self._child.alive:
            self._hello()
        found: Found | None = self._child.ask("look")
        self.record(found)
        return found

    def record(self, found: Found | None) -> RunRecord:
        """Return what the run says of the journal. Raises `Foreign` if it is not ours."""
        return RunRecord.read(self._info, found, self.known_as)

    def settled(self, own_claim: str | None) -> Found | None:
        """Return what the server has once its line count can be believed.

        A claim means that a session writes, or did not end well; `own_claim` is no such one.

        Raises
        ------
        Retry
            If the count goes on changing.
        """
        found = self.look()
        started = changed = time.monotonic()
        while found is not None:
            record = self.record(found)
            claimed = record.claim is not None and record.claim != own_claim
            few = found["count"] < record.rows or found["count"] < found["last_step"] + 1
            if not claimed and not few:
                return found
            now = time.monotonic()
            if now - changed >= self._place.settle:
                break
            if now - started >= 10 * self._place.settle + self._place.patience:
                raise Retry("somebody else is writing into this W&B run", on=self.known_as)
            time.sleep(min(0.5, self._place.settle / 4))
            newer = self.look()
            if newer is None or newer["count"] != found["count"]:
                changed = time.monotonic()
            found = newer
        return found

    def wait(self, done: Callable[[Found], bool]) -> Found | None:
        """Look until `done`; None if nothing has moved for the time of patience."""
        pause = _FIRST_PAUSE
        moved, before = time.monotonic(), ""
        while True:
            found = self.look()
            if found is not None and done(found):
                return found
            now = canonical(found)
            if now != before:
                moved, before = time.monotonic(), now
            if time.monotonic() - moved >= self._place.patience:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE)

    # ---------------------------------------------------------------- rows

    def rows(self, first: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield the history rows with ``first <= _step < stop``."""
        if stop <= first:
            return
        self._child.ask("scan", first=first, stop=stop)
        while page := self._child.ask("rows", most=_PAGE):
            yield from page

    def position_of(self, step: int) -> tuple[str, int] | None:
        """Return the position of the row with this ``_step``, if it is the only one and ours."""
        found = [position(row) for row in self.rows(step, step + 1)]
        return found[0] if len(found) == 1 else None

    def scan(self, found: Found, record: RunRecord) -> Positions:
        """Read every row; return the positions that are held, and note them in `record`.

        Raises
        ------
        Foreign
            If a row is not ours, or one is there twice, or one that was confirmed is gone.
        Retry
            If the line count is less than the rows.
        """
        seqs: dict[str, list[int]] = {}
        seen: set[tuple[str, int]] = set()
        count = 0
        for row in self.rows(0, found["last_step"] + 1):
            count += 1
            if count <= record.adopted:
                continue
            at = position(row)
            if at is None:
                raise self.foreign(f"its row with _step {row.get('_step')} is not ours")
            if at in seen:
                raise self.foreign(f"it has the event {at[1]} of writer {at[0]} twice")
            seen.add(at)
            seqs.setdefault(at[0], []).append(at[1])
        if count < record.rows:
            raise self.foreign(f"{record.rows} rows were confirmed, and {count} are left")
        if count > found["count"]:
            raise Retry("W&B's line count lags behind its rows", on=self.known_as)
        if count < found["count"]:
            raise self.foreign(f"it counts {found['count']} rows and shows {count}")
        record.rows = count
        for writer, held in seqs.items():
            record.marks[writer] = max(record.marks.get(writer, 0), max(held) + 1)
        return Positions({w: [(seq, seq) for seq in held] for w, held in seqs.items()})

    def foreign(self, why: str) -> Foreign:
        """Return the error that says why this run is not what we left."""
        return Foreign(
            f"the W&B run was changed by somebody else: {why}",
            on=self.known_as,
            hint="sync under another WANDB_RUN_ID; or delete the run in W&B, and the state folder "
            "of this target, to have it all sent again",
        )
