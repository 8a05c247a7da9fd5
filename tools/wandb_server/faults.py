"""Failing on demand.

A fault is posted to ``/_admin/faults`` and then strikes requests that match it. Faults live in
memory: a restarted server has none.

==============  ===============================================================================
kind            what happens to a matching request
==============  ===============================================================================
``status``      nothing is stored; answered with ``status`` (and ``retry_after``, in seconds)
``store_status``  everything is stored; answered with ``status``
``half_status``   of a file_stream, the first half of each file's lines; then ``status``
``drop``        the connection is reset without an answer, ``when`` = before or after storing
``cut``         everything is stored; the answer breaks off in the middle of its body
``stall``       waits ``seconds``, ``when`` = before or after storing; then all is well
``exit``        the process ends at once, as if killed, ``when`` = before or after storing
``stale``       a GraphQL request that reads them is told of ``lines`` fewer history lines than
                there are: ``part`` = count (historyLineCount), tail (historyTail, last step), both
==============  ===============================================================================

``match`` says which requests: ``any``, ``file_stream`` (``file_stream:rows`` for those that bring
history lines; heartbeats and summaries do not), ``upload``, ``download``, ``graphql``
(``graphql:NAME`` for one operation); ``run`` narrows file_stream to one run's name. ``skip``
matching requests pass unharmed first, then ``times`` are struck. Of several faults the oldest
strikes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

KINDS = frozenset(
    {"status", "store_status", "half_status", "drop", "cut", "stall", "exit", "stale"}
)
MATCH = re.compile(r"any|file_stream(:rows)?|upload|download|graphql(:\w+)?")
CHOICES = {"when": ("before", "after"), "part": ("count", "tail", "both")}


class FaultError(ValueError):
    """A fault that cannot be; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One order to fail, as it was given."""

    kind: str
    match: str = "any"
    run: str | None = None
    skip: int = 0
    times: int = 1
    status: int = 500
    retry_after: float | None = None
    seconds: float = 0.0
    when: str = "before"
    lines: int = 0
    part: str = "both"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.kind not in KINDS:
            raise FaultError(f"unknown kind {self.kind!r}; known: {', '.join(sorted(KINDS))}")
        if not MATCH.fullmatch(self.match):
            raise FaultError(f"unknown match {self.match!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise FaultError(f"{name} is one of {', '.join(allowed)}")
        if self.skip < 0 or self.times < 1 or self.lines < 0 or self.seconds < 0:
            raise FaultError("skip, lines and seconds are not negative, times is at least 1")
        if not 200 <= self.status <= 599:
            raise FaultError("status is between 200 and 599")
        if self.kind == "half_status" and self.match.partition(":")[0] != "file_stream":
            raise FaultError("half_status needs match=file_stream: only lines can be halved")

    def concerns(self, kind: str, run: str | None) -> bool:
        """Whether a request of this kind (``graphql:NAME``, ``file_stream:rows``) is meant."""
        if self.run is not None and self.run != run:
            return False
        return self.match in ("any", kind, kind.partition(":")[0])


def parse(value: Mapping[str, Any]) -> Fault:
    """A fault from JSON.

    Raises:
        FaultError: an unknown name, a wrong type or an impossible value.
    """
    names = {field.name for field in fields(Fault)}
    if unknown := set(value) - names:
        raise FaultError(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
    for name, types in {
        "kind": str, "match": str, "run": str, "when": str, "part": str,
        "skip": int, "times": int, "status": int, "lines": int,
        "seconds": (int, float), "retry_after": (int, float),
    }.items():  # fmt: skip
        if name in value and not isinstance(value[name], types):  # type: ignore[arg-type]
            raise FaultError(f"{name} has the wrong type")
    if "kind" not in value:
        raise FaultError("kind is missing")
    return Fault(**value)


@dataclass
class _Order:
    """A fault on the board with what is left of it."""

    number: int
    fault: Fault
    skip: int
    times: int
    struck: int = 0


class FaultBoard:
    """The faults in force; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: list[_Order] = []
        self._made = 0

    def add(self, fault: Fault) -> int:
        """Put a fault in force; returns its number."""
        with self._lock:
            self._made += 1
            self._orders.append(_Order(self._made, fault, fault.skip, fault.times))
            return self._made

    def clear(self, number: int | None = None) -> int:
        """Lift one fault or all; returns how many."""
        with self._lock:
            kept = [o for o in self._orders if number is not None and o.number != number]
            lifted = len(self._orders) - len(kept)
            self._orders = kept
            return lifted

    def listed(self) -> list[dict[str, Any]]:
        """Every fault not lifted, spent ones included, with how often it struck."""
        with self._lock:
            return [
                {"id": o.number, **asdict(o.fault), "skip_left": o.skip, "times_left": o.times,
                 "struck": o.struck}
                for o in self._orders
            ]  # fmt: skip

    def strike(self, kind: str, run: str | None = None) -> Fault | None:
        """The fault that hits this request, which is thereby counted."""
        return self._take(kind, run, stale=False)

    def stale(self, kind: str) -> Fault | None:
        """The stale fault that hits this GraphQL request, which is thereby counted."""
        return self._take(kind, None, stale=True)

    def _take(self, kind: str, run: str | None, *, stale: bool) -> Fault | None:
        with self._lock:
            hit: Fault | None = None
            for order in self._orders:
                is_stale = order.fault.kind == "stale"
                if is_stale != stale or not order.fault.concerns(kind, run):
                    continue
                if order.skip:
                    order.skip -= 1
                elif order.times and hit is None:
                    order.times -= 1
                    order.struck += 1
                    hit = order.fault
            return hit
