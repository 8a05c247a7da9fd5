"""What is sent is made durable first: a target must not hold what a power cut can take away."""

from __future__ import annotations

import errno
import os

from eventlog.files import LOCAL, Files
from eventlog.layout import SEALED
from eventlog.listing import listing

#: A read-only copy, or a file system that cannot sync: whoever keeps it answers for it.
_CANNOT = frozenset((errno.EROFS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))
#: The file was sealed in this moment, and so is durable.
_SEALED = frozenset((errno.ENOENT, errno.ESTALE))


class Durable:
    """Syncs the files of one run; those that have not grown since are not synced again."""

    def __init__(self, folder: str, files: Files = LOCAL) -> None:
        self._folder = folder
        self._files = files
        self._synced: dict[str, int] = {}

    def make(self, writer: str) -> None:
        """Make what a writer's segments hold now survive a power cut.

        Raises
        ------
        OSError
            If a disk says that it could not, naming the file: nothing of it may be sent.
        """
        names = listing(self._folder, self._files).segments.get(writer, ())
        grown = False
        for name in names:
            path = os.path.join(self._folder, str(name))
            try:
                size = self._files.size(path)
                if self._synced.get(path) == size:
                    continue
                self._sync(path)
            except OSError as error:
                if error.errno in _SEALED:
                    grown = True
                    continue
                raise
            self._synced[path] = size
            grown = True
        if grown or not self._synced:
            self._sync_folder(self._folder)
            self._sync_folder(os.path.join(self._folder, SEALED))
            self._synced.setdefault(self._folder, 0)

    def _sync(self, path: str) -> None:
        fd = self._files.open_again(path)
        try:
            self._files.sync(fd)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise OSError(error.errno, error.strerror, path) from error
        finally:
            self._files.close(fd)

    def _sync_folder(self, path: str) -> None:
        try:
            self._files.sync_folder(path)
        except OSError as error:
            # A folder of somebody else may be closed to us: its owner has synced it.
            if error.errno not in (*_CANNOT, *_SEALED, errno.EACCES, errno.EPERM):
                raise OSError(error.errno, error.strerror, path) from error
