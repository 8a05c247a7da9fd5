"""Targets that die, for the conformance suite: at any call, before, behind or in the middle of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replayers.target import RunInfo, Session, Target

if TYPE_CHECKING:
    import pyarrow as pa

#: What a session may have beside the protocol, and may die in.
_MORE = ("discard", "mark_replaced")


class Dead(BaseException):
    """Ends a sync as a SIGKILL would: nobody catches it."""


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
        found = getattr(self._session, name)
        if name not in _MORE:
            return found
        return lambda *args: self._target.call(name, lambda: found(*args))

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
