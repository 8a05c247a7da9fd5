"""One target and the runs on their way into it: threads, turns, and what a failure means.

Runs take turns: each may work for a slice of time, then the next one in the queue has its turn, so
that a long run holds up no short one. One run is never worked on by two threads. Targets have
lanes of their own, so that none waits for another.

A lane of a sync that ends (``stay=False``) brings each run in once. Of a target that cannot be
reached a few runs find out and the others are not tried; who is refused for his credentials is not
asked again. A lane that stays (``--watch``) waits to be woken, keeps the sessions of busy runs
open, and tries what failed again: behind the breaker where the target is down, each run by its own
back-off where it is the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from eventlog.errors import AuthenticationError, EventlogError, UsageError
from replayers.lease import PERIOD, Held, Lost
from replayers.pace import Breaker, Pace, Stopped
from replayers.stream import Stream
from replayers.target import Down, Session, Target

#: How many runs in a row find a target down before the others are not tried.
LOOKS = 3
#: Seconds of one turn.
SLICE = 2.0
#: A lane that stays lets go of a run that was quiet for so long, and of the quietest of too many.
QUIET = 30.0
MOST_OPEN = 16
#: How soon a target that refused the credentials, and a lease that is held, are tried again.
REFUSED = 60.0
HELD = 3 * PERIOD

#: How long a sync that is interrupted waits for the batches that are under way.
PATIENCE = 10.0

#: Called with a line that people should read.
Tell = Callable[[str], None]


class Lane:
    """One target's runs.

    Parameters
    ----------
    make:
        Makes the target; called again for each run of a target of which a process can have one
        run at a time (``one_run``).
    jobs:
        How many runs are worked on at once.
    """

    def __init__(
        self,
        make: Callable[[], Target],
        *,
        jobs: int = 1,
        stay: bool = False,
        pace: Pace | None = None,
        tell: Tell = lambda text: None,
    ) -> None:
        self.target = _Shared(make())
        self.pace = pace or Pace()
        self.breaker = Breaker()
        #: What becomes of superseded points that it holds (`replayers.superseding`).
        self.superseded = "append"
        #: Which metrics it gets (`replayers.keys`); None: as each run was sent before.
        self.keys: tuple[str, ...] | None = None
        #: Why nothing is sent to it any more, and the exit code of that.
        self.given_up: tuple[str, int] | None = None
        self._make = make
        self._jobs = jobs
        self._stay = stay
        self._tell = tell
        self._own: dict[Stream, Target] = {}
        self._streams: dict[Stream, None] = {}  # in the order in which they came
        self._queue: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._down = 0
        self._threads: list[threading.Thread] = []

    @property
    def label(self) -> str:
        """How messages call the target."""
        return f"{self.target.kind}:{self.target.address}"

    # ---------------------------------------------------------------- from outside

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._jobs):
            thread = threading.Thread(target=self._work, name=self.label, daemon=True)
            self._threads.append(thread)
            thread.start()

    def add(self, stream: Stream) -> None:
        """Put a run into the queue: it is new, or has changed."""
        with self._changed:
            self._streams[stream] = None
            stream.wake()
            if not stream.queued and not stream.busy:
                stream.queued = True
                self._queue.append(stream)
            self._changed.notify_all()

    def finish(self) -> None:
        """Try nothing again that fails from now on, and nothing that waits for that."""
        with self._changed:
            self._stay = False
            for stream in [s for s in self._queue if s.error is not None or self.breaker.open]:
                self._queue.remove(stream)
                stream.queued = False
                if stream.error is None:
                    stream.reason, stream.exit_code = f"{self.label} cannot be reached", 75
            self._changed.notify_all()

    def idle(self) -> bool:
        """Return whether there is nothing left to do now."""
        with self._changed:
            return not self._queue and not any(stream.busy for stream in self._streams)

    def wait(self, seconds: float) -> None:
        """Wait until there is nothing left to do, or for so long."""
        with self._changed:
            self._changed.wait_for(self.idle, seconds)

    def streams(self) -> list[Stream]:
        """Return the runs, in the order in which they came."""
        with self._changed:
            return list(self._streams)

    def end(self, patience: float) -> bool:
        """Have the threads end behind their batches; return whether they did in time.

        The threads end together: a child process may belong to the thread that started it.
        """
        until = time.monotonic() + patience
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            while any(stream.busy for stream in self._streams):
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.2))
        for stream in self.streams():
            self._let_go(stream)
        with contextlib.suppress(OSError, EventlogError):
            self.target.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return True

    # ---------------------------------------------------------------- a thread

    def _work(self) -> None:
        while (stream := self._take()) is not None:
            more = self._step(stream)
            again = more if stream.error is None else self._went_wrong(stream)
            if stream.error is None:
                self._worked(stream)
            if not self._stay and not again:
                self._let_go(stream)
            with self._changed:
                stream.busy = False
                if again and not self._ended and not stream.queued:
                    stream.queued = True
                    self._queue.append(stream)
                self._changed.notify_all()

    def _step(self, stream: Stream) -> bool:
        try:
            target = self._target_of(stream)
        except Exception as error:  # what it was made of is gone: no thread may end of that
            stream.failed(error)
            return False
        return stream.step(target, self._enough())

    def _take(self) -> Stream | None:
        """Return the next run whose turn it is; None at the end."""
        while True:
            quiet = self._quiet()
            if quiet is not None:
                self._let_go(quiet)
                with self._changed:
                    quiet.busy = False
                continue
            with self._changed:
                if self._ended:
                    self._changed.wait_for(lambda: self._closed)
                    return None
                now = time.monotonic()
                ready = next((s for s in self._queue if s.not_before <= now), None)
                if ready is not None and self.given_up is None and self.breaker.admits():
                    stream = ready
                    self._queue.remove(stream)
                    stream.queued, stream.busy = False, True
                    return stream
                if self.given_up is not None and not self._stay:
                    self._give_up_the_rest()
                waits = [max(0.05, s.not_before - now) for s in self._queue] or [5.0]
                if ready is not None:
                    waits = [max(0.05, self.breaker.left())]
                self._changed.wait(min([*waits, 5.0]))

    def _enough(self) -> Callable[[], bool]:
        until = time.monotonic() + SLICE

        def enough() -> bool:
            over = bool(self._queue) and time.monotonic() > until
            # Who has had a turn stays open: that is not done with any number of runs.
            return self._ended or (over and sum(s.open for s in self._streams) < MOST_OPEN)

        return enough

    # ---------------------------------------------------------------- targets and sessions

    def _target_of(self, stream: Stream) -> Target:
        if not getattr(self.target.plain, "one_run", False):
            return self.target
        if stream not in self._own:
            self._own[stream] = self._make()
        return self._own[stream]

    def _let_go(self, stream: Stream) -> None:
        """Close a run's session; its lease is free then."""
        stream.close()
        own = self._own.pop(stream, None)
        if own is not None:
            with contextlib.suppress(OSError, EventlogError):
                own.close()

    def _quiet(self) -> Stream | None:
        """Return a run that has been open for nothing, and take it."""
        if not self._stay:
            return None
        with self._changed:
            open_ = [s for s in self._streams if s.open and not s.busy and not s.queued]
            open_.sort(key=lambda s: s.worked)
            late = time.monotonic() - QUIET
            if open_ and (len(open_) > MOST_OPEN or open_[0].worked < late):
                open_[0].busy = True
                return open_[0]
        return None

    # ---------------------------------------------------------------- how it went

    def _worked(self, stream: Stream) -> None:
        assert stream.outcome is not None
        stream.told = None
        if not stream.outcome.contacted:
            self.breaker.undecided()
            return
        with self._changed:
            self._down = 0
        if self.breaker.worked() and self._stay:
            self._say(None, "answers again")

    def _went_wrong(self, stream: Stream) -> bool:
        """Decide what a failure means; return whether to try again."""
        self._let_go(stream)
        error = stream.error
        if isinstance(error, Stopped):
            self.breaker.undecided()
            return False
        if isinstance(error, Held) and (self._stay or error.again is not None):
            self.breaker.undecided()
            first = stream.not_before == 0.0
            stream.not_before = time.monotonic() + min(error.again or HELD, PERIOD / 2)
            if first and self._stay:
                self._say(stream, stream.reason or "")
            return True
        return self._again(stream) if self._stay else self._final(stream)

    def _final(self, stream: Stream) -> bool:
        error = stream.error
        with self._changed:
            if isinstance(error, Down):
                self._down += 1
                # One run found out with patience; the next ones only look.
                for other in self._streams:
                    other.settings = dataclasses.replace(other.settings, tries=1)
            refused = isinstance(error, AuthenticationError)
            self._say(stream, stream.reason or "")
            if self.given_up is None and (refused or self._down >= LOOKS):
                why = "refused our credentials" if refused else "cannot be reached"
                self.given_up = (f"not tried: {self.label} {why}", stream.exit_code)
        return False

    def _again(self, stream: Stream) -> bool:
        error = stream.error
        now = time.monotonic()
        if isinstance(error, (Down, AuthenticationError)):
            wish = REFUSED if isinstance(error, AuthenticationError) else None
            known = self.breaker.open
            pause = self.breaker.failed(wish)
            if not known:
                self._say(None, f"{stream.reason}; tried again in {pause:.0f} s")
            return True
        self.breaker.undecided()
        if isinstance(error, UsageError):
            self.given_up = (stream.reason or "", stream.exit_code)
            self._say(None, stream.reason or "")
            return False
        pause = PERIOD if isinstance(error, Lost) else stream.backoff.next()
        stream.not_before = now + max(pause, getattr(error, "after", None) or 0.0)
        if stream.reason != stream.told:  # a failure that lasts is said once
            stream.told = stream.reason
            self._say(stream, f"{stream.reason}; tried again in {stream.not_before - now:.0f} s")
        return True

    def _say(self, stream: Stream | None, text: str) -> None:
        run = "" if stream is None else f"{stream.found.label} -> "
        self._tell(f"{run}{self.label}: {text}")

    def _give_up_the_rest(self) -> None:
        assert self.given_up is not None
        if self._queue:
            self._tell(f"{len(self._queue)} more runs {self.given_up[0]}")
        for stream in self._queue:
            stream.queued = False
            stream.reason, stream.exit_code = self.given_up
        self._queue.clear()
        self._changed.notify_all()


