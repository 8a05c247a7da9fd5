"""The backend under test: what the author of a target gives the conformance suite."""

from __future__ import annotations

import abc

from replayers.conformance_proxy import Proxy
from replayers.target import RunInfo, Target


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
