"""Power cuts of a LazyFS: a real file system that forgets what was not synced.

It is built from its own sources and mounted by whoever runs this (`tools/crash --lazyfs`); the
simulator needs neither and knows more states.
"""

from __future__ import annotations

import os
import random
import select
import shutil
from typing import Any

from eventlog.audit import FAILURES, verify
from eventlog.errors import JournalError
from eventlog.files import LOCAL
from eventlog.journal import Options, Writer
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal


def cut(fifo: str) -> None:
    """Cut the power: return when everything that was not synced is forgotten."""
    # It tells only those who listen already.
    done = os.open(f"{fifo}-completed", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with open(fifo, "w") as faults:
            faults.write("lazyfs::clear-cache\n")
        told, _, _ = select.select([done], [], [], 30.0)
        assert told, "LazyFS did not answer: its configuration needs fifo_path_completed"
        os.read(done, 4096)
    finally:
        os.close(done)


def survives(top: str, fifo: str, seed: int) -> tuple[int, list[str]]:
    """Log in the file system and cut its power at some moment; return how many events that were
    not durable it took, and what was broken.
    """
    rng = random.Random(seed)
    folder = os.path.join(top, str(seed))
    os.mkdir(folder)
    LOCAL.sync_folder(top)
    level = rng.choice(["group", "group", "sync", "os"])
    options = Options(level, segment_bytes=rng.choice([2_600, 5_000, 10**6]), group_seconds=60.0)
    one = Writer(folder, "r", {}, options=options)
    one._arm = lambda: None  # type: ignore[method-assign]
    given = 0
    for _ in range(rng.randint(1, 30)):
        one.append("metric", {"x": given, "t": "é" * rng.randint(0, 300)}, given)
        given += 1
        if rng.random() < 0.2:
            try:
                one.commit()
            except JournalError as error:
                return 0, [f"seed {seed}: {error}"]
        if rng.random() < 0.05:
            seal(folder)
    durable = one.health().durable
    if rng.random() < 0.3:
        one.close()
        durable = given
        seal(folder)
    cut(fifo)
    found: list[Any] = []
    if one.name in listing(folder).writers:
        found = [e.rows[0].value for e in WriterReader(folder, one.name).events()]
    broken = []
    if found != list(range(len(found))) or not durable <= len(found) <= given:
        broken.append(f"seed {seed}: {durable} durable, {given} given, read {found}")
    report = verify(folder)
    if report.verdict in FAILURES:
        broken.append(f"seed {seed}: verify says {report}")
    shutil.rmtree(folder, ignore_errors=True)
    return given - len(found), broken
