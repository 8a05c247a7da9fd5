"""Which points of a batch the store may hold already, so that they are not sent again.

MLflow's databases drop a point that is sent twice, but slowly: one known point in a batch makes
SQLite look at the whole run once per hundred points. So where an overlap is possible (a run that
holds data is opened by someone who has not sent to it, or an answer was lost), the first point
that the store may hold is looked up; if it is there, so may be the others, and each metric's
history is read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replayers.mlflow_client import Api
from replayers.mlflow_map import Point
from replayers.mlflow_values import bits_of, held_value

_Stored = set[tuple[int, int, int]]


class Overlap:
    """Finds points of one run that are stored. `latest` is each metric's last (step, ms)."""

    def __init__(self, api: Api, run: str, latest: Mapping[str, tuple[int, int]]) -> None:
        self._api = api
        self._run = run
        self._latest: Mapping[str, tuple[int, int]] | None = latest
        self._clear: set[str] = set()
        self._stored: dict[str, _Stored] = {}

    def doubt(self) -> None:
        """Note that a request failed: what it carried may be stored."""
        self._clear.clear()
        self._stored.clear()
        self._latest = None

    def missing(self, writer: str, points: Sequence[Point]) -> Sequence[Point]:
        """Return the points of a writer's request that are not known to be stored."""
        if writer in self._clear or not points:
            return points
        latest = self._known_latest()
        old = [p for p in points if (p.step, p.ms) <= latest.get(p.name, _NOTHING)]
        if not old or not self._is_stored(old[0]):
            self._clear.add(writer)
            self._stored.clear()
            return points
        maybe = set(old)
        return [p for p in points if p not in maybe or not self._is_stored(p)]

    def absent(self, points: Sequence[Point]) -> list[Point]:
        """Return the points that are not stored; reads the history of each of their metrics."""
        return [point for point in points if not self._is_stored(point)]

    def _is_stored(self, point: Point) -> bool:
        if point.name not in self._stored:
            self._stored[point.name] = {
                (step, ms, bits_of(held_value(value)))
                for page in self._api.history(self._run, point.name)
                for step, ms, value in page
            }
        return (point.step, point.ms, point.bits) in self._stored[point.name]

    def _known_latest(self) -> Mapping[str, tuple[int, int]]:
        if self._latest is None:
            view = self._api.run(self._run)
            self._latest = {} if view is None else view.latest
        return self._latest


_NOTHING = (-(2**63), -1)
