"""Bytes that were uploaded, and the artifacts that hold some of them.

Every upload goes to an (owner, name): the owner is a run (``run-7``) or an artifact
(``artifact-3``). A file exists once its bytes have arrived; asking for an upload URL makes none.

A logged table is two things to the client: a file ``media/table/…`` of the run, and an artifact of
type ``run_table``. Artifacts are kept only so far that this works: they can be created, filled and
committed, and equal content in one collection is one artifact.
"""

from __future__ import annotations

import hashlib
import mimetypes
import time
from dataclasses import dataclass

from .database import Database

COMMITTED = "COMMITTED"


@dataclass(frozen=True)
class File:
    """An uploaded file, without its bytes. ``size`` in bytes, ``updated`` in epoch seconds."""

    owner: str
    name: str
    md5: str
    size: int
    updated: float

    @property
    def mimetype(self) -> str:
        """Guessed from the name."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"


@dataclass(frozen=True)
class Artifact:
    """One version of one collection."""

    id: int
    project_id: int
    run_name: str | None
    type: str
    collection: str
    digest: str
    client_id: str | None
    metadata: str | None
    state: str

    @property
    def owner(self) -> str:
        """The owner of its files among the blobs."""
        return f"artifact-{self.id}"


class Blobs:
    """The tables of blobs and artifacts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, owner: str, name: str, data: bytes) -> str:
        """Keep bytes, replacing what had that name; returns their MD5 in hex."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO blob (owner, name, md5, size, updated, data) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (owner, name, md5, len(data), time.time(), data),
            )
        return md5

    def data(self, owner: str, name: str) -> bytes | None:
        """The bytes of a file."""
        row = self._database.row(
            "SELECT data FROM blob WHERE owner = ? AND name = ?", (owner, name)
        )
        return None if row is None else bytes(row[0])

    def files(self, owner: str) -> list[File]:
        """The files of an owner by name."""
        rows = self._database.rows(
            "SELECT owner, name, md5, size, updated FROM blob WHERE owner = ? ORDER BY name",
            (owner,),
        )
        return [File(**dict(row)) for row in rows]

    def create_artifact(self, draft: Artifact) -> Artifact:
        """The artifact with the content of ``draft``: the one held already, or a new one."""
        with self._database.transaction():
            held = self._database.row(
                "SELECT * FROM artifact WHERE project_id = ? AND collection = ? AND digest = ? "
                "ORDER BY state = ? DESC, id DESC LIMIT 1",
                (draft.project_id, draft.collection, draft.digest, COMMITTED),
            )
            if held is not None:
                return Artifact(**dict(held))
            made = self._database.execute(
                "INSERT INTO artifact "
                "(project_id, run_name, type, collection, digest, client_id, metadata) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    draft.project_id,
                    draft.run_name,
                    draft.type,
                    draft.collection,
                    draft.digest,
                    draft.client_id,
                    draft.metadata,
                ),
            )
        artifact = self.artifact(made)
        assert artifact is not None
        return artifact

    def artifact(self, artifact_id: int) -> Artifact | None:
        """An artifact by its number."""
        row = self._database.row("SELECT * FROM artifact WHERE id = ?", (artifact_id,))
        return None if row is None else Artifact(**dict(row))

    def by_client_id(self, client_id: str) -> Artifact | None:
        """The artifact that a client made under its own id."""
        row = self._database.row("SELECT * FROM artifact WHERE client_id = ?", (client_id,))
        return None if row is None else Artifact(**dict(row))

    def latest(self, project_id: int, collection: str) -> Artifact | None:
        """The newest committed artifact of a collection."""
        row = self._database.row(
            "SELECT * FROM artifact WHERE project_id = ? AND collection = ? AND state = ? "
            "ORDER BY id DESC LIMIT 1",
            (project_id, collection, COMMITTED),
        )
        return None if row is None else Artifact(**dict(row))

    def commit(self, artifact_id: int) -> None:
        """Mark an artifact as whole."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE artifact SET state = ? WHERE id = ?", (COMMITTED, artifact_id)
            )

    def artifacts(self, project_id: int, run_name: str) -> list[Artifact]:
        """The artifacts that a run made, oldest first."""
        rows = self._database.rows(
            "SELECT * FROM artifact WHERE project_id = ? AND run_name = ? ORDER BY id",
            (project_id, run_name),
        )
        return [Artifact(**dict(row)) for row in rows]
