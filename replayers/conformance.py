"""The test suite that every target passes; authors of other targets import it.

A target's author gives a `Backend` and subclasses `Conformance` in a file of tests that pytest
collects::

    from replayers.conformance import Backend, Conformance

    class MyBackend(Backend):
        def target(self):
            return MyTarget("http://127.0.0.1:1234")

    class TestMyTarget(Conformance):
        @pytest.fixture
        def backend(self):
            return MyBackend()

Each test drives the real loop (`replayers.replay`) over a journal of hostile names and values and
ends by comparing every point with what the target reads back (`replayers.compare`): nothing may be
missing, doubled or altered without a rule that explains it. What a backend cannot do (it cannot be
stopped, there is no network before it) skips the tests that need it, by name.

With the variable ``EVENTLOG_CONFORMANCE=long`` every point is tried at which a call can die,
otherwise `Conformance.points` of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
import time
from pathlib import Path

from eventlog.catalog import Found
from eventlog.errors import EventlogError, IntegrityError, TemporaryError
from eventlog.event import METRIC
from eventlog.views import open_view
from replayers.compare import Comparer, Difference
from replayers.conformance_backend import Backend, has
from replayers.conformance_death import Dead, Interposed
from replayers.conformance_journal import append, found_in, make_journal, poison
from replayers.conformance_proxy import Fault, Proxy
from replayers.lease import Lease
from replayers.outcome import Outcome, Settings
from replayers.replay import delivery_of, replay, run_info
from replayers.superseding import APPEND, CHOICES

__all__ = ["Backend", "Conformance", "Dead", "Fault", "Proxy"]

QUICK = Settings(batch_rows=12, tries=2, backoff=(0.0, 0.01))
#: Answers of a server that say: not now.
TEMPORARY = (408, 429, 500, 502, 503, 504)


class Conformance:
    """Subclass it and give a fixture ``backend`` that returns a `Backend`."""

    #: At how many of the points where a call can die the short suite tries it.
    points = 6
    #: Seconds a call may take through a proxy that stalls; None if the target waits for ever.
    patience = 60.0
    settings = QUICK

    # ---------------------------------------------------------------- helpers

    def sync(
        self, found: Found, backend: Backend, state: Path, superseded: str = APPEND
    ) -> Outcome:
        """Bring a run into the backend with a target of its own, as a process would."""
        target = backend.target()
        settings = dataclasses.replace(self.settings, superseded=superseded)
        try:
            return replay(found, target, str(state), settings=settings)
        finally:
            target.close()

    def sync_patiently(
        self, found: Found, backend: Backend, state: Path, superseded: str = APPEND
    ) -> Outcome:
        """Sync until the backend takes it: what died a moment ago may hold it up for a while."""
        for _ in range(20):
            with contextlib.suppress(TemporaryError):
                return self.sync(found, backend, state, superseded)
            time.sleep(0.3)
        return self.sync(found, backend, state, superseded)

    def difference(self, found: Found, backend: Backend, state: Path) -> Difference:
        """Compare every point of the run with what the backend reads back."""
        target = backend.target()
        try:
            cursor, _known = delivery_of(found, target, str(state)).load()
            info = run_info(found, cursor.known_as, generation=cursor.generation)
            session = target.open(info)
            view = open_view(found.folder)
            return Comparer(found.folder, target, session, view, cursor=cursor).run()
        finally:
            target.close()

    def check(self, found: Found, backend: Backend, state: Path) -> None:
        """Fail unless the backend holds exactly the run, as far as its mapping goes."""
        result = self.difference(found, backend, state)
        assert result.explained, (result.causes, result.examples)
        assert not result.superseded, result.causes
        assert result.held == result.expected, (result.held, result.expected)

    def dies(
        self,
        found: Found,
        backend: Backend,
        state: Path,
        at: int,
        when: str,
        superseded: str = APPEND,
    ) -> tuple[bool, list[str]]:
        """Sync with a target that dies at a call; return whether it did, and all calls."""

        def fault(number: int, _name: str) -> tuple[str, BaseException] | None:
            return (when, Dead()) if number == at else None

        inner = backend.target()
        target = Interposed(inner, fault)
        settings = dataclasses.replace(self.settings, superseded=superseded)
        try:
            replay(found, target, str(state), settings=settings)
        except Dead:
            backend.abandon(inner)
            return True, target.calls
        inner.close()
        return False, target.calls

    def chosen(self, count: int, points: int = 0) -> list[int]:
        """Return the points to try, of 1 to `count`: so many, or those of the suite."""
        points = points or self.points
        if os.environ.get("EVENTLOG_CONFORMANCE") == "long" or count <= points:
            return list(range(1, count + 1))
        step = (count - 1) / max(points - 1, 1)
        return sorted({1 + round(step * i) for i in range(points)})

    # ---------------------------------------------------------------- tests

    def test_hostile_names_and_values_arrive_once_and_a_second_sync_asks_nothing(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j")
        first = self.sync(found, backend, tmp_path / "s")
        assert first.settled == first.events > 0
        self.check(found, backend, tmp_path / "s")
        second = self.sync(found, backend, tmp_path / "s")
        assert (second.sent, second.contacted) == (0, False)

    def test_killed_at_any_call_the_next_sync_ends_exact(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j", events=8)
        _died, calls = self.dies(found, backend, tmp_path / "count", 10**9, "before")
        for turn, at in enumerate(self.chosen(len(calls))):
            kinds = ("before", "after", "half") if calls[at - 1] == "send" else ("before", "after")
            for when in kinds if len(calls) <= self.points else [kinds[turn % len(kinds)]]:
                case = tmp_path / f"{at} {when}"
                again = make_journal(case / "j", events=8)
                died, _calls = self.dies(again, backend, case / "s", at, when)
                assert died, (at, when, calls)
                outcome = self.sync_patiently(again, backend, case / "s")
                assert outcome.settled == outcome.events, (at, when)
                self.check(again, backend, case / "s")

    def test_lost_answers_and_half_applied_batches_are_sent_again_and_held_once(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        for when in ("after", "half"):
            found = make_journal(tmp_path / when, events=8)
            odd = {"n": 0}

            def fault(
                _number: int, name: str, odd: dict[str, int] = odd, when: str = when
            ) -> tuple[str, BaseException] | None:
                odd["n"] += name == "send"
                lost = name == "send" and odd["n"] % 3 == 1
                return (when, TemporaryError("the answer was lost")) if lost else None

            target = Interposed(backend.target(), fault)
            settings = dataclasses.replace(self.settings, tries=4)
            replay(found, target, str(tmp_path / f"s-{when}"), settings=settings)
            target.close()
            self.check(found, backend, tmp_path / f"s-{when}")

    def test_a_lost_cursor_is_rebuilt_from_the_target(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j", events=8)
        self.sync(found, backend, tmp_path / "s")
        before = self.difference(found, backend, tmp_path / "s")
        shutil.rmtree(tmp_path / "s")
        outcome = self.sync(found, backend, tmp_path / "s")
        assert (outcome.contacted, outcome.settled) == (True, outcome.events)
        self.check(found, backend, tmp_path / "s")
        after = self.difference(found, backend, tmp_path / "s")
        assert (after.held, after.equal) == (before.held, before.equal)

    def test_a_run_that_goes_on_and_a_copy_of_it_are_one_run(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j", events=6, hostile=False)
        self.sync(found, backend, tmp_path / "s")
        shutil.copytree(tmp_path / "j", tmp_path / "copy")
        append(found.folder, found.run.id, 5, first=6).close()
        self.sync(found, backend, tmp_path / "s")
        self.check(found, backend, tmp_path / "s")
        copy = found_in(tmp_path / "copy", found.run.id)
        assert self.sync(copy, backend, tmp_path / "s-copy").settled > 0
        self.check(found, backend, tmp_path / "s")

    def test_a_journal_that_was_restored_or_changed_is_refused(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j", events=6, hostile=False)
        writer = append(found.folder, found.run.id, 4, first=6)
        writer.commit()
        backup = tmp_path / "backup"
        shutil.copytree(found.folder, backup)
        writer.append(METRIC, {"loss": 1.0}, 50)
        writer.close()
        self.sync(found, backend, tmp_path / "s")
        shutil.rmtree(found.folder)
        shutil.copytree(backup, found.folder)
        self._refused(found, backend, tmp_path / "s", "restored or copied in part")

    def test_a_target_that_lost_a_run_is_refused_and_repaired(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        self._needs(backend, "empty")
        found = make_journal(tmp_path / "j", events=6, hostile=False)
        outcome = self.sync(found, backend, tmp_path / "s")
        assert outcome.known_as is not None
        backend.empty(run_info(found, outcome.known_as), outcome.known_as)
        append(found.folder, found.run.id, 5, first=6).close()
        self._refused(found, backend, tmp_path / "s", "")
        self._repaired(found, backend, tmp_path / "s")

    def test_what_somebody_else_wrote_is_refused_or_shown(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        self._needs(backend, "stranger")
        found = make_journal(tmp_path / "j", events=6, hostile=False)
        outcome = self.sync(found, backend, tmp_path / "s")
        assert outcome.known_as is not None
        backend.stranger(run_info(found, outcome.known_as), outcome.known_as)
        try:
            result = self.difference(found, backend, tmp_path / "s")
        except IntegrityError:
            return
        assert result.extra or result.altered
        assert not result.explained

    def test_a_poisoned_event_holds_up_nothing(self, backend: Backend, tmp_path: Path) -> None:
        found = make_journal(tmp_path / "j", events=4, hostile=False)
        writer = append(found.folder, found.run.id, 4, first=10)
        poison(writer)
        writer.append(METRIC, {"loss": 5.0}, 20)
        writer.close()
        outcome = self.sync(found, backend, tmp_path / "s")
        assert outcome.settled == outcome.events
        result = self.difference(found, backend, tmp_path / "s")
        assert result.explained, result.causes
        held = result.equal + sum(c.count for c in result.causes if c.kind == "missing")
        assert held >= result.expected

    def test_of_two_syncs_at_once_one_leaves_and_the_target_is_exact(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        found = make_journal(tmp_path / "j", events=6, hostile=False)
        target = backend.target()
        delivery = delivery_of(found, target, str(tmp_path / "s"))
        delivery.prepare()
        try:
            with Lease(delivery.folder):
                left: list[BaseException] = []

                def other() -> None:
                    try:
                        replay(found, target, str(tmp_path / "s"), settings=self.settings)
                    except BaseException as error:
                        left.append(error)

                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            (error,) = left
            assert isinstance(error, TemporaryError), error
        finally:
            target.close()
        self.sync(found, backend, tmp_path / "s")
        self.check(found, backend, tmp_path / "s")

    def test_superseded_points_that_are_held_become_what_was_chosen(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        for choice in self._choices(backend):
            state = tmp_path / choice / "s"
            found = self._gone_back(backend, tmp_path / choice, choice)
            second = self.sync(found, backend, state, choice)
            if choice == APPEND:
                result = self.difference(found, backend, state)
                assert result.explained, result.causes
                assert result.superseded == 9, result.causes
                continue
            self.check(found, backend, state)
            again = self.sync(found, backend, state, choice)
            assert (again.sent, again.contacted) == (0, False)
            shutil.rmtree(state)
            lost = self.sync(found, backend, state, choice)
            assert (lost.known_as, lost.points) == (second.known_as, 0)
            self.check(found, backend, state)

    def test_killed_at_any_call_for_superseded_points_the_next_sync_ends_exact(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        for choice in self._choices(backend)[1:]:
            found = self._gone_back(backend, tmp_path / choice, choice)
            state = tmp_path / choice / "s"
            _died, calls = self.dies(found, backend, state, 10**9, "before", choice)
            for turn, at in enumerate(self.chosen(len(calls), max(3, self.points // 3))):
                case = tmp_path / choice / str(at)
                again = self._gone_back(backend, case, choice)
                when = ("after", "before", "half")[turn % 3]
                died, _calls = self.dies(again, backend, case / "s", at, when, choice)
                assert died, (choice, at, when, calls)
                if turn % 2:
                    shutil.rmtree(case / "s")
                outcome = self.sync_patiently(again, backend, case / "s", choice)
                assert outcome.settled == outcome.events, (choice, at, when)
                self.check(again, backend, case / "s")

    def test_a_server_that_dies_is_temporary_and_loses_nothing(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        self._needs(backend, "stop")
        found = make_journal(tmp_path / "j", events=12)
        down = {"n": 0}

        def fault(number: int, name: str) -> tuple[str, BaseException] | None:
            if name == "send" and not down["n"] and number > 4:
                down["n"] = number
                backend.stop()
            return None

        inner = backend.target()
        target = Interposed(inner, fault)
        try:
            replay(found, target, str(tmp_path / "s"), settings=self.settings)
        except EventlogError as error:
            assert error.exit_code == TemporaryError.exit_code, error
        else:
            raise AssertionError("a dead server took everything")
        finally:
            backend.abandon(inner)
            backend.start()
        self.sync_patiently(found, backend, tmp_path / "s")
        self.check(found, backend, tmp_path / "s")

    def test_answers_of_a_bad_network_are_what_they_are_and_lose_nothing(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        self._needs(backend, "proxied")
        faults = [Fault(status=status) for status in TEMPORARY]
        faults += [Fault(status=status) for status in (400, 401, 403, 404, 413)]
        faults += [Fault(lost="request"), Fault(lost="answer"), Fault(lost="half")]
        faults += [Fault(stall=2.0), Fault(status=429, after=0.05)]
        for number, at in enumerate(self.chosen(len(faults))):
            fault = faults[at - 1]
            case = tmp_path / str(number)
            found = make_journal(case / "j", events=6, hostile=False)
            with Proxy() as proxy:
                target = backend.proxied(proxy)
                proxy.faults = {4: fault, 7: fault}
                # Some are refusals: a sync may say so, and the next one goes on.
                with contextlib.suppress(EventlogError):
                    replay(found, target, str(case / "s"), settings=self.settings)
                proxy.faults = {}
                for _ in range(10):
                    try:
                        replay(found, target, str(case / "s"), settings=self.settings)
                        break
                    except TemporaryError:
                        time.sleep(0.2)
                cursor, _known = delivery_of(found, target, str(case / "s")).load()
                session = target.open(run_info(found, cursor.known_as))
                view = open_view(found.folder)
                result = Comparer(found.folder, target, session, view, cursor=cursor).run()
                target.close()
            assert result.explained, (fault, result.causes)
            assert not cursor.quarantined, (fault, "nothing was wrong with the events")
            assert result.held == result.expected, fault

    # ---------------------------------------------------------------- more helpers

    def _choices(self, backend: Backend) -> list[str]:
        """Return what the target can do with superseded points, `APPEND` first."""
        target = backend.target()
        able = getattr(target, "superseded", ())
        target.close()
        return [choice for choice in CHOICES if choice == APPEND or choice in able]

    def _gone_back(self, backend: Backend, case: Path, choice: str) -> Found:
        """Return a run that was delivered, and then went back and logged three steps again."""
        found = make_journal(case / "j", events=8, hostile=False)
        self.sync(found, backend, case / "s", choice)
        append(found.folder, found.run.id, 6, first=5).close()
        return found

    def _refused(self, found: Found, backend: Backend, state: Path, words: str) -> None:
        try:
            self.sync(found, backend, state)
        except IntegrityError as error:
            assert words in str(error), error
        else:
            raise AssertionError("it was not refused")

    def _repaired(self, found: Found, backend: Backend, state: Path) -> None:
        target = backend.target()
        settings = dataclasses.replace(self.settings, repair=True)
        try:
            assert replay(found, target, str(state), settings=settings).unexplained == 0
        finally:
            target.close()
        self.check(found, backend, state)

    @staticmethod
    def _needs(backend: Backend, ability: str) -> None:
        import pytest

        if not has(backend, ability):
            pytest.skip(f"this backend has no {ability}()")
