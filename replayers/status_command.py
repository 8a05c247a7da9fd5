"""``eventlog status``: how far each target is with each run, and what the ledger tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click

from eventlog.catalog import Found, Unreadable, is_place, resolve
from eventlog.cli import output
from eventlog.cli.selecting import report_unreadable, selecting
from eventlog.errors import EventlogError, IntegrityError, UsageError, worst
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
        from replayers.ledger_report import show_ledgers  # what reads a ledger can write one too

        return show_ledgers(found, bad, state, as_json=as_json)
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
