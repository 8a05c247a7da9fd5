"""What the archives of a project (`eventlog.archive`) hold of one run."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from eventlog import runfile
from eventlog.archive import Part, parts_of
from eventlog.errors import EventlogError, FormatError
from eventlog.files import LOCAL, Files, Store
from eventlog.layout import RUN_PREFIX, SEALED, ArchivedName, is_archive


def _place(folder: str, store: Store) -> tuple[str, str] | None:
    """Return the folder of a run's project's archives, and the name of the run's own folder; None
    if it is no run's, or the archives' is a link out of the journal.
    """
    above, run = os.path.split(folder.rstrip("/"))
    place = os.path.join(above, SEALED)
    linked = isinstance(store, Files) and os.path.islink(place)
    return (place, run) if run.startswith(RUN_PREFIX) and not linked else None


def _of(folder: str, store: Store) -> list[tuple[str, Part]]:
    """Return all parts of a run, each with the archive's name. Damaged archives are left out (see
    `absent`), and those that cannot be read and that the run does not name.

    Raises
    ------
    OSError
        If an archive that the run names cannot be read: who took it for one that is not there would
        see a run without events.
    """
    found: list[tuple[str, Part]] = []
    where = _place(folder, store)
    if where is not None:
        place, run = where
        for name in filter(is_archive, store.names(place)):
            try:
                found += [(name, part) for part in parts_of(os.path.join(place, name), run, store)]
            except FormatError:
                continue
            except OSError as error:
                link = error.errno in (errno.ELOOP, errno.EINVAL)  # or a device: no archive
                if not link and _names(folder, name, store):
                    raise
    return found


def _names(folder: str, archive: str, store: Store) -> bool:
    """Return whether a run names an archive, as far as that is known."""
    try:
        return archive in runfile.read_all(folder, store)[1]
    except EventlogError as error:
        return isinstance(error.__cause__, OSError)  # the disk's; not that there is none


def archived(folder: str, store: Store = LOCAL) -> dict[str, tuple[ArchivedName, ...]]:
    """Return the sealed files of a run that lie in archives, by writer, sorted. Raises `OSError`."""
    out: dict[str, list[ArchivedName]] = {}
    for archive, part in _of(folder, store):
        name = ArchivedName(*part.name, archive, part.run)
        out.setdefault(part.name.writer, []).append(name)
    return {writer: tuple(sorted(names)) for writer, names in out.items()}


def stamps(folder: str, store: Store = LOCAL) -> list[tuple[str, int, float]]:
    """Return name, size and time of each sealed file of a run that lies in an archive now, as they
    were in the run's folder.
    """
    return [(str(part.name), part.size, part.modified) for _archive, part in _of(folder, store)]


def absent(folder: str, archives: Collection[str], store: Store = LOCAL) -> list[str]:
    """Return, in a sentence each, which of the archives that hold events of a run are not here, or
    cannot be read.
    """
    out = []
    where = _place(folder, store)
    for name in archives:
        why = "is not here"
        if where is not None:
            try:
                if parts_of(os.path.join(where[0], name), where[1], store):
                    continue
                why = "does not hold them"
            except FileNotFoundError:
                pass
            except (OSError, FormatError) as error:
                why = f"cannot be read ({error})"
        out.append(f"events of this run are in the archive {SEALED}/{name}, which {why}")
    return out
