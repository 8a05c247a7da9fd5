"""The model target passes the suite that every target passes; targets with a flaw do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eventlog.errors import TemporaryError
from replayers.conformance import Backend, Conformance
from replayers.positions import Positions
from replayers.target import Change, RunInfo
from replayers.to_memory import MemorySession, MemoryTarget
from tests.model import keep, rows_of


class MemoryBackend(Backend):
    def __init__(self, kind: type[MemoryTarget] = MemoryTarget) -> None:
        self.one = kind()

    def target(self) -> MemoryTarget:
        return self.one

    def empty(self, run: RunInfo, known_as: str) -> None:
        del self.one.runs[run.id]

    def stranger(self, run: RunInfo, known_as: str) -> None:
        stored = self.one.runs[run.id]
        keep(stored, {**rows_of(stored), ("w", 10**6, 0): ("metric", "x", 1, 2, 3, None)})


class TestMemory(Conformance):
    points = 12
    # There is no server, and no network.
    test_a_server_that_dies_is_temporary_and_loses_nothing = None
    test_answers_of_a_bad_network_are_what_they_are_and_lose_nothing = None

    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()


class Forgetful(MemoryTarget):
    """Confirms what it does not hold."""

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        plain = session.send

        def send(batch: Any) -> list[Change]:
            if 5 not in batch.column("seq").to_pylist():
                return plain(batch)
            session._stored.held |= Positions.of("w", [])
            return []

        session.send = send  # type: ignore[method-assign]
        session.confirm = lambda batch: True  # type: ignore[method-assign]
        return session


class Doubling(MemoryTarget):
    """Holds twice what is sent twice."""

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        plain = session.send

        def send(batch: Any) -> list[Change]:
            before = rows_of(session._stored)
            changes = plain(batch)
            rows = rows_of(session._stored)
            for place, row in before.items():
                if place[1] in batch.column("seq").to_pylist() and place[0] != "twin":
                    rows["twin", place[1], len(rows)] = row
            keep(session._stored, rows)
            return changes

        session.send = send  # type: ignore[method-assign]
        return session


class Amnesiac(Doubling):
    """Cannot prove what it holds, and holds it twice when it is sent again."""

    def open(self, run: RunInfo) -> MemorySession:
        session = super().open(run)
        session.held = Positions  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Forgetful, "test_hostile_names_and_values_arrive_once_and_a_second_sync_asks_nothing"),
        (Doubling, "test_lost_answers_and_half_applied_batches_are_sent_again_and_held_once"),
        (Amnesiac, "test_killed_at_any_call_the_next_sync_ends_exact"),
    ],
)
def test_a_target_with_a_flaw_does_not_pass(
    tmp_path: Path, kind: type[MemoryTarget], test: str
) -> None:
    with pytest.raises((AssertionError, TemporaryError)):
        getattr(TestMemory(), test)(MemoryBackend(kind), tmp_path)
