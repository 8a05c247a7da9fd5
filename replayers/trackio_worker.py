"""The child process that writes into a local Trackio folder.

Trackio reads ``TRACKIO_DIR`` once, when it is imported, prints, and leaves threads behind; so it
is imported here and never in the process that replays. The parent starts this file by its path
(it imports nothing of this project) and speaks with it in frames over stdin and stdout: four
bytes, the length, big-endian; then that many bytes of JSON.

Requests are ``{"op": "hello"}``, ``{"op": "prepare", "project": ...}`` (complete the project's
tables), ``{"op": "write", ...}`` and ``{"op": "delete", ...}`` (see `write` and `delete`); an answer
has either ``ok`` or ``error``, one of

* ``missing``: Trackio cannot be imported, or is not of a kind that is known here;
* ``busy``: somebody else holds a lock, or the disk is full: nothing was stored, try later;
* ``refused``: Trackio will not take these rows;
* ``failed``: everything else.

It ends when its stdin does, and on Linux when its parent does.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:
    del sys.path[0]  # this folder's module names are nobody's top-level modules

import contextlib
import errno
import inspect
import io
import json
import signal
import sqlite3
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_WANTED = ("project", "run", "metrics_list", "steps", "timestamps", "config", "log_ids", "run_id")
_LENGTH = struct.Struct(">I")


def main(parent: int) -> None:
    """Serve one parent, until it goes away."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    requests, answers = _own_pipes()
    while (request := read_frame(requests)) is not None:
        write_frame(answers, answer(request))


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere the end of stdin does."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request above
        sys.exit(0)


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout away from everything that may print or ask."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return requests, answers


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


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked; every error becomes an answer."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            if request["op"] == "hello":
                return {"ok": hello()}
            if request["op"] == "prepare":
                from trackio.sqlite_storage import SQLiteStorage

                SQLiteStorage.init_db(request["project"])
                return {"ok": True}
            action = delete if request["op"] == "delete" else write
            action(**{key: value for key, value in request.items() if key != "op"})
        except BaseException as error:
            return {"error": verdict(error), "what": f"{type(error).__name__}: {error}"[:2000]}
    return {"ok": True}


def verdict(error: BaseException) -> str:
    """Return which kind of error this is; see the module's documentation."""
    text = str(error).lower()
    if isinstance(error, (ImportError, _UnknownError)):
        return "missing"
    if isinstance(error, sqlite3.OperationalError):
        busy = ("locked", "busy", "disk", "full", "readonly", "unable to open")
        return "busy" if any(word in text for word in busy) else "failed"
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EIO)
        return "busy" if full or "database lock" in text else "failed"
    if isinstance(error, sqlite3.DatabaseError):
        return "failed"
    return "refused" if isinstance(error, (TypeError, ValueError, RecursionError)) else "failed"


class _UnknownError(Exception):
    """Trackio is there, and lacks what is needed of it."""


def hello() -> str:
    """Return Trackio's version. Raises `ImportError` or `_UnknownError`."""
    _bulk_log()
    import trackio

    return str(getattr(trackio, "__version__", "unknown"))


def _bulk_log() -> Callable[..., None]:
    from trackio.sqlite_storage import SQLiteStorage

    found: Callable[..., None] = SQLiteStorage.bulk_log
    missing = [name for name in _WANTED if name not in inspect.signature(found).parameters]
    if missing:
        raise _UnknownError(f"its SQLiteStorage.bulk_log has no {', '.join(missing)}")
    return found


def write(
    *,
    project: str,
    run: str,
    run_id: str,
    rows: list[list[Any]],
    config: dict[str, Any] | None,
    adopt: bool,
    patience: float,
) -> None:
    """Store rows (log id, step, timestamp, metrics) and config in one transaction.

    `adopt` gives rows of this run that lost their log id (Trackio's rename drops it) theirs back.
    """
    bulk_log = _bulk_log()
    database = os.path.join(os.environ["TRACKIO_DIR"], f"{project}.db")
    if os.path.exists(database):
        _wait_for_lock(database, patience)
        if adopt:
            _adopt(database, run_id, rows)
    if not rows:
        # Trackio stores a config only beside rows. A row without a time violates NOT NULL and is
        # ignored by INSERT OR IGNORE, so that the config is all that is stored.
        rows = [[f"{run_id}:config", 0, None, {}]]
    log_ids, steps, timestamps, metrics = (list(column) for column in zip(*rows, strict=True))
    bulk_log(
        project=project,
        run=run,
        metrics_list=metrics,
        steps=steps,
        timestamps=timestamps,
        config=config,
        log_ids=log_ids,
        run_id=run_id,
    )


def delete(*, project: str, run_id: str, patience: float) -> None:
    """Delete a run in Trackio's own way, which is one transaction."""
    from trackio.sqlite_storage import SQLiteStorage

    if "run_id" not in inspect.signature(SQLiteStorage.delete_run).parameters:
        raise _UnknownError("its SQLiteStorage.delete_run has no run_id")
    database = os.path.join(os.environ["TRACKIO_DIR"], f"{project}.db")
    if not os.path.exists(database):
        return
    _wait_for_lock(database, patience)
    # Without a name nothing else is touched that bears the same one.
    if not SQLiteStorage.delete_run(project, None, run_id=run_id):
        raise sqlite3.OperationalError("Trackio could not delete the run: its database is busy")


def _wait_for_lock(database: str, patience: float) -> None:
    """Fail after `patience` seconds where Trackio itself would wait for 30."""
    connection = sqlite3.connect(database, timeout=patience, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


_ADOPT = """
UPDATE metrics SET log_id = :log_id WHERE id = (
    SELECT min(id) FROM metrics WHERE run_id = :run_id AND log_id IS NULL
    AND timestamp = :timestamp AND step = :step AND CAST(metrics AS TEXT) = :metrics)
AND NOT EXISTS (SELECT 1 FROM metrics WHERE log_id = :log_id)
"""


def _adopt(database: str, run_id: str, rows: list[list[Any]]) -> None:
    import orjson
    from trackio.utils import serialize_values

    connection = sqlite3.connect(database, timeout=5, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for log_id, step, timestamp, metrics in rows:
            stored = {key: value for key, value in metrics.items() if not _is_traces(value)}
            text = orjson.dumps(serialize_values(stored)).decode()
            names = ("log_id", "run_id", "timestamp", "step", "metrics")
            values = (log_id, run_id, timestamp, step, text)
            connection.execute(_ADOPT, dict(zip(names, values, strict=True)))
        connection.execute("COMMIT")
    finally:
        connection.close()


def _is_traces(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and first.get("_type") == "trackio.trace"


if __name__ == "__main__":
    main(int(sys.argv[1]))
