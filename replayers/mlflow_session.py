"""One run in MLflow: what is held, what is sent, what is read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from eventlog.errors import EventlogError, UsageError
from replayers import mlflow_identity as identity
from replayers.mlflow_client import Api, Failure, RunView, error_of
from replayers.mlflow_delivery import Delivery
from replayers.mlflow_image import ImageRows
from replayers.mlflow_map import IMAGED, TABLES, Changes, Mapping, Sheet, prefix_of
from replayers.mlflow_requests import Request, pack
from replayers.mlflow_values import bits_of, held_value, sheet_json
from replayers.positions import Positions
from replayers.target import Change, Rejected, RunInfo, RunState, writer_of

if TYPE_CHECKING:
    import pyarrow as pa

ReadBlob = Callable[[RunInfo, str], bytes]

#: How a run of the journal stands, in MLflow's words. One whose process closed its files and said
#: no more did end; one that ended without a word was killed, as far as anyone can tell.
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "closed": "FINISHED",
    "unknown": "KILLED",
}
#: How many rows a table of `MlflowSession.read_back` has, about.
_ROWS = 25_000


class MlflowSession:
    """One run in MLflow; made by `replayers.to_mlflow.MlflowTarget.open`."""

    def __init__(
        self,
        api: Api,
        run: RunInfo,
        view: RunView,
        notes: list[Change],
        read_blob: ReadBlob | None,
        on: str,
    ) -> None:
        self.known_as = view.id
        #: See `replayers.target.Session`.
        self.found_by: str | None = None
        self._api = api
        self._run = run
        self._notes = notes
        self._read_blob = read_blob
        self._on = on
        self._delivery = Delivery(api, view, identity.key_of(run), on)

    def held(self) -> Positions:
        """Return what the run's tags say is held, asked anew."""
        self._delivery.ask()
        held = Positions()
        for writer, seq in self._delivery.held.items():
            held = held | Positions.upto(writer, seq)
        return held

    def send(self, batch: pa.Table) -> list[Change]:
        """Store whole events of one writer; see `replayers.target.Session.send`."""
        writer = writer_of(batch)
        mapping = self._map(batch)
        if mapping.refused:
            reason = next(iter(mapping.refused.values()))
            raise Rejected(
                f"a row is not what its type says: {reason}", seqs=mapping.refused, on=self._on
            )
        for request in pack(mapping.events):
            self._artifacts(request, mapping.changes)
            self._delivery.deliver(writer, request, mapping.changes)
        changes, self._notes = [*self._notes, *mapping.changes.listed()], []
        return changes

    def confirm(self, batch: pa.Table) -> bool:
        """Ask MLflow anew: the tag of this writer covers the batch, each of its metrics has a
        point as late as its own, and its tables are there.
        """
        view = self._delivery.ask()
        events = self._map(batch).events
        if events and self._delivery.held.get(writer_of(batch), -1) < events[-1].seq:
            return False
        for event in events:
            for point in event.points:
                if point.name not in view.latest or view.latest[point.name][0] < point.step:
                    return False
        return self._has([sheet for event in events for sheet in event.sheets])

    def read_back(self) -> Iterator[pa.Table]:
        """Yield every point, config, summary, tag and table that the run holds."""
        view = self._delivery.ask()
        rows = ImageRows()
        for kind, name, text in _texts_of(view):
            rows.text(kind, name, text)
        try:
            for name, step, sha256 in self._sheets() if self._read_blob else ():
                rows.sheet(name, step, sha256)
            for name in sorted(view.latest):
                for page in self._api.history(view.id, name):
                    for step, ms, value in page:
                        rows.point(name, step, ms, bits_of(held_value(value)))
                    if len(rows) >= _ROWS:
                        yield rows.table()
                        rows = ImageRows()
        except Failure as failure:
            raise error_of(failure, "reading the run back", self._on) from None
        yield rows.table()

    def close(self, state: RunState) -> None:
        """Give the run its status and the time at which it ended, if MLflow shows others."""
        status = STATUS.get(state.status)
        if status is None:
            raise UsageError("no state of a run", on=state.status)
        view = self._delivery.ask()
        ended = None if state.ended is None or status == "RUNNING" else state.ended // 1_000_000
        if view.status == status and ended in (None, view.ended):
            return
        try:
            self._api.update(self.known_as, status, ended)
        except Failure as failure:
            raise error_of(failure, "setting the run's status", self._on) from None

    def mark_replaced(self, by: str) -> None:
        """Have the run show which one replaces it."""
        try:
            self._api.log(self.known_as, (), {}, {"eventlog.replaced-by": by})
        except Failure as failure:
            raise error_of(failure, "marking the run as replaced", self._on) from None

    def discard(self) -> None:
        """Delete the run (it can be restored in MLflow); `open` finds it no more.

        Raises
        ------
        Foreign
            If it is not ours alone.
        """
        view = self._delivery.ask()
        try:
            files = self._api.files(self.known_as, "") - {"eventlog"}
            identity.refuse_shared(view, files, self._on)
            self._api.log(self.known_as, (), {}, {identity.DISCARDED: "rebuilt"})
            self._api.delete(self.known_as)
        except Failure as failure:
            raise error_of(failure, "deleting the run", self._on) from None

    def _map(self, batch: pa.Table) -> Mapping:
        return Mapping(batch, tables=self._read_blob is not None)

    # -------------------------------------------------------------------------- artifacts

    def _artifacts(self, request: Request, changes: Changes) -> None:
        """Upload what the request's events need, before a tag says that they are held."""
        for seq, sheet in request.sheets:
            content, lost = self._content(seq, sheet)
            if lost:
                changes.add("table-nonfinite", sheet.name, seq, f"{lost} cells are null")
            self._put(seq, sheet.folder, sheet.file, content)
        for seq, _, text in request.texts.values():
            if text.whole is not None:
                self._put(seq, text.folder, text.file, text.whole.encode())

    def _content(self, seq: int, sheet: Sheet) -> tuple[bytes, int]:
        assert self._read_blob is not None
        try:
            return sheet_json(self._read_blob(self._run, sheet.sha256))
        except (EventlogError, OSError, ValueError, LookupError) as error:
            raise Rejected(
                f"the table {sheet.sha256} cannot be read ({error})", seqs=[seq], on=self._on
            ) from error

    def _put(self, seq: int, folder: str, file: str, content: bytes) -> None:
        try:
            self._api.put(self.known_as, folder, file, content)
        except Failure as failure:
            error = error_of(failure, f"storing the artifact {folder}/{file}", self._on)
            if type(error) is not EventlogError:
                raise error from None
            raise Rejected(error.what, seqs=[seq], on=self._on) from None

    def _has(self, sheets: list[Sheet]) -> bool:
        folders = {sheet.folder for sheet in sheets}
        try:
            there = {folder: self._api.files(self.known_as, folder) for folder in folders}
        except Failure as failure:
            raise error_of(failure, "listing artifacts", self._on) from None
        return all(sheet.file in there[sheet.folder] for sheet in sheets)

    def _sheets(self) -> Iterator[tuple[str, int, str]]:
        for name in sorted(self._api.files(self.known_as, TABLES)):
            for file in sorted(self._api.files(self.known_as, f"{TABLES}/{name}")):
                step, _, sha256 = file.removeprefix("step=").removesuffix(".json").rpartition("-")
                if step and len(sha256) == 64:
                    yield name, int(step), sha256


def _texts_of(view: RunView) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and text of what the run's params and tags hold."""
    newer = prefix_of("config")
    for name, text in sorted(view.params.items()):
        yield "config", name, view.tags.get(newer + name, text)
    for kind in IMAGED:
        prefix = prefix_of(kind)
        for tag, text in sorted(view.tags.items()):
            if kind != "config" and tag.startswith(prefix):
                yield kind, tag[len(prefix) :], text
