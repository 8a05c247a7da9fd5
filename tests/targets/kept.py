"""The model target, kept by another process than the sync's: it outlives every SIGKILL of that one.

`Keeper` serves a `replayers.to_memory.MemoryTarget` of its own process through a socket. What a
sync was killed in the middle of sending never arrives; what it was killed behind is there, and the
answer is lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection as connection
import threading
from collections.abc import Iterator
from typing import Any

from eventlog.errors import EventlogError
from replayers.target import RunInfo
from replayers.to_memory import MemoryTarget

KIND = "model"


class Keeper:
    """Serves the model at an address, a path, from ``with`` to its end."""

    def __init__(self, address: str) -> None:
        self.model = MemoryTarget()
        self._lock = threading.Lock()  # a killed sync's last words may come beside the next one's
        self._listener = connection.Listener(address, "AF_UNIX", backlog=64)

    def __enter__(self) -> Keeper:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: connection.Connection) -> None:
        with contextlib.suppress(EOFError, OSError), client:
            session: Any = None
            while True:
                name, arguments = client.recv()
                try:
                    with self._lock:
                        if name == "open":
                            session = self.model.open(*arguments)
                            answer = session.known_as
                        elif name == "discard":
                            session.discard()
                            answer = None
                        elif name == "read_back":
                            answer = list(session.read_back())
                        else:
                            answer = getattr(session, name)(*arguments)
                    client.send((answer, None))
                except EventlogError as error:
                    client.send((None, (type(error), error.what)))


class KeptModel:
    """The target of a sync: a `MemoryTarget` that a `Keeper` keeps."""

    kind = KIND
    rules, folds, batch_rows = MemoryTarget.rules, MemoryTarget.folds, MemoryTarget.batch_rows
    superseded = MemoryTarget.superseded

    def __init__(self, address: str) -> None:
        self.address = address
        self.image = MemoryTarget().image

    def open(self, run: RunInfo) -> _Session:
        return _Session(self.address, run)

    def close(self) -> None:
        """Nothing to let go of: each session has a connection of its own."""


class _Session:
    def __init__(self, address: str, run: RunInfo) -> None:
        self._client = connection.Client(address, "AF_UNIX")
        self.known_as: str = self._ask("open", run)

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._client.send((name, arguments))
        answer, error = self._client.recv()
        if error is not None:
            kind, what = error
            raise kind(what, on=KIND)
        return answer

    def held(self) -> Any:
        return self._ask("held")

    def send(self, batch: Any) -> Any:
        return self._ask("send", batch)

    def confirm(self, batch: Any) -> Any:
        return self._ask("confirm", batch)

    def read_back(self) -> Iterator[Any]:
        yield from self._ask("read_back")

    def discard(self) -> None:
        self._ask("discard")

    def mark_replaced(self, by: str) -> None:
        self._ask("mark_replaced", by)

    def close(self, state: Any) -> Any:
        return self._ask("close", state)
