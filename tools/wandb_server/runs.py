"""Projects and runs.

A run is known by (entity, project, name), where ``name`` is what users call its id. Projects and
entities come into being with their first run. States: ``running`` from the moment a client
announces the run or streams to it, ``finished`` or ``failed`` once a stream said it is complete,
``preempting`` and ``preempted`` likewise. Nothing is ever marked ``crashed`` for being silent:
tests must not depend on a clock.
"""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

from .database import Database, Value


@dataclass(frozen=True)
class Project:
    """A named set of runs of one entity."""

    id: int
    entity: str
    name: str
    created: float


@dataclass(frozen=True)
class Run:
    """One run, without its lines. ``config``, ``summary`` and ``tags`` are JSON text."""

    id: int
    entity: str
    project: str
    project_id: int
    name: str
    display_name: str | None
    description: str | None
    notes: str | None
    group_name: str | None
    job_type: str | None
    commit_sha: str | None
    host: str | None
    program: str | None
    sweep: str | None
    config: str
    summary: str
    tags: str
    state: str
    complete: int
    exit_code: int | None
    created: float
    heartbeat: float
    overwrites: int
    overwrites_changed: int
    overwrites_changed_exactly: int

    @property
    def storage_id(self) -> str:
        """The opaque id under which GraphQL knows the run."""
        return base64.b64encode(f"Run:{self.id}".encode()).decode()

    @property
    def owner(self) -> str:
        """The owner of its files among the blobs."""
        return f"run-{self.id}"

    @property
    def internal_config(self) -> dict[str, object]:
        """What the client noted about itself: the value of the config key ``_wandb``."""
        entry = json.loads(self.config).get("_wandb")
        value = entry.get("value") if isinstance(entry, dict) else None
        return value if isinstance(value, dict) else {}


SELECT = (
    "SELECT run.*, project.entity AS entity, project.name AS project "
    "FROM run JOIN project ON project.id = run.project_id "
)
CHANGEABLE = frozenset(field.name for field in fields(Run)) - {
    "id", "entity", "project", "project_id", "name", "created",
}  # fmt: skip


def _run(row: sqlite3.Row | None) -> Run | None:
    return None if row is None else Run(**dict(row))


class Runs:
    """The table of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def project(self, entity: str, name: str) -> Project | None:
        """A project that has, or had, a run."""
        row = self._database.row(
            "SELECT * FROM project WHERE entity = ? AND name = ?", (entity, name)
        )
        return None if row is None else Project(**dict(row))

    def projects(self, entity: str) -> list[Project]:
        """The projects of an entity, by name."""
        rows = self._database.rows(
            "SELECT * FROM project WHERE entity = ? ORDER BY name", (entity,)
        )
        return [Project(**dict(row)) for row in rows]

    def find(self, entity: str, project: str, name: str) -> Run | None:
        """The run of that name."""
        where = "WHERE project.entity = ? AND project.name = ? AND run.name = ?"
        return _run(self._database.row(SELECT + where, (entity, project, name)))

    def by_storage_id(self, storage_id: str) -> Run | None:
        """The run of that opaque id."""
        try:
            kind, _, number = base64.b64decode(storage_id, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if kind != "Run" or not number.isdecimal():
            return None
        return self.by_number(int(number))

    def by_number(self, run_id: int) -> Run | None:
        """The run of that row."""
        return _run(self._database.row(SELECT + "WHERE run.id = ?", (run_id,)))

    def select(
        self, entity: str | None = None, project: str | None = None, name: str | None = None
    ) -> list[Run]:
        """Runs by what is given of their path, oldest first."""
        where = (
            "WHERE (?1 IS NULL OR project.entity = ?1) AND (?2 IS NULL OR project.name = ?2) "
            "AND (?3 IS NULL OR run.name = ?3) ORDER BY run.id"
        )
        rows = self._database.rows(SELECT + where, (entity, project, name))
        return [Run(**dict(row)) for row in rows]

    def create(self, entity: str, project: str, name: str) -> tuple[Run, bool]:
        """The run of that name and whether it was made just now."""
        with self._database.transaction():
            known = self.find(entity, project, name)
            if known is not None:
                return known, False
            now = time.time()
            self._database.execute(
                "INSERT OR IGNORE INTO project (entity, name, created) VALUES (?, ?, ?)",
                (entity, project, now),
            )
            self._database.execute(
                "INSERT INTO run (project_id, name, display_name, created, heartbeat) "
                "SELECT id, ?, ?, ?, ? FROM project WHERE entity = ? AND name = ?",
                (name, name, now, now, entity, project),
            )
            made = self.find(entity, project, name)
            assert made is not None
            return made, True

    def change(self, run_id: int, values: Mapping[str, Value]) -> None:
        """Set columns of a run.

        Raises:
            KeyError: a column that does not exist or never changes.
        """
        if unknown := set(values) - CHANGEABLE:
            raise KeyError(f"no such column of a run: {', '.join(sorted(unknown))}")
        settings = ", ".join(f"{column} = ?" for column in values)
        self._database.execute(
            f"UPDATE run SET {settings} WHERE id = ?",
            (*values.values(), run_id),
        )

    def delete(self, run_id: int) -> None:
        """Remove a run with all that belongs to it; its name is free again."""
        with self._database.transaction():
            self._database.execute("DELETE FROM blob WHERE owner = ?", (f"run-{run_id}",))
            self._database.execute("DELETE FROM run WHERE id = ?", (run_id,))
