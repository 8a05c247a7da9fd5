"""A thread that commits soon after something was appended, for as long as its owner is there.

It holds no reference to its owner while it waits, so that a writer that nobody holds any more can
go, and the thread with it.
"""

from __future__ import annotations

import contextlib
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


class Bell:
    """Rung once, it lets one wait go; rung again before that, it stays one.

    `threading.Event` would do, but for a lock of its own that stays taken for ever if memory ends
    in the middle of its methods: whoever logs next would wait for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    @property
    def rung(self) -> bool:
        """Whether a wait would be let go at once."""
        return not self._lock.locked()

    def ring(self) -> None:
        """Let one wait go."""
        if self._lock.locked():
            with contextlib.suppress(RuntimeError):  # another thread was quicker
                self._lock.release()

    def wait(self, seconds: float = -1) -> bool:
        """Wait until it is rung, for ever without `seconds`; return whether it was."""
        return self._lock.acquire(timeout=seconds)


class Background:
    """The committing thread of one owner; it begins with the first `arm`."""

    def __init__(self, owner: Owner, name: str) -> None:
        self._owner = weakref.ref(owner)
        self._name = name
        self._thread: threading.Thread | None = None
        self._wake = Bell()
        self._hurry = Bell()
        weakref.finalize(owner, self._wake.ring).atexit = False

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
        self._wake.ring()

    def hurry(self) -> None:
        """Have the owner committed at once."""
        if not self._hurry.rung:
            self._hurry.ring()

    def stop(self) -> None:
        """Have the thread look whether its owner still wants it."""
        self._wake.ring()

    @property
    def thread(self) -> threading.Thread | None:
        """The thread, once it was needed."""
        return self._thread


def _loop(reference: weakref.ref[Owner], wake: Bell, hurry: Bell) -> None:
    wanted = True
    while wanted:
        try:
            wanted = _turn(reference, wake, hurry)
        except MemoryError:  # there may be some in a while
            wake.ring()


def _turn(reference: weakref.ref[Owner], wake: Bell, hurry: Bell) -> bool:
    """Wait until there is something, and a while longer, and commit it; return whether there may
    be more.
    """
    wake.wait()
    seconds = _due(reference)
    if seconds is None:
        return False
    hurry.wait(seconds)
    owner = reference()
    if owner is None or owner.due() is None:
        return False
    with contextlib.suppress(JournalError):
        owner.commit()
    if owner.waits():
        wake.ring()
    return True


def _due(reference: weakref.ref[Owner]) -> float | None:
    owner = reference()
    return None if owner is None else owner.due()
