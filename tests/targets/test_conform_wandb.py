"""W&B passes the suite of every target: the genuine client and the loopback server. A slice here,
all of it with --long.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from replayers.conformance import Backend, Conformance
from replayers.target import Target
from replayers.to_wandb import WandbTarget
from tests.targets.wandb_loopback import WandbLoopback, client_environment, wandb_loopback

__all__ = ["wandb_loopback"]  # a fixture is used by its name


class Loopback(Backend):
    def __init__(self, server: WandbLoopback) -> None:
        self.server = server

    def target(self) -> Target:
        return WandbTarget(self.server.url, settle=0.3, patience=3)

    def abandon(self, target: Target) -> None:
        assert isinstance(target, WandbTarget)
        for _thread, child, _session in target._open:
            child.kill()  # it dies with its parent
        target._open.clear()

    def stop(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


class _Wandb(Conformance):
    # The loopback server has its own faults of the network (tests/targets/test_to_wandb.py).
    test_answers_of_a_bad_network_are_what_they_are_and_lose_nothing = None
    test_a_target_that_lost_a_run_is_refused_and_repaired = None
    test_what_somebody_else_wrote_is_refused_or_shown = None

    @pytest.fixture
    def backend(
        self, wandb_loopback: WandbLoopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Loopback:
        for name, value in client_environment(wandb_loopback.url, tmp_path).items():
            monkeypatch.setenv(name, value)
        return Loopback(wandb_loopback)


class TestWandb(_Wandb):
    points = 1
    test_hostile_names_and_values_arrive_once_and_a_second_sync_asks_nothing = None
    test_killed_at_any_call_the_next_sync_ends_exact = None
    test_lost_answers_and_half_applied_batches_are_sent_again_and_held_once = None
    test_a_run_that_goes_on_and_a_copy_of_it_are_one_run = None
    test_a_journal_that_was_restored_or_changed_is_refused = None
    test_of_two_syncs_at_once_one_leaves_and_the_target_is_exact = None
    test_a_server_that_dies_is_temporary_and_loses_nothing = None
    test_a_poisoned_event_holds_up_nothing = None
    test_superseded_points_that_are_held_become_what_was_chosen = None
    test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact = None


@pytest.mark.long
class TestWandbWhole(_Wandb):
    points = 12
