"""Archives: one Parquet file that holds the sealed files of many runs of a project.

An archive ``project=<project>/sealed/runs-<16 hex digits>.parquet`` has the columns of a sealed
file, and is a list of *parts*: each is what one sealed file of one run was, its rows in row groups
of their own, one behind the other, so that reading a run reads its row groups only. Key-value
metadata:

================  =============================================================================
eventlog.format   ``1.0``
eventlog.needs    ``archive``: who knows no archives refuses the file
eventlog.parts    a JSON array, per part an object: ``run`` (the run's id), ``file`` (the name of the
                  sealed file), ``size`` and ``modified`` (what the file system said of it),
                  ``groups`` (how many row groups it has), ``segments`` and ``lost`` (what the
                  sealed file's metadata told)
eventlog.groups   as in a sealed file, of all parts
eventlog.crc32    the CRC-32 of the text of the two before, eight hexadecimal digits
================  =============================================================================

An archive never changes once it is in place, so what its footer says is kept in memory, of a bounded
number of archives. A part is opened by a path that leads through the archive as if it were a folder
(`eventlog.layout.ArchivedName`).

This module only reads; `eventlog.archiving` makes archives, and `eventlog.archived` tells what those
of a project hold of one run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from eventlog import pages, tally
from eventlog.errors import FormatError, UsageError
from eventlog.files import LOCAL, Files, Store
from eventlog.footer import Group, SealedSegment, check_sum, groups_of, lost_of
from eventlog.formats import check_format
from eventlog.layout import (
    RUN_PREFIX,
    SealedName,
    archived_path,
    escape,
    sealed_name,
)
from eventlog.sealed import WORDS, SealedFile, check_columns, open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

#: No archive that was made here has a larger footer, in bytes.
MOST_FOOTER = 32 * 2**20
#: Of so many archives what the footer says is kept, and of so many which runs they hold.
_KEPT, _KEPT_NAMES = 8, 4096


@dataclasses.dataclass(frozen=True)
class Part:
    """One sealed file in an archive.

    `run` is the run's folder's name; `first` its first row group and `count` how many it has;
    `size` and `modified` are what the file system said of the file. `told` is its metadata.
    """

    run: str
    name: SealedName
    size: int
    modified: float
    first: int
    count: int
    told: dict[str, Any]


class Archive:
    """What an archive's footer says.

    Attributes
    ----------
    parts:
        By the name of the run's folder, then by that of the sealed file.
    groups, metadata:
        Of all row groups; the Parquet footer.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        """Read the footer of an open file, which is closed.

        Raises
        ------
        FormatError
            If it is no archive of a version this package reads, or damaged.
        """
        with file:
            _check_footer(path, file)
            self._layout: list[pages.Group] | None = None
            parquet = open_parquet(path, file)
            with contextlib.closing(parquet):
                self.metadata = parquet.metadata
                meta = self.metadata.metadata or {}
                told = _told(meta, path)
                self.groups = groups_of(meta, parquet.num_row_groups, path)
                check_columns(parquet, path)
        self.parts: dict[str, dict[SealedName, Part]] = {}
        try:
            at = 0
            for fields in told:
                part = _part(fields, at, self.groups)
                there = self.parts.setdefault(part.run, {})
                if part.name in there:
                    raise ValueError(f"it has {part.name} twice")
                there[part.name] = part
                at += part.count
            if at != len(self.groups):
                raise ValueError("it has row groups of no part")
        except (KeyError, ValueError, TypeError, AttributeError, UsageError) as error:
            raise FormatError(f"this is no archive of an event log ({error!r})", on=path) from error

    def layout(self, file: BinaryIO) -> list[pages.Group]:
        """Return where the row groups lie in the file. Raises `ValueError`."""
        if self._layout is None:
            self._layout = pages.groups(file)
        return self._layout


def _check_footer(path: str, file: BinaryIO) -> None:
    file.seek(max(file.seek(0, os.SEEK_END) - 8, 0))
    tail = file.read(8)
    (length,) = struct.unpack("<I", tail[:4]) if len(tail) == 8 else (0,)
    file.seek(0)
    if length > MOST_FOOTER:
        raise FormatError(f"an archive has a footer of {length} bytes", on=path)


def _told(meta: dict[bytes, bytes], path: str) -> list[dict[str, Any]]:
    try:
        check_format(meta[b"eventlog.format"].decode())
        if meta[b"eventlog.needs"] != b"archive":
            raise FormatError(
                f"an archive needs {meta[b'eventlog.needs']!r}, which this version does not know",
                hint="install a newer eventlog-journal",
            )
        check_sum(meta[b"eventlog.parts"] + meta[b"eventlog.groups"], meta[b"eventlog.crc32"])
        return list(json.loads(meta[b"eventlog.parts"]))
    except FormatError as error:
        raise FormatError(error.what, on=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"this is no archive of an event log ({error!r})", on=path) from error


def _part(fields: dict[str, Any], at: int, groups: Sequence[Group]) -> Part:
    name, count = sealed_name(fields["file"]), int(fields["groups"])
    if name is None or count < 1 or at + count > len(groups):
        raise ValueError(f"it has a part that cannot be one: {fields['file']!r}")
    mine = groups[at : at + count]
    if (mine[0][1], mine[-1][2]) != (name.first, name.last):
        raise ValueError(f"the events of {name} are others")
    run = RUN_PREFIX + escape(fields["run"])
    return Part(run, name, int(fields["size"]), float(fields["modified"]), at, count, fields)


