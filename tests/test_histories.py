"""Random histories of journal, loop and target: invariant II holds after each of them.

Whatever was logged, restarted, sealed, copied, killed or lost on the way: the image of the
effective view is held, nothing else but superseded points is, and nothing twice.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from eventlog.errors import TemporaryError
from eventlog.journal import Options, Writer
from eventlog.seal import seal
from eventlog.views import open_view
from replayers.compare import Comparer
from replayers.conformance_death import Dead, Interposed
from replayers.conformance_journal import found_in
from replayers.replay import Settings, delivery_of, replay, run_info
from replayers.to_memory import MemoryTarget
from tests import helpers
from tests.model import keep, rows_of

QUICK = Settings(batch_rows=5, tries=2, backoff=(0.0, 0.0))
WHEN = st.sampled_from(["before", "half", "after"])


class Histories(RuleBasedStateMachine):
    """One run, one target; any number of attempts, state folders and faults."""

    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="histories-"))
        self.folder = helpers.run_in(self.top / "j", "run-1")
        self.target = MemoryTarget()
        self.state = self.top / "state"
        self.writers: list[Writer] = []
        self.start = 1_767_225_600_000_000_000
        self.clock = self.start
        self.attempt()

    def teardown(self) -> None:
        if hasattr(self, "top"):
            for writer in self.writers:
                writer.close()
            shutil.rmtree(self.top)

    # ---------------------------------------------------------------- the journal

    @rule()
    def attempt(self) -> None:
        """The run is started again; whoever wrote before has ended."""
        for writer in self.writers:
            writer.close()
        self.clock += 10**9
        told = {"key": uuid.uuid4().hex, "start": self.clock, "evidence": "explicit"}
        identity = {"project": "p", "name": "n", "attempt": told}
        options = Options(durability="memory", segment_bytes=3000)
        self.writers = [Writer(self.folder, "run-1", identity, options=options)]

    @rule()
    def rank(self) -> None:
        """Another process of the same attempt writes beside the others."""
        identity = dict(self.writers[0]._identity)
        options = Options(durability="memory", segment_bytes=3000)
        self.writers.append(Writer(self.folder, "run-1", identity, options=options))

    @rule(which=st.integers(0, 9), first=st.integers(0, 30), count=st.integers(1, 12))
    def log(self, which: int, first: int, count: int) -> None:
        writer = self.writers[which % len(self.writers)]
        for step in range(first, first + count):
            self.clock += 1000
            writer.append("metric", {"a": self.clock / 7, "b": float(step)}, step, self.clock)
        writer.commit()

    @rule(step=st.integers(0, 30))
    def rewind(self, step: int) -> None:
        self.clock += 1000
        self.writers[0].append("state", {"rewind": step}, None, self.clock)
        self.writers[0].commit()

    @rule(value=st.integers(0, 5))
    def configure(self, value: int) -> None:
        self.clock += 1000
        self.writers[0].append("config", {"c": value}, None, self.clock)
        self.writers[0].commit()

    @rule()
    def seal(self) -> None:
        seal(self.folder)

    @rule()
    def copy(self) -> None:
        """The journal is where a copy of it was brought."""
        for writer in self.writers:
            writer.close()
        place = self.top / uuid.uuid4().hex
        shutil.copytree(self.folder, place)
        shutil.rmtree(self.folder)
        shutil.copytree(place, self.folder)
        self.attempt()

    # ---------------------------------------------------------------- the replay

    def replay(self, fault: Any = lambda number, name: None, **more: Any) -> None:
        found = found_in(self.top / "j", "run-1")
        target = Interposed(self.target, fault)
        replay(found, target, str(self.state), settings=dataclasses.replace(QUICK, **more))

    @rule()
    def sync(self) -> None:
        self.replay()
        self.holds()

    @rule(at=st.integers(1, 12), when=WHEN)
    def killed(self, at: int, when: str) -> None:
        try:
            self.replay(lambda number, _name: (when, Dead()) if number == at else None)
        except Dead:
            return

    @rule(at=st.integers(1, 8), when=WHEN)
    def failing(self, at: int, when: str) -> None:
        error = TemporaryError("not now")
        try:
            self.replay(lambda number, _name: (when, error) if number % at == 0 else None)
        except TemporaryError:
            return

    @rule()
    def lose_the_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    @rule()
    def lose_the_cursor(self) -> None:
        for path in self.state.rglob("cursor.json"):
            path.unlink()

    @precondition(lambda self: self.target.runs)
    @rule(chosen=st.integers(0, 99))
    def a_point_is_deleted_and_repaired(self, chosen: int) -> None:
        self.replay()
        stored = self.target.runs["run-1"]
        rows = rows_of(stored)
        if rows:
            del rows[sorted(rows)[chosen % len(rows)]]
            keep(stored, rows)
        self.replay(repair=True)
        self.holds()

    def holds(self) -> None:
        found = found_in(self.top / "j", "run-1")
        session = self.target.open(run_info(found, None))
        cursor, _known = delivery_of(found, self.target, str(self.state)).load()
        view = open_view(found.folder)
        result = Comparer(found.folder, self.target, session, view, cursor=cursor).run()
        assert result.explained, (result.causes, result.examples)
        assert {cause.kind for cause in result.causes} <= {"superseded"}, result.causes
        assert result.equal == result.expected
        everything = open_view(found.folder, "all")
        whole = Comparer(found.folder, self.target, session, everything, cursor=cursor).run()
        assert whole.held <= whole.expected
        assert not whole.extra


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=400 if "--long" in sys.argv else 8,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
