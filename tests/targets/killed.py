"""A sync that is to be killed: what it does in its fork of a warm process, and how it shows that.

`live` is what `tests.warm` calls. It runs the `eventlog` command as it is, with three additions:

* each call of the loop (see `CALLS`) is noted on a `Board`, which whoever kills it reads;
* at a call that its plan names it kills itself: before it, behind it, or in the middle of a batch;
* the child that runs Trackio or wandb is begun before anything else is done (`tests.targets.spare`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

from tests.targets.spare import prepare

#: What a sync can be at; the first three are no call of the loop.
CALLS = (
    "beginning", "between calls", "ended", "sealing", "lease", "open", "held", "durable", "send",
    "confirm", "ledger", "cursor", "close", "discard", "mark_replaced",
)  # fmt: skip
BEGINNING, BETWEEN, ENDED = range(3)


class Board:
    """A file that two processes share: what a sync is at, and since when.

    Attributes
    ----------
    at:
        The index in `CALLS`.
    calls:
        How many calls of the loop were begun.
    begun, ended:
        When, in nanoseconds of `time.monotonic_ns`; 0 for not yet.
    worker:
        The process id of its child, if it has one.
    """

    _FIELDS = ("at", "calls", "begun", "ended", "worker")

    def __init__(self, path: str) -> None:
        with open(path, "ab") as file:
            file.truncate(mmap.PAGESIZE)
        with open(path, "r+b") as file:
            self.__dict__["_map"] = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def clear(self) -> None:
        """Forget the sync before."""
        for name in self._FIELDS:
            setattr(self, name, 0)

    def __getattr__(self, name: str) -> int:
        return int(struct.unpack_from("<Q", self._map, 8 * self._FIELDS.index(name))[0])

    def __setattr__(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self._map, 8 * self._FIELDS.index(name), value)


def live(arguments: list[str]) -> int:
    """Run ``eventlog ARGUMENT ...`` behind a plan: JSON of what `Life` takes."""
    plan, *rest = arguments
    return Life(**json.loads(plan)).run(rest)


class Life:
    """One sync.

    Parameters
    ----------
    board:
        The file of the `Board`.
    at, when:
        The number of the call, from 1, at which it kills itself (0: never), and ``before``,
        ``half`` (of what is sent) or ``after``.
    group:
        Whether it kills all that it started as well.
    worker:
        A name of `WORKERS`, if its target has such a child.
    """

    def __init__(
        self, board: str, *, at: int = 0, when: str = "", group: bool = False, worker: str = ""
    ) -> None:
        self._board = Board(board)
        self._at, self._when, self._group = at, when, group
        self._worker = worker

    def run(self, arguments: list[str]) -> int:
        if self._worker:
            self._board.worker = prepare(self._worker)
        self._interpose()
        from eventlog.cli.main import run

        self._board.begun = time.monotonic_ns()
        try:
            return run(arguments)
        finally:
            self._board.at, self._board.ended = ENDED, time.monotonic_ns()

    def call(
        self, name: str, action: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Do something that is shown on the board."""
        board = self._board
        board.calls += 1
        dies = self._when if board.calls == self._at else ""
        board.at = CALLS.index(name)
        if dies == "half":
            half()
        if dies in ("before", "half"):
            self._die()
        try:
            done = action()
            if dies == "after":
                self._die()
            return done
        finally:
            board.at = BETWEEN

    def _die(self) -> None:
        if self._group:
            kill_worker(self._board)
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def _interpose(self) -> None:
        from eventlog.delivery import Delivery
        from replayers import sending
        from replayers.conformance import Interposed
        from replayers.durable import Durable
        from replayers.lease import Lease
        from tests.targets.kept import KIND, KeptModel

        life, known = self, sending.target_of

        class Shown(Interposed):
            def call(
                self, name: str, action: Callable[[], Any], half: Callable[[], Any] = lambda: None
            ) -> Any:
                return life.call(name, action, half)

        def target_of(spec: str, *rest: Any) -> Any:
            kind, _colon, address = spec.partition(":")
            return Shown(KeptModel(address) if kind == KIND else known(spec, *rest))

        sending.target_of = target_of
        for place, method, name in (
            (importlib.import_module("eventlog.seal"), "seal", "sealing"),
            (Delivery, "save", "cursor"),
            (Delivery, "record", "ledger"),
            (Delivery, "sync_ledger", "ledger"),
            (Durable, "make", "durable"),
            (Lease, "__enter__", "lease"),
        ):
            setattr(place, method, self._shown(name, getattr(place, method)))

    def _shown(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def shown(*arguments: Any, **more: Any) -> Any:
            return self.call(name, lambda: function(*arguments, **more))

        return shown


def kill_worker(board: Board) -> None:
    """SIGKILL the child of a sync with all that it started, if that is a group of its own."""
    if board.worker:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(board.worker, signal.SIGKILL)
