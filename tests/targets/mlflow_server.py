"""Real MLflow tracking servers on loopback, over SQLite or PostgreSQL, that a test may kill."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_START_TIMEOUT = 120.0


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_database(path: Path, factory: pytest.TempPathFactory) -> None:
    """Put an empty MLflow database there: a copy of one that the session makes once."""
    shared = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    copy_empty(path, shared)


def copy_empty(path: Path, shared: Path) -> None:
    """Put a copy of the empty MLflow database of a folder there. It is made once, in a process of
    its own, because the migrations take MLflow many seconds.
    """
    made = shared / "mlflow-empty.db"
    with (shared / "mlflow-empty.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            code = (
                "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore; "
                "SqlAlchemyStore(sys.argv[1], sys.argv[2])"
            )
            unfinished = shared / "mlflow-unfinished.db"
            warm.python(
                code,
                f"sqlite:///{unfinished}",
                shared.as_uri(),
                imports=warm.MLFLOW,
                env={**os.environ, **_QUIET},
            ).check_returncode()
            unfinished.rename(made)
    shutil.copy(made, path)


#: `mlflow server` in a fork: what it would start besides, uvicorn with one worker, it becomes.
_SERVE = """
import os, sys
import mlflow.server
from mlflow.cli import cli

def become(command, *, extra_env=None, **how):
    os.environ.update(extra_env or {})
    if command[1:3] != ["-m", "uvicorn"]:
        os.execvp(command[0], command)
    from uvicorn.main import main
    main(command[3:], prog_name="uvicorn")

mlflow.server._exec_cmd = become
cli(sys.argv[1:], prog_name="mlflow")
"""


class MlflowServer:
    """One ``mlflow server`` with one worker; `start` and `kill` can alternate.

    It is a fork of a process that has imported MLflow, which takes 10 seconds of the processor in
    a ``cold`` one.
    """

    def __init__(self, folder: Path, store: str, *, cold: bool = False) -> None:
        self.folder = folder
        self.store = store
        self.cold = cold
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | warm.Process | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        options += ["--backend-store-uri", self.store]
        options += ["--artifacts-destination", str(self.folder / "artifacts")]
        env = {**os.environ, **_QUIET}
        with (self.folder / "server.log").open("ab") as log:
            self._process = (
                subprocess.Popen(
                    [sys.executable, "-m", "mlflow", *options],
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=env,
                    start_new_session=True,
                )
                if self.cold
                else warm.start_python(
                    _SERVE,
                    *options,
                    imports=warm.MLFLOW,
                    log=log,
                    cwd=self.folder,
                    env=env,
                )
            )
        self._wait()

    def kill(self) -> None:
        """SIGKILL the server and its worker, as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(self.uri + "/health", timeout=2).close()
                return
            time.sleep(0.05)
        log = (self.folder / "server.log").read_text(errors="replace")[-3000:]
        self.kill()
        raise RuntimeError(f"the MLflow server did not start:\n{log}")


def postgresql_binaries() -> str | None:
    """Return the folder of PostgreSQL's server programs, None if they are not installed."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    on_path = shutil.which("initdb")
    path = found[-1] if found else on_path
    return None if path is None else os.path.dirname(path)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL of one's own; yield the SQLAlchemy address of its database.

    The server refuses to run as root: then it runs as the user ``postgres``.
    """
    programs = postgresql_binaries()
    assert programs is not None
    folder, port = tempfile.mkdtemp(prefix="eventlog-postgresql-"), free_port()
    data = os.path.join(folder, "data")
    become: dict[str, str] = {}
    if os.getuid() == 0:
        become = {"user": "postgres"}
        shutil.chown(folder, "postgres")
    make = [f"{programs}/initdb", "-D", data, "-U", "eventlog", "-A", "trust"]
    subprocess.run(
        [*make, "-E", "UTF8", "--no-sync"], check=True, capture_output=True, cwd="/", **become
    )
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-c", "fsync=off"]
    server = subprocess.Popen(
        [f"{programs}/postgres", "-D", data, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **become,
    )
    try:
        _wait_for_postgresql(port)
        yield f"postgresql+psycopg2://eventlog@127.0.0.1:{port}/postgres"
    finally:
        stop = [f"{programs}/pg_ctl", "stop", "-D", data, "-m", "immediate"]
        subprocess.run(stop, check=False, capture_output=True, cwd="/", **become)
        server.wait(timeout=180)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_postgresql(port: int) -> None:
    import psycopg2

    end = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            psycopg2.connect(
                host="127.0.0.1", port=port, user="eventlog", dbname="postgres"
            ).close()
            return
        except psycopg2.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
