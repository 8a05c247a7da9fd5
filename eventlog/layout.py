"""Names in a journal: which folder and file belongs to which project, run, writer and segment.

::

    <journal>/project=<project>/run=<run id>/
        run.json
        <writer>-<n>.arrows
        sealed/<writer>-<first seq>-<last seq>.parquet
        blobs/<sha256>
    <journal>/project=<project>/sealed/runs-<16 hex digits>.parquet

Names are escaped one to one: letters, digits, ``.``, ``_`` and ``-`` stand for themselves, every
other byte of the UTF-8 form is ``%XX``, and so is a leading dot. What would grow beyond 200 bytes
is cut and ends in ``%~`` and the SHA-256 of the whole name (``run.json`` holds the name itself).
Everything that does not match these patterns is foreign and ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

from eventlog.errors import UsageError

PROJECT_PREFIX = "project="
RUN_PREFIX = "run="
RUN_FILE = "run.json"
SEALED = "sealed"
BLOBS = "blobs"
DEFAULT_JOURNAL = "eventlog-data"

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_WRITER = r"[a-z0-9]{1,16}"
_NUMBER = r"0|[1-9][0-9]{0,18}"
_WRITER_RE = re.compile(_WRITER)
_SEGMENT_RE = re.compile(rf"({_WRITER})-({_NUMBER})\.arrows")
_SEALED_RE = re.compile(rf"({_WRITER})-({_NUMBER})-({_NUMBER})\.parquet")
_ARCHIVE_RE = re.compile(r"runs-[0-9a-f]{16}\.parquet")
_BLOB_RE = re.compile(r"[0-9a-f]{64}")
_LONGEST = 200


class SegmentName(NamedTuple):
    """``<writer>-<number>.arrows``."""

    writer: str
    number: int

    def __str__(self) -> str:
        return f"{self.writer}-{self.number}.arrows"


class SealedName(NamedTuple):
    """``<writer>-<first seq>-<last seq>.parquet``."""

    writer: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.writer}-{self.first}-{self.last}.parquet"

    @property
    def path(self) -> str:
        """Where it lies, from the run's folder."""
        return f"{SEALED}/{self}"


class ArchivedName(NamedTuple):
    """A sealed file that lies in an archive of its project: `run` is the run's folder's name."""

    writer: str
    first: int
    last: int
    archive: str
    run: str

    @property
    def path(self) -> str:
        """What leads to it from the run's folder, as if the archive were a folder of runs."""
        name = SealedName(self.writer, self.first, self.last)
        return f"../{SEALED}/{self.archive}/{self.run}/{name}"


class ArchivedPath(NamedTuple):
    """A path of `ArchivedName`, taken apart: the archive's own path, the run's folder's name, and
    the sealed file's.
    """

    archive: str
    run: str
    name: SealedName


def escape(name: str) -> str:
    """Return the one folder name of `name`. Raises `UsageError` if it is empty or no text."""
    if not name:
        raise UsageError("a project or run may not have an empty name")
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("a name holds a lone surrogate", on=repr(name)) from None
    text = "".join(chr(b) if chr(b) in _PLAIN else f"%{b:02X}" for b in raw)
    if text.startswith("."):
        text = "%2E" + text[1:]
    if len(text) > _LONGEST:
        cut = re.sub(r"%.?$", "", text[:120])
        text = f"{cut}%~{hashlib.sha256(raw).hexdigest()}"
    return text


def unescape(text: str) -> str | None:
    """Return the name that `escape` made `text` of; None if it made none, or cut it."""
    if "%~" in text:
        return None
    from urllib.parse import unquote_to_bytes

    try:
        name = unquote_to_bytes(text).decode("utf-8")
        return name if escape(name) == text else None
    except (UnicodeDecodeError, UsageError):
        return None


def run_folder(journal: str, project: str, run: str) -> str:
    """Return the folder of a run."""
    return os.path.join(journal, PROJECT_PREFIX + escape(project), RUN_PREFIX + escape(run))


def is_writer(name: str) -> bool:
    """Return whether `name` is a writer's: at most 16 of ``[a-z0-9]``."""
    return _WRITER_RE.fullmatch(name) is not None


def segment_name(name: str) -> SegmentName | None:
    """Parse a segment's file name; None for anything else."""
    match = _SEGMENT_RE.fullmatch(name)
    return SegmentName(match[1], int(match[2])) if match else None


def sealed_name(name: str) -> SealedName | None:
    """Parse a sealed file's name; None for anything else."""
    match = _SEALED_RE.fullmatch(name)
    if match is None or int(match[2]) > int(match[3]):
        return None
    return SealedName(match[1], int(match[2]), int(match[3]))


def is_archive(name: str) -> bool:
    """Return whether `name` is an archive's: ``runs-<16 hexadecimal digits>.parquet``."""
    return _ARCHIVE_RE.fullmatch(name) is not None


def archived_path(path: str) -> ArchivedPath | None:
    """Take the path of an archived sealed file apart; None for any other path."""
    above, name = os.path.split(path)
    archive, run = os.path.split(above)
    found = sealed_name(name)
    if found is None or not is_archive(os.path.basename(archive)):
        return None
    return ArchivedPath(os.path.normpath(archive), run, found)


def is_blob(name: str) -> bool:
    """Return whether `name` is a blob's: the 64 hexadecimal digits of its SHA-256."""
    return _BLOB_RE.fullmatch(name) is not None


def default_journal() -> str:
    """Return the journal of this process: ``EVENTLOG_DIR``, else ``./eventlog-data``."""
    return os.environ.get("EVENTLOG_DIR") or DEFAULT_JOURNAL
