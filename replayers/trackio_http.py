"""A Trackio server that somebody runs: plain HTTP and JSON, without importing Trackio.

What the server does differently from a folder (0.43.0):

* it drops the time of each row, so that rows carry their own (see `TrackioSession`);
* its 200 means that it will try: when the database is locked it keeps the rows in memory and may
  drop them later. Only reading back tells, and that needs no token;
* a config is stored only beside a row: where there is none, an empty row ``<run id>:config`` is
  sent with it;
* an answer has at most 10,000 rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from eventlog.errors import UsageError
from replayers.target import Down, Retry, Unauthorised
from replayers.trackio_store import RefusedError

_PAGE = 5000
_API_VERSION = 1
#: What the server says of rows that it will never take.
_REFUSALS = ("not JSON serializable", "Recursion limit", "must be str", "surrogate", "too large")


class HttpStore:
    """The projects of one server.

    Parameters
    ----------
    address:
        ``http(s)://host:port``, with ``?write_token=`` or the variable ``TRACKIO_WRITE_TOKEN``.
    timeout:
        Seconds to wait for an answer: Trackio itself waits up to 40 for its locks.

    Raises
    ------
    UsageError
        If httpx, which comes with Trackio, is missing.
    """

    keeps_time = False
    can_adopt = False

    def __init__(self, address: str, *, timeout: float = 60.0) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UsageError(
                "a Trackio server is spoken to through httpx, which is missing",
                hint="pip install 'eventlog-journal[trackio]'",
            ) from error
        parts = urlsplit(address)
        token = dict(parse_qsl(parts.query)).get("write_token")
        host = parts.netloc.rpartition("@")[2]
        self.address = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        token = token or os.environ.get("TRACKIO_WRITE_TOKEN", "")
        headers = {"X-Trackio-Write-Token": token} if token else {}
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self._errors = httpx.TransportError
        self._timeouts = httpx.TimeoutException

    def check(self) -> str:
        """Return the server's version. Raises `UsageError` if it speaks another protocol."""
        answer = self._call("GET", "/version", None)
        if not isinstance(answer, dict) or answer.get("api_version") != _API_VERSION:
            raise UsageError("this is no Trackio server of a kind known here", on=self.address)
        return str(answer.get("version"))

    def query(self, project: str, sql: str, args: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query, page by page; none if there is no such project or table."""
        whole = _inlined(sql, args)
        offset = 0
        while True:
            page = f"SELECT * FROM ({whole}) LIMIT {_PAGE} OFFSET {offset}"
            answer = self._call("POST", "/api/query_project", {"project": project, "query": page})
            if answer is None:
                return
            rows = answer["data"]["rows"]
            yield from (tuple(row.values()) for row in rows)
            if len(rows) < _PAGE:
                return
            offset += _PAGE

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
        """Send rows, or a config; only reading tells whether they were stored."""
        assert not adopt
        head = {"project": project, "run": run, "run_id": run_id}
        if config is not None:
            head["config"] = json.loads(config)
            rows = [json.dumps([f"{run_id}:config", 0, None, {}])]
        logs = []
        for text in rows:
            log_id, step, _time, metrics = json.loads(text)
            logs.append(head | {"log_id": log_id, "step": step, "metrics": metrics})
        self._call("POST", "/api/bulk_log", {"logs": logs, "hf_token": None})

    def delete(self, project: str, run_id: str) -> None:
        """Delete a run; only reading tells whether it is gone."""
        self._call("POST", "/api/delete_run", {"project": project, "run": None, "run_id": run_id})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, method: str, path: str, body: Any) -> Any:
        """Return the answer; None where the project or the table is not there."""
        try:
            answer = self._client.request(method, self.address + path, json=body)
        except self._timeouts as error:
            raise Retry(f"the Trackio server gave no answer ({error})", on=self.address) from error
        except self._errors as error:
            raise Down(
                f"the Trackio server cannot be reached ({error})",
                on=self.address,
                hint="is it running? `trackio show` starts one",
            ) from error
        if answer.status_code == 200:
            return answer.json()
        return self._failed(answer.status_code, answer.text[:2000])

    def _failed(self, status: int, text: str) -> None:
        if status == 500 and ("not found" in text or "no such table" in text):
            return
        if status in (401, 403) or (status == 400 and "write_token" in text):
            raise Unauthorised(
                "the Trackio server wants its write token",
                on=self.address,
                hint="set TRACKIO_WRITE_TOKEN, or add ?write_token= to the address",
            )
        if status == 500 and any(word in text for word in _REFUSALS):
            raise RefusedError(f"Trackio refused rows ({text})", on=self.address)
        if status >= 500 or status == 429:
            raise Retry(f"the Trackio server failed ({status}: {text})", on=self.address)
        raise UsageError(f"the Trackio server refused a call ({status}: {text})", on=self.address)


def _inlined(sql: str, args: Sequence[Any]) -> str:
    """Return SQL with its arguments in place of ``?``: texts and integers of our own making."""
    parts = sql.split("?")
    assert len(parts) == len(args) + 1
    values = [str(a) if isinstance(a, int) else "'" + str(a).replace("'", "''") + "'" for a in args]
    return "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))
