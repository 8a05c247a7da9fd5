"""MLflow as a target: a tracking server, or the database of one.

What a value becomes is the table of `replayers.mlflow_map`, which run is the journal's the order
of `replayers.mlflow_identity`, and a key's name the rule of `replayers.mlflow_names`.

How delivery is proven: a request to MLflow stores all its metrics or none, and only then its tags.
So each request carries whole events and, beside them, the tag ``eventlog.held.<writer>`` with the
seq of the last; who reads that tag knows that everything sent up to it is stored. An event too
wide for one request moves the tag with its last part. What lies between the tag and a crash is at
most one request; sent again, its points are the same rows of MLflow's database, whose primary key
is (key, time, step, value).

Equal points fold: two of one metric with the same step, millisecond and value are one in MLflow.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from eventlog.errors import UsageError
from replayers import mlflow_identity as identity
from replayers.mlflow_client import Api, Failure, address_of, checked, error_of
from replayers.mlflow_http import HttpApi
from replayers.mlflow_image import OMITS, changes, image
from replayers.mlflow_map import RULES
from replayers.mlflow_session import MlflowSession, ReadBlob
from replayers.mlflow_sql import SqlApi
from replayers.superseding import APPEND, NEW_RUN, REBUILD
from replayers.target import Change, RunInfo

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MlflowSession", "MlflowTarget"]


class MlflowTarget:
    """One MLflow tracking store.

    Parameters
    ----------
    uri:
        ``http://host:5000``, ``sqlite:////absolute/mlflow.db``, or another database that MLflow
        knows. Credentials come from MLflow's own settings (``MLFLOW_TRACKING_TOKEN``, ...).
    read_blob:
        Gives the content of a blob of a run by its SHA-256. Without it, tables are not delivered.

    Raises
    ------
    UsageError
        If the uri is of a kind that cannot be a target. Nothing is contacted before `open`.
    """

    kind = "mlflow"
    rules = RULES
    folds = True
    omits = OMITS
    superseded = frozenset((APPEND, NEW_RUN, REBUILD))

    def __init__(self, uri: str, read_blob: ReadBlob | None = None) -> None:
        self._uri = checked(uri)
        self._read_blob = read_blob
        self._api: Api | None = None
        self.address = address_of(self._uri)

    def open(self, run: RunInfo) -> MlflowSession:
        """Find the run by its identity, or create it.

        Raises
        ------
        Foreign, UsageError, Unauthorised, Retry, Down
        """
        on = f"{self.address} run {run.project}/{run.id}"
        try:
            if self._api is None:
                self._api = _connect(self._uri)
            view, notes, found_by = identity.identify(self._api, run, on)
        except Failure as failure:
            raise error_of(failure, "finding the run", on) from None
        session = MlflowSession(self._api, run, view, notes, self._read_blob, on)
        session.found_by = found_by
        return session

    def image(self, batch: pa.Table) -> pa.Table:
        """Return what these rows become, a row per point; equal points fold in MLflow."""
        return image(batch, tables=self._read_blob is not None)

    def changes(self, batch: pa.Table) -> list[Change]:
        """Return what the rules change of these rows, each row by itself."""
        return changes(batch, tables=self._read_blob is not None)

    def close(self) -> None:
        """Let go of connections."""
        if self._api is not None:
            self._api.close()
            self._api = None


def _connect(uri: str) -> Api:
    """Return the store at a uri; imports mlflow. Variables that the user has set are kept."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        import mlflow.exceptions  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "mlflow cannot be imported",
            on=error.name,
            hint="pip install 'eventlog-journal[mlflow]'",
        ) from error
    if urlsplit(uri).scheme in ("http", "https"):
        return HttpApi(uri)
    for name in ("alembic", "mlflow.store", "mlflow.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is wrong is raised, not printed
    # Migrations set the levels of alembic's loggers anew; a filter stays.
    logging.getLogger("alembic.runtime.migration").addFilter(lambda _record: False)
    return SqlApi(uri)
