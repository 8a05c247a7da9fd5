"""``eventlog status``: how far each target is with each run, and what the ledger tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from eventlog.catalog import Found, Unreadable, is_place, resolve
from eventlog.cli import output
from eventlog.cli.selecting import report_unreadable, selecting
from eventlog.delivery import Delivery, state_folder
from eventlog.errors import EventlogError, IntegrityError, UsageError, worst
from eventlog.ledger import DELIVERY, MAPPING, QUARANTINE
from eventlog.selection import Selection, find_selected
from replayers.prometheus import exposition
from replayers.standing import Standing, cursors_of, standings


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH|RUN]...")
@selecting
@click.option("--state", metavar="FOLDER", help="Where cursors and ledgers are kept.")
@click.option("--ledger", "with_ledger", is_flag=True, help="Every delivery, mapping, quarantine.")
@click.option("--prometheus", is_flag=True, help="Print the text format of Prometheus.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(
    paths: tuple[str, ...],
    chosen: Selection,
    state: str | None,
    with_ledger: bool,
    prometheus: bool,
    as_json: bool,
) -> int:
    """Show how far each target is with each run. No network."""
    if prometheus and (as_json or with_ledger):
        raise UsageError("--prometheus goes with neither --json nor --ledger")
    found, bad = selected(paths, chosen)
    if with_ledger:
        return _ledger(found, bad, state, as_json=as_json)
    known = cursors_of(found, state)
    out: list[Standing] = []
    codes = [report_unreadable(bad)]
    for item in found:
        try:
            out += standings(item, known.get((item.run.project, item.run.id), []))
        except (OSError, EventlogError) as error:
            output.say(output.safe(f"{item.label}: {error}"))
            codes.append(error.exit_code if isinstance(error, EventlogError) else 1)
    for one in out:
        for reason in one.unreadable:
            output.say(output.safe(f"{one.project}/{one.name}: {reason}"))
            codes.append(IntegrityError.exit_code)
    if as_json:
        output.print_json([dataclasses.asdict(one) for one in out])
    elif prometheus:
        output.print_text(exposition(out).rstrip("\n"))
    else:
        _print(out)
    return worst(codes)


def selected(paths: Sequence[str], chosen: Selection) -> tuple[list[Found], list[Unreadable]]:
    """Return the runs of paths, and those that are meant by name or by the start of their id."""
    places = [text if is_place(text) else resolve(text).folder for text in paths]
    return find_selected(places, chosen)


def _print(found: list[Standing]) -> None:
    rows = [
        [
            one.id[:16],
            f"{one.project}/{one.name}",
            one.state,
            one.target or "-",
            one.events,
            one.acknowledged,
            one.behind,
            "-" if one.last_step is None else one.last_step,
            one.quarantined,
            output.when(one.synced),
        ]
        for one in found
    ]
    names = ["ID", "RUN", "STATE", "TARGET", "EVENTS", "ACKED", "BEHIND", "STEP", "QUARANTINED"]
    output.print_table([*names, "LAST SYNC (UTC)"], rows)


# ------------------------------------------------------------------------------ the ledger


def _ledger(found: list[Found], bad: list[Unreadable], state: str | None, *, as_json: bool) -> int:
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