def work(
    lanes: Sequence[Lane], stop: threading.Event, tick: Callable[[], float | None] = lambda: None
) -> None:
    """Start lanes and work until they have nothing left to do and `tick` returns None.

    It is called again and again, after as many seconds as it returns. An interrupt, or any
    exception of it, ends the lanes behind the batches that are under way, and is raised then; a
    second interrupt waits for nothing.
    """
    for lane in lanes:
        lane.start()
    try:
        while (pause := tick()) is not None or not all(lane.idle() for lane in lanes):
            if pause is not None:
                time.sleep(pause)
                continue
            for lane in lanes:
                lane.wait(0.1)
    except BaseException:
        stop.set()
        raise
    finally:
        end = time.monotonic() + PATIENCE
        for lane in lanes:
            lane.end(end - time.monotonic())


class _Shared:
    """A target that several threads use: they open runs one after the other, because what a run
    needs beside it (an experiment, a project) is made when it is first needed.
    """

    def __init__(self, plain: Target) -> None:
        self.plain = plain
        self.kind, self.address, self.rules = plain.kind, plain.address, plain.rules
        self.folds = plain.folds
        self._lock = threading.Lock()
        self.image = plain.image
        self.close = plain.close

    def __getattr__(self, name: str) -> Any:
        """What a target may have beside the protocol (``changes``, ``omits``)."""
        if name == "plain":  # not made yet
            raise AttributeError(name)
        return getattr(self.plain, name)

    def open(self, run: object) -> Session:
        with self._lock:
            return self.plain.open(run)  # type: ignore[arg-type]
