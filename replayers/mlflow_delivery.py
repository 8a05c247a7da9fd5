"""The sending side of one run in MLflow: requests, the tags that prove them, and what failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from replayers import mlflow_identity as identity
from replayers.mlflow_client import Api, Failure, RunView, error_of
from replayers.mlflow_map import Changes, Point, Text
from replayers.mlflow_overlap import Overlap
from replayers.mlflow_requests import Request
from replayers.target import Rejected, Retry

#: How many requests the search for events that MLflow refuses may make.
_SEARCHES = 64
#: Answers that say nothing of the batch: no connection, credentials, overload.
_NOT_THE_BATCH = (0, 401, 403, 408, 429, 503, 504)
#: What databases say of a row that is there already: servers before MLflow 3.10 stumble over it.
_DOUBLE = ("IntegrityError", "UNIQUE constraint", "duplicate key")

_Where = tuple[str, int, int]


class Delivery:
    """Sends requests of one run, and remembers what the store was last seen to hold.

    Attributes
    ----------
    held:
        By writer, the seq up to which everything sent is stored, as the tags said.
    params, tags:
        What the run has.
    """

    def __init__(self, api: Api, view: RunView, key: str, on: str) -> None:
        self._api = api
        self._id = view.id
        self._key = key
        self._on = on
        self._overlap = Overlap(api, view.id, view.latest)
        self._newest: dict[tuple[str, str], _Where] = {}
        self._failed: dict[_Where, int] = {}
        self._take(view)
        self._held_before = dict(self.held)

    def ask(self) -> RunView:
        """Return the run as the store shows it now, and remember that.

        Raises
        ------
        Foreign, Retry, Down, Unauthorised
        """
        try:
            view = identity.check(self._api.run(self._id), self._key, self._on)
        except Failure as failure:
            raise error_of(failure, "reading the run", self._on) from None
        self._take(view)
        return view

    def _take(self, view: RunView) -> None:
        self.params = dict(view.params)
        self.tags = dict(view.tags)
        self.held = {
            tag[len(identity.HELD) :]: int(text)
            for tag, text in view.tags.items()
            if tag.startswith(identity.HELD) and text.isascii() and text.isdecimal()
        }

    def deliver(self, writer: str, request: Request, changes: Changes) -> None:
        """Send one request; on failure find out what it means.

        Raises
        ------
        Rejected, Retry, Down, Unauthorised, Foreign
        """
        mark = (writer, request.events[0].seq, request.events[-1].seq)
        if mark[1] <= self.held.get(writer, -1):
            self._overlap.doubt()  # sent before, for all we know
        try:
            self._post(writer, request, changes)
        except Failure as failure:
            self._failed[mark] = self._failed.get(mark, 0) + 1
            self._after(failure, writer, request, again=self._failed[mark] > 1)
        self._failed.pop(mark, None)

    def _after(self, failure: Failure, writer: str, request: Request, *, again: bool) -> None:
        """Do what a failed request leaves to be done; return only once it is stored."""
        self._overlap.doubt()
        if failure.status in _NOT_THE_BATCH:
            raise error_of(failure, "storing a batch", self._on) from None
        self.ask()  # a deleted run is refused here, with a better reason
        if any(word in failure.message for word in _DOUBLE) and self._fill(writer, request):
            return
        if failure.status >= 500 and not again:
            raise error_of(failure, "storing a batch", self._on) from None
        self._reject(failure, writer, request)

    def _post(self, writer: str, request: Request, changes: Changes | None = None) -> None:
        self._log(writer, request, self._overlap.missing(writer, request.points), changes)

    def _fill(self, writer: str, request: Request) -> bool:
        """Send again only what a history read anew lacks; return whether that was taken."""
        try:
            self._log(writer, request, self._overlap.absent(request.points))
        except Failure:
            return False
        return True

    def _log(
        self,
        writer: str,
        request: Request,
        points: Sequence[Point],
        changes: Changes | None = None,
    ) -> None:
        """Store these points of a request, its newer texts and, after them, the held tag."""
        params, tags, taken = self._resolve(writer, request, changes)
        upto = request.upto
        if upto is not None and upto > self.held.get(writer, -1):
            tags[identity.HELD + writer] = str(upto)
        if points or params or tags:
            self._api.log(self._id, points, params, tags)
        self.params.update(params)
        self.tags.update(tags)
        self._newest.update(taken)
        if upto is not None:
            self.held[writer] = max(upto, self.held.get(writer, -1))

    # -------------------------------------------------------------------------- texts

    def _resolve(
        self, writer: str, request: Request, changes: Changes | None
    ) -> tuple[dict[str, str], dict[str, str], dict[tuple[str, str], _Where]]:
        """Return the params and tags that a request has to set, and where they come from."""
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        taken: dict[tuple[str, str], _Where] = {}
        for (group, name), (seq, time, text) in request.texts.items():
            if not self._is_newer(text, (writer, seq, time)):
                continue
            taken[group, name] = (writer, seq, time)
            if group != "config":
                tags[text.tag] = text.text
            elif name not in self.params:
                params[name] = text.text
            elif self.params[name] != text.text or text.tag in self.tags:
                tags[text.tag] = text.text
                if changes is not None and self.params[name] != text.text:
                    changes.add("param-immutable", name, seq, text.tag)
        tags = {tag: text for tag, text in tags.items() if self.tags.get(tag) != text}
        return params, tags, taken

    def _is_newer(self, text: Text, where: _Where) -> bool:
        """Return whether a value is at least as new as what MLflow has for that key.

        Within a writer the seq decides, between writers the time. Of a value that was set before
        this session only the held position of its writer is known.
        """
        writer, seq, time = where
        newest = self._newest.get((text.group, text.name))
        if newest is None:
            there = text.tag in self.tags or (text.group == "config" and text.name in self.params)
            return not there or seq > self._held_before.get(writer, -1)
        return seq >= newest[1] if newest[0] == writer else time >= newest[2]

    # -------------------------------------------------------------------------- refusals

    def _reject(self, failure: Failure, writer: str, request: Request) -> None:
        """Find the events that MLflow refuses; the others are stored on the way.

        It may be that it takes all of them, in smaller requests: then nothing is wrong.

        Raises
        ------
        Rejected
            For the events that are refused alone, while MLflow takes other requests.
        Retry
            If the fault is MLflow's.
        """
        bad, searched = self._search(writer, request)
        if bad and self._is_healthy():
            reason = error_of(next(iter(bad.values())), "storing events", self._on)
            raise Rejected(reason.what, seqs=bad, on=self._on)
        if bad or not searched:
            what = error_of(failure, "storing a batch", self._on).what
            raise Retry(what, on=self._on, after=failure.after)
        try:
            self._log(writer, Request(upto=request.upto), ())
        except Failure as again:
            raise error_of(again, "storing a batch", self._on) from None

    def _search(self, writer: str, request: Request) -> tuple[dict[int, Failure], bool]:
        """Return the events that are refused alone, and whether all others are stored."""
        bad: dict[int, Failure] = {}
        waiting = list(request.halves()) if len(request.events) > 1 else [request]
        for _ in range(_SEARCHES):
            if not waiting:
                break
            part = waiting.pop(0)
            try:
                self._post(writer, dataclasses.replace(part, upto=None))
            except Failure as again:
                if again.status in _NOT_THE_BATCH:
                    raise error_of(again, "storing a batch", self._on) from None
                if len(part.events) > 1:
                    waiting[:0] = part.halves()
                else:
                    bad[part.events[0].seq] = again
        return bad, not waiting

    def _is_healthy(self) -> bool:
        """Return whether MLflow takes a harmless request."""
        try:
            self._api.log(self._id, (), {}, {identity.KEY: self._key})
        except Failure:
            return False
        return True
