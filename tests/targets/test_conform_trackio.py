"""Trackio passes the suite of every target: a folder, and (with --long) a server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from replayers.conformance import Backend, Conformance, Proxy
from replayers.target import RunInfo, Target
from replayers.to_trackio import TrackioTarget
from tests.targets.test_to_trackio import Server


class Lasting(TrackioTarget):
    """Keeps its child process, which takes a second to import Trackio; a session has no other."""

    def close(self) -> None:
        """See `Folder.abandon`."""


class Folder(Backend):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one = Lasting(str(folder))

    def target(self) -> Target:
        return self.one

    def abandon(self, target: Target) -> None:
        TrackioTarget.close(self.one)

    def _run(self, sql: str, *values: object) -> None:
        (path,) = self.folder.glob("*.db")
        with sqlite3.connect(path) as database:
            database.execute(sql, values)

    def empty(self, run: RunInfo, known_as: str) -> None:
        for table in ("metrics", "configs"):
            self._run(f"DELETE FROM {table} WHERE run_id = ?", known_as)

    def stranger(self, run: RunInfo, known_as: str) -> None:
        self._run(
            "INSERT INTO metrics (timestamp, run_id, run_name, step, metrics) "
            "VALUES ('2026-01-01T00:00:00', ?, 'x', 3, '{\"loss\": 17}')",
            known_as,
        )


class TestTrackioFolder(Conformance):
    points = 4
    # There is no server, and no network.
    test_a_server_that_dies_is_temporary_and_loses_nothing = None
    test_answers_of_a_bad_network_are_what_they_are_and_lose_nothing = None
    test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact = None

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Folder]:
        made = Folder(tmp_path / "trackio")
        yield made
        made.abandon(made.one)


@pytest.mark.long
class TestTrackioFolderWhole(TestTrackioFolder):
    points = 20
    test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact = (
        Conformance.test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact
    )


class SelfHosted(Backend):
    def __init__(self, server: Server) -> None:
        self.server = server

    def target(self) -> Target:
        return TrackioTarget(self.server.address)

    def stop(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def proxied(self, proxy: Proxy) -> Target:
        proxy.port = self.server.port
        return TrackioTarget(
            self.server.address.replace(str(self.server.port), proxy.url.rpartition(":")[2])
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("conform")).start()
    yield made
    made.kill()


@pytest.mark.long
class TestTrackioServer(Conformance):
    points = 20
    # What happens to the database behind the server is what happens to a folder's.
    test_a_target_that_lost_a_run_is_refused_and_repaired = None
    test_what_somebody_else_wrote_is_refused_or_shown = None

    @pytest.fixture
    def backend(self, server: Server) -> SelfHosted:
        return SelfHosted(server)
