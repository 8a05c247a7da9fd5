"""Which runs have changed since the last look, by what `stat` says: nothing of a quiet run is read.

A run changes when one of its segments grows, a file comes or goes, or a process that wrote to it
is gone. A folder is listed again when its time of change moved, and, because that time is coarse,
for a while after; now and then anyway.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

from eventlog.catalog import Found, Unreadable, find_all
from eventlog.errors import EventlogError, UsageError
from eventlog.event import RUNNING
from eventlog.files import LOCAL
from eventlog.glance import glance
from eventlog.identity import provably_gone
from eventlog.layout import BLOBS, PROJECT_PREFIX, SEALED, default_journal, segment_name
from eventlog.segment import SegmentReader

#: For how long a folder's time of change is not believed to have moved with its last change:
#: file systems keep it to some milliseconds, or to a second, and servers have clocks of their own.
COARSE = 3.0
#: How often everything is listed anyway, and how often processes are looked for, in seconds.
ANYWAY, PROCESSES = 60.0, 5.0
_PROCESS = ("boot_id", "pid_namespace", "pid", "process_start")


@dataclasses.dataclass
class _Look:
    """What a run's folder was like."""

    found: Found
    stamps: tuple[int, ...] = ()
    moved: float = 0.0
    listed: float = 0.0
    live: dict[str, int] = dataclasses.field(default_factory=dict)
    gone: set[str] = dataclasses.field(default_factory=set)
    changed: float = 0.0
    over: bool | None = None


class Changes:
    """The runs of some paths, and which of them have changed.

    Parameters
    ----------
    paths, patterns:
        As `eventlog.catalog.find_all` takes them. A path that is not there yet is waited for.
    belongs:
        Whether a run is one of those that are meant; asked until it says so. A run of which it
        raises `EventlogError` cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        patterns: Sequence[str] = (),
        *,
        belongs: Callable[[Found], bool] = lambda found: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.paths = [os.path.abspath(path) for path in paths or [default_journal()]]
        #: Runs that cannot be read, by folder.
        self.unreadable: dict[str, Unreadable] = {}
        #: Paths at which there is no journal yet.
        self.waiting: list[str] = []
        self._patterns = patterns
        self._belongs = belongs
        self._clock = clock
        self._looks: dict[str, _Look] = {}
        self._others: dict[str, Found] = {}
        self._places: dict[str, tuple[int, float]] = {}
        self._found = -ANYWAY
        self._processes = -PROCESSES
        self._identities: dict[str, dict[str, object]] = {}

    def runs(self) -> list[Found]:
        """Return the runs that were seen, in the order in which they were."""
        return [look.found for look in self._looks.values()]

    def poll(self) -> list[Found]:
        """Return the runs that have changed since the last call: all of them at first."""
        now = self._clock()
        self._find(now)
        changed = [look for look in self._looks.values() if self._grew(look, now)]
        if now - self._processes >= PROCESSES:
            self._processes = now
            asked: dict[object, bool] = {}  # one process may write to many runs
            died = [look for look in self._looks.values() if self._died(look, asked)]
            changed += [look for look in died if look not in changed]
        for look in changed:
            look.changed, look.over = now, None
        return [look.found for look in changed]

    def over(self, grace: float) -> bool:
        """Return whether there are runs, and all have ended and stood still for `grace` seconds."""
        now = self._clock()
        for look in self._looks.values():
            if now - look.changed < grace:
                return False
            if look.over is None:  # read once behind its last change
                look.over = glance(look.found.folder).status != RUNNING
            if not look.over:
                return False
        return bool(self._looks)

    # ---------------------------------------------------------------- which runs there are

    def _find(self, now: float) -> None:
        places = [*self.paths, *(p for p in self._places if p not in self.paths)]
        moved = False
        for place in places:
            stamp = _stamp(place)
            before, since = self._places.get(place, (-1, now))
            if stamp != before:
                self._places[place] = (stamp, now)
            moved = moved or stamp != before or now - since < COARSE
        if moved or now - self._found >= ANYWAY:
            self._found = now
            self._list()
        else:
            self._ask(list(self._others.values()))

    def _list(self) -> None:
        found: list[Found] = []
        self.unreadable, self._others, self.waiting = {}, {}, []
        for path in self.paths:
            try:
                here, bad = find_all([path], self._patterns)
            except UsageError:
                if os.path.exists(path) and not os.path.isdir(path):
                    raise
                self.waiting.append(path)
                continue
            found += here
            self.unreadable |= {item.folder: item for item in bad}
            self._note_projects(path)
        self._ask([item for item in found if item.folder not in self._looks])

    def _ask(self, found: Sequence[Found]) -> None:
        """Ask of runs that are not followed whether they are meant by now."""
        for item in found:
            self._others[item.folder] = item
            self.unreadable.pop(item.folder, None)
            try:
                if self._belongs(item):
                    del self._others[item.folder]
                    self._looks[item.folder] = _Look(item)
            except EventlogError as error:
                self.unreadable[item.folder] = Unreadable(item.folder, error)

    def _note_projects(self, path: str) -> None:
        for name in LOCAL.names(path):
            if name.startswith(PROJECT_PREFIX):
                place = os.path.join(path, name)
                self._places.setdefault(place, (_stamp(place), self._found))

    # ---------------------------------------------------------------- one run

    def _grew(self, look: _Look, now: float) -> bool:
        folder = look.found.folder
        stamps = tuple(_stamp(os.path.join(folder, *part)) for part in ((), (SEALED,), (BLOBS,)))
        fresh = stamps != look.stamps
        if fresh:
            look.stamps, look.moved = stamps, now
        if fresh or now - look.moved < COARSE or now - look.listed >= ANYWAY:
            look.listed = now
            live = _segments(folder)
        else:
            live = {path: _size(path) for path in look.live}
        grown = live != look.live
        look.live = live
        # A folder whose time moved has other files, if only sealed ones.
        return fresh or grown

    def _died(self, look: _Look, asked: dict[object, bool]) -> bool:
        """Return whether a process that wrote to a run is gone since the last look."""
        died = False
        for path in look.live:
            if path in look.gone:
                continue
            identity = self._identity(path)
            process = tuple(str(identity.get(name)) for name in _PROCESS)
            if process not in asked:
                asked[process] = provably_gone(identity)
            if asked[process]:
                look.gone.add(path)
                died = True
        return died

    def _identity(self, path: str) -> dict[str, object]:
        if path not in self._identities:
            try:
                with SegmentReader(path) as reader:
                    self._identities[path] = reader.header.identity
            except (OSError, EventlogError):  # its header is not written yet
                return {}
        return self._identities[path]


def _stamp(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _segments(folder: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if segment_name(entry.name) is not None:
                    sizes[entry.path] = _size(entry.path)
    except OSError:
        return {}
    return dict(sorted(sizes.items()))
