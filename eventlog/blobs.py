"""Blobs: content-addressed files of a run, for tables, images, and values over 1 MiB.

``blobs/<sha256>`` holds exactly the bytes with that SHA-256, put in place whole, so that the same
content logged twice is kept once and a copy can be checked without the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator

from eventlog.errors import IntegrityError
from eventlog.files import LOCAL, Files, Store
from eventlog.layout import BLOBS, is_blob

#: Values of more bytes than this are kept as blobs.
INLINE = 2**20
_PART = 4 * 2**20
#: A blob of more bytes is kept, copied and verified, and never taken into memory: a stranger's
#: journal may have one of any size.
MOST = 256 * 2**20


class NoRoom(OSError):
    """Bytes find room neither on the disk nor in the memory for what waits; they were counted."""


def name_of(data: bytes) -> str:
    """Return the name of the blob of these bytes."""
    return hashlib.sha256(data).hexdigest()


def put(folder: str, data: bytes, files: Files = LOCAL) -> tuple[str, str]:
    """Write a blob into a run's folder.

    Returns
    -------
    The SHA-256 in hexadecimal, and the path to sync before an event that names the blob may be
    called durable.
    """
    digest = name_of(data)
    place = os.path.join(folder, BLOBS)
    path = os.path.join(place, digest)
    try:
        # One that a power cut hit may have its size and not its bytes.
        if files.size(path) == len(data) and files.read(path) == data:
            return digest, path
    except OSError:
        pass
    files.make_folder(place)
    files.write_whole(path, data, durable=False)
    return digest, path


def sync(paths: Iterable[str], files: Files = LOCAL) -> None:
    """Make blobs survive a power cut."""
    folders = set()
    for path in paths:
        fd = files.open_again(path)
        try:
            files.sync(fd)
        finally:
            files.close(fd)
        folders.add(os.path.dirname(path))
    for folder in folders:
        files.sync_folder(folder)
        files.sync_folder(os.path.dirname(folder))  # when it was made, that may have failed


def put_again(paths: Iterable[str], files: Files = LOCAL) -> None:
    """Write blobs anew whose sync failed: a second sync of the same file would prove nothing."""
    for path in paths:
        data = files.read(path)
        if hashlib.sha256(data).hexdigest() != os.path.basename(path):
            raise OSError(5, "a blob did not survive a failed sync", path)
        files.write_whole(path, data)


def get(folder: str, digest: str, store: Store = LOCAL, *, most: int | None = MOST) -> bytes:
    """Return a blob's bytes; at most so many are taken into memory.

    Raises
    ------
    IntegrityError
        If it is missing, is larger, or its bytes are not those it is named after.
    """
    if not is_blob(digest):  # a journal from a stranger may name any path
        raise IntegrityError(f"{digest[:80]!r} names no blob", on=folder)
    path = os.path.join(folder, BLOBS, digest)
    with _told(path):
        size = store.size(path)
        if most is not None and size > most:
            text = f"a blob of {size:,} bytes is too large to be read: at most {most:,} are"
            raise IntegrityError(text, on=path)
        with store.open(path) as file:
            data = file.read(size + 1)  # and no more if it grows: that is another one
    _compare(hashlib.sha256(data).hexdigest(), digest, path)
    return data


def check(folder: str, digest: str, store: Store = LOCAL) -> None:
    """Read a blob in little memory; raises what `get` does."""
    if not is_blob(digest):
        raise IntegrityError(f"{digest[:80]!r} names no blob", on=folder)
    path = os.path.join(folder, BLOBS, digest)
    found = hashlib.sha256()
    for part in _parts(path, store):
        found.update(part)
    _compare(found.hexdigest(), digest, path)


def _parts(path: str, store: Store) -> Iterator[bytes]:
    with _told(path), store.open(path) as file:
        while part := file.read(_PART):
            yield part


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Raise `IntegrityError` for a blob that the disk does not give."""
    try:
        yield
    except OSError as error:
        raise IntegrityError(
            f"a blob cannot be read ({error.strerror})",
            on=path,
            hint="copy the run's folder again",
        ) from error


def _compare(found: str, digest: str, path: str) -> None:
    if found != digest:
        raise IntegrityError(
            "a blob's bytes have changed: they are not those its name says",
            on=path,
            hint="copy the run's folder again",
        )
