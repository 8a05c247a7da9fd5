"""Warnings go through `logging`, whose handlers may log to the very run that warns."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eventlog
from tests.helpers import Failing, read, values_of, writer

#: What is waited for, in seconds, before threads are said to be stuck.
PATIENCE = 30.0
ENOSPC = OSError(errno.ENOSPC, "No space left on device")


class Calling(logging.Handler):
    """Calls something with each record; its own lock is held meanwhile, as by every handler."""

    def __init__(self, call: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.call = call
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self.call(record)


@contextlib.contextmanager
def handled(handler: logging.Handler, name: str = "eventlog") -> Iterator[None]:
    log = logging.getLogger(name)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def ended(*threads: threading.Thread) -> bool:
    for one in threads:
        one.join(PATIENCE)
    return not any(one.is_alive() for one in threads)


def test_a_full_disk_and_a_handler_that_logs_from_another_thread_wait_for_each_other_never(
    tmp_path: Path,
) -> None:
    """One thread has the handler's lock and wants the writer's; the other one the reverse."""
    handling, writing, full = threading.Event(), threading.Event(), [True]

    def fails(_call: int, _name: str) -> Any:
        if not full[0]:
            return None
        writing.set()  # under the writer's lock
        handling.wait(PATIENCE)
        return ENOSPC

    log = logging.getLogger("eventlog")
    one = writer(tmp_path, files=Failing(fails, ["write"]))
    one._tell = log.warning  # type: ignore[method-assign]

    def call(record: logging.LogRecord) -> None:
        handling.set()
        writing.wait(PATIENCE)
        one.append("metric", {"said": record.getMessage()[:20]}, None)

    handler = Calling(call)
    with handled(handler):
        first = threading.Thread(target=log.warning, args=("from training",), daemon=True)
        second = threading.Thread(
            target=one.append, args=("metric", {"x": 1.0}, 1), kwargs={}, daemon=True
        )
        first.start()
        assert handling.wait(PATIENCE)
        second.start()
        assert ended(first, second), "a deadlock"
    full[0] = False
    one.close()
    assert values_of(read(tmp_path)) == [1.0]
    assert sorted(values_of(read(tmp_path), "said")) == ["from training", "the journal cannot b"]
    assert handler.count == 2


def test_a_handler_that_logs_what_cannot_be_kept_provokes_no_endless_warnings(
    tmp_path: Path,
) -> None:
    run = eventlog.init("p", "n", dir=tmp_path, quiet=True)
    handler = Calling(lambda record: run.log({record.getMessage()[:300]: object()}))
    with handled(handler):
        thread = threading.Thread(target=run.log, args=({"bad": object()},), daemon=True)
        thread.start()
        assert ended(thread)
        assert 1 <= handler.count <= 20
        run.log({"x": 1.0})
    run.finish()
    assert 1.0 in values_of(read(str(run.folder)))


def test_a_handler_that_raises_ends_no_training(tmp_path: Path) -> None:
    def fails(record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())

    run = eventlog.init("p", "n", dir=tmp_path, quiet=True)
    with handled(Calling(fails)):
        run.log({"bad": object(), "x": 1.0})
    run.finish()
    assert values_of(read(str(run.folder))) == [1.0]
