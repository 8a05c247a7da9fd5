"""The group commit: what was appended is made to survive a power cut, all of it at once.

A commit syncs blobs, then full segments, then the one that is appended to, and moves the durable
mark. While the disk works, nobody who appends waits for it: the lock of the chain is let go of.

A failed sync is final for its segment (the kernel may have dropped pages and will say so only
once): what was not known durable is written again to a new one, under the same seqs.
"""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Callable, Iterable

from eventlog import blobs
from eventlog.chain import RETRY_SECONDS, Chain
from eventlog.errors import JournalError
from eventlog.files import Files
from eventlog.segment import SegmentWriter


class Commit:
    """Makes durable what a chain holds.

    Attributes
    ----------
    running:
        Held while a commit runs.
    error:
        Why the last sync failed; None if it did not.
    after:
        When (`time.monotonic`) the next one should be tried that nobody asked for.
    """

    def __init__(
        self, chain: Chain, lock: threading.RLock, files: Files, warn: Callable[[str], None]
    ) -> None:
        self.running = threading.RLock()
        self.error: OSError | None = None
        self.after = 0.0
        self._chain = chain
        self._lock = lock
        self._files = files
        self._warn = warn
        self._failures = 0
        self._incomplete = False  # not every frame that is not durable is in memory any more
        self._fresh: dict[str, object] = {}
        self._suspect: dict[str, object] = {}

    def add_blob(self, path: str) -> None:
        """Have a blob synced before the next event is called durable."""
        with self._lock:
            self._fresh[path] = object()

    def sync(
        self, prepare: Callable[[], None], bound: Callable[[int], int], *, names: bool = False
    ) -> None:
        """Sync everything that is in the chain when `prepare` has been called, with `names` every
        name in the folder too. Events are called durable up to `bound` of what was synced.

        Raises
        ------
        JournalError
            If the system reports that it could not.
        """
        chain = self._chain
        with self._lock:
            prepare()
            segment, synced = chain.segment, chain.written
            durable = bound(synced)
            # They stay where they are until they are synced: Ctrl-C may come at any line.
            retired = list(chain.retired)
            fresh, suspect = dict(self._fresh), dict(self._suspect)
        try:
            blobs.put_again(suspect, self._files)
            blobs.sync(fresh, self._files)
        except BaseException as error:
            with self._lock:
                self._suspect.update(fresh)
                _take(self._fresh, fresh)
                if not isinstance(error, OSError):
                    raise
                self._failed(error)
            raise self._not_durable(error) from error
        with self._lock:
            _take(self._fresh, fresh)
            _take(self._suspect, suspect)
        try:
            for old in retired:
                old.sync()
                old.close()
            if segment is not None:
                segment.sync()
            if names:
                self._files.sync_folder(chain.folder)
        except OSError as error:
            with self._lock:
                self._poison([*retired, segment], error)
            raise self._not_durable(error) from error
        with self._lock:
            chain.retired = [old for old in chain.retired if old not in retired]
            if self._incomplete:
                raise self._not_durable(self.error or OSError(5, "too much for memory"))
            self._failures, self.after, self.error = 0, 0.0, None
            chain.advance(synced, durable)

    def _not_durable(self, error: OSError) -> JournalError:
        what = f"events from seq {self._chain.durable} on are not durable: a sync failed ({error})"
        return JournalError(what, on=self._chain.folder)

    def _failed(self, error: OSError) -> None:
        """Wait longer before each next try, so that a disk that is dying is not filled."""
        self._failures += 1
        delay = min(RETRY_SECONDS * 2 ** min(self._failures - 1, 6), 60.0)
        self.error, self.after = error, clock.monotonic() + delay

    def _poison(self, segments: Iterable[SegmentWriter | None], error: OSError) -> None:
        chain = self._chain
        poisoned, held = chain.poison(*segments)
        if not held:
            self._incomplete = True
        again = self._failures > 0
        self._failed(error)
        self._warn(f"a sync of the journal failed ({error}); its tail is written again")
        try:
            chain.segment = chain.begin()
        except OSError as second:
            chain.failed(second)
            return
        for old in poisoned if again and not self._incomplete else ():
            if old.first_seq >= chain.synced:  # only a copy of the tail, now written again
                old.discard()


def _take(waiting: dict[str, object], done: dict[str, object]) -> None:
    """Take out what is done, but not what was added under the same path meanwhile."""
    for path, mark in done.items():
        if waiting.get(path) is mark:
            del waiting[path]
