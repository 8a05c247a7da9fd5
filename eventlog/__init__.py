"""A write-ahead local event log for machine-learning runs.

    >>> import eventlog
    >>> run = eventlog.init(project="ppo", name="qwen-7b", config={"lr": 3e-4})
    >>> run.log({"loss": 0.5}, step=100)
    >>> run.finish()

Importing the package loads nothing but the standard library's smallest parts: pyarrow and numpy
come with the first journal that is opened.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, whose import is most of what this one would take

if TYPE_CHECKING:
    from typing import Any

    from eventlog.errors import (
        AuthenticationError,
        EventlogError,
        FormatError,
        IntegrityError,
        JournalError,
        PartialError,
        TemporaryError,
        UsageError,
        ValueRefused,
    )
    from eventlog.journal import Health
    from eventlog.run import Run
    from eventlog.series import read_series
    from eventlog.start import init
    from eventlog.table import Table

__version__ = "0.1.0"

_HOMES = {
    "AuthenticationError": "errors",
    "EventlogError": "errors",
    "FormatError": "errors",
    "IntegrityError": "errors",
    "JournalError": "errors",
    "PartialError": "errors",
    "TemporaryError": "errors",
    "UsageError": "errors",
    "ValueRefused": "errors",
    "Health": "journal",
    "Run": "run",
    "Table": "table",
    "init": "start",
    "read_series": "series",
}

__all__ = [
    "AuthenticationError",
    "EventlogError",
    "FormatError",
    "Health",
    "IntegrityError",
    "JournalError",
    "PartialError",
    "Run",
    "Table",
    "TemporaryError",
    "UsageError",
    "ValueRefused",
    "__version__",
    "config",
    "define_metric",
    "finish",
    "flush",
    "init",
    "log",
    "read_series",
    "summary",
]


def log(data: Any, step: Any = None) -> int | None:
    """Record one event in the run of the latest `init`; see `Run.log`."""
    return _current().log(data, step)


def define_metric(name: str, step_metric: str | None = None, summary: str | None = None) -> None:
    """Say how a metric is to be shown; see `Run.define_metric`."""
    _current().define_metric(name, step_metric, summary)


def finish(exit_code: int | None = 0) -> None:
    """End the run of the latest `init`; see `Run.finish`."""
    _current().finish(exit_code)


def flush() -> None:
    """Return when everything logged so far survives a power cut; see `Run.flush`."""
    _current().flush()


def _current() -> Run:
    from eventlog.start import current

    return current()


def __getattr__(name: str) -> Any:
    if name in ("config", "summary"):  # those of the latest run
        return getattr(_current(), name)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'eventlog' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"eventlog.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
