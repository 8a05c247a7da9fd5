"""The child process of a target that is begun before it is asked for.

Trackio and wandb live in a process of their own, which takes a second to import them. In a fork of
a process that has imported them (`tests.warm`) that child is forked too, before anything else is
done. It speaks through the same pipes, is the child of the sync, and dies with it by the same
means.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from tests import warm

#: The module of each target's child process, and what it imports there.
WORKERS = {
    "trackio": ("replayers.trackio_worker", "trackio.sqlite_storage"),
    "wandb": ("replayers.wandb_worker", warm.WANDB),
}
_LENGTH = struct.Struct(">I")


def prepared(arguments: list[str]) -> int:
    """Run ``eventlog ARGUMENT ...`` with the child of its target, which is named first, begun."""
    from eventlog.cli.main import run

    worker, *rest = arguments
    prepare(worker)
    return run(rest)


def prepare(name: str) -> int:
    """Fork the child of a target's kind, and have the target find it instead of starting one;
    return its process id.
    """
    parts = {"trackio": "replayers.trackio_local", "wandb": "replayers.wandb_child"}
    spare = Spare(importlib.import_module(WORKERS[name][0]))
    importlib.import_module(parts[name]).subprocess = _Subprocess(spare)  # type: ignore[attr-defined]
    return spare.pid


class Spare:
    """A process that has begun to be a child; as far as it goes, a `subprocess.Popen`."""

    def __init__(self, module: ModuleType) -> None:
        self.returncode: int | None = None
        parent = os.getpid()
        requests, write = os.pipe()
        read, answers = os.pipe()
        self.file = str(module.__file__)
        self.pid = os.fork()
        if not self.pid:
            for fd in (write, read):
                os.close(fd)
            try:
                self._begin(module, parent, requests, answers)
            finally:
                os._exit(1)
        for fd in (requests, answers):
            os.close(fd)
        self.stdin = os.fdopen(write, "wb", buffering=0)
        self.stdout = os.fdopen(read, "rb", buffering=0)

    def _begin(self, module: ModuleType, parent: int, requests: int, answers: int) -> None:
        size = os.read(requests, _LENGTH.size)
        if not size:
            return
        body = b""
        while len(body) < _LENGTH.unpack(size)[0]:
            body += os.read(requests, _LENGTH.unpack(size)[0] - len(body))
        told = json.loads(body)
        if told["session"]:
            os.setsid()
        os.environ.clear()
        os.environ.update(told["env"])
        os.chdir(told["cwd"])
        for fd, number in ((requests, 0), (answers, 1), (os.open(os.devnull, os.O_RDWR), 2)):
            os.dup2(fd, number)
            os.close(fd)
        look_into(told["env"].get("TRACKIO_DIR"))
        module.main(parent)

    def begin(self, env: dict[str, str], cwd: str | None, *, session: bool) -> Spare:
        """Let it begin, as a process that was just started."""
        body = json.dumps({"env": env, "cwd": cwd or os.getcwd(), "session": session}).encode()
        self.stdin.write(_LENGTH.pack(len(body)) + body)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class _Subprocess:
    """The module `subprocess`, in which one process was started before."""

    def __init__(self, spare: Spare) -> None:
        self._spare: Spare | None = spare

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str], **how: Any) -> Any:
        spare, self._spare = self._spare, None
        if spare is None or command[1] != spare.file:
            return subprocess.Popen(command, **how)
        session = bool(how.get("start_new_session"))
        return spare.begin(how["env"], how.get("cwd"), session=session)


def look_into(folder: str | None) -> None:
    """Have Trackio, which asks for its folder once, look into another one."""
    if folder is None:
        return
    places = {"TRACKIO_DIR": "", "MEDIA_DIR": "media", "ARTIFACTS_DIR": "artifacts"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        for constant, below in places.items():
            if hasattr(sys.modules[name], constant):
                setattr(sys.modules[name], constant, Path(folder, below))
