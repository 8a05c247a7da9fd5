"""What the server tells of itself at ``/_admin/state``.

Counts of requests are since the start of this process; everything about runs is from the store.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from typing import Any

from .filters import isoformat
from .lines import ALERTS, EVENTS, HISTORY
from .runs import Run
from .store import Store

KEPT_ERRORS = 50


class Tally:
    """Counters of one process; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._unknown: dict[str, dict[str, Any]] = {}
        self._errors: deque[dict[str, str]] = deque(maxlen=KEPT_ERRORS)
        self._internal: deque[str] = deque(maxlen=KEPT_ERRORS)

    def request(self, kind: str) -> None:
        """A request of this kind has come."""
        with self._lock:
            self._requests[kind] += 1

    def answer(self, status: int, sent: str) -> None:
        """An answer was given, or withheld."""
        with self._lock:
            self._answers[str(status) if sent == "whole" else sent] += 1

    def unknown_operation(self, name: str, message: str) -> None:
        """A GraphQL request asked for what the schema does not have."""
        with self._lock:
            entry = self._unknown.setdefault(name, {"count": 0, "error": message})
            entry["count"] += 1

    def graphql_error(self, name: str, message: str) -> None:
        """A resolver refused."""
        with self._lock:
            self._errors.append({"operation": name, "message": message})

    def internal_error(self, message: str) -> None:
        """The server itself failed."""
        with self._lock:
            self._internal.append(message)

    def listed(self) -> dict[str, Any]:
        """All counters."""
        with self._lock:
            return {
                "requests": dict(sorted(self._requests.items())),
                "answers": dict(sorted(self._answers.items())),
                "unknown_operations": dict(sorted(self._unknown.items())),
                "graphql_errors": list(self._errors),
                "internal_errors": list(self._internal),
            }


def run_report(store: Store, run: Run, *, with_rows: bool) -> dict[str, Any]:
    """One run; ``with_rows`` adds the text of every history row."""
    counts = store.lines.file_counts(run.id)
    report: dict[str, Any] = {
        "entity": run.entity,
        "project": run.project,
        "run": run.name,
        "display_name": run.display_name,
        "state": run.state,
        "complete": bool(run.complete),
        "exitcode": run.exit_code,
        "created": isoformat(run.created),
        "config": json.loads(run.config),
        "summary": json.loads(run.summary),
        "tags": json.loads(run.tags),
        "history_line_count": store.lines.line_count(run.id, HISTORY),
        "history_rows": counts.get(HISTORY, 0),
        "event_rows": counts.get(EVENTS, 0),
        "gaps": store.lines.gaps(run.id, HISTORY),
        "duplicate_steps": store.lines.duplicate_steps(run.id),
        "overwrites": run.overwrites,
        "overwrites_changed": run.overwrites_changed,
        "overwrites_changed_exactly": run.overwrites_changed_exactly,
        "alerts": [json.loads(line.text) for line in store.lines.read(run.id, ALERTS)],
        "lines_by_file": counts,
        "files": {file.name: file.size for file in store.blobs.files(run.owner)},
        "artifacts": [
            {"type": one.type, "collection": one.collection, "state": one.state}
            for one in store.blobs.artifacts(run.project_id, run.name)
        ],
    }
    if with_rows:
        lines = store.lines.read(run.id, HISTORY)
        report["rows"] = {str(line.offset): line.text for line in lines}
    return report
