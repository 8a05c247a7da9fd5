"""The vocabulary of errors: each says what was tried, on what, and what to do next.

One class per documented exit code of the command line, so that a program which catches an error
and a shell which reads an exit status learn the same thing.
"""

from __future__ import annotations

from typing import ClassVar


class EventlogError(Exception):
    """Base of every error this package raises on purpose (exit code 1).

    Parameters
    ----------
    what:
        What was tried and how it failed, one sentence without a full stop.
    on:
        The path, run, target or variable it was tried on.
    hint:
        What to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, on: object = None, hint: str | None = None) -> None:
        self.what = what
        self.on = None if on is None else str(on)
        self.hint = hint
        super().__init__(what, self.on, hint)

    def __str__(self) -> str:
        text = self.what if self.on is None else f"{self.what}: {self.on}"
        return text if self.hint is None else f"{text} ({self.hint})"


class UsageError(EventlogError):
    """A wrong argument, variable or name: nothing was changed (exit code 2)."""

    exit_code = 2


class PartialError(EventlogError):
    """Some runs failed and others did not; the report names them (exit code 3)."""

    exit_code = 3


class IntegrityError(EventlogError):
    """The journal, a copy of it, or a target contradicts what was recorded (exit code 4)."""

    exit_code = 4


class AuthenticationError(EventlogError):
    """Credentials are missing or were refused (exit code 5)."""

    exit_code = 5


class TemporaryError(EventlogError):
    """A server is down, a lease is held, a disk is full: try later (exit code 75, EX_TEMPFAIL)."""

    exit_code = 75


class JournalError(EventlogError):
    """The journal could not be opened, or what was asked to be durable is not (exit code 1)."""


class ValueRefused(EventlogError):
    """A value, a key or a whole event cannot be kept; with ``strict=True`` this is raised."""


class FormatError(IntegrityError):
    """Bytes that are not a journal of a version this package can read."""


#: Of several outcomes, the one a process exits with: the first of these that occurred.
EXIT_ORDER: tuple[int, ...] = (4, 5, 3, 75, 1, 2, 0)


def worst(codes: list[int]) -> int:
    """Return the exit code that stands for several: 4 before 5 before 3 before 75."""
    return next((code for code in EXIT_ORDER if code in codes), 0)
