"""The writing side of a run: one writer, and what it does on bad days.

A writer belongs to one process and appends events to segments of its own (`eventlog.chain`). Its
promises:

* when `Writer.append` returns a seq, the event is in the operating system's hands (but for the
  level ``memory``), and a SIGKILL loses nothing;
* it never raises for a full or failing disk: the event, or the blob it names, waits in a bounded
  memory, `health` says ``degraded``, and what finds no room there is counted and recorded as an
  event of kind ``gap``;
* a failed sync is final for its segment (`eventlog.commit`);
* a forked child gets a writer of its own, and never touches its parent's file.

It must never: read a segment, know of other writers, open a connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import threading
import time as clock
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from eventlog.background import Background
from eventlog.backlog import Backlog, Pending
from eventlog.blobs import NoRoom
from eventlog.blobstore import BlobStore
from eventlog.chain import Chain
from eventlog.commit import Commit
from eventlog.errors import JournalError, ValueRefused
from eventlog.event import Event, Row
from eventlog.files import LOCAL, Files
from eventlog.frame import prove
from eventlog.identity import process, random_writer
from eventlog.intake import take
from eventlog.options import GROUP_BYTES, LEVELS, Options
from eventlog.segment import Header
from eventlog.shape import Fitted, Shape
from eventlog.shapes import Shapes

__all__ = ["LEVELS", "Health", "Options", "Writer"]

#: No more than this many bytes of what waits are written while one call of `append` waits.
DRAIN_BYTES = 256 * 2**10
#: See `Writer.close`.
Last = Callable[[int, bool], list[Row]]
_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class Health:
    """How a writer is: ``ok`` or ``degraded``, and what waits or is lost.

    `waiting` events are in memory only; `dropped` ones are lost (and recorded as such once there
    is room again); `error` is the last error of the file system; `waiting_blobs` are tables and
    large values that are in memory only, and named by events.
    """

    state: str
    appended: int
    durable: int
    waiting: int
    dropped: int
    error: str | None
    waiting_blobs: int = 0


class Writer:
    """One process's events of one run.

    Parameters
    ----------
    folder:
        The run's folder; it exists.
    run:
        The run's id.
    identity:
        What the header of each segment says of the run, the attempt and the launch; the process
        is added here, because a fork changes it.
    warn:
        Called with a sentence, at most once a kind of trouble; never under a lock of this writer,
        because what it calls (handlers of `logging`, with locks of their own) may log here.
    """

    def __init__(
        self,
        folder: str,
        run: str,
        identity: Mapping[str, Any],
        *,
        options: Options | None = None,
        files: Files = LOCAL,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder
        self.run = run
        self.options = options or Options()
        self._identity = dict(identity)
        self._files = files
        self._tell = warn
        self._commits = self.options.commits
        self._syncs = self.options.durability == "sync"
        self._shapes = Shapes()
        self._reset(random_writer(), None)
        Header(run, self.name, 0, 0, self._identity).to_bytes()  # too long a name is found here
        _writers.add(self)

    def _reset(self, name: str, parent: str | None) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._inside = False
        self._deferred: deque[Pending] = deque()
        self._backlog = Backlog(self.options.memory_bytes)
        self._closed = False
        # What is to be done once the lock is let go of: sentences to tell, None to close.
        self._later: deque[str | None] = deque()
        self._warn: Callable[[str], None] = self._later.append
        self._last: tuple[Last, int] | None = None
        self._armed = not self._commits  # whether a commit is to come, or none is wanted
        self._hurry_at: float = GROUP_BYTES  # that many bytes of the tail hurry it
        self._identity = {**self._identity, **process(), "parent_writer": parent}
        self._chain = Chain(
            self.folder, self.run, name, self._identity, self.options, self._files, self._warn
        )
        self._commit = Commit(self._chain, self._lock, self._files, self._warn)
        self._blobs = BlobStore(self._backlog, self._chain, self._commit, self._files)
        self._background = Background(self, f"eventlog-commit-{name}")

    # ---------------------------------------------------------------- state

    @property
    def seq(self) -> int:
        """How many events were appended: the seq of the next one."""
        return self._chain.seq

    @property
    def durable(self) -> int:
        """How many of them are known to survive a power cut."""
        return self._chain.durable

    @property
    def lossy(self) -> bool:
        """Whether something is lost, which `close` says."""
        return bool(self._backlog.losses())

    def health(self) -> Health:
        """Return how this writer is."""
        with self._lock:
            chain = self._chain
            error = chain.error or self._commit.error
            return Health(
                "degraded" if error is not None or self._backlog else "ok",
                chain.seq,
                chain.durable,
                len(self._backlog) + len(self._deferred) + len(chain.rewrite),
                self._backlog.lost,
                None if error is None else str(error),
                len(self._backlog.blobs),
            )

    # ---------------------------------------------------------------- append

    def append(
        self, kind: str, data: Mapping[Any, Any], step: int | None, time: int | None = None
    ) -> int | None:
        """Append one event; return its seq, or None if it waits in memory or was dropped.

        `data` is a mapping of keys to values that `eventlog.value` can keep, or `Stored` ones;
        nested mappings are flattened with ``/``.

        Raises
        ------
        ValueRefused
            If something of it cannot be kept (the rest of the event was appended), or the whole
            is larger than one frame may be.
        JournalError
            If the writer is closed.
        """
        now = clock.time_ns() if time is None else time
        shape, fitted, signature, values = self._shapes.find(kind, data, step)
        if shape is not None and fitted is not None:
            done = self._append_fitted(shape, fitted, step, now)
            if done is not None:
                return self._synced(done) if self._syncs else done
        taken = take(kind, data, functools.partial(self.put_blob, time=now, step=step))
        if taken.twice:
            self._warn(f"keys given twice in one call keep their last value: {taken.twice[:3]}")
            self._do_later()
        seq = None
        if taken.rows:
            seq = self.append_rows(taken.rows, step, now)
            self._shapes.learn(signature, values, taken.rows, step)
        if taken.refused:
            raise ValueRefused("these values cannot be kept: " + "; ".join(taken.refused[:5]))
        return seq

    def _synced(self, seq: int | None) -> int | None:
        # Not under the lock: a commit takes the lock for syncs before it takes that one.
        if clock.monotonic() >= self._commit.after:
            with contextlib.suppress(JournalError):
                self._run_commit(eager=False)
        return seq

    def _append_fitted(
        self, shape: Shape, fitted: Fitted, step: int | None, time: int
    ) -> int | None:
        """Append an event of a known shape and return its seq. None on a bad day, or in the middle
        of another append: it must go the general way, which knows what to do. Nearly every event
        goes this way, so it makes few calls.
        """
        try:
            with self._lock:
                if self._inside:
                    return None
                self._inside = True
                try:
                    chain, backlog = self._chain, self._backlog
                    if self._closed or chain.writing or backlog.bytes or backlog.dropped.events:
                        return None
                    seq = chain.seq
                    segment = chain.open()
                    chain.put(segment, shape.frame(segment.encoder, seq, time, step, fitted))
                    if (
                        not self._armed
                        or chain.tail_bytes > self._hurry_at
                        or chain.error is not None
                    ):
                        self._has_put()
                    return seq
                except OSError as error:
                    self._chain.failed(error)
                    return None
                finally:
                    self._inside = False
                    if self._deferred:
                        self._take_deferred()
        finally:
            if self._later:
                self._do_later()

    def put_blob(self, data: bytes, *, time: int | None = None, step: int | None = None) -> str:
        """Keep bytes beside the segments and return their SHA-256; log an event that names them
        next. They are durable before that event is; on a full disk they wait in memory.

        Raises
        ------
        NoRoom
            If there is no room in memory either. It is recorded that a value of this time and
            step was dropped.
        """
        now = clock.time_ns() if time is None else time
        try:
            digest = self._blobs.put(data, now, step, self._alone)
            if self._commits and self._backlog.blobs and not self._armed:
                self._arm()
            return digest
        finally:
            if self._later:
                self._do_later()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the lock, and what handlers of signals log wait."""
        with self._lock:
            if self._inside:  # in such a handler
                raise NoRoom("in the middle of a log() of the same thread")
            with self._busy():
                yield

    def _place_blobs(self, *, eager: bool) -> None:
        with contextlib.suppress(NoRoom):  # a handler of a signal: whoever comes next
            self._blobs.again(self._alone, eager=eager)

    def append_rows(self, rows: list[Row], step: int | None, time: int | None = None) -> int | None:
        """Append one event of rows in stored form; as `append` otherwise."""
        if not rows:
            raise ValueRefused("an event without a key cannot be kept")
        event = Pending(clock.time_ns() if time is None else time, step, tuple(rows))
        try:
            with self._lock:
                if self._inside:  # a signal's handler, or a destructor, in the middle of a log()
                    self._deferred.append(event)
                    return None
                self._inside = True
                try:
                    self._must_be_open()
                    seq = self._append_event(event)
                finally:
                    self._inside = False
                    if self._deferred:
                        self._take_deferred()
        finally:
            if self._later:
                self._do_later()
        if self._backlog.blobs and self.options.durability == "os":  # no commit does it
            self._place_blobs(eager=False)
        return self._synced(seq) if self._syncs else seq

    def _must_be_open(self) -> None:
        if self._closed:  # by a handler that came a moment ago, perhaps
            raise JournalError("this run is finished: nothing more can be logged to it")

    def _append_event(self, event: Pending) -> int | None:
        self._chain.settle()
        if self._backlog and not self._drain() and self._backlog.queued:
            self._backlog.add(event)
            return None
        try:
            return self.write(event)
        except OSError as error:
            self._chain.failed(error)
            self._backlog.add(event)
            return None

    def written(self) -> int:
        """Return how many events were appended, that of an append that was interrupted too."""
        self._chain.settle()
        return self._chain.seq

    def write(self, event: Pending) -> int | None:
        """Append or raise OSError; ValueRefused for what no segment could take. For `Backlog`."""
        chain = self._chain
        segment = chain.open()
        numbered = Event(chain.seq, event.time, event.step, event.rows)
        frame = segment.encoder.event(numbered)
        if not chain.seq:  # once a writer: later shapes are proven against this way of making them
            prove(frame, numbered)
        chain.put(segment, frame)
        self._has_put()
        return chain.seq - 1

    def _has_put(self) -> None:
        """Look after what a frame in the segment may change."""
        chain = self._chain
        if chain.error is not None and not self._backlog and self.options.durability != "memory":
            chain.error = None
        if self._commits:
            if not self._armed:
                self._arm()
            if chain.tail_bytes > self._hurry_at and clock.monotonic() >= self._commit.after:
                self._hurry_at = math.inf
                self._background.hurry()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """Have what handlers of signals log meanwhile wait; append it at the end."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self._take_deferred()

    def _take_deferred(self) -> None:
        while self._deferred:
            self._inside = True
            try:
                if self._deferred:  # a handler may have come between, and taken them itself
                    self._append_event(self._deferred.popleft())
            except ValueRefused as error:
                self._warn(str(error))
            finally:
                self._inside = False

    # ---------------------------------------------------------------- trouble

    def _drain(self) -> bool:
        """Write what waits, but no more than one call may take; return whether all is written."""
        if not self._chain.may_try():
            return False
        try:
            if not self._backlog.drain(self, DRAIN_BYTES):
                return False
        except OSError as error:
            self._chain.failed(error)
            return False
        if not self._backlog.blobs:
            self._chain.error = None
        return True

    # ---------------------------------------------------------------- durability

    def _arm(self) -> None:
        self._armed = True
        self._background.arm()

    def due(self) -> float | None:
        """Return how long the background commit should wait; None if the writer is closed."""
        if self._closed:
            return None
        return max(self.options.group_seconds, self._commit.after - clock.monotonic())

    def waits(self) -> bool:
        """Return whether something waits for the disk."""
        return bool(self._backlog or self._chain.rewrite)

    def commit(self, *, names: bool = False) -> None:
        """Make everything that was appended survive a power cut; with `names` also the names of
        all files that are in the run's folder by now, other writers' too.

        Raises
        ------
        JournalError
            If the system reports that it could not. What was not durable is appended again to a
            new segment, so that a later call may succeed. Also in the handler of a signal that
            came in the middle of an append of the same thread.
        """
        # The background asks all the time: what fails then is tried seldomer.
        asked = threading.current_thread() is not self._background.thread
        self._run_commit(names=names, eager=asked)

    def _run_commit(self, *, names: bool = False, eager: bool) -> None:
        self._chain.try_now()
        # A handler may hold the lock that the committing thread waits for: never wait for it then.
        mine = self._lock._is_owned()  # type: ignore[attr-defined]
        running = self._commit.running
        if (mine and self._inside) or not running.acquire(blocking=not mine):
            raise JournalError(
                "a sync was asked for in the middle of a log() of the same thread",
                on=self.folder,
                hint="in a signal's handler call finish(), or set a flag and flush later",
            )
        try:
            self._place_blobs(eager=eager)
            self._commit_all(names=names)
        finally:
            running.release()
            self._do_later()

    def _commit_all(self, *, names: bool) -> None:
        while self._drained_some():  # the lock is let go of in between
            pass
        self._hurry_at = math.inf  # what is being synced hurries nobody
        try:
            self._commit.sync(self._flush, self._backlog.bound, names=names)
        except JournalError:
            if self._commits and not self._closed:
                self._arm()
            raise
        finally:
            self._hurry_at = GROUP_BYTES
        with self._lock:
            chain = self._chain
            waiting = len(self._backlog) + len(chain.rewrite)
            if waiting or self._backlog:
                large = len(self._backlog.blobs)
                beside = f" and {large} tables or large values" if large else ""
                raise JournalError(
                    f"{waiting} events{beside} wait in memory: the journal cannot be written "
                    f"({chain.error})",
                    on=self.folder,
                )
            chain.error = None

    def _drained_some(self) -> bool:
        """Write some of what waits; return whether there is more of it that can be written."""
        with self._lock:
            if not self._backlog.bytes > DRAIN_BYTES:
                return False
            before = self._backlog.bytes
            self._flush()
            return self._backlog.bytes < before

    def _flush(self) -> None:
        """Bring buffered and waiting events to the segment, as far as it can take them."""
        self._armed = not self._commits
        self._chain.settle()
        with self._busy():
            try:
                self._chain.flush()
                if self._backlog and self._drain():
                    self._chain.flush()
            except OSError as error:
                self._chain.failed(error)

    def close(self, last: Last | None = None, time: int | None = None) -> None:
        """End the segment, make it durable, let go of it. Idempotent; never raises OSError.

        In a signal's handler that came in the middle of an append of the same thread, that append
        does it when it ends.

        Parameters
        ----------
        last:
            Given its seq, and whether all before it and the names of all files in the folder are
            durable now, returns the rows of a last event. They are made durable first.
        time:
            When that event happened, by default now.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if last is not None:
                self._last = last, clock.time_ns() if time is None else time
            if self._inside:
                self._later.append(None)
                return
        self._close()
        self._do_later()

    def _do_later(self) -> None:
        """Do what could not be done under the lock, unless this thread still holds it."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return
        while self._later:
            try:
                text = self._later.popleft()
            except IndexError:  # another thread, or a handler, was quicker
                return
            if text is None:
                self._close()
            else:
                self._tell(text)

    def _close(self) -> None:
        self._background.stop()
        self._give_up_blobs()
        if self._last is not None:
            named = False
            with contextlib.suppress(JournalError):  # the commit below says it
                self.commit(names=True)
                named = True
            with self._lock:
                self._append_last(*self._last, named)
        trouble: JournalError | None = None
        try:
            self.commit()
        except JournalError as error:
            trouble = error
        self._tell_losses(trouble)
        durable = trouble is None
        with self._commit.running, self._lock:
            self._chain.end(durable=durable)

    def _give_up_blobs(self) -> None:
        """Try the disk once more; what finds no room by now never will."""
        self._place_blobs(eager=True)
        if self._backlog.blobs:
            with contextlib.suppress(NoRoom):
                self._blobs.give_up(self._alone)

    def _tell_losses(self, trouble: JournalError | None) -> None:
        """Say what is lost for good, in one sentence, now that nothing waits any more."""
        lost = self._backlog.losses()
        if lost:
            known = "is recorded" if not self._backlog else f"could not be recorded ({self._why()})"
            self._warn(
                f"{lost} were lost, because the journal could not be written; that {known}: "
                f"{self.folder}"
            )
        elif trouble is not None:
            self._warn(str(trouble))

    def _why(self) -> str:
        return str(self._chain.error or self._commit.error or "no room")

    def _append_last(self, last: Last, time: int, named: bool) -> None:
        with self._busy():
            waiting = len(self._backlog) + int(bool(self._backlog.dropped))
            rows = last(self._chain.seq + waiting, named)
            try:
                self._append_event(Pending(time, None, tuple(rows)))
            except ValueRefused as error:
                self._warn(str(error))

    # ---------------------------------------------------------------- fork

    def _after_fork(self) -> None:
        """In the child: forget the parent's file and start as a writer of one's own."""
        parent = self.name
        closed = self._closed
        self._chain.abandon()
        self._reset(random_writer(), parent)
        self._closed = closed


def _fork_children() -> None:
    for writer in list(_writers):
        writer._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork_children)
