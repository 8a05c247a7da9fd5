"""Reading a run's history back.

Two forms exist. ``history`` and ``events`` give each row as the text the client streamed, NaN and
Infinity tokens included. ``sampledHistory`` gives rows as JSON values inside the answer, where
such tokens would not be JSON: there they are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from .filters import FilterError
from .graph import Context, resolver
from .lines import EVENTS, HISTORY, OUTPUT, Line, Row
from .runs import Run

Item = TypeVar("Item")
DEFAULT_SAMPLES = 500


def sample(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most ``count`` items, evenly spread, the first and the last among them."""
    wanted = DEFAULT_SAMPLES if count is None else count
    if len(items) <= wanted:
        return list(items)
    if wanted < 2:
        return list(items[:wanted])
    return [items[round(i * (len(items) - 1) / (wanted - 1))] for i in range(wanted)]


def strict(value: Any) -> Any:
    """A JSON value with the numbers that JSON lacks replaced by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    return [strict(one) for one in value] if isinstance(value, list) else value


@resolver("Run", "historyLineCount")
def _history_count(run: Run, context: Context) -> Any:
    return context.shown_count(context.store.lines.line_count(run.id, HISTORY))


@resolver("Run", "eventsLineCount")
def _events_count(run: Run, context: Context) -> Any:
    return context.store.lines.line_count(run.id, EVENTS)


@resolver("Run", "logLineCount")
def _log_count(run: Run, context: Context) -> Any:
    return context.store.lines.line_count(run.id, OUTPUT)


def _tail(line: Line | None) -> str:
    return json.dumps([] if line is None else [line.text])


@resolver("Run", "historyTail")
def _history_tail(run: Run, context: Context) -> Any:
    below = context.shown_tail(context.store.lines.line_count(run.id, HISTORY))
    return _tail(context.store.lines.last(run.id, HISTORY, below))


@resolver("Run", "eventsTail")
def _events_tail(run: Run, context: Context) -> Any:
    return _tail(context.store.lines.last(run.id, EVENTS, 2**62))


@resolver("Run", "systemMetrics")
def _system_metrics(run: Run, context: Context) -> Any:
    last = context.store.lines.last(run.id, EVENTS, 2**62)
    return "{}" if last is None else last.text


@resolver("Run", "historyKeys")
def _history_keys(run: Run, context: Context) -> Any:
    lines = context.store.lines
    count = lines.line_count(run.id, HISTORY)
    shown = context.shown_tail(count)
    return {
        "keys": lines.keys(run.id),
        "lastStep": lines.greatest_step(run.id, None if shown == count else shown),
        "sets": [],
    }


@resolver("Run", "history")
def _history(
    run: Run,
    context: Context,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int | None = None,
) -> Any:
    if min_step is not None or max_step is not None:
        # All of them: a page that left out rows of equal step would hide duplicates.
        low = -(2**62) if min_step is None else min_step
        return context.store.lines.by_step(run.id, low, 2**62 if max_step is None else max_step)
    rows = context.store.lines.read(run.id, HISTORY)
    return [line.text for line in sample(rows, samples)]


@resolver("Run", "events")
def _events(run: Run, context: Context, samples: int | None = None) -> Any:
    rows = context.store.lines.read(run.id, EVENTS)
    return [line.text for line in sample(rows, samples)]


@resolver("Run", "sampledHistory")
def _sampled_history(run: Run, context: Context, specs: list[str]) -> Any:
    return [_sampled(run, context, spec) for spec in specs]


def _sampled(run: Run, context: Context, text: str) -> list[Row]:
    try:
        spec = json.loads(text)
        keys = dict.fromkeys(spec["keys"])
    except (ValueError, KeyError, TypeError) as error:
        raise FilterError(f"a spec is not JSON with a list `keys`: {error}") from error
    low, high = spec.get("minStep"), spec.get("maxStep")
    texts = context.store.lines.by_step(
        run.id, -(2**62) if low is None else low, 2**62 if high is None else high + 1
    )
    rows = [row for row in map(json.loads, texts) if all(key in row for key in keys)]
    chosen = [{key: strict(row[key]) for key in keys} for row in rows]
    return chosen if low is not None or high is not None else sample(chosen, spec.get("samples"))


@resolver("Run", "parquetHistory")
def _parquet_history(_: Run, __: Context, **___: object) -> Any:
    return {"parquetUrls": [], "liveData": []}
