"""The backends whose syncs are killed (`tests.targets.sync_kills`), by name."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import warm
from tests.targets import read_back
from tests.targets.kept import KIND, Keeper
from tests.targets.mlflow_server import MlflowServer, copy_empty
from tests.targets.read_back import Point
from tests.targets.spare import WORKERS
from tests.targets.sync_kills import Place
from tests.targets.wandb_loopback import WandbLoopback, client_environment

Held = tuple[Counter[Point], list[str]]
#: Short waits: the loopback server knows no lag of its own, and a lost stream is found soon.
WAITS = {"EVENTLOG_WANDB_SETTLE": "0.3", "EVENTLOG_WANDB_PATIENCE": "2.5"}


@contextlib.contextmanager
def model(folder: Path) -> Iterator[Place]:
    """The model target, kept by this process."""
    address = str(folder / "model")
    with Keeper(address) as keeper:

        def read(project: str) -> Held:
            runs = keeper.model.runs.values()
            stored = [r for r in runs if r.info.project == project and not r.replaced_by]
            wrong = [] if len(stored) == 1 else [f"{len(stored)} runs"]
            states = [run.state.status if run.state else "open" for run in stored]
            wrong += [f"its state is {state}" for state in states if state != "finished"]
            sessions = [keeper.model.open(run.info) for run in stored]
            tables = [table for session in sessions for table in session.read_back()]
            return read_back.of_image(tables), wrong

        yield Place(f"{KIND}:{address}", read, steps=500, batch=120)


@contextlib.contextmanager
def mlflow(folder: Path) -> Iterator[Place]:
    """An MLflow database, an SQLite file; made unless ``m.db`` is in the folder."""
    _database(folder)
    yield _mlflow(f"sqlite:///{folder / 'm.db'}")


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Place]:
    """An MLflow tracking server over such a file."""
    _database(folder)
    server = MlflowServer(folder, f"sqlite:///{folder / 'm.db'}")
    server.start()
    try:
        yield _mlflow(server.uri)
    finally:
        server.kill()


def _database(folder: Path) -> None:
    if not (folder / "m.db").exists():
        copy_empty(folder / "m.db", folder)


def _mlflow(uri: str) -> Place:
    def read(project: str) -> Held:
        return read_back.read("mlflow", [uri, project], imports=warm.MLFLOW)

    return Place(f"mlflow:{uri}", read, steps=300, batch=120, imports=warm.MLFLOW)


@contextlib.contextmanager
def trackio(folder: Path) -> Iterator[Place]:
    """A Trackio folder."""
    place, imports = str(folder / "trackio"), WORKERS["trackio"][1]

    def read(project: str) -> Held:
        return read_back.read("trackio", [place, project], imports=imports)

    yield Place(f"trackio:{place}", read, 300, 120, imports=imports, worker="trackio")


@contextlib.contextmanager
def wandb(folder: Path) -> Iterator[Place]:
    """The loopback W&B server, and the genuine client."""
    imports = WORKERS["wandb"][1]
    with WandbLoopback(folder / "server") as server:
        env = client_environment(server.url, folder) | WAITS

        def read(project: str) -> Held:
            found, wrong = read_back.read("wandb", [project], imports=imports, env=env)
            for run in server.state()["runs"]:
                if run["project"] == project:
                    wrong += [f"{n}: {run[n]}" for n in ("gaps", "duplicate_steps") if run[n]]
                    if run["overwrites_changed"]:
                        wrong.append(f"{run['overwrites_changed']} rows were written over")
            return found, wrong

        yield Place(f"wandb:{server.url}", read, 400, 300, imports, "wandb", env)


PLACES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Place]]] = {
    "model": model,
    "mlflow": mlflow,
    "mlflow-server": mlflow_server,
    "trackio": trackio,
    "wandb": wandb,
}
