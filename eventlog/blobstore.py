"""The blobs of one writer: put beside its segments, or waiting in memory until there is room.

A blob's name is known before it is written, so the event that names it need not wait; but it is
not called durable before its blob is, or before it is recorded that the blob was dropped
(`Backlog.bound`). A disk without room is tried again with the commits, seldomer each time, because
each try fills what is left of it for a moment.

Whoever calls gives `within`: what a context has to hold that changes the backlog.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from contextlib import AbstractContextManager

from eventlog import blobs
from eventlog.backlog import Backlog, Blob
from eventlog.chain import Chain
from eventlog.commit import Commit
from eventlog.files import Files

Within = Callable[[], AbstractContextManager[None]]

#: The longest pause between two tries that nobody asked for, in seconds.
_PAUSE = 16.0


class BlobStore:
    """Where a writer's blobs go."""

    def __init__(self, backlog: Backlog, chain: Chain, commit: Commit, files: Files) -> None:
        self._backlog = backlog
        self._chain = chain
        self._commit = commit
        self._files = files
        self._failures = 0
        self._after = 0.0

    def put(self, data: bytes, time: int, step: int | None, within: Within) -> str:
        """Write bytes, or keep them until they can be written; return their SHA-256.

        Raises
        ------
        NoRoom
            If there is no memory left for what waits either: that is counted.
        """
        failed: OSError | None = None
        if not self._backlog.blobs or clock.monotonic() >= self._after:
            try:
                digest, path = blobs.put(self._chain.folder, data, self._files)
            except OSError as error:
                failed = error
            else:
                self._commit.add_blob(path)
                return digest
        digest = blobs.name_of(data)
        try:
            with within():
                if failed is not None:
                    self._failed(failed)
                blob = Blob(data, self._chain.seq, time, step)
                kept = self._backlog.keep(digest, blob, self._reason())
        except blobs.NoRoom as error:  # in the handler of a signal
            self._backlog.drop_value(time, step, str(error))
            raise
        if not kept:
            raise blobs.NoRoom(self._reason())
        return digest

    def again(self, within: Within, *, eager: bool) -> None:
        """Write what waits, as far as there is room; if not `eager`, only when it is time to."""
        if not self._backlog.blobs or (not eager and clock.monotonic() < self._after):
            return
        failed: int | None = None
        for digest, blob in list(self._backlog.blobs.items()):
            if failed is not None and len(blob.data) >= failed:  # a smaller one may find room
                continue
            try:
                _, path = blobs.put(self._chain.folder, blob.data, self._files)
            except OSError as error:
                failed = len(blob.data)
                with within():
                    self._failed(error)
                continue
            with within():
                self._commit.add_blob(path)
                self._backlog.forget(digest)
        if failed is None:
            self._failures = 0

    def give_up(self, within: Within) -> None:
        """Drop what still waits, and have it recorded."""
        with within():
            self._backlog.drop_blobs(self._reason())

    def _failed(self, error: OSError) -> None:
        self._failures += 1
        self._after = clock.monotonic() + min(2.0 ** (self._failures - 1), _PAUSE)
        self._chain.failed(error)

    def _reason(self) -> str:
        error = self._chain.error
        return "no room" if error is None else error.strerror or str(error)
