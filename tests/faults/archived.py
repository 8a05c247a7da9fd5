"""The N-th call to the file system fails under archiving, and under reading what is archived."""

from __future__ import annotations

import os

from eventlog.archiving import archive
from eventlog.audit import FAILURES, verify
from eventlog.catalog import find_all
from eventlog.errors import EventlogError
from eventlog.listing import listing
from eventlog.reader import WriterReader
from eventlog.runfile import read_all
from eventlog.seal import seal
from eventlog.segment import Header
from eventlog.series import series as one_metric
from tests.faults.calls import Faults
from tests.helpers import put, run_in, segment_bytes, series

RUNS, EVENTS = 3, 4


def project_of(journal: str, runs: int = RUNS) -> tuple[str, list[str]]:
    """Make a project of runs that are sealed; return its folder, and theirs."""
    folders = []
    for n in range(runs):
        folder = run_in(journal, f"r{n}")
        head = Header(f"r{n}", f"w{n}", 0, 0, {"project": "p", "name": "n", "rank": 0})
        put(folder, head.name, segment_bytes(series(EVENTS), head, durable=EVENTS, end=True)[0])
        seal(folder)
        folders.append(folder)
    return os.path.dirname(folders[0]), folders


def seqs(folder: str) -> list[int]:
    """Return the seqs of all events of a run."""
    return [e.seq for w in listing(folder).writers for e in WriterReader(folder, w).events()]


def archiving_survives(journal: str, faults: Faults, _level: str) -> list[str]:
    """Archiving that fails takes nothing away, and goes on afterwards."""
    broken: list[str] = []
    project, folders = project_of(journal)
    with faults.under():
        try:
            archive(project, folders, unchanged=0)
        except (OSError, EventlogError, MemoryError):
            pass
        except Exception as error:
            broken.append(f"archive raised {error!r}")
    for again in (False, True):
        if again:
            archive(project, folders, unchanged=0)
        where = f"archived again: {again}"
        for folder in folders:
            if seqs(folder) != list(range(EVENTS)):
                broken.append(f"found {seqs(folder)} in {folder}, {where}")
            report = verify(folder)
            if report.verdict in FAILURES:
                broken.append(f"verify says {report.verdict} of {folder}, {where}")
        broken += [f"{one.error}, {where}" for one in find_all([journal])[1]]
    # A run whose others were archived before it stays as it is, alone.
    left = [folder for folder in folders if listing(folder).sealed]
    if len(left) > 1 or any(read_all(f)[1] == () for f in folders if f not in left):
        broken.append(f"not archived: {left}")
    # What could not be removed is, a day later.
    names = os.listdir(os.path.join(project, "sealed")) if faults.once else []
    broken += [f"{name} was left" for name in names if not name.startswith("runs-")]
    return broken


def reading_survives(journal: str, faults: Faults, how: str) -> list[str]:
    """Reading of an archived run gives all, or an error, or says what is missing."""
    project, folders = project_of(journal)
    archive(project, folders, unchanged=0)
    folder = folders[1]
    found: list[int] = []
    said: object = False
    with faults.under():
        try:
            if how == "verify":
                report = verify(folder)
                found = list(range(sum(one.events for one in report.writers)))
                said = report.verdict != "ok"
            elif how == "key":
                found = one_metric(folder, "loss").column("seq").to_pylist()
            else:
                source = WriterReader(folder, "w1")
                for event in source.events():
                    found.append(event.seq)
                said = source.missing
        except (OSError, EventlogError, MemoryError):
            return [] if found == list(range(len(found))) else [f"read {found}"]
        except Exception as error:
            return [f"reading raised {error!r}"]
    if found == list(range(EVENTS)) or (said and found == list(range(len(found)))):
        return []
    return [f"read {found} and said nothing"]
