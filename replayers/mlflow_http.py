"""A tracking server over REST; credentials and certificates come from MLflow's own settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replayers.mlflow_client import (
    PAGE,
    Failure,
    RunView,
    artifact_failure,
    dump,
    names_in,
    put_with,
)
from replayers.mlflow_map import Point

_PREFIX = "/api/2.0/mlflow/"
_RUNS = 1000
#: Filters name experiments in the request's body: not too many at once.
_EXPERIMENTS = 200


class HttpApi:
    """The `replayers.mlflow_client.Api` of a tracking server."""

    def __init__(self, uri: str) -> None:
        from mlflow.utils.credentials import get_default_host_creds

        self._uri = uri
        self._creds = get_default_host_creds(uri)
        self._artifacts_of: tuple[str, Any] = ("", None)

    def experiment(self, name: str) -> tuple[str, bool] | None:
        try:
            answer = self._get("experiments/get-by-name", {"experiment_name": name})
        except Failure as failure:
            if failure.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        found = answer["experiment"]
        return str(found["experiment_id"]), found.get("lifecycle_stage", "active") == "active"

    def create_experiment(self, name: str) -> str:
        return str(self._post("experiments/create", {"name": name})["experiment_id"])

    def experiments(self) -> list[str]:
        body: dict[str, Any] = {"max_results": _RUNS, "view_type": "ALL"}
        pages = self._pages("experiments/search", body)
        return [str(one["experiment_id"]) for page in pages for one in page.get("experiments", ())]

    def search(self, experiments: Sequence[str], where: str) -> list[RunView]:
        found = []
        for at in range(0, len(experiments), _EXPERIMENTS):
            body = {
                "experiment_ids": list(experiments[at : at + _EXPERIMENTS]),
                "filter": where,
                "run_view_type": "ALL",
                "max_results": _RUNS,
            }
            for page in self._pages("runs/search", body):
                found += [_view(run) for run in page.get("runs", ())]
        return found

    def run(self, run: str) -> RunView | None:
        try:
            return _view(self._get("runs/get", {"run_id": run})["run"])
        except Failure as failure:
            # An id that cannot be one at all is refused in other words.
            if failure.status == 404 or failure.code == "INVALID_PARAMETER_VALUE":
                return None
            raise

    def create_run(
        self, experiment: str, start: int, user: str, name: str, tags: Mapping[str, str]
    ) -> RunView:
        body = {
            "experiment_id": experiment,
            "start_time": start,
            "user_id": user,
            "run_name": name,
            "tags": _pairs(tags),
        }
        return _view(self._post("runs/create", body)["run"])

    def log(
        self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        # JSON has no NaN; the protocol buffers behind MLflow's interface know it as a text.
        metrics = [
            {
                "key": p.name,
                "value": p.value if p.value == p.value else "NaN",
                "timestamp": p.ms,
                "step": p.step,
            }
            for p in points
        ]
        body = {"run_id": run, "metrics": metrics, "params": _pairs(params), "tags": _pairs(tags)}
        self._post("runs/log-batch", body)

    def update(self, run: str, status: str, ended: int | None) -> None:
        body: dict[str, Any] = {"run_id": run, "status": status}
        if ended is not None:
            body["end_time"] = ended
        self._post("runs/update", body)

    def delete(self, run: str) -> None:
        self._post("runs/delete", {"run_id": run})

    def history(self, run: str, name: str) -> Iterator[list[tuple[int, int, float]]]:
        query: dict[str, Any] = {"run_id": run, "metric_key": name, "max_results": PAGE}
        while True:
            page = self._get("metrics/get-history", query)
            yield [
                (int(m.get("step", 0)), int(m.get("timestamp", 0)), float(m.get("value", 0.0)))
                for m in page.get("metrics", ())
            ]
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def put(self, run: str, folder: str, file: str, content: bytes) -> None:
        artifacts = self._artifacts(run)
        try:
            put_with(lambda path: artifacts.log_artifact(path, folder), file, content)
        except Exception as error:
            raise artifact_failure(error) from error

    def files(self, run: str, folder: str) -> set[str]:
        artifacts = self._artifacts(run)
        try:
            return names_in(artifacts.list_artifacts(folder))
        except Exception as error:
            raise artifact_failure(error) from error

    def close(self) -> None:
        self._artifacts_of = ("", None)

    def _artifacts(self, run: str) -> Any:
        """Return where the artifacts of a run lie. Raises Failure."""
        if self._artifacts_of[0] != run:
            uri = self._get("runs/get", {"run_id": run})["run"]["info"]["artifact_uri"]
            try:
                self._artifacts_of = run, _repository(uri, self._uri)
            except Exception as error:
                raise artifact_failure(error) from error
        return self._artifacts_of[1]

    def _pages(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while True:
            page = self._post(path, body, again=True)
            yield page
            if not page.get("next_page_token"):
                return
            body = {**body, "page_token": page["next_page_token"]}

    def _get(self, path: str, query: dict[str, Any]) -> dict[str, Any]:
        return self._call(path, "GET", again=True, params=query)

    def _post(self, path: str, body: dict[str, Any], *, again: bool = False) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        return self._call(path, "POST", again=again, data=dump(body), extra_headers=headers)

    def _call(self, path: str, method: str, *, again: bool, **how: Any) -> dict[str, Any]:
        """Make one request; a reading one `again` if its connection turns out to be dead."""
        from mlflow.utils.rest_utils import http_request

        try:
            answer = http_request(
                self._creds,
                _PREFIX + path,
                method,
                max_retries=0,
                retry_codes=frozenset(),
                raise_on_status=False,
                **how,
            )
        except Exception as error:
            failure = _no_answer(error)
            if again and failure.code == "CUT":
                return self._call(path, method, again=False, **how)
            raise failure from error
        return _parsed(answer)


def _repository(uri: str, server: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if uri.startswith("mlflow-artifacts:"):
        # Left to itself, MLflow 3.1 asks the process's global tracking URI which server is meant.
        uri = MlflowArtifactsRepository.resolve_uri(uri, server)
    return get_artifact_repository(uri)


def _view(run: dict[str, Any]) -> RunView:
    info, data = run["info"], run.get("data", {})
    ended = info.get("end_time")
    return RunView(
        id=info["run_id"],
        experiment=str(info["experiment_id"]),
        name=info.get("run_name", ""),
        status=info.get("status", ""),
        ended=int(ended) if ended else None,
        active=info.get("lifecycle_stage", "active") == "active",
        tags={t["key"]: t.get("value", "") for t in data.get("tags", ())},
        params={p["key"]: p.get("value", "") for p in data.get("params", ())},
        latest={
            m["key"]: (int(m.get("step", 0)), int(m.get("timestamp", 0)))
            for m in data.get("metrics", ())
        },
    )


def _pairs(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in texts.items()]


def _no_answer(error: Exception) -> Failure:
    import requests

    cause = error.__cause__ or error.__context__ or error
    if isinstance(
        cause, (requests.exceptions.ReadTimeout, requests.exceptions.ContentDecodingError)
    ):
        return Failure(0, "TIMEOUT", str(cause))
    if isinstance(cause, requests.exceptions.ConnectionError):
        # Urllib3 tells a refused connection from one that broke when it was in use.
        text = str(cause)
        cut = "Connection aborted" in text or "reset by peer" in text
        return Failure(0, "CUT" if cut else "UNREACHABLE", text)
    if isinstance(cause, requests.exceptions.RequestException):
        return Failure(0, "UNREACHABLE", str(cause))
    return Failure(400, type(cause).__name__, str(error))


def _parsed(answer: Any) -> dict[str, Any]:
    try:
        tree = json.loads(answer.content)
    except ValueError:
        tree = None
    if answer.status_code == 200 and isinstance(tree, dict):
        return tree
    said = tree if isinstance(tree, dict) else {}
    code = str(said.get("error_code", ""))
    if not code and answer.status_code in (200, 301, 302, 307, 308, 404, 405):
        code = "NO_MLFLOW"
    message = str(said.get("message", "") or answer.text[:300] or answer.reason)
    status = int(answer.status_code) if answer.status_code >= 400 else 400
    raise Failure(status, code, f"HTTP {answer.status_code} {message}", _after(answer))


def _after(answer: Any) -> float | None:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", "")))
    except ValueError:
        return None
