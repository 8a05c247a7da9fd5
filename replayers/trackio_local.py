"""A local Trackio folder: reads through SQLite, read-only; writes through a child process.

Both sides ask the database anew each time: nothing is cached, no connection is kept.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eventlog.errors import EventlogError, IntegrityError, UsageError
from replayers.pipe import talk
from replayers.target import Retry
from replayers.trackio_store import RefusedError

_WORKER = Path(__file__).with_name("trackio_worker.py")
_PAGE = 2000
#: Variables that would send Trackio elsewhere than into the folder, or onto the network.
_KEPT = ("TRACKIO_SQLITE_", "TRACKIO_TRACE_SESSIONS_DIR")
_DROPPED = ("TRACKIO_", "SPACE_", "HF_TOKEN")


class LocalStore:
    """The projects in one Trackio folder.

    Parameters
    ----------
    folder:
        What Trackio calls ``TRACKIO_DIR``; made when it is missing.
    patience:
        Seconds to wait for a lock before `Retry`.
    deadline:
        Seconds after which a child that gives no answer is taken for stuck.

    Raises
    ------
    UsageError
        If the folder cannot be made or written.
    """

    keeps_time = True
    can_adopt = True

    def __init__(self, folder: str, *, patience: float = 5.0, deadline: float = 180.0) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._patience = patience
        self._deadline = deadline
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the Trackio folder cannot be made ({error.strerror})", on=self.folder
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UsageError(
                "the Trackio folder cannot be written", on=self.folder, hint="check its permissions"
            )

    # -------------------------------------------------------------------- reading

    def query(self, project: str, sql: str, args: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query; none if the project or its tables are not there yet.

        Raises
        ------
        Retry
            If somebody else holds the database.
        IntegrityError
            If the file is no database.
        """
        path = self.folder / f"{project}.db"
        if not path.exists():
            return
        try:
            yield from self._rows(path, sql, args)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return
            # "readonly": somebody was killed in the middle of a transaction, and what is left of it
            # is rolled back by the next one who may write, which a reader here may not.
            if not any(text in str(error) for text in ("no such column", "readonly database")):
                raise Retry(f"Trackio's database cannot be read now ({error})", on=path) from error
            yield from self._healed(project, path, sql, args)
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"this is no whole database ({error})", on=path) from error

    def _healed(
        self, project: str, path: Path, sql: str, args: Sequence[Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Have Trackio open it for writing and complete its tables, and ask again.

        It makes them without a transaction: one that is killed meanwhile leaves a part of them.
        """
        self._ask(json.dumps({"op": "prepare", "project": project}).encode())
        try:
            yield from self._rows(path, sql, args)
        except sqlite3.OperationalError as error:
            if "no such" not in str(error):
                raise Retry(f"Trackio's database cannot be read now ({error})", on=path) from error
            raise IntegrityError(
                f"this database is not of a Trackio that is known here ({error})",
                on=path,
                hint="sync into another folder",
            ) from error

    def _rows(self, path: Path, sql: str, args: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        uri = path.as_uri() + "?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=self._patience)
        try:
            cursor = connection.execute(sql, args)
            while page := cursor.fetchmany(_PAGE):
                yield from page
        finally:
            connection.close()

    # -------------------------------------------------------------------- writing

    def write(
        self,
        project: str,
        run: str,
        run_id: str,
        rows: list[str],
        config: str | None,
        *,
        adopt: bool = False,
    ) -> None:
        """Store rows, each the JSON text of ``[log id, step, timestamp, metrics]``, and a config.

        Raises
        ------
        Retry
            If a lock is held, the disk is full, or the child died: nobody knows what was stored.
        RefusedError
            If Trackio will not take these rows; none of them was stored.
        UsageError
            If there is no Trackio that can be used.
        """
        head: dict[str, Any] = {"op": "write", "project": project, "run": run, "run_id": run_id}
        head |= {"adopt": adopt, "patience": self._patience}
        text = json.dumps(head)[:-1] + f', "config": {config or "null"}, "rows": ['
        self._ask("".join((text, ",".join(rows), "]}")).encode())

    def delete(self, project: str, run_id: str) -> None:
        """Delete a run, in one transaction.

        Raises
        ------
        Retry
            If a lock is held, or the child died: nobody knows whether it was deleted.
        UsageError
            If there is no Trackio that can be used.
        """
        request = {"op": "delete", "project": project, "run_id": run_id, "patience": self._patience}
        self._ask(json.dumps(request).encode(), "delete the run")

    def check(self) -> str:
        """Return Trackio's version. Raises `UsageError` if there is none that can be used."""
        return str(self._ask(b'{"op": "hello"}'))

    def _ask(self, request: bytes, doing: str = "store a batch") -> Any:
        with self._lock:
            reply = self._exchange(request)
        error, what = reply.get("error"), reply.get("what", "")
        if error is None:
            return reply.get("ok")
        if error == "busy":
            raise Retry(f"Trackio could not {doing} now ({what})", on=self.folder)
        if error == "refused":
            raise RefusedError(f"Trackio refused rows ({what})", on=self.folder)
        if error == "missing":
            raise UsageError(
                f"Trackio cannot be used ({what})",
                hint="pip install 'eventlog-journal[trackio]'; an old Trackio may need "
                "'huggingface_hub<1.32'",
            )
        raise EventlogError(f"Trackio failed to {doing} ({what})", on=self.folder)

    def _exchange(self, request: bytes) -> dict[str, Any]:
        """Send a request and wait for the answer, with a new child if the last one has died.

        A request may be sent twice: storing and deleting are idempotent.
        """
        for attempt in (1, 2):
            child = self._started()
            try:
                return talk(child, request, time.monotonic() + self._deadline)
            except (BrokenPipeError, EOFError, TimeoutError, ValueError) as error:
                self._stop()
                if attempt == 2 or isinstance(error, TimeoutError):
                    raise Retry(
                        "the process that writes into Trackio "
                        + ("gave no answer" if isinstance(error, TimeoutError) else "died"),
                        on=self.folder,
                    ) from error
        raise AssertionError("unreachable")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        self._child = subprocess.Popen(
            [sys.executable, str(_WORKER), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(self.folder),
            bufsize=0,
        )
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        return self._child

    @property
    def child(self) -> int | None:
        """The process id of the child, if there is one now."""
        return None if self._child is None else self._child.pid

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        try:
            child.wait(timeout=0.5)  # it may be in the middle of a batch: that is safe to cut
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def close(self) -> None:
        """End the child. The store can be used again afterwards."""
        with self._lock:
            self._stop()


def _environment(folder: Path) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(_KEPT) or not key.startswith(_DROPPED)
    }
    if kept.get("SYSTEM") == "spaces":
        del kept["SYSTEM"]
    return kept | {
        "TRACKIO_DIR": str(folder),
        "TRACKIO_SQLITE_SYNCHRONOUS": "FULL",
        "TRACKIO_STORAGE_MODE": "sqlite",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
