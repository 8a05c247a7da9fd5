"""One sync per run and target: a lease held by a kernel lock, which dies with its holder."""

from __future__ import annotations

import json
import os
import socket
from types import TracebackType

import filelock

from eventlog.errors import TemporaryError

LOCK_FILE = "lease.lock"
HOLDER_FILE = "lease.json"


class Held(TemporaryError):
    """Somebody else holds the lease (exit code 75)."""


class Lease:
    """Held from ``with`` to its end; the kernel lets go of it when the process dies.

    It protects those who share the state folder on one host. Syncs from hosts that do not share
    it are not protected from each other.

    Raises
    ------
    Held
        If somebody else holds it, naming host and process.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = filelock.FileLock(os.path.join(folder, LOCK_FILE), timeout=0)

    def __enter__(self) -> Lease:
        holder = os.path.join(self._folder, HOLDER_FILE)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise Held(
                f"another sync holds this run and target ({_who(holder)})",
                on=self._folder,
                hint="wait for it to end",
            ) from None
        with open(holder, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


def _who(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unnamed process"