# ------------------------------------------------------------------------------ what is kept

_Kept = TypeVar("_Kept")
_archives: dict[tuple[object, ...], Archive] = {}
_runs: dict[tuple[object, ...], dict[str, tuple[Part, ...]]] = {}


def _kept(
    kept: dict[tuple[object, ...], _Kept],
    most: int,
    key: tuple[object, ...] | None,
    make: Callable[[], _Kept],
) -> _Kept:
    """Return what is kept under a key, made if it is not there; the oldest goes."""
    if key is None:
        return make()
    found = kept.pop(key, None)
    found = make() if found is None else found
    kept[key] = found
    while len(kept) > most:
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # other threads
            kept.pop(next(iter(kept)))
    return found


def _key(path: str, store: Store) -> tuple[object, ...] | None:
    return (path, *store.stamp(path)) if isinstance(store, Files) else None


def read(path: str, store: Store = LOCAL) -> Archive:
    """Return what an archive's footer says.

    Raises
    ------
    OSError
        If it cannot be opened.
    FormatError
        If it is no archive of a version this package reads, or damaged.
    """
    key = _key(path, store)
    return _kept(_archives, _KEPT, key, lambda: Archive(path, store.open(path)))


def parts_of(path: str, run: str, store: Store = LOCAL) -> tuple[Part, ...]:
    """Return the parts of one run that an archive has, without what their metadata told; `run` is
    the name of the run's folder. Raises as `read` does.
    """

    def names() -> dict[str, tuple[Part, ...]]:
        # Its footer is read anew, and not kept: to know what is where takes little memory.
        parts = Archive(path, store.open(path)).parts
        return {
            run: tuple(dataclasses.replace(part, told={}) for part in found.values())
            for run, found in parts.items()
        }

    return _kept(_runs, _KEPT_NAMES, _key(path, store), names).get(run, ())


# ------------------------------------------------------------------------------ opening


class ArchivedFile(SealedFile):
    """A sealed file that lies in an archive: its rows are those of its part alone."""

    def _open(self, store: Store) -> None:
        where = archived_path(self.path)
        assert where is not None
        self._archive = read(where.archive, store)
        part = self._archive.parts.get(where.run, {}).get(where.name)
        if part is None:
            raise FileNotFoundError(2, "the archive has no such part", self.path)
        try:
            told = part.told["segments"]
            self.segments = [SealedSegment.from_json(fields) for fields in told]
            self.lost = lost_of(part.told["lost"])
            self._run = str(part.told["run"])
            self._tally = tally.checked(part.told["tally"]) if "tally" in part.told else None
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            text = f"an archive's part has no metadata ({error!r})"
            raise FormatError(text, on=self.path) from error
        self._writer = part.name.writer
        self._first = part.first
        self.groups = self._archive.groups[part.first : part.first + part.count]
        self._place = where.archive
        self._file = store.open(self._place)
        self._parquet = open_parquet(self.path, self._file, self._archive.metadata)

    def tally(self) -> dict[str, Any] | None:
        return self._tally

    def _places(self) -> list[pages.Group]:
        return self._archive.layout(self._file)

    def checked(self, group: int) -> pa.Table:
        """Return a row group; see `SealedFile.checked`. All rows are the run's and writer's."""
        rows = super().checked(group)
        for column, word in (("run_id", self._run), ("writer", self._writer)):
            if rows.column(column).unique().to_pylist() != [word]:
                raise FormatError(f"the {column} of an archive's part is another", on=self.path)
        return rows


class WholeArchive(SealedFile):
    """An archive with all its parts, read from the disk anew."""

    def _open(self, store: Store) -> None:
        self.segments, self.lost = [], []
        self.groups = Archive(self.path, store.open(self.path)).groups
        self._file = store.open(self.path)
        self._parquet = open_parquet(self.path, self._file)


def open_sealed(path: str, store: Store = LOCAL, words: Sequence[str] = ()) -> SealedFile:
    """Open a sealed file, wherever it lies; see `eventlog.sealed.SealedFile`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    FormatError
        If it is no sealed file of a version this package reads, or damaged.
    """
    kind = SealedFile if archived_path(path) is None else ArchivedFile
    return kind(path, store, words)


def sealed_segments(path: str, store: Store = LOCAL) -> Sequence[SealedSegment]:
    """Return what a sealed file says of the segments it was made of.

    Raises
    ------
    FormatError
        If it is no sealed file of a version this package reads, or damaged.
    """
    with open_sealed(path, store) as file:
        return file.segments


def check_sealed(path: str, store: Store = LOCAL) -> None:
    """Read every byte of a sealed file's rows.

    Raises
    ------
    FormatError
        If they are not those that were sealed.
    """
    with open_sealed(path, store, WORDS) as file:
        told = None
        for group in range(len(file.groups)):
            rows = file.checked(group)
            told = tally.summed(rows, told) if rows.num_rows else told
        if told is not None and file.tally() not in (None, told):
            raise FormatError(
                "a sealed file's events add up to something else than it says", on=path
            )
