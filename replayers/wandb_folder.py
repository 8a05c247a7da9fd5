"""The folder of one child that runs wandb: all that the client writes, and its socket.

It lies in the system's folder for temporary files and goes with its child; that of a sync which was
killed together with its child is removed by the next one. Which those are is told by a file in each
that names its process: only what is ours, and whose process is provably gone, is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile

from eventlog.identity import process, provably_gone

_PREFIX, _OWNER = "eventlog-wandb-", "owner.json"
#: What wandb-core puts below ``TMPDIR``, with pids as long as they come: ``sun_path`` has 104 bytes
#: on macOS, 108 on Linux, with the NUL at its end.
_SOCKET = len("/wandb-4194304-4194304-4294967295/socket")
_LONGEST = 103


def make() -> str:
    """Return a new folder of this process. Raises `OSError`."""
    _remove_dead()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    with open(os.path.join(folder, _OWNER), "w", encoding="utf-8") as file:
        json.dump(process(), file)
    return folder


def remove(folder: str) -> None:
    """Remove a folder and what is in it, as far as that can be done."""
    shutil.rmtree(folder, ignore_errors=True)


def temporary(folder: str) -> dict[str, str]:
    """Return the variables by which temporary files, wandb-core's socket among them, go into the
    folder; none if the socket's path would be too long.
    """
    return {"TMPDIR": folder} if len(os.fsencode(folder)) + _SOCKET <= _LONGEST else {}


def _remove_dead() -> None:
    place = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            if name.startswith(_PREFIX) and _is_dead(os.path.join(place, name)):
                remove(os.path.join(place, name))


def _is_dead(folder: str) -> bool:
    """Return whether a folder is this user's, and of a process that is provably gone."""
    try:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        with open(os.path.join(folder, _OWNER), "rb") as file:
            owner = json.loads(file.read(2**16))
        return isinstance(owner, dict) and provably_gone(owner)
    except (OSError, ValueError, RecursionError):  # somebody's, or just being made
        return False
