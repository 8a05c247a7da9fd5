"""The `eventlog` command in processes of their own that start warm.

Each command is a fork of a process that has imported what it needs (a third of a second for the
command line, several for MLflow), with its own arguments, variables, folder, output and exit code,
in a process group of its own: it can be killed at any moment, alone or with what it started, and
leaves nothing behind in its parent. Tests of the start itself (the README's commands, a closed
pipe) start cold.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

#: (pandas is what pyarrow looks for when it makes its first array: half a second where it is installed)
COMMAND = (
    "pandas "
    "pyarrow.parquet eventlog.reader eventlog.cli.main eventlog.cli.commands eventlog.cli.keeping "
    "replayers.sync_command replayers.status_command replayers.diff_command replayers.loop "
    "replayers.plan_report replayers.watch "
    "replayers.to_memory replayers.to_mlflow replayers.to_trackio replayers.to_wandb"
)
#: What a command that brings runs into an MLflow database imports besides.
MLFLOW = "mlflow.store.tracking.sqlalchemy_store"

#: What a command calls with its arguments; it returns the exit code.
CALL = "eventlog.cli.main:run"
ROOT = Path(__file__).resolve().parents[1]

_SERVER = """
import importlib, json, os, select, signal, sys
sys.path[0] = sys.argv[2]
for name in sys.argv[1].split():
    importlib.import_module(name)

def child(order):
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["eventlog", *order["arguments"]]
    code = 1
    try:
        module, name = order["call"].split(":")
        code = getattr(importlib.import_module(module), name)(order["arguments"])
    except BaseException:
        import traceback
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, lambda *_: None)
ended, wake = os.pipe()
for end in (ended, wake):
    os.set_blocking(end, False)
signal.set_wakeup_fd(wake)
rest = b""
while True:
    ready, _, _ = select.select([0, ended], [], [])
    if ended in ready:
        os.read(ended, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            os.write(1, b"%d %d\\n" % (pid, os.waitstatus_to_exitcode(status)))
    if 0 in ready:
        got = os.read(0, 1 << 20)
        if not got:
            break
        *lines, rest = (rest + got).split(b"\\n")
        for line in lines:
            pid = os.fork()
            if not pid:
                child(json.loads(line))
            os.setpgid(pid, pid)
            os.write(1, b"started %d\\n" % pid)
"""


class Process:
    """One command that runs; as far as it goes, a `subprocess.Popen` of text."""

    def __init__(self, server: _Server, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
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

    def kill_group(self) -> None:
        """SIGKILL it and what it started, unless it has ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise
        return self._out.read_text(errors="replace"), self._err.read_text(errors="replace")


class _Server:
    """The process that is warm and forks."""

    def __init__(self, imports: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="eventlog-warm-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, imports, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._codes: dict[int, int] = {}
        self._started: list[int] = []
        self._rest = b""
        self._count = 0

    def start(self, call: str, arguments: list[str], env: dict[str, str], cwd: str) -> Process:
        self._count += 1
        out, err = (Path(self._folder.name, f"{self._count}.{name}") for name in ("out", "err"))
        for path in (out, err):
            path.touch()
        order: dict[str, Any] = {"call": call, "arguments": arguments, "env": env, "cwd": cwd}
        line = json.dumps(order | {"out": str(out), "err": str(err)}) + "\n"
        self._stream(self._process.stdin).write(line.encode())
        while not self._started:
            self._read(wait=True)
        return Process(self, self._started.pop(), out, err)

    def code(self, pid: int) -> int | None:
        self._read(wait=False)
        return self._codes.pop(pid, None)

    def _read(self, *, wait: bool) -> None:
        stream = self._stream(self._process.stdout)
        os.set_blocking(stream.fileno(), wait)
        got = stream.read(65536)
        if got is None:
            return
        assert got, "the process that forks has died"
        *lines, self._rest = (self._rest + got).split(b"\n")
        for line in lines:
            first, number = line.split()
            if first == b"started":
                self._started.append(int(number))
            else:
                self._codes[int(first)] = int(number)

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream


_server = functools.lru_cache(maxsize=None)(_Server)


def start(
    arguments: list[str],
    *,
    env: dict[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    imports: str = "",
    call: str = CALL,
) -> Process:
    """Start ``eventlog ARGUMENT ...``, or have another function called with the arguments."""
    server = _server(f"{COMMAND} {imports}")
    return server.start(
        call, arguments, dict(os.environ if env is None else env), str(cwd or os.getcwd())
    )


def run(
    arguments: list[str], *, timeout: float = 120.0, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``eventlog ARGUMENT ...`` to its end; the rest as for `start`."""
    process = start(arguments, **how)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(arguments, process.wait(), out, err)
