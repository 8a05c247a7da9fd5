"""Rules for every test.

With ``--long`` (`tools/test --long`) every test runs, and what repeats itself (kills, random
histories) does so as often as the published figures say; without it each such test runs a slice,
and those marked ``long`` stay out.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="every test, at its full length")


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


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a file that share a fixture (a server, mostly) share a worker; the others part."""
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        alone = item.get_closest_marker("apart") or not (
            item.get_closest_marker("together") or shares(item)
        )
        group = item.nodeid if alone else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def shares(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture that its file makes once."""
    known = getattr(item, "_fixtureinfo", None)
    fixtures = known.name2fixturedefs.values() if known is not None else ()
    return any(made.scope == "module" for several in fixtures for made in several)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that was skipped was not run, and that is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and exitstatus == 0:
        for report in skipped:
            print(f"\nskipped, which CI does not allow: {report.nodeid}: {report.longrepr}")
        session.exitstatus = 1
