"""Rules for every test.

With ``--long`` (`tools/test --long`) every test runs, and what repeats itself (kills, random
histories) does so as often as the published figures say; without it each such test runs a slice,
and those marked ``long`` stay out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from tests import warm

#: How long an example takes is the machine's affair.
settings.register_profile("eventlog", deadline=None)
settings.load_profile("eventlog")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="every test, at its full length")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        warm.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        warm.end()


@pytest.fixture(scope="session")
def repeats(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Return how often to repeat: ``repeats(part, full)``."""
    long = pytestconfig.getoption("--long")
    return lambda part, full: full if long else part


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine decides what a test sees."""
    prefixes = ("EVENTLOG_", "SLURM_", "TORCHELASTIC_", "MLFLOW_", "TRACKIO_", "RAY_")
    for name in list(os.environ):
        wandb = name.startswith("WANDB_")
        if name.startswith(prefixes) or wandb or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


#: Files whose tests stay on one worker, file by file or several together: what they share (a server,
#: a client that takes seconds to import) costs more than the balance that it takes away.
TOGETHER = {
    "tests/targets/test_to_mlflow.py": "mlflow",
    "tests/targets/test_conform_mlflow.py": "mlflow",
    "tests/targets/test_to_trackio.py": "trackio",
    "tests/targets/test_conform_trackio.py": "trackio",
    "tests/targets/test_wandb_server.py": "wandb server",
    "tests/test_memory.py": "memory",
    "tests/integrations/test_verl.py": "verl",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each test to whichever worker is free, those of `TOGETHER` to one.

    xdist's own groups do not work with pytest 9.2: it sets an attribute that pytest no longer has.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    missing = [path for path in TOGETHER if not (config.rootpath / path).is_file()]
    assert not missing, missing

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs with ``--long`` only."""
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that was skipped was not run, and that is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and exitstatus == 0:
        for report in skipped:
            print(f"\nskipped, which CI does not allow: {report.nodeid}: {report.longrepr}")
        session.exitstatus = 1
