"""Views: superseding too much loses data; each rule of `eventlog.views` and what it leaves alone."""

from __future__ import annotations

import itertools

import pytest

from eventlog import views
from eventlog.errors import UsageError
from eventlog.event import make_rows
from eventlog.reader import WriterReader, headers
from eventlog.seal import seal
from tests.helpers import NOW, writer

HOUR = 3600 * 10**9
_launches = itertools.count(1)


class History:
    """Builds a run: attempts one after the other, an hour each."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.clock = NOW
        self.names = {}

    def attempt(
        self, name, *calls, rank=None, launch="job", restart=None, evidence="restart", at=None
    ):
        """Log calls (step, keys...) in a writer of an attempt; the value says who logged it."""
        restart = len(self.names) if restart is None else restart
        if at is None:
            self.clock += HOUR
            at = self.clock
        recorded = {
            "key": name.partition("/")[0],
            "launch": launch,
            "restart": [restart],
            "start": at,
            "writer_start": at + (rank or 0),
            "evidence": evidence,
        }
        one = writer(self.folder, identity={"attempt": recorded})
        self.names[one.name] = name
        for n, (step, *keys) in enumerate(calls):
            if keys[0] == "rewind!":
                one.append_rows(make_rows("state", [("rewind", step)])[0], None, at + n)
            else:
                one.append("metric", dict.fromkeys(keys, name), step, at + n)
        one.close()
        return self

    def view(self):
        return views.effective(self.folder)

    def kept(self, key="loss", view=None):
        """Return (attempt, step) of what counts, sorted by step."""
        view = view or self.view()
        out = []
        for one, name in self.names.items():
            for table in WriterReader(self.folder, one).tables():
                for row in view.rows(one, table).select(["key", "step"]).to_pylist():
                    if row["key"] == key:
                        out.append((name, row["step"]))
        return sorted(out, key=lambda x: (x[1] is not None, x[1] or 0, x[0]))


def train(first, last, key="loss"):
    return [(step, key) for step in range(first, last + 1)]


def at(kept, name):
    return [step for who, step in kept if who == name]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


def test_a_restart_from_a_checkpoint_supersedes_what_it_logs_again_and_what_lay_beyond(history):
    history.attempt("a", *train(1, 10)).attempt("b", *train(6, 8))
    kept = history.kept()
    assert at(kept, "a") == [1, 2, 3, 4, 5]  # 9 and 10 never happened in this history
    assert at(kept, "b") == [6, 7, 8]
    assert history.view().restarts["b"] == views.Restart(6, "data")


def test_nothing_is_taken_from_the_journal(history):
    history.attempt("a", *train(1, 10)).attempt("b", *train(6, 8))
    assert at(history.kept(view=views.All()), "a") == list(range(1, 11))


def test_sealing_changes_no_view(history):
    history.attempt("a", *train(1, 10)).attempt("b", *train(6, 8))
    before = history.kept()
    seal(history.folder, abandoned=True)
    assert history.kept() == before


def test_at_the_restart_step_only_what_is_logged_again_is_superseded(history):
    """Frameworks validate at the checkpoint's step before they train."""
    history.attempt("a", *train(1, 10), (5, "val", "extra"), (10, "val"))
    history.attempt("b", (5, "val"), *train(6, 9), (9, "val"))
    assert at(history.kept("loss"), "a") == [1, 2, 3, 4, 5]
    assert history.kept("val") == [("b", 5), ("b", 9)]
    assert history.kept("extra") == [("a", 5)]


def test_a_sparse_key_beyond_the_restart_is_superseded_though_it_is_not_logged_again(history):
    history.attempt("a", *train(1, 10), (4, "val"), (8, "val")).attempt("b", *train(6, 9))
    assert history.kept("val") == [("a", 4)]


def test_beyond_the_restart_nothing_is_superseded_before_a_later_step_is_logged(history):
    history.attempt("a", *train(1, 10)).attempt("b", (6, "loss"))
    kept = history.kept()
    assert at(kept, "a") == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert at(kept, "b") == [6]
    assert history.view().restarts["b"].step is None


def test_an_attempt_that_only_validates_supersedes_its_own_keys_at_that_step(history):
    history.attempt("a", *train(1, 10), (7, "val")).attempt("b", (7, "val"))
    assert len(at(history.kept(), "a")) == 10
    assert history.kept("val") == [("b", 7)]


