"""SIGKILL of ``eventlog sync`` at random moments, and started again: the target ends exact.

The published figures are those of ``tools/kill --sync``, which does the same for an hour.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.targets.kill_places import mlflow, mlflow_server, model, trackio, wandb
from tests.targets.mlflow_server import make_database
from tests.targets.read_back import Point
from tests.targets.sync_kills import Place, series

Repeats = Callable[[int, int], int]
#: With --long 50 syncs are killed into each.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def killed(repeats: Repeats) -> Callable[[Place, int], None]:
    """Return what kills syncs into a place, a slice of so many kills or 50, and judges."""

    def killed(place: Place, part: int) -> None:
        kills = repeats(part, 50)
        if kills == part:
            place = dataclasses.replace(place, steps=100, batch=120)
        figures = series(place, kills)
        assert figures.violations == []
        assert (figures.lost, figures.double) == (0, 0)
        assert figures.kills >= kills
        assert figures.points >= 2 * place.steps
        assert sum(figures.during.values()) == figures.kills

    return killed


def test_sync_into_the_model_killed_again_and_again_ends_exact(
    killed: Callable[[Place, int], None], tmp_path: Path
) -> None:
    with model(tmp_path) as place:
        killed(place, 5)


def test_sync_into_an_mlflow_database_killed_again_and_again_ends_exact(
    killed: Callable[[Place, int], None], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_database(tmp_path / "m.db", tmp_path_factory)
    with mlflow(tmp_path) as place:
        killed(place, 2)


def test_sync_into_a_trackio_folder_killed_again_and_again_ends_exact(
    killed: Callable[[Place, int], None], tmp_path: Path
) -> None:
    with trackio(tmp_path) as place:
        killed(place, 2)


@pytest.mark.long
def test_sync_into_an_mlflow_server_killed_again_and_again_ends_exact(
    killed: Callable[[Place, int], None], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_database(tmp_path / "m.db", tmp_path_factory)
    with mlflow_server(tmp_path) as place:
        killed(place, 3)


@pytest.mark.long
def test_sync_into_wandb_killed_again_and_again_ends_exact(
    killed: Callable[[Place, int], None], tmp_path: Path
) -> None:
    with wandb(tmp_path) as place:
        killed(place, 3)


def test_points_that_are_lost_or_double_are_found_out(tmp_path: Path) -> None:
    faults = itertools.chain((-1, 1), itertools.repeat(0))
    with model(tmp_path) as place:

        def read(project: str) -> tuple[Counter[Point], list[str]]:
            points, wrong = place.read(project)
            points[next(iter(points))] += next(faults)
            return points, wrong

        figures = series(dataclasses.replace(place, read=read, steps=10), 1)
    assert (figures.lost, figures.double) == (1, 1)
    assert [("lost" in text, "double" in text) for text in figures.violations] == [
        (True, False),
        (False, True),
    ]
