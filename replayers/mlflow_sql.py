"""A tracking store's database, opened in this process: no server is needed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eventlog.errors import UsageError
from replayers.mlflow_client import PAGE, Failure, RunView, artifact_failure, names_in, put_with
from replayers.mlflow_map import Point
from replayers.mlflow_names import file_of


class SqlApi:
    """The `replayers.mlflow_client.Api` of a database."""

    def __init__(self, uri: str) -> None:
        _reachable(uri)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        self._local = uri.startswith("sqlite:")
        # MLflow's own default would be a folder where this process happens to run.
        self._root = Path((uri[len("sqlite:///") :].split("?")[0] or "mlflow") + ".artifacts")
        with _failures():
            if self._local:
                _make_whole(uri, self._root.absolute().as_uri())
            self._store: Any = SqlAlchemyStore(uri, self._root.absolute().as_uri())

    def experiment(self, name: str) -> tuple[str, bool] | None:
        with _failures():
            found = self._store.get_experiment_by_name(name)
        if found is None:
            return None
        return str(found.experiment_id), found.lifecycle_stage == "active"

    def create_experiment(self, name: str) -> str:
        place = (self._root / file_of(name)).as_uri() if self._local else None
        with _failures():
            return str(self._store.create_experiment(name, artifact_location=place))

    def experiments(self) -> list[str]:
        from mlflow.entities import ViewType

        found: list[str] = []
        token = None
        while True:
            with _failures():
                page = self._store.search_experiments(ViewType.ALL, 1000, page_token=token)
            found += [str(one.experiment_id) for one in page]
            token = page.token
            if not token:
                return found

    def search(self, experiments: Sequence[str], where: str) -> list[RunView]:
        from mlflow.entities import ViewType

        found: list[RunView] = []
        token = None
        while True:
            with _failures():
                page = self._store.search_runs(
                    list(experiments), where, ViewType.ALL, 1000, page_token=token
                )
            found += [_view(run) for run in page]
            token = page.token
            if not token:
                return found

    def run(self, run: str) -> RunView | None:
        try:
            with _failures():
                return _view(self._store.get_run(run))
        except Failure as failure:
            if failure.status == 404 or failure.code == "INVALID_PARAMETER_VALUE":
                return None
            raise

    def create_run(
        self, experiment: str, start: int, user: str, name: str, tags: Mapping[str, str]
    ) -> RunView:
        with _failures():
            return _view(self._store.create_run(experiment, user, start, _tags(tags), name))

    def log(
        self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(p.name, p.value, p.ms, p.step) for p in points]
        with _failures():
            self._store.log_batch(run, metrics, [Param(*p) for p in params.items()], _tags(tags))

    def update(self, run: str, status: str, ended: int | None) -> None:
        from mlflow.entities import RunStatus

        with _failures():
            self._store.update_run_info(run, RunStatus.from_string(status), ended, None)

    def delete(self, run: str) -> None:
        with _failures():
            self._store.delete_run(run)

    def history(self, run: str, name: str) -> Iterator[list[tuple[int, int, float]]]:
        token = None
        while True:
            with _failures():
                page = self._store.get_metric_history(run, name, PAGE, token)
            yield [(int(m.step), int(m.timestamp), float(m.value)) for m in page]
            token = page.token
            if not token:
                return

    def put(self, run: str, folder: str, file: str, content: bytes) -> None:
        try:
            artifacts = self._artifacts(run)
            put_with(lambda path: artifacts.log_artifact(path, folder), file, content)
        except Exception as error:
            raise artifact_failure(error) from error

    def files(self, run: str, folder: str) -> set[str]:
        try:
            return names_in(self._artifacts(run).list_artifacts(folder))
        except Exception as error:
            raise artifact_failure(error) from error

    def close(self) -> None:
        self._store.engine.dispose()

    def _artifacts(self, run: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self._store.get_run(run).info.artifact_uri)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        said = str(error.message)
        raise Failure(error.get_http_status_code(), str(error.error_code), said) from error
    except (SQLAlchemyError, OSError) as error:
        raise Failure(503, type(error).__name__, str(error)) from error


def _reachable(uri: str) -> None:
    """Refuse at once what MLflow would try for minutes, a line of noise each time."""
    if uri.startswith("sqlite:"):
        folder = os.path.dirname(uri[len("sqlite:///") :].split("?")[0])
        if not os.path.isdir(folder):
            raise UsageError("the folder of the database does not exist", on=folder)
        return
    parts = urlsplit(uri)
    port = parts.port or {"postgresql": 5432, "mysql": 3306}.get(parts.scheme.split("+")[0], 1433)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        raise Failure(0, "UNREACHABLE", str(error)) from error


def _make_whole(uri: str, root: str) -> None:
    """Make a SQLite database that is not there: aside, and put in place when it is whole. MLflow
    cannot go on with one whose making was interrupted.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path = uri[len("sqlite:///") :]
    if "?" in path or not path or os.path.exists(path):
        return
    part = f"{path}.new-{os.urandom(6).hex()}"
    try:
        made = SqlAlchemyStore(f"sqlite:///{part}", root)
        made.engine.dispose()
        with contextlib.suppress(FileExistsError):  # another sync was faster
            os.link(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(*tag) for tag in tags.items()]


def _view(run: Any) -> RunView:
    return RunView(
        id=run.info.run_id,
        experiment=str(run.info.experiment_id),
        name=run.info.run_name or "",
        status=run.info.status,
        ended=run.info.end_time,
        active=run.info.lifecycle_stage == "active",
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        latest={m.key: (m.step, m.timestamp) for m in run.data._metric_objs},
    )
