"""Programs in processes of their own that start warm: the `eventlog` command, and code as one gives
it to ``python -c``.

Each is a fork of a process that has imported what it needs (a third of a second for the command
line, several for MLflow), with its own arguments, variables, folder, files and exit code, in a
process group of its own: it can be killed at any moment, alone or with what it started, and leaves
nothing behind in its parent. Tests of the start itself (a closed pipe) and of the end of the
interpreter start cold.

The processes that are forked from serve all workers of a test session, and end with it.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

TOP = Path(__file__).resolve().parents[1]
SERVER = Path(__file__).with_name("warm_server.py")
#: In the environment of all processes of a session: its first process, and a folder.
SESSION = "WARM_SESSION"

COMMAND = (
    "pandas "  # which pyarrow looks for when it makes its first array
    "pyarrow.parquet eventlog.reader eventlog.cli.main eventlog.cli.commands eventlog.cli.keeping "
    "replayers.sync_command replayers.status_command replayers.diff_command replayers.loop "
    "replayers.plan_report replayers.watch "
    "replayers.to_memory replayers.to_mlflow replayers.to_trackio replayers.to_wandb"
)
#: What brings runs into an MLflow database, reads it or serves it imports besides.
MLFLOW = (
    "mlflow mlflow.store.tracking.sqlalchemy_store mlflow.tracking mlflow.cli "
    "mlflow.server mlflow.server.fastapi_app uvicorn.main"
)
#: Trackio reads its folder from the environment when it is imported: see `warm_server` for "!".
TRACKIO = "trackio! trackio.sqlite_storage!"
WANDB = "httpx wandb wandb.apis.public"
#: Before a module is imported that reads these only then.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "WANDB_ERROR_REPORTING": "false",
}


#: What a command calls with its arguments; it returns the exit code.
CALL = "eventlog.cli.main:run"


def begin() -> None:
    """Begin a session, in its first process."""
    os.environ[SESSION] = f"{os.getpid()} {tempfile.mkdtemp(prefix='eventlog-warm-')}"


def end() -> None:
    """End it, and with it the processes that were forked from."""
    shutil.rmtree(os.environ.pop(SESSION).partition(" ")[2], ignore_errors=True)


class Process:
    """A program that runs; as far as it goes, a `subprocess.Popen` of text."""

    def __init__(
        self, server: _Server, pid: int, out: IO[bytes], err: IO[bytes], stdin: IO[str] | None
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = stdin
        self._server = server
        self._out = out
        self._err = err

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("eventlog", timeout or 0.0)
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM it."""
        self.send_signal(signal.SIGTERM)

    def kill_group(self) -> None:
        """SIGKILL it and what it started, unless it has ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def said(self) -> tuple[str, str]:
        """Return what it has written to stdout and stderr so far."""
        files = [
            os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0) for f in (self._out, self._err)
        ]
        return files[0].decode(errors="replace"), files[1].decode(errors="replace")

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise
        finally:
            if self.stdin is not None:
                self.stdin.close()
        return self.said()


class _Server:
    """The process that is warm and forks."""

    def __init__(self, imports: str) -> None:
        self._lock = threading.RLock()
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._rest = b""
        session, folder = os.environ[SESSION].split(" ", 1)
        name = hashlib.sha256(imports.encode()).hexdigest()[:8]
        path = os.path.join(folder, name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._socket.connect(path)
                return
            except OSError:
                pass
            with open(f"{path}.log", "ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", SERVER.read_text(), path, session, *imports.split()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **QUIET},
                    cwd=TOP,
                    start_new_session=True,
                )
            while True:
                try:
                    self._socket.connect(path)
                    return
                except OSError:
                    assert self._process.poll() is None, Path(f"{path}.log").read_text()
                    time.sleep(0.005)

    def start(self, order: dict[str, Any], files: list[int]) -> int:
        with self._lock:
            line = json.dumps(order).encode() + b"\n"
            sent = socket.send_fds(self._socket, [line], files)
            self._socket.sendall(line[sent:])
            while not self._started:
                self._read(wait=True)
            return self._started.pop()

    def code(self, pid: int) -> int | None:
        with self._lock:
            self._read(wait=False)
            return self._codes.pop(pid, None)

    def _read(self, *, wait: bool) -> None:
        self._socket.setblocking(wait)
        try:
            got = self._socket.recv(65536)
        except BlockingIOError:
            return
        finally:
            self._socket.setblocking(True)
        assert got, "the process that forks has died"
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            first, number = line.split()
            if first == b"started":
                self._started.append(int(number))
            else:
                self._codes[int(first)] = int(number)


_server = functools.lru_cache(maxsize=None)(_Server)


def start(
    arguments: list[str],
    *,
    code: str = "",
    call: str = CALL,
    imports: str = "",
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: bool = False,
    log: IO[bytes] | None = None,
) -> Process:
    """Start ``eventlog ARGUMENT ...``, or have another function called with the arguments.

    ``env`` is its environment and ``cwd`` its folder, by default ours; ``imports`` names what is
    imported besides `COMMAND`; ``stdin=True`` gives it a pipe to read from, and ``log`` takes both
    of its outputs.
    """
    if SESSION not in os.environ:  # no test session: a program of tools/
        begin()
        atexit.register(end)
    out, err = (log, log) if log else (tempfile.TemporaryFile(), tempfile.TemporaryFile())
    given, ours = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), None)
    order = {
        "call": "" if code else call,
        "code": code,
        "arguments": arguments,
        "env": dict(os.environ if env is None else env),
        "cwd": str(cwd or os.getcwd()),
    }
    try:
        server = _server(f"{COMMAND} {imports}")
        pid = server.start(order, [given, out.fileno(), err.fileno()])
    finally:
        os.close(given)
    return Process(server, pid, out, err, None if ours is None else open(ours, "w"))


def run(
    arguments: list[str], *, timeout: float = 120.0, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``eventlog ARGUMENT ...`` to its end; the rest as for `start`."""
    process = start(arguments, **how)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)


def start_python(code: str, *arguments: str, **how: Any) -> Process:
    """Start code as ``python -c`` does; the rest as for `start`."""
    return start(list(arguments), code=code, **how)


def python(code: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run code as ``python -c`` does; the rest as for `run`."""
    return run(list(arguments), code=code, **how)
