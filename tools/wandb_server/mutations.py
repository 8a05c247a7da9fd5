"""What can be changed.

``upsertBucket`` makes a run or updates one; what it is not given stays as it is. Called with the
names of a run it also brings that run back to ``running``, as a client that resumes expects;
called with the opaque id (the public API editing a finished run) it does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .blobs import Artifact
from .database import Value
from .graph import Context, resolver
from .lines import ALERTS, HISTORY
from .queries import artifact_by_id, connection, manifest, upload
from .runs import Run

COLUMNS = {
    "displayName": "display_name",
    "description": "description",
    "notes": "notes",
    "groupName": "group_name",
    "jobType": "job_type",
    "commit": "commit_sha",
    "host": "host",
    "jobProgram": "program",
    "sweep": "sweep",
    "config": "config",
    "summaryMetrics": "summary",
    "state": "state",
}

Input = Mapping[str, Any]


def _changes(given: Input) -> dict[str, Value]:
    changes: dict[str, Value] = {
        column: given[name] for name, column in COLUMNS.items() if given.get(name) is not None
    }
    for column in ("config", "summary"):
        text = changes.get(column, "{}")
        if not isinstance(text, str) or not isinstance(json.loads(text), dict):
            raise ValueError(f"{column} is not a JSON object in a string")
    if given.get("tags") is not None:
        changes["tags"] = json.dumps(given["tags"])
    return changes


def _run(context: Context, given: Input) -> Run:
    """The run that an input names by entityName, projectName and runName."""
    entity = given.get("entityName") or context.default_entity
    project = given.get("projectName") or "uncategorized"
    run = context.store.runs.find(entity, project, given["runName"])
    if run is None:
        raise LookupError(f"run {entity}/{project}/{given['runName']} not found")
    return run


@resolver("Mutation", "upsertBucket")
def _upsert_bucket(_: object, context: Context, given: Input) -> Any:
    runs = context.store.runs
    changes = _changes(given)
    with context.store.database.transaction():
        if given.get("id") is not None:
            known = runs.by_storage_id(given["id"])
            if known is None:
                raise LookupError(f"run {given['id']} not found")
            run, inserted = known, False
        else:
            if not given.get("name"):
                raise ValueError("a run needs a name or an id")
            entity = given.get("entityName") or context.default_entity
            project = given.get("modelName") or "uncategorized"
            run, inserted = runs.create(entity, project, given["name"])
            changes.setdefault("state", "running")
            changes.update(complete=0, exit_code=None)
        if changes:
            runs.change(run.id, changes)
    return {"bucket": runs.by_number(run.id), "inserted": inserted}


@resolver("Mutation", "rewindRun")
def _rewind_run(_: object, context: Context, given: Input) -> Any:
    if given["metricName"] != "_step":
        raise ValueError("a run can be rewound to a _step only")
    run = _run(context, given)
    with context.store.database.transaction():
        context.store.lines.rewind(run.id, given["metricValue"])
        last = context.store.lines.last(run.id, HISTORY, 2**62)
        summary = "{}" if last is None else last.text
        context.store.runs.change(run.id, {"summary": summary, "state": "running", "complete": 0})
    return {"rewoundRun": context.store.runs.by_number(run.id)}


@resolver("Mutation", "deleteRun")
def _delete_run(_: object, context: Context, given: Input) -> Any:
    run = context.store.runs.by_storage_id(given["id"])
    if run is None:
        raise LookupError(f"run {given['id']} not found")
    context.store.runs.delete(run.id)
    return {"clientMutationId": None}


@resolver("Mutation", "notifyScriptableRunAlert")
def _alert(_: object, context: Context, given: Input) -> Any:
    alert = {name: given.get(name) for name in ("title", "text", "severity")}
    context.store.lines.append(_run(context, given).id, ALERTS, json.dumps(alert))
    return {"success": True}


@resolver("Mutation", "createRunFiles")
def _create_run_files(_: object, context: Context, given: Input) -> Any:
    run = _run(context, given)
    files = [upload(context, run.owner, name) for name in given["files"]]
    return {"runID": run.storage_id, "uploadHeaders": [], "files": files}


@resolver("Mutation", "markRunFilesUploaded")
def _mark_run_files_uploaded(_: object, context: Context, given: Input) -> Any:
    _run(context, given)
    return {"success": True}


@resolver("Mutation", "createArtifact")
def _create_artifact(_: object, context: Context, given: Input) -> Any:
    project = context.store.runs.project(given["entityName"], given["projectName"])
    if project is None:
        raise LookupError(f"project {given['entityName']}/{given['projectName']} not found")
    names = given.get("artifactCollectionNames") or [given.get("artifactCollectionName")]
    draft = Artifact(
        id=0,
        project_id=project.id,
        run_name=given.get("runName"),
        type=given["artifactTypeName"],
        collection=names[0] or "",
        digest=given["digest"],
        client_id=given.get("clientID"),
        metadata=given.get("metadata"),
        state="PENDING",
    )
    return {"artifact": context.store.blobs.create_artifact(draft)}


@resolver("Mutation", "createArtifactManifest")
def _create_manifest(_: object, context: Context, given: Input) -> Any:
    artifact = artifact_by_id(context, given["artifactID"])
    return {"artifactManifest": manifest(context, artifact, given["name"])}


@resolver("Mutation", "updateArtifactManifest")
def _update_manifest(_: object, context: Context, given: Input) -> Any:
    _kind, number, name = str(given["artifactManifestID"]).split(":", 2)
    return {"artifactManifest": manifest(context, artifact_by_id(context, number), name)}


@resolver("Mutation", "createArtifactFiles")
def _create_artifact_files(_: object, context: Context, given: Input) -> Any:
    nodes = []
    for spec in given["artifactFiles"]:
        artifact = artifact_by_id(context, spec["artifactID"])
        nodes.append(upload(context, artifact.owner, spec["name"], artifact=artifact))
    return {"files": connection(nodes, first=len(nodes))}


@resolver("Mutation", "commitArtifact")
def _commit_artifact(_: object, context: Context, given: Input) -> Any:
    artifact = artifact_by_id(context, given["artifactID"])
    context.store.blobs.commit(artifact.id)
    return {"artifact": context.store.blobs.artifact(artifact.id)}
