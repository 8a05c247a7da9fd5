"""Writing an archive (`eventlog.archive`): the sealed files of many runs, one behind the other.

It never changes a run's own files: whoever reads sees them until the archive is in place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

from eventlog.archive import WholeArchive
from eventlog.files import Files
from eventlog.formats import FORMAT
from eventlog.layout import SealedName
from eventlog.runfile import RunFile
from eventlog.sealed import WORDS, SealedFile
from eventlog.sealedwriter import SealedWriter

#: An archive has at most so many parts; it ends behind so many rows, and bytes of metadata.
MOST_PARTS, FULL_ROWS, FULL_BYTES = 1024, 20_000_000, 4 * 2**20


@dataclasses.dataclass(frozen=True)
class Own:
    """A sealed file of a run's own, as it was found."""

    name: SealedName
    path: str
    size: int
    modified: float


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that may be archived."""

    run: RunFile
    folder: str
    files: tuple[Own, ...]


class ArchiveWriter(SealedWriter):
    """Writes one archive."""

    def __init__(self, place: str, files: Files) -> None:
        super().__init__(place, files)
        self._place = place
        self._parts: list[dict[str, Any]] = []
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether no more runs are to be added."""
        many = len(self._parts) >= MOST_PARTS or self.rows >= FULL_ROWS
        return many or self._size >= FULL_BYTES

    def take(self, one: Ready) -> None:
        """Add the sealed files of a run, which were checked.

        Raises
        ------
        OSError
            If one cannot be read, or the archive cannot be written: it is of no use then.
        FormatError
            If one was damaged since.
        """
        for own in one.files:
            begin = len(self.groups)
            with SealedFile(own.path, self._files, WORDS) as file:
                for group in range(len(file.groups)):
                    self.add(file.checked(group))
                self.cut()
                told: dict[str, Any] = {
                    "run": one.run.id,
                    "file": str(own.name),
                    "size": own.size,
                    "modified": own.modified,
                    "groups": len(self.groups) - begin,
                    "segments": [segment.to_json() for segment in file.segments],
                    "lost": [[gap.first, gap.last, gap.reason] for gap in file.lost],
                }
                tally = file.tally()
                if tally is not None:
                    told["tally"] = tally
            self._parts.append(told)
            self._size += len(json.dumps(told))

    def put(self, wanted: Callable[[], bool]) -> str | None:
        """Put the archive in place; return its name, or None if it is not wanted any more.

        Raises
        ------
        OSError
            If it cannot be written.
        IntegrityError
            If it does not read back as it was written.
        """
        self.cut()
        parts, groups = json.dumps(self._parts, sort_keys=True), json.dumps(self.groups)
        text = (parts + groups).encode()
        told = {
            "eventlog.format": FORMAT,
            "eventlog.needs": "archive",
            "eventlog.parts": parts,
            "eventlog.groups": groups,
            "eventlog.crc32": f"{zlib.crc32(text):08x}",
        }
        name = f"runs-{hashlib.sha256(text).hexdigest()[:16]}.parquet"
        path = os.path.join(self._place, name)
        return name if self._put(path, told, wanted) else None

    def _reads_back(self, path: str) -> bool:
        with WholeArchive(path, self._files, WORDS) as again:
            same = again.groups == self.groups
            for group in range(len(again.groups) if same else 0):
                again.checked(group)
            return same
