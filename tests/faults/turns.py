"""Two who use one folder, in turns that chance deals out: one goes a few operations whenever the
other does one. A list of names takes time meanwhile, as it does on any file system: what is made
or removed while a folder is listed may be in the list or not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from eventlog.files import Files


class Turns:
    """Deals out the turns. `changing` runs in a thread, its files are `Changing`."""

    def __init__(self, rng: random.Random, changing: Callable[[Files], None]) -> None:
        self._rng = rng
        self._permits = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.over = False
        self._thread = threading.Thread(target=self._run, args=(changing,), daemon=True)

    def __enter__(self) -> Turns:
        self._thread.start()
        self._waits.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        while not self.over:
            self.pass_on(1)
        self._thread.join()

    def _run(self, changing: Callable[[Files], None]) -> None:
        try:
            changing(Changing(self))
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self._waits.release()

    def wait(self) -> None:
        """Wait for one's turn: called by the one that changes the folder."""
        self._waits.release()
        self._permits.acquire()

    def pass_on(self, most: int) -> None:
        """Let the other do up to so many operations."""
        for _ in range(self._rng.choice([0, 0, 1, 1, most]) if most > 1 else most):
            if self.over:
                return
            self._permits.release()
            self._waits.acquire()

    def seen(self, before: list[str], after: list[str]) -> list[str]:
        """Return what a list of names may show that was taken between two moments."""
        sure = set(before) & set(after)
        doubtful = sorted(set(before) ^ set(after))
        return sorted(sure | {name for name in doubtful if self._rng.random() < 0.5})


class Changing(Files):
    """Waits before each operation that changes something."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def create(self, path: str) -> int:
        self._turns.wait()
        return super().create(path)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._turns.wait()
        return super().write(fd, data)

    def replace(self, source: str, target: str) -> None:
        self._turns.wait()
        super().replace(source, target)

    def remove(self, path: str) -> None:
        self._turns.wait()
        super().remove(path)

    def remove_folder(self, path: str) -> None:
        self._turns.wait()
        super().remove_folder(path)

    def make_folder(self, path: str) -> None:
        self._turns.wait()
        super().make_folder(path)

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, folder: str) -> None:
        pass


class Reading(Files):
    """Lets the other go on in the middle of each operation."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def names(self, folder: str) -> list[str]:
        before = super().names(folder)
        self._turns.pass_on(6)
        return self._turns.seen(before, super().names(folder))

    def size(self, path: str) -> int:
        self._turns.pass_on(3)
        return super().size(path)

    def open(self, path: str) -> BinaryIO:
        self._turns.pass_on(3)
        return super().open(path)


def history(turns_of: random.Random, changing: Any, reading: Callable[[Files], None]) -> None:
    """Run both; raise what either raised."""
    with Turns(turns_of, changing) as turns:
        reading(Reading(turns))
    if turns.error is not None:
        raise turns.error
