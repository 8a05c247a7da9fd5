"""``eventlog status``: how far each target is with each run."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from eventlog.catalog import find_all
from eventlog.cli import output
from eventlog.cli.commands import look_at, report_unreadable
from eventlog.delivery import deliveries, state_folder
from eventlog.errors import worst


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--run", "patterns", multiple=True, metavar="GLOB", help="Only these runs.")
@click.option("--state", metavar="FOLDER", help="Where cursors and ledgers are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(
    paths: tuple[str, ...], patterns: tuple[str, ...], state: str | None, as_json: bool
) -> int:
    """Show how far each target is with each run. No network."""
    found, bad = find_all(paths, patterns)
    seen_runs, failed = look_at(found)
    known: dict[tuple[str, str], list[Any]] = {}
    for folder in sorted({state_folder(item.journal, state) for item in found}):
        for cursor in deliveries(folder):
            known.setdefault((cursor.project, cursor.run), []).append(cursor)
    out = []
    for item, seen in seen_runs:
        for cursor in known.get((item.run.project, item.run.id), [None]):
            acked = sum(cursor.mark(w).acked for w in seen.writers) if cursor else 0
            steps = (
                [m.step for m in cursor.writers.values() if m.step is not None] if cursor else []
            )
            out.append(
                {
                    **dataclasses.asdict(item.run),
                    "state": seen.status,
                    "events": sum(seen.ends.values()),
                    "target": f"{cursor.kind}:{cursor.address}" if cursor else None,
                    "acknowledged": acked,
                    "behind": sum(seen.ends.values()) - acked,
                    "last_step": max(steps, default=None),
                    "quarantined": sum(map(len, cursor.quarantined.values())) if cursor else 0,
                    "known_as": cursor.known_as if cursor else None,
                    "synced": cursor.synced if cursor else None,
                }
            )
    code = worst([report_unreadable(bad), *failed])
    if as_json:
        output.print_json(out)
        return code
    rows = [
        [
            r["id"][:16],
            f"{r['project']}/{r['name']}",
            r["state"],
            r["target"] or "-",
            r["events"],
            r["acknowledged"],
            r["behind"],
            "-" if r["last_step"] is None else r["last_step"],
            r["quarantined"],
            output.when(r["synced"]),
        ]
        for r in out
    ]
    names = ["ID", "RUN", "STATE", "TARGET", "EVENTS", "ACKED", "BEHIND", "STEP", "QUARANTINED"]
    output.print_table([*names, "LAST SYNC (UTC)"], rows)
    return code
