"""The child process that alone imports wandb.

wandb keeps its state in module globals, prints, and starts a process of its own (wandb-core); so
it lives in a child that may be killed at any time. The parent starts this file by its path (it
imports nothing of this project), in a session of its own, and speaks with it in frames over stdin
and stdout: four bytes, the length, big-endian; then that many bytes of JSON, in which floats that
are not finite are Python's ``NaN`` and ``Infinity``.

A request is ``{"op": name, ...}`` and calls the method of `Worker` of that name; the answer has
either ``ok`` or ``error``, one of

* ``missing``: wandb cannot be imported;
* ``unauthorised``: there is no key, or the server refused it;
* ``down``: nothing answers at the server's address;
* ``failed``: everything else; nobody knows what was stored.

When stdin ends, or its parent dies, it kills its whole process group, wandb-core included: that
one, left alone, may outlive everybody.
"""

from __future__ import annotations

import sys

if sys.path and __name__ == "__main__":
    del sys.path[0]  # this folder's module names are nobody's top-level modules

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct(">I")
#: Seconds after which a server that lets nobody connect is called down.
_CONNECT = 3.0
#: Operations in which wandb waits for the server, without an end of its own; how often it is
#: looked after meanwhile, in seconds, and how many times in a row it may not be there.
_PATIENT = frozenset(("start", "finish"))
_WATCH, _MISSES = 1.0, 3
_REFUSED = ("401", "403", "permission", "unauthorized", "forbidden", "api key")

#: One request for all that is asked of a run: cheap, and never from a cache.
_LOOK = """
query EventlogRun($entity: String!, $project: String!, $run: String!) {
  project(name: $project, entityName: $entity) { run(name: $run) {
    id state historyLineCount historyKeys config summaryMetrics tags displayName notes group jobType
  } }
}
"""


class Worker:
    """One run at a time, read and written with the genuine client."""

    def __init__(self) -> None:
        self.base = ""
        self._api: Any = None
        self._run: Any = None
        self._scan: Any = None
        self._path = ("", "", "")

    def hello(self, entity: str, project: str, run: str) -> dict[str, Any]:
        """Find the server, check the key; returns the names the run has there."""
        # Before the import, which takes a second: a server that is down is said at once.
        _knock(os.environ.get("WANDB_BASE_URL", ""))
        import wandb

        # Reads must fail in seconds: waiting is the parent's business.
        settings = wandb.Settings(
            silent=True, x_graphql_retry_max=2, x_graphql_retry_wait_min_seconds=0.2,
            x_graphql_retry_wait_max_seconds=1, x_graphql_timeout_seconds=20,
        )  # fmt: skip
        self.base = base = wandb.setup(settings=settings).settings.base_url
        _knock(base)
        if self._api is None:
            self._api = wandb.Api(timeout=20)
        self._path = (entity or self._api.default_entity or "", project, run)
        return {"entity": self._path[0], "base": base}

    def look(self) -> dict[str, Any] | None:
        """Return what the server has of the run now; None if it does not know it."""
        _knock(self.base)
        names = dict(zip(("entity", "project", "run"), self._path, strict=True))
        answer = self._api._service_api.execute_graphql(_LOOK, names)
        found = (answer.get("project") or {}).get("run")
        if not found:
            return None
        config = json.loads(found["config"] or "{}")
        return {
            "state": found["state"],
            "count": found["historyLineCount"] or 0,
            "last_step": (found["historyKeys"] or {}).get("lastStep", -1),
            "config": {k: v.get("value") if isinstance(v, dict) else v for k, v in config.items()},
            "summary": json.loads(found["summaryMetrics"] or "{}"),
            "tags": found["tags"] or [],
        }

    def scan(self, first: int, stop: int) -> None:
        """Begin to read the history rows with ``first <= _step < stop``."""
        from wandb.apis.public import HistoryScan

        run = _Named(*self._path)
        # A cache of exported rows could show a state that is gone.
        self._scan = HistoryScan(
            run, service_api=self._api._service_api, min_step=first, max_step=stop, use_cache=False
        )

    def rows(self, most: int) -> list[dict[str, Any]]:
        """Return the next rows of the scan; none at its end."""
        found: list[dict[str, Any]] = []
        while len(found) < most and (row := next(self._scan, None)) is not None:
            found.append(row)  # never by a for loop, which would begin anew
        return found

    def start(
        self,
        config: dict[str, Any],
        definitions: list[dict[str, Any]],
        more: dict[str, Any],
        final: bool,
    ) -> int:
        """Begin to write; returns the step of the next row."""
        import wandb

        settings = wandb.Settings(
            mode="online", console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
            x_skip_transaction_log=True, x_file_stream_transmit_interval=1,
            x_file_stream_retry_wait_min_seconds=1, x_update_finish_state=final, init_timeout=30,
        )  # fmt: skip
        entity, project, run = self._path
        self._run = wandb.init(
            entity=entity or None, project=project, id=run, resume="allow", settings=settings,
            config=config, **more,
        )  # fmt: skip
        for definition in definitions:
            # A name that the client refuses has no charts of its own; its rows are not touched.
            with contextlib.suppress(wandb.Error, TypeError, ValueError):
                self._run.define_metric(**definition)
        return int(self._run.starting_step)

    def log(self, rows: list[tuple[int, dict[str, Any], dict[str, Any], int]]) -> Any:
        """Hand rows to the client: (step, values, tables by key, seq).

        Returns the seq of the first one that it does not take, with the reason; those behind it
        are left out.
        """
        import wandb

        for step, values, tables, seq in rows:
            for key, table in tables.items():
                # Where the client cannot make it a table, the reference in `values` stays.
                with contextlib.suppress(TypeError, ValueError, AssertionError, KeyError):
                    values[key] = wandb.Table(**table, allow_mixed_types=True)
            try:
                self._run.log(values, step=step, commit=True)
            except (TypeError, ValueError) as error:
                return [seq, f"{type(error).__name__}: {error}"[:300]]
        return None

    def update(self, config: dict[str, Any], summary: dict[str, Any]) -> None:
        """Change config and summary."""
        if config:
            self._run.config.update(config, allow_val_change=True)
        if summary:
            self._run.summary.update(summary)

    def finish(self, exit_code: int) -> None:
        """End the run's writing; uploads what waits."""
        run, self._run = self._run, None
        run.finish(exit_code=exit_code)

    def table(self, name: str) -> str:
        """Return the text of one of the run's files."""
        file = self._api.run("/".join(self._path)).file(name)
        with file.download(root=os.environ["WANDB_DIR"], replace=True) as handle:
            return str(handle.read())


