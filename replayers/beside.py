"""The sync beside a program: ``python -m replayers.beside PARENT``, started by `eventlog exec`.

It reads what to do as a line of JSON from its input, then follows the program's runs; the line
``drain`` has it send what is left and end, the end of the input has it end at once. It dies with
its parent, whatever happens, and prints nothing but what people should know.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from eventlog.catalog import Found
from eventlog.errors import EventlogError
from eventlog.reader import headers
from replayers.changes import Changes
from replayers.lane import work
from replayers.pace import Stopped
from replayers.sending import lanes_to, say, stream_of
from replayers.sync_options import Sending
from replayers.watch import Watch, lag

_PR_SET_PDEATHSIG = 1
#: How long a batch of a program is tried in one go: a lane that stays tries again later.
_TRIES = 2
#: How many of a program's runs at once, if it is not said.
_JOBS = 2
#: Signals that a terminal or a scheduler may send to everybody.
_NOT_OURS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class _Over(Exception):
    """The end of the input."""


class Beside:
    """Follows the runs of one program, known by the token in the headers of their segments."""

    def __init__(self, told: dict[str, Any], control: int) -> None:
        self._control = control
        self._drain = float(told["drain"])
        self._draining: float | None = None
        self._stop = threading.Event()
        self.changes = Changes([told["journal"]], belongs=lambda run: _is_of(run, told["token"]))
        how = Sending.of(told["how"])
        self.lanes = []
        for spec in how.specs:
            try:
                self.lanes += lanes_to(
                    [spec],
                    self.changes.runs,
                    [told["journal"]],
                    self._stop,
                    jobs=how.jobs or _JOBS,
                    rate=how.rate,
                    stay=True,
                    superseded=how.superseded,
                    view=how.view,
                    keys=how.keys,
                )
            except EventlogError as error:
                say(f"nothing is sent to {spec.partition(':')[0]}: {error}")
        settings = how.settings(tries=_TRIES)
        self._watch = Watch(
            self.changes,
            self.lanes,
            lambda found, lane: stream_of(found, lane, how.state, settings),
            interval=how.interval,
            talks=False,
        )

    def run(self) -> None:
        """Follow until told to end."""
        if not self.lanes:
            return
        with contextlib.suppress(_Over):
            work(self.lanes, self._stop, self._tick)
        self._report()

    def _tick(self) -> float | None:
        if select.select([self._control], [], [], 0)[0]:
            word = os.read(self._control, 100)
            if not word:
                raise _Over
            self._draining = time.monotonic()
            self._watch.look()
        if self._draining is None:
            return min(0.2, self._watch.tick() or 0.2)
        if time.monotonic() - self._draining > self._drain:
            raise _Over
        self._watch.look()
        return None if self._watch.delivered() else 0.1

    def _report(self) -> None:
        """Say what was sent, in a line a target."""
        runs = len(self.changes.runs())
        if not runs:
            say(f"the program logged no run to {self.changes.paths[0]}")
            return
        for lane in self.lanes:
            at = lag(lane)
            left = [s for s in lane.streams() if s.behind_since is not None or s.error is not None]
            text = f"{lane.label}: {at.sent} events of {runs} runs sent"
            if left:
                said = (s.reason for s in left if s.reason and not isinstance(s.error, Stopped))
                why = next(said, "the time for it was over")
                text += f", {len(left)} runs are not there as a whole ({why}); eventlog sync later"
            say(text)


def _is_of(run: Found, token: str) -> bool:
    parts = headers(run.folder)
    return any(part.identity.get("exec") == token for one in parts.values() for part in one)


def main() -> int:
    """Be the process beside."""
    parent = int(sys.argv[1])
    with contextlib.suppress(OSError, AttributeError):  # elsewhere the end of the input must do
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    for name in _NOT_OURS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda _number, _frame: None)
    with contextlib.suppress(OSError):
        os.nice(5)
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            return 1
        line += part
    try:
        Beside(json.loads(line), 0).run()
    except EventlogError as error:
        say(str(error))
        return error.exit_code
    except Exception as error:
        if os.environ.get("EVENTLOG_DEBUG"):
            raise
        say(f"the sync beside the program ended ({type(error).__name__}: {error})")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
