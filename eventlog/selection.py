"""Which runs are meant: by name, by tag, by when they began and when they last changed.

Whole runs are selected, never events of one: what is not selected is left alone, and what is goes
on from where it stood, whichever selection brought it there.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from eventlog.attempts import attempts
from eventlog.catalog import Found, Unreadable, find_all
from eventlog.errors import EventlogError, FormatError, UsageError
from eventlog.files import LOCAL, Files
from eventlog.listing import listing

if TYPE_CHECKING:
    from eventlog.segment import Header

_AGO = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
#: What every Python that we support reads alike.
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.([0-9]{3}){1,2})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a run must be like to be selected; everything that is given must hold.

    Attributes
    ----------
    patterns:
        Globs of which one must match the run's id, name or ``project/name``.
    tags:
        Globs each of which must match a tag that the run has: the whole of it, or, without a
        ``=`` in the glob, what stands in front of the ``=`` of one like ``team=nlp``.
    since:
        The run's last event is no older, in nanoseconds since 1970 UTC.
    until:
        The run's first attempt started earlier, likewise.
    """

    patterns: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None

    @property
    def reads(self) -> bool:
        """Whether a run's events must be looked at, not its name alone."""
        return bool(self.tags) or self.since is not None or self.until is not None

    def chooses(self, found: Found, files: Files = LOCAL) -> bool:
        """Return whether a run, whose name matches, is selected by its tags and times.

        Raises
        ------
        EventlogError
            If it cannot be told, because something of the run cannot be read.
        """
        if not self.reads:
            return True
        from eventlog.reader import headers, unreadable

        folder = found.folder
        try:
            parts = headers(folder, files)
            if self._holds(folder, parts, files):
                return True
            lost = {} if set(listing(folder, files).writers) <= set(parts) else unreadable(folder)
        except OSError as error:
            text = f"whether this run is selected cannot be told ({error.strerror or error})"
            raise EventlogError(text, on=folder) from error
        for reason in lost.values():
            text = f"whether this run is selected cannot be told ({reason})"
            raise FormatError(text, on=folder)
        return False

    def _holds(self, folder: str, parts: Mapping[str, Sequence[Header]], files: Files) -> bool:
        starts = [attempt.start for attempt in attempts(parts)]
        if not starts:
            return False
        if self.until is not None and min(starts) >= self.until:
            return False
        if (
            self.since is not None
            and max(starts) < self.since
            and all(_last(folder, w, parts[w], files) < self.since for w in parts)
        ):
            return False
        if not self.tags:
            return True
        tags = tags_of(folder, parts, files)
        return all(any(_means(pattern, tag) for tag in tags) for pattern in self.tags)


def selection(
    patterns: Sequence[str] = (),
    tags: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    *,
    now: int | None = None,
) -> Selection:
    """Return the selection that a user writes; `now` in nanoseconds since 1970 UTC.

    Raises
    ------
    UsageError
        For a time that is none, and for a glob that is empty or cannot be matched.
    """
    for option, globs in (("--run", patterns), ("--tag", tags)):
        for glob in globs:
            _check(glob, option)
    moment = time.time_ns() if now is None else now
    return Selection(
        tuple(patterns),
        tuple(tags),
        None if since is None else parse_time(since, moment, "--since"),
        None if until is None else parse_time(until, moment, "--until"),
    )


