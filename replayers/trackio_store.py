"""What a session needs of the place where Trackio's projects lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from eventlog.errors import EventlogError


class RefusedError(EventlogError):
    """Trackio will not take these rows, whenever they are sent."""


class Store(Protocol):
    """Where projects lie: a local folder, or a server."""

    #: Whether a row's time is stored with it; if not, rows carry their own.
    keeps_time: bool
    #: Whether rows that lost their log id can be given it back.
    can_adopt: bool

    def query(self, project: str, sql: str, args: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a read-only query."""

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
        """Store rows, or a config, in one transaction."""

    def delete(self, project: str, run_id: str) -> None:
        """Delete a run, whole or not at all; nothing happens where there is none."""

    def check(self) -> str:
        """Return Trackio's version."""

    def close(self) -> None:
        """Let go of connections and child processes."""
