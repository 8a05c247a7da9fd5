"""One SQLite file that survives SIGKILL.

Write-ahead logging with ``synchronous=FULL``: a transaction that has returned is on the disk, so
an answer sent after it is an honest acknowledgement. The file is locked for as long as it is
open: a second server on the same folder is refused, and the kernel frees the lock of a killed one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS project (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    entity TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
    UNIQUE (entity, name)
);
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES project (id), name TEXT NOT NULL,
    display_name TEXT, description TEXT, notes TEXT, group_name TEXT, job_type TEXT,
    commit_sha TEXT, host TEXT, program TEXT, sweep TEXT,
    config TEXT NOT NULL DEFAULT '{}', summary TEXT NOT NULL DEFAULT '{}',
    tags TEXT NOT NULL DEFAULT '[]', state TEXT NOT NULL DEFAULT 'running',
    complete INTEGER NOT NULL DEFAULT 0, exit_code INTEGER,
    created REAL NOT NULL, heartbeat REAL NOT NULL,
    overwrites INTEGER NOT NULL DEFAULT 0,
    overwrites_changed INTEGER NOT NULL DEFAULT 0,
    overwrites_changed_exactly INTEGER NOT NULL DEFAULT 0,
    UNIQUE (project_id, name)
);
CREATE TABLE IF NOT EXISTS line (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE, file TEXT NOT NULL,
    offset INTEGER NOT NULL, step INTEGER, text TEXT NOT NULL,
    UNIQUE (run_id, file, offset)
);
CREATE INDEX IF NOT EXISTS line_by_step ON line (run_id, step) WHERE step IS NOT NULL;
CREATE TABLE IF NOT EXISTS key_count (
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL, type TEXT NOT NULL, count INTEGER NOT NULL,
    UNIQUE (run_id, key, type)
);
CREATE TABLE IF NOT EXISTS blob (
    owner TEXT NOT NULL, name TEXT NOT NULL, md5 TEXT NOT NULL, size INTEGER NOT NULL,
    updated REAL NOT NULL, data BLOB NOT NULL,
    UNIQUE (owner, name)
);
CREATE TABLE IF NOT EXISTS artifact (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES project (id),
    run_name TEXT, type TEXT NOT NULL, collection TEXT NOT NULL, digest TEXT NOT NULL,
    client_id TEXT, metadata TEXT, state TEXT NOT NULL DEFAULT 'PENDING'
);
"""

Value = str | int | float | bytes | None


class Database:
    """The one connection, shared by all threads under one lock."""

    def __init__(self, folder: Path) -> None:
        """Open or create ``folder/wandb.sqlite``.

        Raises:
            OSError: the folder cannot be made, or the file cannot be opened or is in use.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "wandb.sqlite"
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            path, check_same_thread=False, isolation_level=None, timeout=0
        )
        self._connection.row_factory = sqlite3.Row
        try:
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            self._connection.close()
            raise OSError(f"cannot open {path}: {error} (is another server using it?)") from error

    def close(self) -> None:
        """Wait for the transaction under way, then close."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on the disk once the outermost block is left."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors have rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Every row of a query."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Value] = ()) -> sqlite3.Row | None:
        """The first row of a query, if any."""
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return row

    def number(self, sql: str, values: Sequence[Value] = ()) -> int | None:
        """The first column of the first row."""
        row = self.row(sql, values)
        return None if row is None else row[0]

    def execute(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Change something; returns the id of the row last inserted."""
        with self._lock:
            return self._connection.execute(sql, values).lastrowid or 0

    def execute_many(self, sql: str, values: Iterable[Sequence[Value]]) -> None:
        """The same change for many values."""
        with self._lock:
            self._connection.executemany(sql, values)