def test_an_attempt_that_first_logs_at_zero_and_goes_on_behind_the_checkpoint_keeps_the_past(
    history,
):
    history.attempt("a", *train(0, 1000)).attempt("b", (0, "loss"), *train(801, 820))
    kept = history.kept()
    assert at(kept, "a") == list(range(1, 801))
    assert at(kept, "b") == [0, *range(801, 821)]


def test_an_evaluator_of_old_checkpoints_supersedes_its_own_keys_at_those_steps_alone(history):
    """It validates wherever the trainer did, and passes over what the trainer logged between."""
    history.attempt("a", *train(1, 12), *((s, "val") for s in (3, 6, 9, 12)))
    history.attempt("b", *((s, "val") for s in (3, 6, 9, 12)), evidence="explicit", launch=None)
    assert len(at(history.kept(), "a")) == 12
    assert history.kept("val") == [("b", 3), ("b", 6), ("b", 9), ("b", 12)]
    assert history.view().restarts["b"] == views.Restart(None, "none")


def test_a_restart_that_logs_as_rarely_as_before_is_believed(history):
    history.attempt("a", *((s, "loss") for s in range(0, 100, 10)))
    history.attempt("b", (40, "val"), *((s, "loss") for s in range(50, 80, 10)))
    assert at(history.kept(), "a") == [0, 10, 20, 30, 40]


def test_a_fresh_start_from_zero_supersedes_only_what_it_logs_again(history):
    history.attempt("a", *train(0, 10)).attempt("b", *train(0, 4))
    kept = history.kept()
    assert at(kept, "a") == [5, 6, 7, 8, 9, 10]
    assert history.view().restarts["b"].how == "fresh"


def test_ranks_that_restart_one_step_apart_are_one_restart(history):
    history.attempt("a", *train(1, 10))
    start = history.clock + HOUR
    history.attempt("b/0", *train(6, 8), rank=0, restart=1, at=start)
    history.attempt("b/1", *train(7, 8, "other"), rank=1, restart=1, at=start)
    view = history.view()
    assert len(view.attempts) == 2
    assert view.restarts["b"].step == 6
    assert at(history.kept(), "a") == [1, 2, 3, 4, 5]


def test_an_attempt_without_steps_supersedes_nothing(history):
    history.attempt("a", *train(1, 5)).attempt("b", (None, "loss"), (None, "x"))
    assert at(history.kept(), "a") == [1, 2, 3, 4, 5]
    assert (None in at(history.kept(), "b")) is True


def test_points_without_a_step_are_never_superseded(history):
    history.attempt("a", (None, "loss"), *train(1, 5), (None, "loss")).attempt("b", *train(1, 9))
    assert at(history.kept(), "a") == [None, None]


def test_a_third_attempt_that_goes_back_before_the_second_supersedes_both(history):
    history.attempt("a", *train(1, 10)).attempt("b", *train(6, 14)).attempt("c", *train(4, 7))
    kept = history.kept()
    assert at(kept, "a") == [1, 2, 3]
    assert at(kept, "b") == []
    assert at(kept, "c") == [4, 5, 6, 7]


def test_a_third_attempt_that_goes_on_after_the_second_leaves_it_alone(history):
    history.attempt("a", *train(1, 10)).attempt("b", *train(6, 14)).attempt("c", *train(15, 18))
    kept = history.kept()
    assert (at(kept, "a"), at(kept, "b")) == ([1, 2, 3, 4, 5], list(range(6, 15)))


def test_late_data_within_one_attempt_is_no_rewind(history):
    history.attempt("a", *train(1, 10), (3, "late"), (2, "loss"), *train(11, 12))
    assert at(history.kept(), "a") == [1, 2, 2, *range(3, 13)]
    assert history.kept("late") == [("a", 3)]


def test_attempts_that_overlap_supersede_nothing_and_are_listed(history):
    """An evaluator beside the trainer, or two jobs under one id."""
    history.attempt("a", *train(1, 10), launch="one", restart=0)
    history.attempt(
        "b", *train(5, 10), launch="two", restart=0, evidence="explicit", at=history.clock + 3
    )
    view = history.view()
    assert len(history.kept()) == 16
    assert [(x.key, y.key) for x, y in view.parallel] == [("a", "b")]
    assert not view.restarts


