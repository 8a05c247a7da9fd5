"""One sync per run and target: who may write, and how the others find out that he is gone.

Files in the folder of a run's state::

    lease.lock         locked by the kernel while a sync holds the lease
    lease-<n>.held     who holds it, the n-th holder in turn: JSON with a beat that grows; empty
                       once he has let go

A holder has both: the kernel's lock where the file system has locks (it dies with its holder), and
the file of the highest number, whose beat he renews each period. A file is made with ``O_EXCL``,
so that of two who want to follow a holder one gets the number; the highest is never deleted, so
that numbers only grow. Whoever finds a file

* that is empty, or whose holder is provably dead (same machine, same boot: the kernel gave us his
  lock, or there is no such process), makes the next one at once;
* of a holder elsewhere, watches it: once the beat was *seen* unchanged for three of the holder's
  periods, by the watcher's own monotonic clock, he is taken for dead. Clocks of different hosts
  are never compared, and a watcher that could not look for a while does not count that while.

A holder that was only paused finds a higher number when he checks, which he does before each
batch and each mark, and stops. What he was sending in that very moment still arrives: the
identity of what is sent makes that harmless, as far as the target has one.

A lease keeps apart those who share the state folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from eventlog.errors import TemporaryError
from eventlog.identity import process, provably_gone

LOCK_FILE = "lease.lock"
#: Seconds between two beats of a holder.
PERIOD = 5.0
#: After how many of its periods without a beat a holder is taken for dead.
PATIENCE = 3
#: No holder is waited for longer than for one with this period, whatever its file says.
_LONGEST = 60.0
_HELD_RE = re.compile(r"lease-(0|[1-9][0-9]{0,17})\.held")
#: What file systems without locks answer (NFS without its lock service, Lustre, some FUSE).
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


class Held(TemporaryError):
    """Somebody else holds the lease (exit code 75).

    ``again`` tells, where he may be dead, after how many seconds it can be known; else None.
    """

    def __init__(self, what: str, *, on: object, hint: str, again: float | None = None) -> None:
        super().__init__(what, on=on, hint=hint)
        self.again = again


class Lost(TemporaryError):
    """Somebody else took the lease over while this process was paused (exit code 75)."""


def kernel_lock(fd: int) -> bool:
    """Lock a file for this descriptor; return False if there are no locks here.

    Raises
    ------
    BlockingIOError
        If somebody else has it.
    """
    try:
        import fcntl
    except ImportError:  # no such system
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


class Sightings:
    """What one process saw of the leases of others, and for how long without a change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[bytes, float, float]] = {}
        self._lock = threading.Lock()

    def unchanged(self, path: str, content: bytes, period: float) -> tuple[float, bool]:
        """Return for how many seconds `content` was seen to stand, and whether it changed since
        it was seen first. A gap between two looks counts as one period at most.
        """
        with self._lock:
            now = self._clock()
            before, last, stood = self._seen.get(path, (content, now, 0.0))
            stood = stood + min(now - last, period) if before == content else 0.0
            self._seen[path] = (content, now, stood)
            return stood, before != content

    def forget(self, path: str) -> None:
        """Forget a file."""
        with self._lock:
            self._seen.pop(path, None)


_SIGHTINGS = Sightings()


