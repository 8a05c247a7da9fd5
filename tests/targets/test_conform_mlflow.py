"""MLflow passes the suite of every target: a database, and (with --long) a server over HTTP."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from replayers.conformance import Backend, Conformance, Proxy
from replayers.target import RunInfo, Target
from replayers.to_mlflow import MlflowTarget
from tests.targets.mlflow_server import MlflowServer, make_database


class Database(Backend):
    def __init__(self, path: Path) -> None:
        self.path = path

    def target(self) -> Target:
        return MlflowTarget(f"sqlite:///{self.path}")

    def empty(self, run: RunInfo, known_as: str) -> None:
        # As a restored database is: deleted in MLflow's own way, a run can be brought back.
        with sqlite3.connect(self.path) as database:
            for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (known_as,))

    def stranger(self, run: RunInfo, known_as: str) -> None:
        with sqlite3.connect(self.path) as database:
            database.execute(
                "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
                "VALUES ('loss', 17.0, 5, ?, 3, 0)",
                (known_as,),
            )


class TestMlflowDatabase(Conformance):
    points = 4
    # There is no server, and no network.
    test_a_server_that_dies_is_temporary_and_loses_nothing = None
    test_answers_of_a_bad_network_are_what_they_are_and_lose_nothing = None
    test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact = None

    @pytest.fixture
    def backend(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Database:
        make_database(tmp_path / "m.db", tmp_path_factory)
        return Database(tmp_path / "m.db")


@pytest.mark.long
class TestMlflowDatabaseWhole(TestMlflowDatabase):
    points = 20
    test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact = (
        Conformance.test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact
    )


class Server(Database):
    def __init__(self, path: Path, server: MlflowServer) -> None:
        super().__init__(path)
        self.server = server

    def target(self) -> Target:
        return MlflowTarget(self.server.uri)

    def stop(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def proxied(self, proxy: Proxy) -> Target:
        proxy.port = self.server.port
        return MlflowTarget(proxy.url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("conform")
    make_database(folder / "m.db", tmp_path_factory)
    made = MlflowServer(folder, f"sqlite:///{folder / 'm.db'}", cold=True)
    made.start()
    yield Server(folder / "m.db", made)
    made.kill()


@pytest.mark.long
class TestMlflowServer(Conformance):
    points = 20

    @pytest.fixture
    def backend(self, server: Server) -> Server:
        return server
