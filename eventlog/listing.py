"""What a run's folder lists: segments and sealed files by writer, those in archives too.

A list loads nothing that opens files: who only looks whether a run has changed starts sooner.
"""

from __future__ import annotations

import dataclasses
import os

from eventlog.files import LOCAL, Files, Store
from eventlog.layout import (
    SEALED,
    ArchivedName,
    SealedName,
    SegmentName,
    is_archive,
    sealed_name,
    segment_name,
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a run has, by writer: segments and sealed files in its folder, and sealed files that lie
    in archives of its project.
    """

    segments: dict[str, tuple[SegmentName, ...]]
    sealed: dict[str, tuple[SealedName, ...]]
    archived: dict[str, tuple[ArchivedName, ...]]

    @property
    def writers(self) -> list[str]:
        """All writers, sorted by name."""
        return sorted({*self.segments, *self.sealed, *self.archived})

    def parquet(self, writer: str) -> tuple[SealedName | ArchivedName, ...]:
        """Return all sealed files of a writer, in its folder or in archives."""
        return *self.sealed.get(writer, ()), *self.archived.get(writer, ())


def listing(folder: str, store: Store = LOCAL) -> Listing:
    """List a run's segments, then its sealed files, then those in archives; every other name is
    ignored. What sealing or archiving moves is always in one of the lists.
    """
    segments: dict[str, list[SegmentName]] = {}
    for name in store.names(folder):
        segment = segment_name(name)
        if segment is not None:
            segments.setdefault(segment.writer, []).append(segment)
    sealed: dict[str, list[SealedName]] = {}
    place = os.path.join(folder, SEALED)
    # A link out of the journal is no folder of it: what is sealed lands, and is removed, there.
    linked = isinstance(store, Files) and os.path.islink(place)
    for name in () if linked else store.names(place):
        file = sealed_name(name)
        if file is not None:
            sealed.setdefault(file.writer, []).append(file)
    return Listing(
        {w: tuple(sorted(names)) for w, names in segments.items()},
        {w: tuple(sorted(names)) for w, names in sealed.items()},
        _archived(folder, store),
    )


def _archived(folder: str, store: Store) -> dict[str, tuple[ArchivedName, ...]]:
    place = os.path.join(os.path.dirname(folder.rstrip("/")), SEALED)
    if not any(map(is_archive, store.names(place))):
        return {}
    from eventlog.archived import archived

    return archived(folder, store)