def parse_time(text: str, now: int, option: str) -> int:
    """Return a time that a user writes: ISO 8601, UTC without a zone, or how long ago: ``7d``.

    Returns
    -------
    int
        Nanoseconds since 1970 UTC.

    Raises
    ------
    UsageError
        If it is none.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return now - int(ago[1]) * _SECONDS[ago[2]] * 10**9
    import datetime as dt

    try:
        if _ISO.fullmatch(text) is None:
            raise ValueError("another form")
        moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.timezone.utc)
        moment = moment.astimezone(dt.timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text!r} is no time",
            hint="give 2026-01-31, 2026-01-31T12:00, 2026-01-31T12:00Z, or how long ago: 12h, 7d",
        ) from None
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    return (moment - epoch) // dt.timedelta(microseconds=1) * 1000


def find_selected(
    paths: Sequence[str], chosen: Selection, files: Files = LOCAL
) -> tuple[list[Found], list[Unreadable]]:
    """Return the runs of several paths that are selected, as `eventlog.catalog.find_all` does, and
    those that cannot be read, or not so far that it can be told.
    """
    found, bad = find_all(paths, chosen.patterns, files)
    out = []
    for item in found:
        try:
            if chosen.chooses(item, files):
                out.append(item)
        except EventlogError as error:
            bad.append(Unreadable(item.folder, error))
    return out, bad


@dataclasses.dataclass(frozen=True)
class _Answer:
    """Why a run was not selected, what it was like then, and when to ask again at the earliest."""

    stamp: object
    again: float
    error: EventlogError | None


class Asker:
    """Asks again and again whether runs are selected.

    A run that has not changed is not read. One that grows all the time is read so seldom that it
    takes at most one part in `SHARE` of the time.
    """

    #: So many times as long as a run took to be read it is left alone.
    SHARE = 20

    def __init__(
        self,
        chosen: Selection,
        files: Files = LOCAL,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chosen = chosen
        self._files = files
        self._clock = clock
        self._known: dict[str, _Answer] = {}

    def __call__(self, found: Found) -> bool:
        """Return, or raise, what `Selection.chooses` does."""
        if not self._chosen.reads:
            return True
        now = self._clock()
        known = self._known.get(found.folder)
        if known is None or now >= known.again:
            stamp = self._stamp(found.folder)
            if known is None or stamp != known.stamp:
                error = None
                try:
                    if self._chosen.chooses(found, self._files):
                        self._known.pop(found.folder, None)
                        return True
                except EventlogError as raised:
                    error = raised
                done = self._clock()
                known = _Answer(stamp, done + self.SHARE * (done - now), error)
                self._known[found.folder] = known
        if known.error is not None:
            raise known.error
        return False

    def _stamp(self, folder: str) -> object:
        """Return what is another thing when a run has changed, by names and sizes."""
        found = listing(folder, self._files)
        sizes = []
        for name in (str(name) for names in found.segments.values() for name in names):
            try:
                sizes.append((name, self._files.size(os.path.join(folder, name))))
            except OSError:  # sealed a moment ago
                sizes.append((name, -1))
        return sizes, found.sealed, found.archived


def tags_of(
    folder: str, parts: Mapping[str, Sequence[Header]], files: Files = LOCAL
) -> tuple[str, ...]:
    """Return the tags that a run has, sorted: those given last and not taken away.

    Parameters
    ----------
    parts:
        What `eventlog.reader.headers` returns.

    Raises
    ------
    FormatError
        For a file that cannot be what its name says.
    OSError
        If a file is there and cannot be read.
    """
    from eventlog.columns import is_word
    from eventlog.event import TAG
    from eventlog.reader import WriterReader

    tags: dict[str, bool] = {}
    columns = ("key", "kind", "num")
    for attempt in attempts(parts):
        for writer in attempt.writers:
            reader = WriterReader(folder, writer, skip_missing=True, store=files, columns=columns)
            for table in reader.tables():
                rows = table.filter(is_word(table.column("kind"), TAG))
                names, nums = (rows.column(name).to_pylist() for name in ("key", "num"))
                tags |= dict(zip(names, (num != 0 for num in nums), strict=True))
    return tuple(sorted(tag for tag, there in tags.items() if there))


def _last(folder: str, writer: str, parts: Sequence[Header], files: Files) -> int:
    """Return the time of a writer's last events: those of its last segment that has any."""
    import pyarrow.compute as pc

    from eventlog.reader import WriterReader

    for first in sorted({part.first_seq for part in parts}, reverse=True):
        reader = WriterReader(
            folder, writer, start=first, skip_missing=True, store=files, columns=("time",)
        )
        times = [
            pc.max(table.column("time").cast("int64")).as_py()
            for table in reader.tables()
            if table.num_rows
        ]
        if times:
            return int(max(times))
    return -(2**63)


def _means(pattern: str, tag: str) -> bool:
    """Return whether a tag is what a user asks for; one written as it is always is."""
    if tag == pattern or fnmatch.fnmatchcase(tag, pattern):
        return True
    key, sign, _value = tag.partition("=")
    return bool(sign) and "=" not in pattern and fnmatch.fnmatchcase(key, pattern)


def _check(glob: str, option: str) -> None:
    if not glob or (glob.startswith("=") and option == "--tag"):
        raise UsageError(f"{option} {glob!r} names nothing", hint=f"{option} '*' takes all")
    try:
        re.compile(fnmatch.translate(glob))
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(f"{option} {glob[:80]!r} is no glob", hint=str(error)) from None