def test_a_run_that_was_only_joined_supersedes_nothing(history):
    history.attempt("a", *train(1, 10), launch="one")
    history.attempt("b", *train(5, 10), launch="two", evidence="joined")
    assert len(history.kept()) == 16


def test_an_explicit_resume_after_the_end_of_the_other_supersedes(history):
    history.attempt("a", *train(1, 10), launch="one", restart=0)
    history.attempt("b", *train(5, 7), launch="two", restart=0, evidence="explicit")
    assert at(history.kept(), "a") == [1, 2, 3, 4]


def test_two_explicit_attempts_of_one_interactive_job_follow_each_other(history):
    history.attempt("a", *train(1, 10), launch="slurm:1.batch", restart=0)
    history.attempt("b", *train(5, 7), launch="slurm:1.batch", restart=0, evidence="explicit")
    assert at(history.kept(), "a") == [1, 2, 3, 4]


def test_restart_counts_are_stronger_than_clocks(history):
    history.attempt("b", *train(6, 8), restart=1)
    history.attempt("a", *train(1, 10), restart=0)  # its clock is an hour ahead
    assert [a.key for a in history.view().attempts] == ["a", "b"]
    assert at(history.kept(), "a") == [1, 2, 3, 4, 5]


def test_a_stated_rewind_at_the_start_is_believed_over_the_data(history):
    """EVENTLOG_RESUME_STEP: the row is the attempt's first."""
    history.attempt("a", *train(1, 10), (4, "val"), (7, "val"))
    history.attempt("b", (3, "rewind!"), *train(6, 8))
    assert history.view().restarts["b"] == views.Restart(3, "stated")
    assert at(history.kept(), "a") == [1, 2, 3]
    assert history.kept("val") == []


def test_a_stated_rewind_takes_nothing_before_a_later_step_is_logged(history):
    history.attempt("a", *train(1, 10)).attempt("b", (3, "rewind!"))
    assert len(at(history.kept(), "a")) == 10


def test_a_rewind_within_an_attempt_supersedes_its_own_later_steps(history):
    history.attempt("a", *train(1, 10), (5, "rewind!"), *train(6, 7))
    assert at(history.kept(), "a") == [1, 2, 3, 4, 5, 6, 7]


def test_a_rewind_in_the_middle_of_an_attempt_does_not_move_where_it_started(history):
    history.attempt("a", *train(1, 10), (7, "val"))
    history.attempt("b", *train(6, 12), (8, "rewind!"), *train(9, 11))
    assert at(history.kept(), "a") == [1, 2, 3, 4, 5]
    assert history.kept("val") == []
    assert at(history.kept(), "b") == [6, 7, 8, 9, 10, 11]


def test_config_and_state_are_never_superseded(history):
    history.attempt("a", *train(1, 5)).attempt("b", *train(1, 9))
    (first,) = [w for w, name in history.names.items() if name == "a"]
    one = writer(
        history.folder, identity={"attempt": {"key": "a", "launch": "job", "restart": [0]}}
    )
    one.append("config", {"lr": 1}, 3)
    one.close()
    view = history.view()
    (table,) = WriterReader(history.folder, one.name).tables()
    assert view.rows(one.name, table).num_rows == 1
    assert view.rows(first, next(WriterReader(history.folder, first).tables())).num_rows == 0


def test_as_of_a_time_shows_what_had_been_logged_by_then(history):
    history.attempt("a", *train(1, 10))
    view = views.AsOf(history.clock + 4)
    assert at(history.kept(view=view), "a") == [1, 2, 3, 4, 5]


def test_views_have_names_and_there_is_no_other(history):
    history.attempt("a", *train(1, 2))
    assert views.open_view(history.folder, "all").name == "all"
    assert views.open_view(history.folder).name == "effective"
    with pytest.raises(UsageError, match="no view"):
        views.open_view(history.folder, "newest")


def test_a_run_of_one_attempt_is_whole(history):
    history.attempt("a", *train(1, 3))
    view = history.view()
    assert len(history.kept(view=view)) == 3
    assert not view.parallel
    assert headers(history.folder)
