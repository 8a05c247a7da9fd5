"""What can be asked: the user, projects, runs and their files.

Single fields of a run are cheap or lazy, so that a poll of ``historyLineCount`` stays cheap.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from typing import Any

from .blobs import Artifact
from .blobs import File as StoredFile
from .filters import FilterError, isoformat, select
from .graph import Context, resolver
from .runs import Project, Run

DEFAULT_PAGE = 50


def connection(items: Sequence[Any], after: str | None = None, first: int | None = None) -> Any:
    """A page of items; a cursor is the number of items up to and with its own."""
    start = int(after) if after and after.isdecimal() else 0
    page = items[start : start + (DEFAULT_PAGE if first is None else first)]
    edges = [{"node": node, "cursor": str(start + i + 1)} for i, node in enumerate(page)]
    end = start + len(page)
    info = {"endCursor": str(end) if page else None, "hasNextPage": end < len(items)}
    return {"edges": edges, "pageInfo": info}


def user(context: Context) -> dict[str, Any]:
    """The one user there is, named like the default entity."""
    name = context.default_entity
    return {
        "id": "VXNlcjox",
        "name": name,
        "username": name,
        "email": f"{name}@localhost",
        "admin": False,
        "entity": name,
        "flags": "{}",
        "teams": {"edges": []},
        "apiKeys": {"edges": []},
    }


def entity(name: str) -> dict[str, Any]:
    """An entity; every name is one."""
    return {"id": f"Entity:{name}", "name": name, "xxhashDigestsEnabled": False}


@resolver("Query", "viewer")
@resolver("Project", "user")
@resolver("Run", "user")
def _user(_: object, context: Context) -> Any:
    return user(context)


@resolver("Query", "serverInfo")
def _server_info(_: object, __: Context) -> Any:
    return {"features": []}


@resolver("Query", "entity")
def _entity(_: object, context: Context, name: str | None = None) -> Any:
    return entity(name or context.default_entity)


@resolver("Query", "project", "model")
def _project(
    _: object, context: Context, name: str | None = None, entity_name: str | None = None
) -> Any:
    return context.store.runs.project(
        entity_name or context.default_entity, name or "uncategorized"
    )


@resolver("Query", "models")
def _models(_: object, context: Context, entity_name: str | None = None, **page: Any) -> Any:
    projects = context.store.runs.projects(entity_name or context.default_entity)
    return connection(projects, **page)


# Projects


@resolver("Project", "id")
def _project_id(project: Project, _: Context) -> Any:
    return f"Project:{project.id}"


@resolver("Project", "internalId")
def _project_internal_id(project: Project, _: Context) -> Any:
    return project.id


@resolver("Project", "entityName")
def _project_entity_name(project: Project, _: Context) -> Any:
    return project.entity


@resolver("Project", "entity")
def _project_entity(project: Project, _: Context) -> Any:
    return entity(project.entity)


@resolver("Project", "createdAt")
def _project_created(project: Project, _: Context) -> Any:
    return isoformat(project.created)


@resolver("Project", "isBenchmark", "readOnly")
@resolver("Run", "readOnly", "stopped")
def _false(_: object, __: Context) -> Any:
    return False


@resolver("Project", "run", "bucket")
def _project_run(project: Project, context: Context, name: str, **__: object) -> Any:
    return context.store.runs.find(project.entity, project.name, name)


@resolver("Project", "runs")
def _project_runs(
    project: Project,
    context: Context,
    filters: str | None = None,
    order: str | None = None,
    **page: Any,
) -> Any:
    runs = context.store.runs.select(project.entity, project.name)
    return connection(select(runs, filters, order), **page)


@resolver("Project", "runCount")
def _run_count(project: Project, context: Context, filters: str | None = None) -> Any:
    runs = context.store.runs.select(project.entity, project.name)
    return len(select(runs, filters, None))


# Runs


@resolver("Run", "id")
def _run_id(run: Run, _: Context) -> Any:
    return run.storage_id


@resolver("Run", "tags")
def _tags(run: Run, _: Context) -> Any:
    return json.loads(run.tags)


@resolver("Run", "group")
def _group(run: Run, _: Context) -> Any:
    return run.group_name


@resolver("Run", "commit")
def _commit(run: Run, _: Context) -> Any:
    return run.commit_sha


@resolver("Run", "sweepName")
def _sweep(run: Run, _: Context) -> Any:
    return run.sweep


@resolver("Run", "createdAt")
def _created(run: Run, _: Context) -> Any:
    return isoformat(run.created)


@resolver("Run", "heartbeatAt")
def _heartbeat(run: Run, _: Context) -> Any:
    return isoformat(run.heartbeat)


@resolver("Run", "project")
def _run_project(run: Run, context: Context) -> Any:
    return context.store.runs.project(run.entity, run.project)


@resolver("Run", "summaryMetrics")
def _summary(run: Run, _: Context) -> Any:
    return run.summary


@resolver("Run", "wandbConfig")
def _wandb_config(run: Run, _: Context, keys: list[str] | None = None) -> Any:
    internal = run.internal_config
    return json.dumps({k: v for k, v in internal.items() if keys is None or k in keys})


# Files


@resolver("Run", "fileCount")
def _file_count(run: Run, context: Context) -> Any:
    return len(context.store.blobs.files(run.owner))


@resolver("Run", "files")
def _files(
    run: Run,
    context: Context,
    names: list[str] | None = None,
    pattern: str | None = None,
    **page: Any,
) -> Any:
    files = context.store.blobs.files(run.owner)
    if names:
        files = [file for file in files if file.name in names]
    if pattern:
        if set(pattern) & set("*?["):
            raise FilterError("patterns know % and _ only")
        glob = pattern.replace("%", "*").replace("_", "?")
        files = [file for file in files if fnmatch.fnmatchcase(file.name, glob)]
    return connection(files, **page)


@resolver("File", "id")
def _file_id(file: StoredFile | dict[str, Any], _: Context) -> Any:
    return file["id"] if isinstance(file, dict) else f"File:{file.owner}:{file.name}"


@resolver("File", "url", "directUrl")
def _file_url(file: StoredFile | dict[str, Any], context: Context, **_: object) -> Any:
    if isinstance(file, dict):
        return file["uploadUrl"]
    return context.links.link(file.owner, file.name)


@resolver("File", "sizeBytes")
def _file_size(file: StoredFile, _: Context) -> Any:
    return file.size


@resolver("File", "updatedAt")
def _file_updated(file: StoredFile, _: Context) -> Any:
    return isoformat(file.updated)


# Artifacts


def artifact_by_id(context: Context, artifact_id: str) -> Artifact:
    """The artifact of a GraphQL id.

    Raises:
        LookupError: there is none.
    """
    number = artifact_id.removeprefix("Artifact:")
    artifact = context.store.blobs.artifact(int(number)) if number.isdecimal() else None
    if artifact is None:
        raise LookupError(f"artifact {artifact_id} not found")
    return artifact


@resolver("Query", "artifact")
def _artifact(_: object, context: Context, wanted: str) -> Any:
    return artifact_by_id(context, wanted)


@resolver("Query", "clientIDMapping")
def _client_id_mapping(_: object, context: Context, client_id: str) -> Any:
    artifact = context.store.blobs.by_client_id(client_id)
    return None if artifact is None else {"serverID": f"Artifact:{artifact.id}"}


@resolver("Project", "artifact")
def _project_artifact(project: Project, context: Context, name: str) -> Any:
    return context.store.blobs.latest(project.id, name.partition(":")[0])


@resolver("Artifact", "artifactType")
def _artifact_type(artifact: Artifact, _: Context) -> Any:
    return {"name": artifact.type}


@resolver("Artifact", "id")
def _artifact_id(artifact: Artifact, _: Context) -> Any:
    return f"Artifact:{artifact.id}"


@resolver("Artifact", "artifactSequence")
def _sequence(artifact: Artifact, context: Context) -> Any:
    latest = context.store.blobs.latest(artifact.project_id, artifact.collection)
    return {"name": artifact.collection, "latestArtifact": latest}


@resolver("Artifact", "currentManifest")
def _current_manifest(artifact: Artifact, context: Context) -> Any:
    return manifest(context, artifact, "wandb_manifest.json")


def manifest(context: Context, artifact: Artifact, name: str) -> dict[str, Any]:
    """An artifact's list of contents, which is itself a file of the artifact."""
    return {
        "id": f"Manifest:{artifact.id}:{name}",
        "file": upload(context, artifact.owner, name),
    }


def upload(context: Context, owner: str, name: str, **more: object) -> dict[str, Any]:
    """A file that is to be uploaded."""
    url = context.links.link(owner, name)
    return {
        "id": f"File:{owner}:{name}",
        "name": name,
        "uploadUrl": url,
        "uploadHeaders": [],
        "storagePath": f"{owner}/{name}",
        **more,
    }
