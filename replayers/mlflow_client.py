"""One MLflow tracking store, over REST or in this process: what a replayer needs of it, no more.

Every call is one request or one set of transactions, never repeated in secret: MLflow's own client
splits big batches, retries a POST whose answer was lost (which for a new run makes two), and cuts
long values without a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from eventlog.errors import EventlogError, UsageError
from replayers.mlflow_map import Point
from replayers.target import Down, Retry, Unauthorised

#: The largest page of a metric's history that servers give.
PAGE = 25_000
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SECRET = re.compile(r"(?i)((?:token|password|passwd|pwd|secret|api_?key|access_?key)=)[^&\s'\"]+")
_USERINFO = re.compile(r"//[^/@\s'\"]+@")


class Failure(Exception):
    """A request failed: HTTP `status` (0: no answer), MLflow's `code`, and what it said."""

    def __init__(self, status: int, code: str, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.after = after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 408, 429) or self.status >= 500


@dataclasses.dataclass(frozen=True)
class RunView:
    """A run as the store shows it. `latest` is each metric's last point: (step, ms)."""

    id: str
    experiment: str
    name: str
    status: str
    ended: int | None
    active: bool
    tags: Mapping[str, str]
    params: Mapping[str, str]
    latest: Mapping[str, tuple[int, int]]


class Api(Protocol):
    """A tracking store. Every method raises `Failure`."""

    def experiment(self, name: str) -> tuple[str, bool] | None:
        """Return the id of the experiment of that name, and whether it is active."""

    def create_experiment(self, name: str) -> str:
        """Create an experiment; return its id."""

    def experiments(self) -> list[str]:
        """Return the ids of all experiments, deleted ones too."""

    def search(self, experiments: Sequence[str], where: str) -> list[RunView]:
        """Return the runs for which a filter holds, deleted ones too."""

    def run(self, run: str) -> RunView | None:
        """Return one run, None if there is none of that id."""

    def create_run(
        self, experiment: str, start: int, user: str, name: str, tags: Mapping[str, str]
    ) -> RunView:
        """Create a run. Not idempotent: after an error, search before creating again."""

    def log(
        self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Store a batch in one request: all its points or none, its tags strictly after them."""

    def update(self, run: str, status: str, ended: int | None) -> None:
        """Set how a run stands."""

    def delete(self, run: str) -> None:
        """Delete a run; it can be restored."""

    def history(self, run: str, name: str) -> Iterator[list[tuple[int, int, float]]]:
        """Yield every point of a metric in pages of (step, ms, value)."""

    def put(self, run: str, folder: str, file: str, content: bytes) -> None:
        """Write an artifact, over an older one of that name."""

    def files(self, run: str, folder: str) -> set[str]:
        """Return the names of the artifacts and folders in a folder of artifacts."""

    def close(self) -> None:
        """Let go of connections."""


def checked(uri: str) -> str:
    """Return a tracking uri with an absolute path, if it is of a kind that can be a target.

    Raises
    ------
    UsageError
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"this address makes no sense ({error})", on=masked(uri)) from None
    kind = parts.scheme.split("+")[0]
    if kind in ("http", "https") and parts.hostname:
        return uri.rstrip("/")
    if kind == "sqlite" and uri.startswith("sqlite:///"):
        path = uri[len("sqlite:///") :]
        if path and ":memory:" not in path:
            return "sqlite:///" + os.path.abspath(path)
    elif kind in _DATABASES and parts.hostname:
        return uri
    if kind == "databricks" or (kind == "" and uri.startswith("databricks")):
        raise UsageError(
            "Databricks is no target yet: it appends a metric that is sent twice, so that "
            "exactly-once delivery needs more than its interface was tested for",
            on=masked(uri),
        )
    if kind in ("", "file"):
        raise UsageError(
            "MLflow's file store is no target: it appends a point that is sent twice, and half a "
            "batch stays when it fails",
            on=masked(uri),
            hint=f"use a database, such as sqlite:///{os.path.abspath('mlflow.db')}",
        )
    raise UsageError(
        "this is no MLflow tracking address",
        on=masked(uri),
        hint="give http://host:5000 or sqlite:////absolute/path/mlflow.db",
    )


def address_of(uri: str) -> str:
    """Return a uri without credentials: for messages, and to name a state folder after."""
    if uri.startswith("sqlite:"):
        return uri.split("?")[0]
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def masked(text: str) -> str:
    """Return a text without the credentials that addresses in it carry."""
    return _SECRET.sub(r"\1***", _USERINFO.sub("//", text))


def error_of(failure: Failure, doing: str, on: str) -> EventlogError:
    """Return the error that a failed request means for who asked to be `doing` something."""
    said = _one_line(failure.message)
    if failure.status in (401, 403):
        return Unauthorised(
            f"MLflow refused the credentials for {doing}: {said}",
            on=on,
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN",
        )
    if failure.code == "UNREACHABLE":
        return Down(f"MLflow cannot be reached for {doing}: {said}", on=on)
    if failure.code == "NO_MLFLOW":
        return UsageError(f"what answers is no MLflow server: {said}", on=on)
    if failure.transient:
        return Retry(f"MLflow failed at {doing}: {said}", on=on, after=failure.after)
    return EventlogError(f"MLflow refused {doing} ({failure.code}): {said}", on=on)


def _one_line(message: str) -> str:
    line = " ".join(masked(message).split())
    return line if len(line) <= 300 else line[:297] + "..."


def put_with(upload: Any, file: str, content: bytes) -> None:
    """Hand `content` as a local file of that name to `upload`, which takes a path."""
    with TemporaryDirectory(prefix="eventlog-") as folder:
        path = Path(folder, file)
        path.write_bytes(content)
        upload(str(path))


def artifact_failure(error: Exception) -> Failure:
    """Return what went wrong with an artifact store, of which there are many kinds."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    if isinstance(error, ImportError):
        return Failure(400, "ARTIFACT_STORE", f"its client is not installed: {error}")
    if status is None:
        status = 503 if isinstance(error, (OSError, TimeoutError)) else 400
    return Failure(int(status), "ARTIFACT_STORE", f"{type(error).__name__}: {error}")


def names_in(infos: Iterable[Any]) -> set[str]:
    """Return the last parts of the paths of artifacts."""
    return {str(info.path).rstrip("/").rsplit("/", 1)[-1] for info in infos}


def dump(value: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
