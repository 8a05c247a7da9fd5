"""A thread that commits soon after something was appended, for as long as its owner is there.

It holds no reference to its owner while it waits, so that a writer that nobody holds any more can
go, and the thread with it.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from eventlog.errors import JournalError


class Owner(Protocol):
    """What is committed."""

    def due(self) -> float | None:
        """Return the seconds to wait before the next commit; None if there is none any more."""

    def commit(self) -> None:
        """Commit; raises `JournalError` if that failed."""

    def waits(self) -> bool:
        """Return whether something waits for another try."""


class Background:
    """The committing thread of one owner; it begins with the first `arm`."""

    def __init__(self, owner: Owner, name: str) -> None:
        self._owner = weakref.ref(owner)
        self._name = name
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurry = threading.Event()
        weakref.finalize(owner, self._wake.set).atexit = False

    def arm(self) -> None:
        """Have the owner committed after a while."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_loop,
                args=(self._owner, self._wake, self._hurry),
                name=self._name,
                daemon=True,
            )
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending: closing will commit
                self._thread = None
                return
        self._wake.set()

    def hurry(self) -> None:
        """Have the owner committed at once."""
        if not self._hurry.is_set():
            self._hurry.set()

    def stop(self) -> None:
        """Have the thread look whether its owner still wants it."""
        self._wake.set()

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, once it was needed."""
        return self._thread


def _loop(reference: weakref.ref[Owner], wake: threading.Event, hurry: threading.Event) -> None:
    while True:
        wake.wait()
        wake.clear()
        seconds = _due(reference)
        if seconds is None:
            return
        hurry.wait(seconds)
        hurry.clear()
        owner = reference()
        if owner is None or owner.due() is None:
            return
        again = False
        try:
            owner.commit()
        except JournalError:
            pass
        except MemoryError:  # there may be some in a while
            again = True
        if again or owner.waits():
            wake.set()
        del owner


def _due(reference: weakref.ref[Owner]) -> float | None:
    owner = reference()
    return None if owner is None else owner.due()