class _Named:
    """What HistoryScan wants of a run: its names."""

    def __init__(self, entity: str, project: str, run: str) -> None:
        self.entity, self.project, self.id = entity, project, run


class _DownError(Exception):
    """Nothing listens there."""


def _knock(base: str) -> None:
    """See whether the server, or the proxy before it, takes connections. Raises `_DownError`."""
    if not base:
        return
    url = urllib.parse.urlsplit(base)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT).close()
    except OSError as error:
        raise _DownError(f"{url.hostname}:{port}: {error}") from error


def verdict(error: BaseException) -> str:
    """Return which kind of error this is; see the module's documentation."""
    if isinstance(error, ImportError):
        return "missing"
    if isinstance(error, (_DownError, ConnectionError)):
        return "down"
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "http_status", None)
        if status in (401, 403):
            return "unauthorised"
        cause = cause.__cause__
    name, text = type(error).__name__, str(error).lower()
    if name in ("CommError", "UsageError") and any(word in text for word in _REFUSED):
        return "unauthorised"
    return "down" if name == "AuthenticationError" else "failed"


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked; every error becomes an answer."""
    try:
        return {"ok": getattr(worker, request.pop("op"))(**request)}
    except BaseException as error:
        name = "" if isinstance(error, _DownError) else f"{type(error).__name__}: "
        return {"error": verdict(error), "what": (name + " ".join(str(error).split()))[:500]}


def read_frame(file: BinaryIO) -> Any:
    """Return the next frame's content, or None at the end."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    body = file.read(size)
    return json.loads(body) if len(body) == size else None


def write_frame(file: BinaryIO, content: Any) -> None:
    """Write one frame."""
    body = json.dumps(content).encode()
    file.write(_LENGTH.pack(len(body)) + body)
    file.flush()


def _listen(file: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    """Pass requests on; at the end of stdin the whole group dies, whatever it is doing."""
    try:
        while (request := read_frame(file)) is not None:
            requests.put(request)
    finally:
        _end()


def _end() -> None:
    shutil.rmtree(os.environ["WANDB_DIR"], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """On Linux, end when the parent does, even if somebody else still holds its end of stdin.

    The signal comes when the *thread* that made this process ends, too; then nothing is done.
    """

    def check(*_: object) -> None:
        if os.getppid() != parent:
            _end()

    signal.signal(signal.SIGTERM, check)
    if sys.platform.startswith("linux"):
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    check()


class _Watch:
    """Ends an operation in which wandb would wait for days for a server that is gone.

    It says so to the parent, and then the whole group dies: nothing else ends the operation.
    """

    def __init__(self, answers: BinaryIO, base: str) -> None:
        self._answers, self._base = answers, base
        self._done = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> _Watch:
        if self._base:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        with self._lock:
            self._done.set()

    def _watch(self) -> None:
        missed = 0
        while not self._done.wait(_WATCH):
            try:
                _knock(self._base)
                missed = 0
            except _DownError as error:
                missed += 1
                if missed >= _MISSES:
                    self._give_up(str(error))

    def _give_up(self, what: str) -> None:
        with self._lock:
            if not self._done.is_set():
                write_frame(self._answers, {"error": "down", "what": what})
                _end()


class _InOurGroup(subprocess.Popen):  # type: ignore[type-arg]
    """Starts wandb-core in this process group, which is killed as one, not in one of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["start_new_session"] = False
        super().__init__(*args, **options)


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin, stdout and stderr away from everything that may print or ask."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return requests, answers


def main(parent: int) -> None:
    """Serve one parent, until it goes away."""
    _die_with(parent)
    subprocess.Popen = _InOurGroup  # type: ignore[misc]
    file, answers = _own_pipes()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(file, requests), daemon=True).start()
    worker = Worker()
    while True:
        request = requests.get()
        with _Watch(answers, worker.base if request["op"] in _PATIENT else "") as watch:
            reply = answer(worker, request)
            watch.stop()
        write_frame(answers, reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
