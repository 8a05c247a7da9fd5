"""Views of a run: which of its rows count as its history.

* ``all``: everything that was logged.
* ``effective``: without what a later attempt superseded.
* ``as-of`` a time: what had been logged by then, by the writers' clocks.

**What is superseded.** Only metrics that have a step, and only by an attempt that provably started
after theirs had ended (`eventlog.attempts.follows`). Superseding too much loses data and is the
worse mistake, so:

* a point whose key the later attempt logged again at the same step is superseded;
* a point at a step *beyond* the one where the later attempt starts again is superseded once that
  attempt has logged a later step;
* everything else stays, and what is superseded stays in the journal for ever.

**Where an attempt starts again**: what was said outright (`Run.rewind`, ``EVENTLOG_RESUME_STEP``)
before its first step, or later if it went back behind what the data show;
else what the data show. Of the steps that a writer of the attempt logged, in the order in which
they first appear, it is the first that is believed. A step is believed if the writer goes on to a
higher one, and the attempt left out nothing that the earlier ones have in between: no point of a
key logged there, and no step altogether. Who logs something at step 0 and goes on at 801 did not
train from step 0, and who evaluates checkpoints 100, 200 and 300 does not train at all. An
attempt that starts at or before the first step of its past is a fresh start: it supersedes only
the points that it logs again.

**What was found stays.** More data may move the step that an attempt is found to start again at: a
key that is logged late at its second step, a rank that comes late, a file that a copy brings late.
A delivery that left points out for that step cannot take this back. So a sync waits until the
finding is *ripe* (the attempt has gone on to a third step, has ended, or another one came after
it; until then nothing beyond its steps is left out), records it in its state when it first
delivers on it, and hands it to this module from then on (`effective`, `recorded`). What is said
outright, later and lower, still counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from eventlog.attempts import Attempt, attempts, follows
from eventlog.columns import booleans, is_word, numbers, present, truths
from eventlog.errors import UsageError
from eventlog.event import METRIC, STATE
from eventlog.files import LOCAL, Store
from eventlog.reader import WriterReader, headers
from eventlog.steps import Steps

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("effective", "all")


class View(Protocol):
    """Filters the rows of one writer."""

    @property
    def name(self) -> str:
        """``all``, ``effective`` or ``as-of``."""

    def rows(self, writer: str, table: pa.Table) -> pa.Table:
        """Return the rows of `table` that belong to the view, in order."""


@dataclasses.dataclass(frozen=True)
class All:
    """Every row."""

    name: str = "all"

    def rows(self, writer: str, table: pa.Table) -> pa.Table:  # noqa: ARG002 - the protocol's
        return table


@dataclasses.dataclass(frozen=True)
class AsOf:
    """Every row logged by a time, in nanoseconds since 1970 UTC."""

    time: int
    name: str = "as-of"

    def rows(self, writer: str, table: pa.Table) -> pa.Table:  # noqa: ARG002 - the protocol's
        return table.filter(booleans(numbers(table.column("time")) <= self.time))


@dataclasses.dataclass
class _Trace:
    """What the steps of one attempt were."""

    last_time: int = 0
    all: Steps = dataclasses.field(default_factory=Steps)
    points: dict[str, Steps] = dataclasses.field(default_factory=dict)
    order: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    keys_at: dict[str, dict[int, set[str]]] = dataclasses.field(default_factory=dict)
    rewinds: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    ended: bool = False
    firsts: dict[str, int] = dataclasses.field(default_factory=dict)

    def span(self) -> tuple[int, int] | None:
        """Return the lowest and the highest step, None if there is none."""
        ends = [steps.span() for steps in self.points.values() if steps]
        return (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else None


@dataclasses.dataclass(frozen=True)
class Restart:
    """Where an attempt starts again.

    `step` is None where no step is believed; `how` is ``stated``, ``data``, ``fresh`` (it
    supersedes only what it logs again), or ``none``.
    """

    step: int | None
    how: str


@dataclasses.dataclass
class Effective:
    """The history without what a later attempt superseded.

    Attributes
    ----------
    attempts:
        In order.
    restarts:
        By attempt key: where each attempt that follows others starts again.
    parallel:
        Pairs of attempts (earlier, later) of which none provably ended before the other began:
        neither supersedes anything of the other.
    """

    attempts: list[Attempt]
    restarts: dict[str, Restart] = dataclasses.field(default_factory=dict)
    parallel: list[tuple[Attempt, Attempt]] = dataclasses.field(default_factory=list)
    name: str = "effective"
    _limits: dict[str, int] = dataclasses.field(default_factory=dict)
    _again: dict[str, list[_Trace]] = dataclasses.field(default_factory=dict)
    _rewinds: dict[str, list[tuple[int, int]]] = dataclasses.field(default_factory=dict)
    _attempt_of: dict[str, str] = dataclasses.field(default_factory=dict)

    def rows(self, writer: str, table: pa.Table) -> pa.Table:
        mask = self.superseded(writer, table)
        if mask is None or not mask.any():
            return table
        return table.filter(booleans(~mask))

    def rewinds(self) -> dict[str, int]:
        """Return how often each attempt said that it went back, by attempt key."""
        told: dict[str, int] = {}
        for writer, found in self._rewinds.items():
            key = self._attempt_of.get(writer, "")
            told[key] = told.get(key, 0) + len(found)
        return told

    def superseded(self, writer: str, table: pa.Table) -> Any:
        """Return a boolean array, True where a row is superseded; None if none can be."""
        import numpy as np

        key = self._attempt_of.get(writer, "")
        limit = self._limits.get(key)
        later = self._again.get(key, [])
        rewinds = self._rewinds.get(writer, [])
        if limit is None and not later and not rewinds:
            return None
        has_step, steps = _steps(table)
        mask = np.zeros(table.num_rows, bool)
        if limit is not None:
            mask |= steps > limit
        for seq, step in rewinds:
            mask |= (numbers(table.column("seq")) < seq) & (steps > step)
        if later:
            self._logged_again(table, steps, later, mask)
        return mask & has_step

    @staticmethod
    def _logged_again(table: pa.Table, steps: Any, later: list[_Trace], mask: Any) -> None:
        import numpy as np

        codes, words = _codes(table)
        for code, word in enumerate(words):
            again = [trace.points[word] for trace in later if word in trace.points]
            if not again:
                continue
            rows = np.flatnonzero(codes == code)
            for logged in again:
                mask[rows] |= logged.contains(steps[rows])


def open_view(folder: str, name: str = "effective", store: Store = LOCAL) -> View:
    """Return the view of that name of a run; for several attempts ``effective`` reads it once.

    Raises
    ------
    UsageError
        If there is no view of that name.
    """
    if name == "all":
        return All()
    if name != "effective":
        raise UsageError(f"there is no view {name!r}, only {', '.join(NAMES)}")
    return effective(folder, store)


def effective(
    folder: str,
    store: Store = LOCAL,
    *,
    recorded: Mapping[str, Restart] | None = None,
    ripe: bool = False,
) -> Effective:
    """Find out what later attempts superseded.

    Parameters
    ----------
    recorded:
        By attempt key: where attempts start again, as something was delivered on it.
    ripe:
        Leave out nothing for a step that more data may still move.
    """
    found = attempts(headers(folder, store))
    view = Effective(found, _attempt_of={w: a.key for a in found for w in a.writers})
    traces = {a.key: _trace(folder, a, store, alone=len(found) == 1) for a in found}
    for i, later in enumerate(found):
        trace = traces[later.key]
        for writer, seq, step in trace.rewinds:
            view._rewinds.setdefault(writer, []).append((seq, step))
        past = []
        for earlier in found[:i]:
            if follows(later, earlier, traces[earlier.key].last_time):
                past.append(earlier)
            else:
                view.parallel.append((earlier, later))
        if past:
            restart = _restart(trace, [traces[a.key] for a in past])
            last = later is found[-1]
            if ripe and last and restart.how == "data" and not _is_ripe(trace, restart):
                restart = Restart(None, "none")
            restart = _kept(restart, (recorded or {}).get(later.key))
            view.restarts[later.key] = restart
            for earlier in past:
                view._again.setdefault(earlier.key, []).append(trace)
                if restart.how in ("stated", "data") and restart.step is not None:
                    limit = view._limits.get(earlier.key, restart.step)
                    view._limits[earlier.key] = min(limit, restart.step)
    return view


def _is_ripe(trace: _Trace, restart: Restart) -> bool:
    """Return whether a writer has gone on to a third step from where it starts again."""
    later = (
        len(order[order.index(restart.step) :])
        for order in trace.order.values()
        if restart.step in order
    )
    return trace.ended or max(later, default=0) > 2


def _kept(found: Restart, recorded: Restart | None) -> Restart:
    """Return what was recorded, but for what was said outright since and goes back further."""
    if recorded is None or recorded.step is None:
        return found
    if found.how == "stated" and found.step is not None and found.step < recorded.step:
        return found
    return recorded


def _restart(trace: _Trace, past: list[_Trace]) -> Restart:
    ends = trace.span()
    outright = [
        step for writer, seq, step in trace.rewinds if seq < trace.firsts.get(writer, seq + 1)
    ]
    starts = [_believed(trace, writer, past) for writer in trace.order]
    known = [step for step in starts if step is not None]
    # A rewind in the middle says where the attempt went back to, and not where it had begun.
    back = [step for _writer, _seq, step in trace.rewinds]
    if outright or (back and min(back) < min(known, default=min(back) + 1)):
        step = min(outright or back)
        logged_later = ends is not None and ends[1] > step
        return Restart(step, "stated") if logged_later else Restart(step, "none")
    if not known:
        return Restart(None, "none")
    step = min(known)
    first = min((ends[0] for ends in (t.span() for t in past) if ends), default=None)
    return Restart(step, "fresh" if first is None or step <= first else "data")


def _believed(trace: _Trace, writer: str, past: list[_Trace]) -> int | None:
    """Return the first step of a writer that its next one and the past do not contradict."""
    order = trace.order[writer]
    for here, after in itertools.pairwise(order):
        if after <= here or any(_passed(trace.all, other.all, here, after) for other in past):
            continue
        keys = trace.keys_at[writer].get(after, set())
        if not any(_left_out(trace, other, key, here, after) for key in keys for other in past):
            return here
    return None


def _left_out(trace: _Trace, past: _Trace, key: str, here: int, after: int) -> bool:
    """Return whether the past has a point of `key` between two steps that the attempt has not."""
    if key not in past.points:
        return False
    return _passed(trace.points.get(key, Steps()), past.points[key], here, after)


def _passed(mine: Steps, theirs: Steps, here: int, after: int) -> bool:
    """Return whether there are steps between two others that `theirs` has and `mine` has not."""
    between = theirs.between(here, after)
    return bool(len(between)) and not bool(mine.contains(between).all())


#: Of how many steps at the start of a writer the keys are remembered.
_REMEMBERED = 1000


def _trace(folder: str, attempt: Attempt, store: Store, *, alone: bool) -> _Trace:
    """Read an attempt; of one that is `alone` nothing matters but what it said of itself."""
    trace = _Trace()
    columns = ["kind", "key", "num", "time", "step"]
    key = "rewind" if alone else None
    for writer in attempt.writers:
        reader = WriterReader(
            folder, writer, skip_missing=True, store=store, columns=columns, key=key
        )
        seen: dict[int, None] = {}
        for table in reader.tables():
            if not alone:
                _note(trace, writer, table, seen)
            _note_rewinds(trace, writer, table)
        trace.order[writer] = list(seen)
    return trace


def _note(trace: _Trace, writer: str, table: pa.Table, seen: dict[int, None]) -> None:
    trace.last_time = max(trace.last_time, int(numbers(table.column("time")).max()))
    has_step, steps = _steps(table)
    codes, words = _codes(table)
    if has_step.any():
        trace.firsts.setdefault(writer, table.column("seq")[int(has_step.argmax())].as_py())
        trace.all.add(steps[has_step])
    for code, word in enumerate(words):
        mine = steps[(codes == code) & has_step]
        if len(mine):
            trace.points.setdefault(word, Steps()).add(mine)
    keys_at = trace.keys_at.setdefault(writer, {})
    if len(seen) < _REMEMBERED:
        for step, code in zip(steps[has_step].tolist(), codes[has_step].tolist(), strict=True):
            seen.setdefault(step)
            keys_at.setdefault(step, set()).add(words[code])
            if len(seen) >= _REMEMBERED:
                break


def _note_rewinds(trace: _Trace, writer: str, table: pa.Table) -> None:
    import pyarrow.compute as pc

    state = is_word(table.column("kind"), STATE)
    ended = pc.and_(state, is_word(table.column("key"), "exit_code"))
    trace.ended = trace.ended or bool(pc.any(ended).as_py())
    stated = pc.and_(state, is_word(table.column("key"), "rewind"))
    for row in table.filter(stated).select(["seq", "num"]).to_pylist():
        if row["num"] is not None and math.isfinite(row["num"]):
            trace.rewinds.append((writer, row["seq"], int(row["num"])))


def _steps(table: pa.Table) -> tuple[Any, Any]:
    """Return which rows are metrics with a step, and the steps (0 where there is none)."""
    column = table.column("step")
    return truths(is_word(table.column("kind"), METRIC)) & present(column), numbers(column)


def _codes(table: pa.Table) -> tuple[Any, list[str]]:
    """Return the keys as numbers, and what the numbers stand for."""
    encoded = table.column("key").combine_chunks().dictionary_encode()
    return numbers(encoded.indices), encoded.dictionary.to_pylist()
