"""How fast, and how soon again, one target is asked: rate, back-off, circuit breaker.

All three are shared by the threads that send into the target. Seconds throughout.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable

from eventlog.errors import TemporaryError, UsageError

#: The first and the longest pause before a target that is down is tried again.
SOONEST, LATEST = 1.0, 300.0
#: What a target may ask us to wait (Retry-After) before a sync that is to end gives up instead.
LONGEST_WISH = 60.0

Clock = Callable[[], float]


class Stopped(TemporaryError):
    """The sync was told to end while it waited."""


class Pace:
    """When the next rows may be sent: at most `rate` rows a second, and not before the target's own
    wish is over.

    `stop` ends every wait with `Stopped`.
    """

    def __init__(
        self,
        rate: float | None = None,
        *,
        stop: threading.Event | None = None,
        clock: Clock = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.rate = rate
        self.stop = stop or threading.Event()
        self._clock = clock
        self._pause = pause or self.stop.wait
        self._lock = threading.Lock()
        self._free = 0.0
        self._quiet = 0.0

    def take(self, rows: int) -> None:
        """Wait until `rows` more may be sent. What one takes, the next one waits for.

        Raises
        ------
        Stopped
        """
        with self._lock:
            now = self._clock()
            due = max(now, self._free, self._quiet)
            if self.rate:
                self._free = max(self._free, now) + rows / self.rate
        self.wait(due - now)
        if self._quiet > self._clock():  # somebody was told so meanwhile
            self.wait(self._quiet - self._clock())

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: the target asked for it."""
        with self._lock:
            self._quiet = max(self._quiet, self._clock() + seconds)

    def wait(self, seconds: float) -> None:
        """Wait. Raises `Stopped` if the sync is to end."""
        if seconds > 0:
            self._pause(seconds)
        if self.stop.is_set():
            raise Stopped("interrupted between two batches")


def parse_rate(text: str) -> float:
    """Return rows a second: ``500``, ``500/s``, ``30/min`` or ``1000/h``.

    Raises
    ------
    UsageError
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:/\s*(s|min|h))?\s*", text)
    number = float(match[1]) if match else 0.0
    if match is None or not number:
        raise UsageError(
            f"{text!r} is no rate", hint="rows a second, or with a unit: 500, 30/min, 1000/h"
        )
    return number / {"s": 1, "min": 60, "h": 3600}[match[2] or "s"]


class Backoff:
    """Pauses that double from `low` to `high`; each is drawn between a half and the whole, so that
    a thousand nodes do not come back in the same second.
    """

    def __init__(
        self,
        low: float = SOONEST,
        high: float = LATEST,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._low, self._high, self._chance = low, high, chance
        self._failures = 0

    def next(self) -> float:
        """Return the next pause."""
        pause = min(self._high, self._low * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return self._chance(pause / 2, pause)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._failures = 0


class Breaker:
    """Keeps everybody away from a target that is down, but for one who looks now and then.

    Closed, all may try. A failure opens it: nobody may until the back-off's pause is over; then
    one may, and his luck decides.
    """

    def __init__(self, backoff: Backoff | None = None, clock: Clock = time.monotonic) -> None:
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._lock = threading.Lock()
        self._until: float | None = None
        self._looking = False

    @property
    def open(self) -> bool:
        """Whether the target was down when it was last tried."""
        return self._until is not None

    def admits(self) -> bool:
        """Return whether the caller may try now; he must then say how it went."""
        with self._lock:
            if self._until is None:
                return True
            if self._looking or self._clock() < self._until:
                return False
            self._looking = True
            return True

    def left(self) -> float:
        """Return for how long nobody may try."""
        return max(0.0, (self._until or 0.0) - self._clock())

    def failed(self, wish: float | None = None) -> float:
        """Note a failure; return the pause. `wish` is the least that the target asked for.

        Of several that were under way when it went down the first one counts.
        """
        with self._lock:
            if self._until is not None and not self._looking:
                return self.left()
            pause = max(self._backoff.next(), wish or 0.0)
            self._until = self._clock() + pause
            self._looking = False
            return pause

    def worked(self) -> bool:
        """Note that the target answers; return whether it had been down."""
        with self._lock:
            was = self._until is not None
            self._until, self._looking = None, False
            self._backoff.reset()
            return was

    def undecided(self) -> None:
        """Note that the attempt said nothing of the target: the next one may look."""
        with self._lock:
            self._looking = False
