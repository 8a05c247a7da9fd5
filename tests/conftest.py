"""Rules for every test."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine decides what a test sees."""
    prefixes = ("EVENTLOG_", "SLURM_", "TORCHELASTIC_", "MLFLOW_", "TRACKIO_", "RAY_")
    for name in list(os.environ):
        wandb = name.startswith("WANDB_")
        if name.startswith(prefixes) or wandb or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file share a worker and its servers; those that share nothing may part."""
    for item in items:
        apart = item.get_closest_marker("apart")
        group = item.nodeid if apart else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that was skipped was not run, and that is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and exitstatus == 0:
        for report in skipped:
            print(f"\nskipped, which CI does not allow: {report.nodeid}: {report.longrepr}")
        session.exitstatus = 1
