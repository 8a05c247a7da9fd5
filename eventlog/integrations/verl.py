"""The logger ``eventlog`` of verl: ``trainer.logger=["console","eventlog"]``, and nothing else.

verl imports whatever stands in the entry point group ``verl.plugins``, in the driver and in each
actor that imports verl, and does no more; so this module registers when it is imported. It adds
the name to `Tracking.supported_backend` and wraps `Tracking`, `ValidationGenerationsLogger` and
`DapoFilteredRewardTableLogger`, all of ``verl.utils.tracking``. Importing it loads neither pyarrow
nor a backend; the journal is opened by the first of them that is asked to log to it.

verl hides what a plug-in raises: ``eventlog doctor verl`` says whether it is seen. Where verl is
too old for plug-ins, ``VERL_USE_EXTERNAL_MODULES=eventlog.integrations.verl`` does the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

BACKEND = "eventlog"

log = logging.getLogger("eventlog")

_MARK = "_eventlog_wraps"


def register(tracking: ModuleType) -> None:
    """Add the backend to ``verl.utils.tracking``. Again is harmless, as is a verl that has a
    backend of this name of its own.
    """
    cls = tracking.Tracking
    if BACKEND in cls.supported_backend:
        return
    _wrap(cls, "__init__", _starting)
    _wrap(cls, "finish", _finishing)
    _wrap(cls, "__del__", _dropping)
    _wrap(getattr(tracking, "ValidationGenerationsLogger", None), "log", _generating)
    _wrap(getattr(tracking, "DapoFilteredRewardTableLogger", None), "log", _filtering)
    cls.supported_backend = [*cls.supported_backend, BACKEND]


def _wrap(cls: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put a wrapper around a method, if the class has one, once."""
    method = None if cls is None else cls.__dict__.get(name)
    if method is None or hasattr(method, _MARK):
        return
    wrapped = functools.wraps(method)(wrapper(method))
    setattr(wrapped, _MARK, True)
    setattr(cls, name, wrapped)


def chosen(loggers: Any) -> bool:
    """Return whether ``trainer.logger`` (a list or a text) names this backend."""
    return loggers == BACKEND if isinstance(loggers, str) else BACKEND in (loggers or ())


# ------------------------------------------------------------------------------ the wrappers


def _starting(method: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(method)

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        try:
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            named = given.arguments
            if chosen(named.get("default_backend")):
                from eventlog.integrations.verl_runs import Tracked

                self.logger[BACKEND] = Tracked(
                    named.get("project_name"), named.get("experiment_name"), named.get("config")
                )
        except Exception as error:
            log.warning("eventlog: this run is not recorded: %r", error)

    return begin


def _finishing(method: Callable[..., None]) -> Callable[..., None]:
    end = _ending()

    def finish(self: Any, *args: Any, **kwargs: Any) -> None:
        end(self, kwargs.get("exit_code", args[0] if args else 0))
        method(self, *args, **kwargs)

    return finish


def _dropping(method: Callable[[Any], None]) -> Callable[[Any], None]:
    end = _ending()

    def drop(self: Any) -> None:
        # verl calls finish() with exit code 0 here too, and knows no more than that.
        end(self, None)
        method(self)

    return drop


def _ending() -> Callable[[Any, int | None], None]:
    """Return `_end` for methods that Python may call while it ends, when what stands in a module
    is gone: the run was ended before that.
    """
    over, end = sys.is_finalizing, _end
    return lambda tracking, exit_code: None if over() else end(tracking, exit_code)


def _end(tracking: Any, exit_code: int | None) -> None:
    try:
        mine = getattr(tracking, "logger", {}).get(BACKEND)
        if mine is not None:
            mine.finish(exit_code)
    except Exception as error:
        log.warning("eventlog: the run was not ended: %r", error)


def _generating(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    def log_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
            if chosen(given["loggers"]):
                from eventlog.integrations import verl_runs

                run = _shared(self, given["loggers"])
                verl_runs.log_generations(run, given["samples"], given["step"])
        except Exception as error:
            log.warning("eventlog: generations were not recorded: %r", error)
        return method(self, *args, **kwargs)

    return log_samples


def _filtering(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    def log_counts(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
            if chosen(given["loggers"]):
                from eventlog.integrations import verl_runs

                run = _shared(self, given["loggers"])
                verl_runs.log_filtered_rewards(run, given["reward_counts"], given["step"])
        except Exception as error:
            log.warning("eventlog: filtered rewards were not recorded: %r", error)
        return method(self, *args, **kwargs)

    return log_counts


def _shared(logger: Any, loggers: Any) -> Any:
    """Return the run of a logger that was given no config; called by a wrapper, which its user
    called.
    """
    from eventlog.integrations import verl_runs

    return verl_runs.share(
        getattr(logger, "project_name", None),
        getattr(logger, "experiment_name", None),
        config_near(loggers, sys._getframe(2)),
    )


def config_near(loggers: Any, frame: Any) -> Any:
    """Return the config that a list of loggers belongs to; None if there is none to be seen.

    An actor that logs generations alone has nothing but ``config.trainer.logger``: OmegaConf's
    lists know the config they are part of. A text does not: then it is that of the caller.
    """
    root = getattr(loggers, "_get_root", None)
    found = root() if callable(root) else None
    if not isinstance(found, Mapping):
        found = getattr(frame.f_locals.get("self"), "config", None)
    return found if isinstance(found, Mapping) and "trainer" in found else None


register(importlib.import_module("verl.utils.tracking"))
