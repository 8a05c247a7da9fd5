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

import abc
import contextlib
import dataclasses
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.catalog import Found, find_all
from eventlog.errors import EventlogError, IntegrityError, TemporaryError
from eventlog.event import CONFIG, METRIC, NOTE, STATE, SUMMARY, TAG, Row
from eventlog.home import prepare
from eventlog.journal import Options, Writer
from eventlog.layout import run_folder
from eventlog.runfile import RunFile, claim
from eventlog.views import open_view
from replayers.compare import Comparer, Difference
from replayers.conformance_proxy import Fault, Proxy
from replayers.lease import Lease
from replayers.outcome import Outcome, Settings
from replayers.replay import delivery_of, replay, run_info
from replayers.target import RunInfo, Session, Target

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Backend", "Conformance", "Dead", "Fault", "Proxy"]

QUICK = Settings(batch_rows=12, tries=2, backoff=(0.0, 0.01))
#: Answers of a server that say: not now.
TEMPORARY = (408, 429, 500, 502, 503, 504)


class Backend(abc.ABC):
    """One backend under test. `target` is all that must be there; a suite whose backend leaves out
    another method sets the tests that need it to None, and fails if it does not.
    """

    @abc.abstractmethod
    def target(self) -> Target:
        """Return a client of the backend as a new process would make it."""

    def abandon(self, target: Target) -> None:
        """Let go of a target as the death of its process does: nothing is flushed or finished."""
        target.close()

    def stop(self) -> None:
        """Kill the backend's server. Leave this out if there is none."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server again, on the same address and data."""
        raise NotImplementedError

    def stranger(self, run: RunInfo, known_as: str) -> None:
        """Write something under the identity of a run that was delivered, as somebody else."""
        raise NotImplementedError

    def empty(self, run: RunInfo, known_as: str) -> None:
        """Delete a run that was delivered, behind our back."""
        raise NotImplementedError

    def proxied(self, proxy: Proxy) -> Target:
        """Return a target that talks to the backend through a proxy, for backends of HTTP; set
        ``proxy.port`` to that of the server.
        """
        raise NotImplementedError


def has(backend: Backend, ability: str) -> bool:
    """Return whether a backend's author gave a method of `Backend`."""
    return getattr(type(backend), ability) is not getattr(Backend, ability)


class Dead(BaseException):
    """Ends a sync as a SIGKILL would: nobody catches it."""


# ------------------------------------------------------------------------------ a journal


VALUES: dict[str, Any] = {
    "loss": 0.1 + 0.2,
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "minus zero": -0.0,
    "smallest": 5e-324,
    "largest": 1.7976931348623157e308,
    "big": 2**53 + 1,
    "bigger": 10**400,
    "bool": True,
    "none": None,
    "text": "é\0\x1b[31m\n",
    "list": [1, 2.5, None, {"a": "b"}],
    "dict": {"deep": {"er": 1}},
    "bytes": b"\x00\xff",
}
KEYS = (
    "",
    " ",
    "..",
    "../../etc/passwd",
    "a/b/../c",
    "key with spaces",
    "ключ",
    "\x1b[0m\0",
    "%2e%2e",
    "k" * 400,
    "_step",
    "step",
    "time",
    "timestamp",
    "project",
    "_runtime",
    "_wandb",
    "__proto__",
    "system/gpu",
    "'; DROP TABLE metrics; --",
)


def make_journal(folder: Path, *, events: int = 24, hostile: bool = True, id: str = "") -> Found:
    """Make a journal of one run: a writer that goes on, hostile keys and values, settings.

    Parameters
    ----------
    events:
        Events with three plain metrics each, before the hostile ones.
    id:
        The run's id; a new one if it is empty.
    """
    prepare(str(folder))
    id = id or uuid.uuid4().hex[:16]
    place = run_folder(str(folder), "conformance", id)
    os.makedirs(place, exist_ok=True)
    claim(place, RunFile(id, "conformance", f"run {id}"))
    writer = append(place, id, events)
    if hostile:
        _hostile(writer, events)
    writer.append(SUMMARY, {"best": 0.25, "text": "x"}, None)
    writer.append(STATE, {"state": "finished", "exit_code": 0}, None)
    writer.close()
    return found_in(folder, id)


def found_in(folder: Path, id: str) -> Found:
    """Return the run of that id of a journal."""
    (found,), _bad = find_all([str(folder)], [id])
    return found


def append(place: str, id: str, events: int, first: int = 0) -> Writer:
    """Append events to a run as a new attempt; return its writer, still open."""
    start = time.time_ns()
    attempt = {"key": uuid.uuid4().hex, "start": start, "evidence": "explicit"}
    identity = {"project": "conformance", "name": f"run {id}", "attempt": attempt}
    writer = Writer(place, id, identity, options=Options(durability="memory"))
    writer.append(CONFIG, {"lr": 1e-3, "first": first, "nested": {"a": 1}}, None)
    writer.append(TAG, {"tag one": True}, None)
    for step in range(first, first + events):
        row = {"loss": 1 / (step + 1), "reward": step / 7, "tokens": step * 2048}
        writer.append(METRIC, row, step)
    return writer


