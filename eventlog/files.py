"""The file system: the only module that touches it, so that a test can stand in for it.

`Files` does on a local path what the rest of the package needs, a system call a method; the
simulator of crash states and the tests of faults subclass it. `Store` is the part that reading
needs: an object store can fill it too.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import BinaryIO, Protocol

#: File systems on which any write can block for as long as a server is away (Linux's names).
NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 lustre cifs smb3 9p afs beegfs ceph fuse.ceph gpfs glusterfs fuse.glusterfs panfs "
    "pvfs2 wekafs fuse.sshfs".split()
)
#: What makes a name a temporary file of ours: readers ignore it, `write_whole` replaces it.
TEMPORARY = ".tmp-"


class Store(Protocol):
    """What reading a journal needs. Paths are text with ``/``; errors are `OSError`."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if there is no such folder."""

    def size(self, path: str) -> int:
        """Return the size of a regular file in bytes."""

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading."""


class Files:
    """A local file system. Stateless; every method raises `OSError` as the system call does."""

    # -------------------------------------------------------------------- reading

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def open(self, path: str) -> BinaryIO:
        # A journal may come from a stranger: a link out of it, a FIFO or a device is no file of it.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(22, "not a regular file", path)
        return os.fdopen(fd, "rb")

    def read(self, path: str) -> bytes:
        """Return the whole content of a (small) file."""
        with self.open(path) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def is_folder(self, path: str) -> bool:
        """Return whether `path` is a folder and no link to one."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (OSError, ValueError):
            return False

    # -------------------------------------------------------------------- writing

    def create(self, path: str) -> int:
        """Create a file that must not exist and return a descriptor that only appends."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.open(path, flags, 0o666)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write once; return how many bytes went in (fewer on a full disk)."""
        return os.write(fd, data)

    def length(self, fd: int) -> int:
        """Return how many bytes the file of a descriptor has."""
        return os.fstat(fd).st_size

    def modified(self, path: str) -> float:
        """Return when a file was last written, in seconds since 1970 UTC."""
        return os.stat(path).st_mtime

    def size_and_time(self, path: str) -> tuple[int, float]:
        """Return `size` and `modified` of a file, of one look at it."""
        found = os.stat(path)
        return found.st_size, found.st_mtime

    def stamp(self, path: str) -> tuple[int, ...]:
        """Return what changes when a file is replaced or written."""
        found = os.stat(path)
        times = found.st_mtime_ns, found.st_ctime_ns
        return found.st_dev, found.st_ino, found.st_size, *times

    def open_again(self, path: str) -> int:
        """Return a descriptor of a file that is there, to sync it."""
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def sync(self, fd: int) -> None:
        """Make the file's bytes and size survive a power cut."""
        if sys.platform == "darwin":  # fsync there stops at the drive's cache
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        elif hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder survive a power cut, where folders can be synced."""
        if os.name == "nt":
            return
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents (umask and setgid decide who may use them)."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        if parent and parent != path:
            self.make_folder(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        with contextlib.suppress(OSError):  # some file systems refuse it for folders
            self.sync_folder(parent or ".")

    def write_whole(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Put a whole file in place: nobody ever sees a part of it."""
        folder, name = os.path.split(path)
        part = os.path.join(folder, f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{name[:64]}")
        try:
            fd = self.create(part)
            try:
                view = memoryview(data)
                while view:
                    view = view[self.write(fd, view) :]
                if durable:
                    self.sync(fd)
            finally:
                self.close(fd)
            self.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(part)
            raise
        if durable:
            self.sync_folder(folder or ".")

    def lock_folder(self, path: str) -> int:
        """Return a descriptor that holds a folder's lock until it is closed; -1 where there are
        none. Raises `BlockingIOError` if another process holds it.
        """
        try:
            import fcntl
        except ImportError:
            return -1
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError) or not isinstance(error, OSError):
                raise
            return -1  # NFS, say
        return fd

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    # -------------------------------------------------------------------- about the place

    def kind_of(self, path: str) -> str:
        """Return the type of the file system that holds `path` (``ext4``, ``nfs4``), "" if unknown."""
        best, kind = "", ""
        target = os.path.realpath(path)
        try:
            with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
                for line in mounts:
                    _device, point, name, *_rest = line.split(" ")
                    point = point.replace("\\040", " ")
                    inside = target == point or target.startswith(point.rstrip("/") + "/")
                    if inside and len(point) >= len(best):
                        best, kind = point, name
        except OSError:
            return ""
        return kind


#: The local file system.
LOCAL = Files()