class Lease:
    """Held from ``with`` to its end.

    Parameters
    ----------
    folder:
        The state folder of one run and target.
    wait:
        Whether to watch a holder elsewhere that may be dead, for up to three of its periods;
        otherwise `Held` says when to try again.
    period, lock, sightings, pause:
        For tests: seconds between beats, the kernel's lock, what was seen, how to wait.

    Attributes
    ----------
    locked:
        Whether the kernel keeps it too. Without, only the beat does.

    Raises
    ------
    Held
        If somebody else holds it, naming host and process.
    """

    def __init__(
        self,
        folder: str,
        *,
        wait: bool = True,
        period: float = PERIOD,
        lock: Callable[[int], bool] = kernel_lock,
        sightings: Sightings = _SIGHTINGS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.locked = False
        self._folder = folder
        self._wait = wait
        self._period = period
        self._kernel_lock = lock
        self._sightings = sightings
        self._pause = pause
        self._fd = -1
        self._number = -1
        self._beats = 0
        self._beaten = 0.0
        #: When the heart shall beat for it again.
        self.due = 0.0
        self._lost = False
        self._mutex = threading.Lock()

    def __enter__(self) -> Lease:
        self._fd = os.open(os.path.join(self._folder, LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                self.locked = self._kernel_lock(self._fd)
            except BlockingIOError:
                raise self._held(_read(self._latest()[1])) from None
            self._follow()
        except BaseException:
            self._unlock()
            raise
        _HEART.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _HEART.remove(self)
        with self._mutex, contextlib.suppress(OSError):
            if not self._lost:  # an empty file: the next one need not wait
                os.close(os.open(self._path(self._number), os.O_WRONLY | os.O_TRUNC))
            self._lost = True
        self._unlock()

    def check(self) -> None:
        """Make sure that the lease is still ours; called before each batch and each mark.

        Raises
        ------
        Lost
            If somebody else took it over, or the state folder is gone.
        """
        if time.monotonic() - self._beaten > 2 * self._period:
            self.beat()
        latest, path = self._latest()
        if self._lost or latest > self._number or not os.path.exists(self._path(self._number)):
            self._lost = True
            latest, path = self._latest()  # he may have come between the two looks
            by = _who(_read(path)) if latest > self._number else "nobody: its file is gone"
            raise Lost(
                f"the lease on this run and target was lost to {by}",
                on=self._folder,
                hint="this process was paused for long; what it had confirmed is kept",
            )

    def beat(self) -> None:
        """Show that the holder lives; called by a thread each period."""
        with self._mutex:
            begun = time.monotonic()
            self.due = begun + self._period
            if self._lost:
                return
            self._beats += 1
            try:
                # Not created: once somebody followed us, the file is gone.
                fd = os.open(self._path(self._number), os.O_WRONLY)
                try:
                    os.pwrite(fd, self._record(), 0)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                self._lost = True
            except OSError:  # a server that is away for a moment: the next beat may arrive
                return
            self._beaten = begun

    # ---------------------------------------------------------------- following a holder

    def _follow(self) -> None:
        """Make the file of the next number, when its turn has come."""
        while True:
            latest, path = self._latest()
            content = _read(path) if latest >= 0 else b""
            holder = _parse(content)
            gone = not content or self._dead(holder) or self._stands_still(path, content, holder)
            if gone and self._claim(latest + 1):
                self._sightings.forget(path)
                return

    def _dead(self, holder: dict[str, Any]) -> bool:
        """Return whether a holder is gone for certain."""
        boot = _myself(os.getpid())["boot_id"]
        # The kernel gave us the lock that he had on this machine.
        lock = self.locked and holder.get("locked") is True
        return (lock and bool(boot) and holder.get("boot_id") == boot) or provably_gone(holder)

    def _stands_still(self, path: str, content: bytes, holder: dict[str, Any]) -> bool:
        """Return whether the beat stood still for long enough; if not, wait for the next look."""
        period = holder.get("period")
        if not isinstance(period, (int, float)) or not 0 < period <= _LONGEST:
            period = PERIOD
        left = PATIENCE * period
        stood, changed = self._sightings.unchanged(path, content, period)
        left -= stood
        if changed:
            raise self._held(content)
        if left > 0 and not self._wait:
            raise self._held(content, left)
        if left > 0:
            self._pause(min(period / 4, left))
        return left <= 0

    def _claim(self, number: int) -> bool:
        """Make the file of a number; return False if the moment had passed."""
        path = self._path(number)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            self._number, self._beaten = number, time.monotonic()
            self.due = self._beaten + self._period
            os.write(fd, self._record())
        finally:
            os.close(fd)
        if self._latest()[0] > number:  # the list of names was old: others have gone on
            with contextlib.suppress(OSError):
                os.unlink(path)
            return False
        for name in os.listdir(self._folder):
            match = _HELD_RE.fullmatch(name)
            if match and int(match[1]) < number:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._folder, name))
        return True

    # ---------------------------------------------------------------- files

    def _latest(self) -> tuple[int, str]:
        """Return the highest number and its file; -1 if there is none."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            names = []
        found = (int(match[1]) for match in map(_HELD_RE.fullmatch, names) if match)
        number = max(found, default=-1)
        return number, self._path(number)

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, f"lease-{number}.held")

    def _record(self) -> bytes:
        fields = {
            "beat": f"{self._beats:020}",  # always as long: it is written over in place
            "period": self._period,
            "locked": self.locked,
            **_myself(os.getpid()),
        }
        return json.dumps(fields).encode()

    def _held(self, content: bytes, again: float | None = None) -> Held:
        maybe = "" if again is None else f"; if it is dead, that is known in {again:.0f} s"
        return Held(
            f"another sync holds this run and target ({_who(content)}{maybe})",
            on=self._folder,
            hint="wait for it to end",
            again=again,
        )

    def _unlock(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)  # and so the kernel's lock
            self._fd = -1


@functools.lru_cache(maxsize=1)
def _myself(_pid: int) -> dict[str, Any]:
    return process()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except OSError:  # gone in this moment
        return b""


def _parse(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _who(content: bytes) -> str:
    holder = _parse(content)
    if "pid" not in holder or "host" not in holder:
        return "an unnamed process"
    return f"process {holder['pid']} on {holder['host']}"


class _Heart:
    """One thread that beats for every lease of this process."""

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._changed:
            self._leases.add(lease)
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def remove(self, lease: Lease) -> None:
        with self._changed:
            self._leases.discard(lease)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._leases:
                    self._changed.wait()
                pause = min((x.due for x in self._leases), default=0.0) - time.monotonic()
                if pause > 0:
                    self._changed.wait(pause)
                now = time.monotonic()
                late = [x for x in self._leases if x.due <= now]
            for lease in late:
                lease.beat()


_HEART = _Heart()