def _hostile(writer: Writer, step: int) -> None:
    for key, value in VALUES.items():
        writer.append(METRIC, {f"v/{key}": value}, step)
    writer.append(METRIC, {key: i / 3 for i, key in enumerate(KEYS)}, step + 1)
    writer.append(METRIC, {"no step": 1.5}, None)
    writer.append(METRIC, {"loss": -1.0}, -(2**40))
    writer.append(METRIC, {"loss": 2.0}, 2**40)
    for _ in range(3):  # the same key, step and value, at three times
        writer.append(METRIC, {"again": 1.0}, 7)
    writer.append(NOTE, {"a note": "x"}, None)


def poison(writer: Writer) -> None:
    """Append an event with a value that is not what its type says."""
    writer.append_rows([Row("loss", METRIC, "int64", None, b"no number")], 1)


# ------------------------------------------------------------------------------ death


class Interposed:
    """A target whose calls do what a test wants: `fault` is asked with the number of the call, from
    1, and its name; it answers ``before``, ``half`` (of a batch), ``after`` or None, and what is
    raised then.
    """

    def __init__(
        self,
        target: Target,
        fault: Callable[[int, str], tuple[str, BaseException] | None] = lambda n, name: None,
    ) -> None:
        self.inner = target
        self.fault = fault
        self.calls: list[str] = []
        self.kind, self.address = target.kind, target.address
        self.rules, self.folds = target.rules, target.folds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, run: RunInfo) -> Session:
        session: Session = self.call("open", lambda: _Session(self, self.inner.open(run)))
        return session

    def image(self, batch: pa.Table) -> pa.Table:
        return self.inner.image(batch)

    def close(self) -> None:
        self.inner.close()

    def call(
        self, name: str, action: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Do something, or a part of it, and raise what is wanted."""
        self.calls.append(name)
        when, error = self.fault(len(self.calls), name) or ("", None)
        if error is None:
            return action()
        if when == "half":
            half()
        if when == "after":
            action()
        raise error


class _Session:
    def __init__(self, target: Interposed, session: Session) -> None:
        self._target = target
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def held(self) -> Any:
        return self._target.call("held", self._session.held)

    def send(self, batch: pa.Table) -> Any:
        middle = batch.column("seq")[batch.num_rows // 2].as_py()
        at = int(batch.column("seq").to_numpy().searchsorted(middle))

        def half() -> None:
            if at:
                self._session.send(batch.slice(0, at))

        return self._target.call("send", lambda: self._session.send(batch), half)

    def confirm(self, batch: pa.Table) -> Any:
        return self._target.call("confirm", lambda: self._session.confirm(batch))

    def close(self, state: Any) -> Any:
        return self._target.call("close", lambda: self._session.close(state))


# ------------------------------------------------------------------------------ the suite


class Conformance:
    """Subclass it and give a fixture ``backend`` that returns a `Backend`."""

    #: At how many of the points where a call can die the short suite tries it.
    points = 6
    #: Seconds a call may take through a proxy that stalls; None if the target waits for ever.
    patience = 60.0
    settings = QUICK

    # ---------------------------------------------------------------- helpers

    def sync(self, found: Found, backend: Backend, state: Path) -> Outcome:
        """Bring a run into the backend with a target of its own, as a process would."""
        target = backend.target()
        try:
            return replay(found, target, str(state), settings=self.settings)
        finally:
            target.close()

    def sync_patiently(self, found: Found, backend: Backend, state: Path) -> Outcome:
        """Sync until the backend takes it: what died a moment ago may hold it up for a while."""
        for _ in range(20):
            with contextlib.suppress(TemporaryError):
                return self.sync(found, backend, state)
            time.sleep(0.3)
        return self.sync(found, backend, state)

    def difference(self, found: Found, backend: Backend, state: Path) -> Difference:
        """Compare every point of the run with what the backend reads back."""
        target = backend.target()
        try:
            cursor, _known = delivery_of(found, target, str(state)).load()
            session = target.open(run_info(found, cursor.known_as))
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
        self, found: Found, backend: Backend, state: Path, at: int, when: str
    ) -> tuple[bool, list[str]]:
        """Sync with a target that dies at a call; return whether it did, and all calls."""

        def fault(number: int, _name: str) -> tuple[str, BaseException] | None:
            return (when, Dead()) if number == at else None

        inner = backend.target()
        target = Interposed(inner, fault)
        try:
            replay(found, target, str(state), settings=self.settings)
        except Dead:
            backend.abandon(inner)
            return True, target.calls
        inner.close()
        return False, target.calls

    def chosen(self, count: int) -> list[int]:
        """Return the points to try, of 1 to `count`."""
        if os.environ.get("EVENTLOG_CONFORMANCE") == "long" or count <= self.points:
            return list(range(1, count + 1))
        step = (count - 1) / max(self.points - 1, 1)
        return sorted({1 + round(step * i) for i in range(self.points)})

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
