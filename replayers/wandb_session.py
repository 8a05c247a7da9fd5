"""One run in W&B: what it holds, what is sent, what is proven.

W&B takes rows in silence and may lose them in silence, so nothing is concluded from a call that
returned. The invariant is that every history row carries the position of the event it stands for,
once. Before anything is written the run is read: its record (`replayers.wandb_state`), its line
count and, unless the last session ended well and all is as it left it, every row
(`replayers.wandb_api`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from eventlog.errors import EventlogError
from eventlog.event import METRIC, NOTE, SUMMARY, SYSTEM
from replayers.batches import of_kinds
from replayers.positions import Positions
from replayers.target import Change, Foreign, Rejected, Retry, RunInfo, RunState, writer_of
from replayers.wandb_api import Found, Place, WandbRun
from replayers.wandb_child import WandbChild
from replayers.wandb_map import GLOBAL_STEP, ROW, HistoryRow, Mapped, map_batch
from replayers.wandb_readback import read_back
from replayers.wandb_state import KEY, RunRecord
from replayers.wandb_values import Notes, canonical, cells, run_name

if TYPE_CHECKING:
    import pyarrow as pa

ReadBlob = Callable[[RunInfo, str], bytes]
#: Rows, and bytes of JSON, that are handed to the child at once.
_CHUNK_ROWS, _CHUNK_BYTES = 500, 4_000_000


class WandbSession:
    """A session; see `replayers.target.Session`."""

    notices_loss = True

    def __init__(
        self, child: WandbChild, place: Place, run: RunInfo, read_blob: ReadBlob | None
    ) -> None:
        self._child = child
        self._run = WandbRun(child, place, run)
        self.known_as = self._run.known_as
        self._info = run
        self._read_blob = read_blob
        self._token = secrets.token_hex(8)
        self._usurped = ""
        self._before: str | None = None  # the claim that ours replaced
        self._held_unasked = True
        self._forget()
        self._found = self._run.look()
        #: See `replayers.target.Session`.
        self.found_by = None if self._found is None else "its id"

    def _forget(self) -> None:
        """Know nothing of the run: the next call reads it anew."""
        self._record: RunRecord | None = None
        self._held: Positions | None = None
        self._next = 0
        self._live = False
        self._unsure = False
        self._last_sent: tuple[str, int] | None = None

    # ---------------------------------------------------------------- reading

    def _survey(self, *, everything: bool) -> RunRecord:
        """Learn what the run holds; every row of it if asked for, or if there is any doubt."""
        if self._record is not None and (self._held is not None or not everything):
            return self._record
        found = self._run.settled(self._token if self._live else None)
        record = self._run.record(found)
        if found is None:
            self._held, self._next = Positions(), 0
        else:
            sound = record.claim is None and found["count"] == record.rows
            if everything or not sound or found["last_step"] + 1 != record.rows:
                self._held = self._run.scan(found, record)
            elif record.rows > record.adopted and self._run.position_of(found["last_step"]) is None:
                raise self._run.foreign("its last row is not ours")
            self._next = max(found["count"], found["last_step"] + 1)
        self._found, self._record = found, record
        return record

    def held(self) -> Positions:
        # What the server says counts, not what this session believes.
        if self._unsure:
            self._tear_down()
        self._finish_live()
        self._forget()
        self._held_unasked = False
        self._survey(everything=True)
        assert self._held is not None
        return self._held

    # ---------------------------------------------------------------- writing

    def send(self, batch: pa.Table) -> list[Change]:
        self._check_usurped()
        mapped = map_batch(batch)
        if self._unsure:
            self._tear_down()
        record = self._survey(everything=False)
        if self._found is None and self._held_unasked and batch.column("seq")[0].as_py() > 0:
            raise Foreign(
                "the W&B run is gone: it was sent, and the server does not know it any more",
                on=self.known_as,
                hint="to send it all again, remove the state folder of this target",
            )
        self._send(writer_of(batch), mapped, record)
        self._held_unasked = False
        return mapped.changes + (_references(mapped) if self._read_blob is None else [])

    def _send(self, writer: str, mapped: Mapped, record: RunRecord) -> None:
        if self._held is None and any(r.seq < record.marks.get(writer, 0) for r in mapped.rows):
            record = self._survey(everything=True)
        held = self._held or Positions()
        rows = [row for row in mapped.rows if (writer, row.seq) not in held]
        newer = record.newer(mapped.settings)
        if not rows and not newer:
            return
        tables = {row.seq: self._contents(row) for row in rows if row.tables}
        record.take(newer)
        self._unsure = True  # until `confirm` has seen it
        if newer:
            # Definitions count only when a client begins to write, and then config and tags are
            # stored at once; changed later they wait in the client for seconds.
            self._finish_live()
        if self._live:
            self._check_claim()
        else:
            self._start(final=False)
        self._log(writer, rows, tables)
        if rows:
            record.marks[writer] = max(record.marks.get(writer, 0), rows[-1].seq + 1)
            self._last_sent = (writer, rows[-1].seq)
        self._update(record, {})

    def _start(self, *, final: bool) -> None:
        """Begin to write, under our claim."""
        record = self._record
        assert record is not None
        self._before, record.claim = record.claim, self._token
        notes = record.values(NOTE)
        there = self._found["tags"] if self._found else []
        more = {name: notes[name] for name in ("group", "job_type", "notes") if name in notes}
        step = self._child.ask(
            "start",
            config=record.config(),
            definitions=record.definitions(),
            more={**more, "name": run_name(self._info), "tags": record.tags(there)},
            final=final,
        )
        if step != self._next:
            raise Retry(f"W&B would go on at row {step}, and has {self._next}", on=self.known_as)
        self._live = True

    def _check_claim(self) -> None:
        """See that no other session has begun to write. Raises `Retry`.

        The client of the one that was there first may store its config once more, late, and so
        its claim over that of the other one. Rows tell then: that one finds some that it never
        sent, and gives way; the other one finds none, and says again that the run is its own.
        """
        found = self._run.look()
        claim = found and found["config"].get(KEY, {}).get("claim")
        late = claim == self._before
        if found is None or not (late or claim == self._token) or found["count"] > self._next:
            self._usurped = str(claim)
            self._child.kill()
            self._check_usurped()
        if claim != self._token:
            assert self._record is not None
            self._update(self._record, self._record.config())

    def _check_usurped(self) -> None:
        if self._usurped:
            raise Retry(
                "another sync has begun to write into this W&B run",
                on=self.known_as,
                hint="let it end; one state folder for all of them would have held it off",
            )

    def _log(self, writer: str, rows: list[HistoryRow], tables: dict[int, dict[str, Any]]) -> None:
        record = self._record
        assert record is not None
        axes = {d["step_metric"] for d in record.definitions() if "step_metric" in d}
        axes.discard(GLOBAL_STEP)
        chunk: list[Any] = []
        size = 0
        for row in rows:
            chunk.append([self._next, _as_sent(row, axes), tables.get(row.seq, {}), row.seq])
            self._next += 1
            size += 40 * len(row.values) + sum(
                len(v) for v in row.values.values() if isinstance(v, (str, list, dict))
            )
            if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES or row.tables:
                self._hand_over(chunk)
                chunk, size = [], 0
        if chunk:
            self._hand_over(chunk)
        if self._held is not None:
            self._held |= Positions.of(writer, [row.seq for row in rows])

    def _hand_over(self, chunk: list[Any]) -> None:
        """Have the client log rows. Raises `Rejected` for one that it does not take."""
        refused = self._child.ask("log", rows=chunk)
        if refused is not None:
            seq, why = refused
            raise Rejected(f"wandb does not take the event {seq} ({why})", seqs=[seq])

    def _contents(self, row: HistoryRow) -> dict[str, Any]:
        """Return the content of a row's tables. Raises `Rejected` if one cannot be read."""
        try:
            found = {k: self._cells(str(ref["sha256"])) for k, ref in row.tables.items()}
        except (EventlogError, ValueError, LookupError, TypeError) as error:
            raise Rejected(
                f"a table of the event {row.seq} cannot be read ({error})", seqs=[row.seq]
            ) from error
        return {key: content for key, content in found.items() if content is not None}

    def _cells(self, digest: str) -> dict[str, Any] | None:
        return None if self._read_blob is None else cells(self._read_blob(self._info, digest))

    def _update(self, record: RunRecord, config: dict[str, Any]) -> None:
        """Change config, and bring the summary to what is recorded.

        Rows that were logged since have put their own last values there.
        """
        self._child.ask("update", config=config, summary=record.values(SUMMARY))

    # ---------------------------------------------------------------- proof

    def confirm(self, batch: pa.Table) -> bool:
        writer, seqs = writer_of(batch), _row_seqs(batch)
        record = self._record
        if not self._live or record is None or not self._knows(writer, seqs):
            # Nothing had to be sent, or nobody asked to: only the rows themselves can tell.
            held = self.held() if seqs else Positions()
            return all((writer, seq) in held for seq in seqs)
        proven = self._run.wait(self._as_expected) is not None and (
            self._next == record.rows or self._run.position_of(self._next - 1) == self._last_sent
        )
        if not proven:
            self._tear_down()
            return False
        record.rows = self._next
        self._unsure = False
        return True

    def _knows(self, writer: str, seqs: list[int]) -> bool:
        """Whether this session found or sent all of these."""
        assert self._record is not None
        if self._held is None:
            return not seqs or seqs[-1] < self._record.marks.get(writer, 0)
        return all((writer, seq) in self._held for seq in seqs)

    def _as_expected(self, found: Found) -> bool:
        """Whether the server has every row, and config, tags and summary."""
        record = self._record
        assert record is not None
        if found["count"] != self._next or found["last_step"] != self._next - 1:
            return False
        # Config and tags travel with this text, in one request.
        state = found["config"].get(KEY, {}).get("state")
        return bool(
            state == record.config()[KEY]["state"]
            and _within(record.values(SUMMARY), found["summary"])
        )

    # ---------------------------------------------------------------- reading back

    def read_back(self) -> Iterator[pa.Table]:
        return read_back(self._run, self._child, self._cells)

    # ---------------------------------------------------------------- the end

    def close(self, state: RunState) -> None:
        self._check_usurped()
        if self._unsure:
            self._tear_down()
        if state.status == "running":
            return  # said by every row; `let_go` ends the writing without ending the run
        code = state.exit_code
        failed = state.status in ("failed", "unknown")
        code = (code or 1) if failed else 0
        wanted = "failed" if code else "finished"
        record = self._survey(everything=False)
        if not self._live and self._found is not None and self._found["state"] == wanted:
            return
        self._end(record, wanted, code)
        self._forget()
        self._child.kill()

    def mark_replaced(self, by: str) -> None:
        """Have the run say which one replaces it, in its config and by a tag, and end it."""
        record = self._survey(everything=False)
        if self._found is None:  # somebody deleted it
            return
        state = self._found["state"]
        if record.replaced_by != by or state not in ("finished", "failed"):
            record.replaced_by = by
            code = 0 if state == "finished" else 1
            self._end(record, "failed" if code else "finished", code)
        self._forget()
        self._child.kill()

    def _end(self, record: RunRecord, wanted: str, code: int) -> None:
        """End the run; returns once the server says so."""
        self._unsure = True  # until it does
        self._finish_live()
        self._start(final=True)
        self._release()
        self._child.ask("finish", exit_code=code)
        self._live = False

        def ended(found: Found) -> bool:
            mine = found["config"].get(KEY, {})
            return bool(
                found["state"] == wanted
                and found["count"] == record.rows
                and mine.get("claim") is None
                and mine.get("replaced_by", "") == record.replaced_by
                and _within(record.values(SUMMARY), found["summary"])
            )

        if self._run.wait(ended) is None:
            raise Retry(f"W&B does not say that the run is {wanted}", on=self.known_as)

    def _release(self) -> None:
        """Take our claim away: what is there is what we left."""
        record = self._record
        assert record is not None
        record.claim = None
        self._update(record, record.config())

    def _finish_live(self) -> None:
        """End the writing, not the run."""
        if not self._live:
            return
        before, self._unsure = self._unsure, True  # until it has ended
        self._check_claim()  # the record may be somebody else's by now
        self._release()
        self._child.ask("finish", exit_code=0)
        self._live, self._unsure = False, before

    def let_go(self) -> None:
        """End the writing and the child. The session can be used again."""
        try:
            if self._live and not self._unsure and self._child.alive:
                self._finish_live()
        except EventlogError:
            pass  # the claim stays, and the next session reads every row
        finally:
            self._tear_down()

    def _tear_down(self) -> None:
        """End the child as it stands; the next call reads the run anew."""
        self._child.kill()
        self._forget()


def _as_sent(row: HistoryRow, axes: set[str]) -> dict[str, Any]:
    """Return a row's values, with the step metrics that W&B may add to it by itself."""
    absent = sorted(axes - set(row.values))
    about = {**row.about, "absent": absent} if absent else row.about
    return {**row.values, ROW: json.dumps(about)} if about else row.values


def _within(wanted: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether every plain value is there; how servers keep nested ones is their own."""
    return all(
        key in there and canonical(there[key]) == canonical(value)
        for key, value in wanted.items()
        if "." not in key and not isinstance(value, (dict, list))
    )


def _row_seqs(batch: pa.Table) -> list[int]:
    """Return the events of a batch that have a row in the history."""
    rows = of_kinds(batch, (METRIC, SYSTEM))
    found: list[int] = rows.column("seq").unique().to_pylist()
    return found


def _references(mapped: Mapped) -> list[Change]:
    """Return what is said of tables that nobody reads the content of."""
    notes = Notes()
    for row in mapped.rows:
        for key in row.tables:
            notes.add("table-as-reference", key, row.seq)
    return notes.changes()
