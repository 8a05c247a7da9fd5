"""How a sync is to behave, and what one call did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventlog.reader import Missing

#: Rows of a batch, if neither the user nor the target says how many: some 1,000 events of twenty
#: metrics.
BATCH_ROWS = 20_000
#: How often a batch is tried, and how long it is waited between, in seconds.
TRIES = 5
BACKOFF = (0.2, 10.0)
#: What is sent, if the user does not say.
DEFAULT_VIEW = "effective"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the loop behaves.

    `retry_quarantined` sends again what the target refused for good; `without_missing` sends what
    waits for tables that have not come without them; `repair` compares the run
    with the target afterwards, point by point, and sends what is missing. `batch_rows` is None
    where the target may say how many rows it takes at once. `superseded` is the choice of
    `replayers.superseding`, `keys` that of `replayers.keys`: None goes on with the one before.
    """

    view: str = DEFAULT_VIEW
    batch_rows: int | None = None
    tries: int = TRIES
    backoff: tuple[float, float] = BACKOFF
    adopt_by_name: bool = False
    retry_quarantined: bool = False
    without_missing: bool = False
    repair: bool = False
    superseded: str = "append"
    keys: tuple[str, ...] | None = None


def rows_at_once(settings: Settings, target: object) -> int:
    """Return how many rows a batch has at most, one event that has more aside."""
    return settings.batch_rows or int(getattr(target, "batch_rows", BATCH_ROWS))


@dataclasses.dataclass
class Outcome:
    """What one call did.

    Attributes
    ----------
    sent, points:
        Events and rows of metrics that were sent.
    settled:
        Events that the target is proven to hold, or that the view leaves out, of `events`, which
        counts those that are missing as well.
    quarantined:
        Events that the target will never take, in this and earlier calls.
    missing:
        Events that no file of the journal holds, by writer: the loop stops in front of them.
    contacted:
        Whether the target was asked anything.
    repaired, unexplained:
        Events that were sent again because something of them was missing, and differences that
        are left without a cause; only if the call was to repair.
    more:
        Whether the call ended early, as it was asked to.
    notes:
        What people should know beside.
    """

    run: str
    target: str
    known_as: str | None = None
    sent: int = 0
    points: int = 0
    settled: int = 0
    events: int = 0
    quarantined: int = 0
    changes: int = 0
    missing: dict[str, list[Missing]] = dataclasses.field(default_factory=dict)
    contacted: bool = False
    repaired: int = 0
    unexplained: int = 0
    more: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


#: Called with (settled, events) now and then.
Progress = Callable[[int, int], None]
