"""Following runs while they are written: look what has changed, wake the lanes, say how far behind.

It ends when it is told to, or, if asked, once all runs have ended and everything is delivered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from eventlog.catalog import Found
from eventlog.cli import output
from eventlog.delivery import Delivery
from eventlog.errors import EventlogError
from eventlog.layout import RUN_FILE
from replayers.changes import Changes
from replayers.lane import Lane
from replayers.sending import check_elsewhere, say, seal_unsettled
from replayers.stream import Stream

#: Seconds between two plain lines of a target that is being sent to.
LINES = 10.0
#: Seconds between two drawings of the lines on a terminal.
DRAWS = 0.5


@dataclasses.dataclass(frozen=True)
class Lag:
    """How far one target is behind the journal.

    Attributes
    ----------
    seconds:
        Since when something waits that the target does not hold; 0 if nothing does.
    events:
        How many events wait, as far as runs were read: `unread` runs have more.
    sent, runs, failing:
        Events sent so far; runs; runs that stand still for a reason.
    """

    target: str
    runs: int
    sent: int
    events: int
    seconds: float
    unread: int
    failing: int
    down: bool
    retry: float

    def line(self) -> str:
        """Return one line for people."""
        more = "+" if self.unread else ""
        behind = f"{self.events}{more}" if self.events or not more else "some"
        text = f"{self.target}: {self.runs} runs, {self.sent} events sent, "
        text += f"{behind} behind, {self.seconds:.1f} s"
        if self.failing:
            text += f", {self.failing} runs failing"
        return text + (f", down, tried again in {self.retry:.0f} s" if self.down else "")


def lag(lane: Lane) -> Lag:
    """Return how far a target is behind."""
    now = time.monotonic()
    streams = lane.streams()
    behind = [(s, since) for s in streams if (since := s.behind_since) is not None]
    outcomes = [s.outcome for s in streams if s.outcome is not None]
    return Lag(
        target=lane.label,
        runs=len(streams),
        sent=sum(o.sent for o in outcomes) + sum(s.under_way for s in streams),
        events=sum(s.known_behind for s in streams),
        seconds=max((now - since for _s, since in behind), default=0.0),
        unread=sum(s.outcome is None or not s.known_behind for s, _since in behind),
        failing=sum(s.error is not None for s in streams),
        down=lane.breaker.open,
        retry=lane.breaker.left(),
    )


class Watch:
    """Ties the changes of runs to lanes; `tick` is what `replayers.lane.work` asks again and again.

    Parameters
    ----------
    make:
        Makes the stream of a run in a lane.
    interval:
        Seconds between two looks.
    until_finished:
        End once every run has ended and everything is delivered.
    grace:
        Seconds for which ended runs must stand still: a restart may follow.
    drain:
        Seconds after the end of the runs for which a target that takes nothing is waited for;
        None for as long as it takes.
    talks:
        Whether to say that a journal is waited for.
    """

    def __init__(
        self,
        changes: Changes,
        lanes: Sequence[Lane],
        make: Callable[[Found, Lane], Stream],
        *,
        interval: float = 1.0,
        until_finished: bool = False,
        grace: float = 60.0,
        drain: float | None = None,
        talks: bool = True,
        show: Callable[[list[Lag]], None] = lambda lags: None,
    ) -> None:
        self.changes = changes
        self.lanes = lanes
        self._make = make
        self._interval = interval
        self._until_finished = until_finished
        self._grace = grace
        self._drain = drain
        self._talks = talks
        self._show = show
        self._streams: dict[str, list[tuple[Stream, Lane]]] = {}
        self._said: set[str] = set()
        self._over_since: float | None = None
        self._next = 0.0

    def tick(self) -> float | None:
        """Look for changes if it is time to; return how long to wait, None at the end."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self.look()
        self._show([lag(lane) for lane in self.lanes])
        if self._until_finished and self._over():
            return None
        if all(lane.given_up for lane in self.lanes):
            return None
        return max(0.01, min(self._interval, DRAWS, self._next - time.monotonic()))

    def look(self) -> None:
        """Wake the lanes for every run that has changed."""
        changed = self.changes.poll()
        check_elsewhere(self.changes.runs())
        for found in changed:
            if found.folder in self._streams:
                for stream, lane in self._streams[found.folder]:
                    lane.add(stream)
                continue
            streams = [(self._make(found, lane), lane) for lane in self.lanes]
            self._streams[found.folder] = streams
            seal_unsettled(found, streams)
            for stream, lane in streams:
                since = stream.behind_since or time.monotonic()
                lane.add(stream)
                stream.behind_since = since - _age(stream, lane)
        for path in self.changes.waiting:
            if path not in self._said and self._talks:
                self._said.add(path)
                say(f"there is no journal yet, waiting for it: {path}")
        for folder, item in self.changes.unreadable.items():
            if folder not in self._said:
                self._said.add(folder)
                say(f"{folder}: {item.error}")

    def delivered(self) -> bool:
        """Return whether nothing waits, but for what stands still for a reason that will last."""
        return all(
            stream.behind_since is None or stream.exit_code not in (0, 75)
            for lane in self.lanes
            if lane.given_up is None
            for stream in lane.streams()
        )

    def _over(self) -> bool:
        if not self.changes.over(self._grace):
            self._over_since = None
            return False
        now = time.monotonic()
        if self._over_since is None:
            self._over_since = now
        late = self._drain is not None and now - self._over_since >= self._drain
        if late:
            for lane in self.lanes:
                lane.finish()
        return late or self.delivered()


def _age(stream: Stream, lane: Lane) -> float:
    """Return for how long a run that is new to this process may have waited, in seconds."""
    run = stream.found.run
    delivery = Delivery(
        stream.state,
        kind=lane.target.kind,
        address=lane.target.address,
        project=run.project,
        run=run.id,
    )
    try:
        synced = delivery.load()[0].synced / 1e9
        since = synced or os.stat(os.path.join(stream.found.folder, RUN_FILE)).st_mtime
    except (OSError, EventlogError):
        return 0.0
    return max(0.0, time.time() - since)


@contextlib.contextmanager
def display(*, as_json: bool) -> Iterator[Callable[[list[Lag]], None]]:
    """Show the lag: lines that are drawn again on a terminal; elsewhere plain lines, when something
    has moved; as JSON, a line on stdout.
    """
    if as_json or not sys.stderr.isatty():
        yield _Plain(as_json=as_json)
    else:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
        with Live(console=console, auto_refresh=False, transient=True) as live:
            drawn = 0.0

            def draw(lags: list[Lag]) -> None:
                nonlocal drawn
                now = time.monotonic()
                if now - drawn >= DRAWS:
                    drawn = now
                    text = "\n".join(output.safe(x.line()) for x in lags)
                    live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

            yield draw


class _Plain:
    """Lines, not more often than each `LINES` seconds, and none while nothing moves."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[str, tuple[float, Any]] = {}

    def __call__(self, lags: list[Lag]) -> None:
        now = time.monotonic()
        for one in lags:
            state = (one.runs, one.sent, one.events, one.failing, one.down)
            when, before = self._said.get(one.target, (-LINES, None))
            busy = one.events or one.unread
            if state == before or now - when < (LINES if busy or before else 0):
                continue
            self._said[one.target] = (now, state)
            if self._as_json:
                output.print_json_line(dataclasses.asdict(one))
            elif one.runs:
                say(one.line())
