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

from eventlog import blobs
from eventlog.audit import FAILURES, verify
from eventlog.errors import EventlogError, JournalError
from eventlog.event import Event
from eventlog.files import LOCAL
from eventlog.journal import Options, Writer
from eventlog.reader import WriterReader, listing
from eventlog.seal import seal
from eventlog.table import Table


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
        data: dict[str, Any] = {"x": given, "t": "é" * rng.randint(0, 300)}
        if rng.random() < 0.2:
            data["table"] = Table(["n"], [[given]] * rng.randint(1, 2_000))
        one.append("metric", data, given)
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
    one._chain.abandon()  # thousands of writers of one process would use up its descriptors
    found: list[Any] = []
    broken: list[str] = []
    if one.name in listing(folder).writers:
        events = list(WriterReader(folder, one.name).events())
        found = [e.rows[0].value for e in events]
        broken += [f"seed {seed}: {text}" for text in _tables(folder, events[:durable])]
    if found != list(range(len(found))) or not durable <= len(found) <= given:
        broken.append(f"seed {seed}: {durable} durable, {given} given, read {found}")
    report = verify(folder)
    if report.verdict in FAILURES:
        broken.append(f"seed {seed}: verify says {report}")
    shutil.rmtree(folder, ignore_errors=True)
    return given - len(found), broken


def _tables(folder: str, events: list[Event]) -> list[str]:
    """Return what is wrong with the tables of events that were durable."""
    broken = []
    for event in events:
        for row in event.rows:
            if row.type == "table":
                try:
                    table = Table.from_bytes(blobs.get(folder, row.value["sha256"]))
                except EventlogError as error:
                    broken.append(f"event {event.seq}: {error}")
                else:
                    if table.data[0] != [event.step]:
                        broken.append(f"event {event.seq} has another table")
    return broken
