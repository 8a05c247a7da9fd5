"""The loopback W&B server as a test uses it: started, told to fail, killed, started again.

``WandbLoopback`` runs ``tools/wandb_server`` in a process of its own on 127.0.0.1, always on the
same port and the same data folder, so that a client survives a restart. ``WandbClient`` runs the
genuine client in a child, whose environment names the server and keeps it out of the user's own
settings.
"""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

from tests import warm

SERVER = Path(__file__).resolve().parents[2] / "tools" / "wandb_server"
KEY = "loopback" * 5
START_SECONDS = 30.0
IMPORTS = "tools.wandb_server.command"
SERVE = "import sys; from tools.wandb_server import command; sys.exit(command.main())"


def client_environment(url: str, folder: Path, key: str = KEY) -> dict[str, str]:
    """The environment of a child in which wandb talks to ``url`` and writes below ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {
        "HOME": str(folder),
        "NO_PROXY": "127.0.0.1",
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": key,
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_DATA_DIR": str(folder / "staging"),
        "WANDB_ERROR_REPORTING": "false",
    }


class WandbLoopback:
    """One server process at a time, over one data folder."""

    def __init__(self, folder: Path, key: str = KEY) -> None:
        """Nothing runs yet; ``folder`` is made when it does."""
        self.folder = folder
        self.key = key
        self.port = 0
        self.clients: list[WandbClient] = []
        self._process: warm.Process | None = None

    @property
    def url(self) -> str:
        """The base URL, once started."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> warm.Process:
        """The server process."""
        assert self._process is not None, "the server was not started"
        return self._process

    def start(self) -> WandbLoopback:
        """Start, or start again on the port it had; returns when it listens."""
        port_file = self.folder / "port"
        self.folder.mkdir(parents=True, exist_ok=True)
        port_file.unlink(missing_ok=True)
        options = ["--port", str(self.port), "--key", self.key]
        options += ["--data", str(self.folder / "data"), "--port-file", str(port_file)]
        self._process = warm.start_python(SERVE, *options, imports=IMPORTS)
        deadline = time.monotonic() + START_SECONDS
        while not port_file.exists():
            assert self._process.poll() is None, self._process.said()[1]
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.005)
        self.port = int(port_file.read_text())
        return self

    def stop(self) -> int:
        """End it as an operator would; returns its exit code."""
        return self._end(signal.SIGTERM)

    def is_dead(self) -> bool:
        """Whether the process that was started has ended."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> int:
        """End it without a chance to do anything."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=180)

    def __enter__(self) -> WandbLoopback:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Make sure that nothing is left running, its clients included."""
        for client in self.clients:
            client.close()
        if self._process is not None:
            self.kill()

    @contextmanager
    def http(self, key: str | None = None) -> Iterator[httpx.Client]:
        """A plain HTTP client with the server's key, or another."""
        auth = ("api", self.key if key is None else key)
        # Nothing is encrypted, and the certificates that a client loads take longer than a request.
        with httpx.Client(
            base_url=self.url, auth=auth, trust_env=False, timeout=180, verify=False
        ) as client:
            yield client

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Execute a GraphQL request; returns the whole answer."""
        with self.http() as client:
            answer = client.post("/graphql", json={"query": query, "variables": variables})
        answer.raise_for_status()
        value: dict[str, Any] = answer.json()
        return value

    def state(self, **which: str) -> dict[str, Any]:
        """The state report, see ``tools/wandb_server/report.py``."""
        with self.http() as client:
            answer = client.get("/_admin/state", params=which)
        answer.raise_for_status()
        value: dict[str, Any] = answer.json()
        return value

    def run(self, name: str) -> dict[str, Any]:
        """The report of the one run of that name, ``rows`` included."""
        (report,) = self.state(run=name)["runs"]
        value: dict[str, Any] = report
        return value

    def fail(self, kind: str, **how: Any) -> int:
        """Put a fault in force, see ``tools/wandb_server/faults.py``; returns its number."""
        with self.http() as client:
            answer = client.post("/_admin/faults", json={"kind": kind, **how})
        assert answer.status_code == 200, answer.text
        (number,) = answer.json()["ids"]
        return int(number)

    def faults(self) -> list[dict[str, Any]]:
        """Every fault not lifted."""
        with self.http() as client:
            value: list[dict[str, Any]] = client.get("/_admin/faults").json()
        return value

    def heal(self) -> None:
        """Lift all faults."""
        with self.http() as client:
            client.delete("/_admin/faults").raise_for_status()


PRELUDE = '''
import json, math, os, sys, threading, time
import httpx, wandb

def settings(**more):
    """Nothing but what makes a short run short."""
    return wandb.Settings(
        console="off", silent=True, disable_git=True, x_disable_stats=True, x_disable_meta=True,
        x_save_requirements=False, x_file_stream_transmit_interval=1,
        x_file_stream_retry_wait_min_seconds=1, **more)

def start(run_id, **more):
    return wandb.init(project="lab-tests", id=run_id, settings=settings(), **more)

def fail(kind, **how):
    auth = ("api", os.environ["WANDB_API_KEY"])
    url = os.environ["WANDB_BASE_URL"] + "/_admin/faults"
    httpx.post(url, auth=auth, json={"kind": kind, **how}, trust_env=False, verify=False).raise_for_status()

def wait_for_rows(run_ids):
    """Wait until the server has rows of each run."""
    auth, url = ("api", os.environ["WANDB_API_KEY"]), os.environ["WANDB_BASE_URL"] + "/_admin/state"
    def there():
        runs = httpx.get(url, auth=auth, trust_env=False, verify=False, timeout=180).json()["runs"]
        return {run["run"] for run in runs if run["history_rows"]}
    while not there() >= set(run_ids):
        time.sleep(0.05)

def wait_for_parent():
    print("ready", flush=True)
    sys.stdin.readline()

def tell(value):
    print(json.dumps(value), flush=True)
'''


class WandbClient:
    """A child process in which the genuine client runs a script after ``PRELUDE``."""

    def __init__(self, server: WandbLoopback, folder: Path, script: str, key: str = KEY) -> None:
        """Start it; it writes below ``folder`` only, and ends with the server at the latest."""
        folder.mkdir(parents=True, exist_ok=True)
        server.clients.append(self)
        self.process = warm.start_python(
            PRELUDE + textwrap.dedent(script),
            imports=warm.WANDB,
            cwd=folder,
            env=client_environment(server.url, folder, key),
            stdin=True,
        )

    def wait_ready(self) -> None:
        """Until the script calls ``wait_for_parent()``."""
        while "ready\n" not in self.process.said()[0]:
            assert self.process.poll() is None, self.errors()
            time.sleep(0.01)

    def go_on(self) -> None:
        """Let the script leave ``wait_for_parent()``."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def told(self, timeout: float = 300.0) -> Any:
        """Wait for the end; returns what the script's one ``tell()`` said.

        Raises:
            AssertionError: it failed; the message has its standard error.
            subprocess.TimeoutExpired: it did not end; it is killed.
        """
        out, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, self.errors()
        return json.loads(out.splitlines()[-1])

    def close(self) -> None:
        """End it if it runs, and close its pipe."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def errors(self) -> str:
        """What it wrote to standard error."""
        return self.process.said()[1]


@pytest.fixture
def wandb_loopback(tmp_path: Path) -> Iterator[WandbLoopback]:
    """A server with an empty store, gone after the test."""
    with WandbLoopback(tmp_path / "wandb-server") as server:
        yield server
