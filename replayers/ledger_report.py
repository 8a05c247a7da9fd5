"""Ledgers as a table or JSON: every delivery, mapping and quarantine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from eventlog.catalog import Found, Unreadable
from eventlog.cli import output
from eventlog.cli.selecting import report_unreadable
from eventlog.delivery import Delivery, state_folder
from eventlog.ledger import DELIVERY, MAPPING, QUARANTINE
from replayers.standing import cursors_of


def show_ledgers(
    found: Sequence[Found], bad: list[Unreadable], state: str | None, *, as_json: bool
) -> int:
    """Print every entry of the ledgers of these runs; return the exit code."""
    told: list[dict[str, Any]] = []
    known = cursors_of(found, state)
    for item in found:
        for cursor in known.get((item.run.project, item.run.id), []):
            delivery = Delivery(
                state_folder(item.journal, state),
                kind=cursor.kind,
                address=cursor.address,
                project=cursor.project,
                run=cursor.run,
            )
            about = {**dataclasses.asdict(item.run), "target": f"{cursor.kind}:{cursor.address}"}
            told += [{**about, **output.plain(entry)} for entry in delivery.ledger()]
    code = report_unreadable(bad)
    if as_json:
        output.print_json(told)
        return code
    rows = [
        [
            output.when(entry["time"]),
            f"{entry['project']}/{entry['name']}",
            entry["target"],
            entry["kind"],
            entry.get("writer", ""),
            _events(entry),
            _detail(entry),
        ]
        for entry in told
    ]
    names = ["TIME (UTC)", "RUN", "TARGET", "KIND", "WRITER", "EVENTS", "WHAT"]
    output.print_table(names, rows, "nothing was delivered yet")
    return code


def _events(entry: dict[str, Any]) -> str:
    if "seqs" in entry:
        return output.short(", ".join(map(str, entry["seqs"])), 30)
    first, last = (entry.get(f"{e}_seq", entry.get(e)) for e in ("first", "last"))
    return "" if first is None else str(first) if first == last else f"{first}-{last}"


def _detail(entry: dict[str, Any]) -> str:
    kind = entry["kind"]
    if kind == DELIVERY:
        events, points = (output.many(entry.get(f"{x}s", 0), x) for x in ("event", "point"))
        return f"{events}, {points}, {entry.get('how')}"
    if kind == MAPPING:
        text = f"{entry.get('rule')}: {entry.get('key') or 'all keys'}, {output.many(entry.get('count', 0), 'time')}"
        return output.short(f"{text} {entry.get('detail', '')}".strip(), 80)
    if kind == QUARANTINE:
        return output.short(str(entry.get("reason", "")), 80)
    leave = ("id", "project", "name", "target", "time", "kind", "writer", "first", "last", "format")
    return output.short(", ".join(f"{k}={v}" for k, v in entry.items() if k not in leave), 80)
