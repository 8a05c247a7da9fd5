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
settings.register_profile("slice", deadline=None, max_examples=40)
settings.register_profile("long", deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="every test, at its full length")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "slice")
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


#: The same for tests of other files, by how their names begin.
TOGETHER_WITH = {
    "tests/test_keys.py::test_only_the_chosen_metrics_arrive_and_everything_else_of_the_run[mlflow": "mlflow",
    "tests/test_widening.py::test_a_lost_state_and_a_wider_view_send_what_mlflow": "mlflow",
    "tests/test_widening.py::test_a_wider_view_sends_what_the_narrower_one_left_out_and_once[mlflow": "mlflow",
}
#: Files whose tests wait most of their time: for timers of wandb's client.
WAITING = ("tests/targets/test_to_wandb.py",)
#: Tests that take longest, and would be waited for if they began last.
LONGEST = (
    "tests/targets/test_to_wandb.py::test_kills_and_faults_leave_every_row_once",
    "tests/targets/test_conform_wandb.py::TestWandb::test_a_lost_cursor",
    "tests/integrations/test_verl_promises.py::test_killed_and_started_again",
    "tests/targets/test_two_syncs.py::test_the_second_says_who_holds_the_lease",
)


def in_good_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with the longest first, and those that wait among those that compute."""
    longest = [i for i in items if i.nodeid.startswith(LONGEST)]
    rest = [i for i in items if not i.nodeid.startswith(LONGEST)]
    waiting = [i for i in rest if i.nodeid.startswith(WAITING)]
    other = [i for i in rest if not i.nodeid.startswith(WAITING)]
    every = len(other) // (len(waiting) + 1) + 1
    found = longest
    for number, item in enumerate(other):
        if number % every == 0 and waiting:
            found.append(waiting.pop())
        found.append(item)
    return found + waiting


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
            for beginning, group in TOGETHER_WITH.items():
                if nodeid.startswith(beginning):
                    return group
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs with ``--long`` only; where workers share the tests, order them."""
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    if hasattr(config, "workerinput"):
        items[:] = in_good_order(items)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that was skipped was not run, and that is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and exitstatus == 0:
        for report in skipped:
            print(f"\nskipped, which CI does not allow: {report.nodeid}: {report.longrepr}")
        session.exitstatus = 1
