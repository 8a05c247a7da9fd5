"""One run in one Trackio project: identity, sending, and what is really there.

The mapping it follows is documented in `replayers.to_trackio`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from eventlog.errors import IntegrityError
from replayers.positions import Positions
from replayers.target import Change, Foreign, Rejected, Retry, RunInfo, RunState, writer_of
from replayers.trackio_config import (
    CONFIG_KINDS,
    Config,
    config_cells,
    fold,
    identity,
    known_identity,
    with_state,
    with_successor,
)
from replayers.trackio_map import (
    Cells,
    Document,
    documents,
    dumps,
    is_table,
    row_seqs,
    table_text,
    table_value,
    trace,
)
from replayers.trackio_names import (
    TIME_KEY,
    clean_text,
    iso_time,
    parse_time,
    project_name,
    run_id,
    run_name,
)
from replayers.trackio_store import RefusedError, Store
from replayers.trackio_values import UNREADABLE, DamagedError, Notes

if TYPE_CHECKING:
    import pyarrow as pa

#: Reads a blob of a run by its SHA-256.
ReadBlob = Callable[[RunInfo, str], bytes]

_ROWS = 1000
_BYTES = 8 * 2**20
_CELLS = 50_000
_OTHER_ROWS = "SELECT 1 FROM metrics WHERE run_id = ? AND (log_id < ? OR log_id >= ?) LIMIT 1"
_OTHER_RUNS = "SELECT 1 FROM metrics WHERE log_id >= ? AND log_id < ? AND run_id <> ? LIMIT 1"
_LOST_ROWS = "SELECT 1 FROM metrics WHERE run_id = ? AND log_id IS NULL LIMIT 1"
_SYSTEM_ROWS = "SELECT 1 FROM system_metrics WHERE run_id = ? LIMIT 1"
_ALERTS = "SELECT 1 FROM alerts WHERE run_id = ? LIMIT 1"
_ARTIFACTS = "SELECT 1 FROM run_artifact_links WHERE run_id = ? LIMIT 1"
_MORE_ARTIFACTS = "SELECT 1 FROM external_run_artifact_links WHERE run_id = ? LIMIT 1"
#: Anything of a run that is left.
_ROWS_LEFT = "SELECT 1 FROM metrics WHERE run_id = ? LIMIT 1"
_CONFIG_LEFT = "SELECT 1 FROM configs WHERE run_id = ? LIMIT 1"


class TrackioSession:
    """One run in one Trackio project."""

    def __init__(self, store: Store, run: RunInfo, read_blob: ReadBlob | None) -> None:
        self.run = run
        #: The project's name in Trackio, and the run's id there.
        self.project = project_name(run)
        self.known_as = run_id(run)
        self._store = store
        self._read_blob = read_blob
        self._renamed_said = False
        #: Rows of this run have lost their log ids: give them theirs back when they are sent.
        self._adopt = False
        #: See `replayers.target.Session`.
        self.found_by = "its id" if self._refuse_foreign() else None

    @property
    def shown_as(self) -> str:
        """The name that somebody gave the run in Trackio; "" for the one that it got here."""
        _config, name = self._stored()
        return "" if name == run_name(self.run) else name

    # -------------------------------------------------------------------- held

    def held(self) -> Positions:
        """Return the events whose rows Trackio holds now.

        Events without metric and system rows have no row of their own and are never held: what
        they say is in the config, and sending them again changes nothing.
        """
        self._refuse_foreign()
        seqs: dict[str, list[int]] = {}
        sql = "SELECT log_id FROM metrics WHERE log_id >= ? AND log_id < ? ORDER BY log_id"
        for (log_id,) in self._query(sql, *self._span()):
            writer, seq = self._position(log_id)
            if writer:
                seqs.setdefault(writer, []).append(seq)
        return Positions({w: ((seq, seq) for seq in found) for w, found in seqs.items()})

    def _position(self, log_id: str) -> tuple[str, int]:
        writer, _, digits = log_id[len(self.known_as) + 1 :].rpartition(":")
        if log_id == f"{self.known_as}:config":
            return "", 0
        if not writer or not digits.isdigit():
            raise self._foreign(f"the row {log_id!r} is none of ours")
        return writer, int(digits)

    def _span(self) -> tuple[str, str]:
        return f"{self.known_as}:", f"{self.known_as};"  # ; follows : in ASCII

    def _refuse_foreign(self) -> bool:
        """Raise `Foreign` if anything under this run's id, or its log ids, is not of this run;
        return whether the run is there.
        """
        config, _ = self._stored()
        known = known_identity(config)
        wanted = identity(self.run)
        for part in ("id", "project", "owner", "generation"):
            if known.get(part, wanted.get(part)) != wanted.get(part, known.get(part)):
                raise self._foreign(f"its {part} there is {known.get(part)!r}")
        low, high = self._span()
        for why, sql, *args in (
            ("rows were logged by somebody else", _OTHER_ROWS, self.known_as, low, high),
            ("its rows are also under another run", _OTHER_RUNS, low, high, self.known_as),
            ("system metrics were logged by somebody else", _SYSTEM_ROWS, self.known_as),
        ):
            if any(True for _ in self._query(sql, *args)):
                raise self._foreign(why)
        self._adopt = any(True for _ in self._query(_LOST_ROWS, self.known_as))
        if self._adopt and not known:
            raise self._foreign("rows without a log id were logged by somebody else")
        if self._adopt and not self._store.can_adopt:
            raise self._foreign("its rows have lost their log ids (it was renamed in Trackio)")
        return bool(known)

    def _foreign(self, why: str) -> Foreign:
        return Foreign(
            f"the run {self.known_as} of Trackio is not this run alone: {why}",
            on=f"project {self.project}",
            hint="sync into another folder or project, or delete that run in Trackio",
        )

    # -------------------------------------------------------------------- send

    def send(self, batch: pa.Table, writer: str | None = None) -> list[Change]:
        """Store whole events of one writer; return what the mapping changed."""
        if batch.num_rows == 0:
            return []
        writer = writer or writer_of(batch)
        notes = Notes()
        try:
            rows = [self._row(d, writer) for d in documents(batch, notes, self._table)]
            stored, name = self._stored()
            config = fold(stored, self.run, batch, writer, notes)
        except DamagedError as error:
            raise Rejected(f"a value cannot be read: {error}", seqs=[error.seq]) from error
        if config != stored:
            self._write_config(config, name, batch)
        poison: list[int] = []
        for part in _parts(rows):
            self._write_rows(part, name, poison)
        if poison:
            raise Rejected("Trackio refuses the events", seqs=poison, on=self.project)
        return [*self._names_changed(batch), *notes.changes()]

    def _row(self, document: Document, writer: str) -> tuple[int, str]:
        log_id = f"{self.known_as}:{writer}:{document.seq:012d}"
        time = iso_time(document.time)
        values = document.values
        if not self._store.keeps_time:
            values = {**values, TIME_KEY: time}
        return document.seq, dumps([log_id, document.step, time, values])

    def _table(self, ref: dict[str, Any], rules: list[str]) -> Any:
        if self._read_blob is None:
            rules.append("table-no-content")
            return table_value(ref, None)
        return table_value(ref, self._read_blob(self.run, ref["sha256"]))

    def _write_config(self, config: Config, name: str, batch: pa.Table) -> None:
        text = dumps(config)
        try:
            self._store.write(self.project, name, self.known_as, [], text)
        except RefusedError as error:
            seqs, kinds = (batch.column(name).to_pylist() for name in ("seq", "kind"))
            rows = zip(seqs, kinds, strict=True)
            guilty = {seq for seq, kind in rows if kind in CONFIG_KINDS}
            raise Rejected(error.what, seqs=guilty, on=self.project) from error

    def _write_rows(self, rows: list[tuple[int, str]], name: str, poison: list[int]) -> None:
        """Store rows; find those that Trackio refuses by halves, and add their seqs to `poison`."""
        texts = [text for _, text in rows]
        try:
            self._store.write(self.project, name, self.known_as, texts, None, adopt=self._adopt)
        except RefusedError:
            if len(rows) == 1:
                poison.append(rows[0][0])
                return
            middle = len(rows) // 2
            self._write_rows(rows[:middle], name, poison)
            self._write_rows(rows[middle:], name, poison)

    def _names_changed(self, batch: pa.Table) -> list[Change]:
        if self._renamed_said:
            return []
        self._renamed_said = True
        seqs = batch.column("seq").to_pylist()
        wanted = self.run.elsewhere.get("TRACKIO_PROJECT") or self.run.project
        names = (
            ("project-renamed", clean_text(wanted), self.project),
            ("run-id-hashed", clean_text(self.run.id), self.known_as),
        )
        return [
            Change(rule, "", seqs[0], seqs[-1], 1, f"{old} -> {new}")
            for rule, old, new in names
            if old != new
        ]

    # -------------------------------------------------------------------- confirm

    def confirm(self, batch: pa.Table, writer: str | None = None) -> bool:
        """Return whether Trackio, asked anew, holds the rows and the config of this batch."""
        if batch.num_rows == 0:
            return True
        writer = writer or writer_of(batch)
        wanted = row_seqs(batch)
        if wanted and not wanted <= self._held_between(writer, min(wanted), max(wanted)):
            return False
        if CONFIG_KINDS.isdisjoint(batch.column("kind").to_pylist()):
            return True
        stored, _ = self._stored()
        return fold(stored, self.run, batch, writer, Notes()) == stored

    def _held_between(self, writer: str, first: int, last: int) -> set[int]:
        prefix = f"{self.known_as}:{writer}:"
        sql = "SELECT log_id FROM metrics WHERE log_id >= ? AND log_id <= ? AND run_id = ?"
        low, high = f"{prefix}{first:012d}", f"{prefix}{last:012d}"
        found = self._query(sql, low, high, self.known_as)
        return {int(log_id[len(prefix) :]) for (log_id,) in found}

    # -------------------------------------------------------------------- read back

    def read_back(self) -> Iterator[pa.Table]:
        """Yield everything Trackio holds of this run, from the JSON text of its database."""
        cells = Cells()
        for step, time, key, value in self._values():
            if is_table(value):
                rows = value.get("rows")
                altered = self._altered(value["sha256"], value)
                text = table_text(value["sha256"], rows, altered=altered)
                cells.add_text("metric", key, step, time, text)
            else:
                cells.add("metric", key, step, time, value)
            if len(cells) >= _CELLS:
                yield cells.table()
                cells = Cells()
        self._add_traces(cells)
        config, _ = self._stored()
        for kind, key, value in config_cells(config or {}):
            cells.add(kind, key, None, None, value)
        yield cells.table()

    def _values(self) -> Iterator[tuple[int | None, int | None, str, Any]]:
        sql = (
            "SELECT CAST(metrics AS TEXT), timestamp, step FROM metrics WHERE run_id = ? "
            "AND log_id IS NOT ? ORDER BY id"
        )
        for text, timestamp, step in self._query(sql, self.known_as, f"{self.known_as}:config"):
            step = step if isinstance(step, int) else None
            values = _read_json(text, self.project)
            time = parse_time(values.pop(TIME_KEY, timestamp))
            for key, value in values.items():
                yield step, time, key, value

    def _add_traces(self, cells: Cells) -> None:
        sql = (
            "SELECT log_id, key, step, timestamp, CAST(messages AS TEXT), CAST(metadata AS TEXT) "
            "FROM traces WHERE run_id = ? ORDER BY log_id, key, trace_index"
        )
        rows = self._query(sql, self.known_as)
        times = {} if self._store.keeps_time else self._own_times()
        for (log_id, key, step, timestamp), group in groupby(rows, lambda row: row[:4]):
            traces = [trace(json.loads(row[4]), json.loads(row[5])) for row in group]
            sha = str(traces[0]["metadata"].get("table"))
            text = table_text(sha, len(traces), altered=self._altered(sha, traces))
            cells.add_text("metric", key, step, times.get(log_id, parse_time(timestamp)), text)

    def _own_times(self) -> dict[str, int | None]:
        """Return the times of the rows with traces, where Trackio keeps none."""
        sql = (
            "SELECT log_id, CAST(metrics AS TEXT) FROM metrics WHERE run_id = ? AND log_id IN "
            "(SELECT log_id FROM traces WHERE run_id = ?) ORDER BY log_id"
        )
        found = self._query(sql, self.known_as, self.known_as)
        return {log_id: parse_time(json.loads(text).get(TIME_KEY)) for log_id, text in found}

    def _altered(self, sha: str, found: Any) -> bool:
        """Return whether cells differ from those of the blob; False if nobody can tell."""
        if self._read_blob is None:
            return False
        try:
            wanted = table_value({"sha256": sha}, self._read_blob(self.run, sha))
        except UNREADABLE:
            return False
        return bool(wanted != found)

    # -------------------------------------------------------------------- close

    def close(self, state: RunState) -> None:
        """Write how the run stands into ``_eventlog.state`` of its config, if it is not there."""
        stored, name = self._stored()
        config = with_state(stored, self.run, dataclasses.asdict(state))
        if config != stored:
            self._store.write(self.project, name, self.known_as, [], dumps(config))

    def mark_replaced(self, by: str) -> None:
        """Have the run's config say which one replaces it."""
        stored, name = self._stored()
        config = with_successor(stored, self.run, by)
        if config != stored:
            self._store.write(self.project, name, self.known_as, [], dumps(config))

    def discard(self) -> None:
        """Delete the run in Trackio, for good; `open` finds none then.

        Raises
        ------
        Foreign
            If it is not ours alone.
        Retry
            If it could not be deleted now.
        """
        self._refuse_foreign()
        for what, sql in (
            ("alerts", _ALERTS),
            ("artifacts", _ARTIFACTS),
            ("artifacts", _MORE_ARTIFACTS),
        ):
            if self._any(sql):
                raise Foreign(
                    f"the run {self.known_as} is not rebuilt: somebody added {what} to it; nothing "
                    "was deleted",
                    on=f"project {self.project}",
                    hint="--superseded new-run leaves it as it is",
                )
        self._store.delete(self.project, self.known_as)
        if self._any(_ROWS_LEFT) or self._any(_CONFIG_LEFT):
            raise Retry(
                f"the run {self.known_as} was deleted, and Trackio still has it",
                on=f"project {self.project}",
            )

    # -------------------------------------------------------------------- reading

    def _any(self, sql: str) -> bool:
        return any(True for _ in self._query(sql, self.known_as))

    def _query(self, sql: str, *args: Any) -> Iterator[tuple[Any, ...]]:
        return self._store.query(self.project, sql, args)

    def _stored(self) -> tuple[Config | None, str]:
        """Return the config that Trackio holds, and the name under which it shows the run."""
        sql = "SELECT CAST(config AS TEXT), run_name FROM configs WHERE run_id = ?"
        for text, name in self._query(sql, self.known_as):
            config = _read_json(text, self.project)
            return config if isinstance(config, dict) else None, name
        sql = "SELECT run_name FROM metrics WHERE run_id = ? ORDER BY id DESC LIMIT 1"
        for (name,) in self._query(sql, self.known_as):
            return None, name
        return None, self.run.shown_as or run_name(self.run)


def _read_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise IntegrityError(
            f"Trackio's database holds what is no JSON ({error})", on=where
        ) from error


def _parts(rows: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    part: list[tuple[int, str]] = []
    size = 0
    for row in rows:
        if part and (len(part) >= _ROWS or size + len(row[1]) > _BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[1])
    if part:
        yield part
