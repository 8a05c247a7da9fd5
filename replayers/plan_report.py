"""Plans as a table or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eventlog.catalog import Found, Unreadable
from eventlog.cli import output
from eventlog.delivery import state_folder
from eventlog.errors import EventlogError
from replayers.lane import Lane
from replayers.outcome import Settings
from replayers.plan import Plan, plan
from replayers.sync_report import exit_code


def show_plans(
    found: Sequence[Found],
    lanes: Sequence[Lane],
    bad: Sequence[Unreadable],
    state: str | None,
    settings: Settings,
    *,
    as_json: bool,
) -> int:
    """Print what a sync of these runs would do; return the exit code."""
    plans: list[Plan] = []
    codes = [item.error.exit_code for item in bad]
    for lane in lanes:
        for item in found:
            try:
                told = dataclasses.replace(settings, superseded=lane.superseded, keys=lane.keys)
                plans.append(plan(item, lane.target, state_folder(item.journal, state), told))
                codes.append(0)
            except (OSError, EventlogError) as error:
                output.say(output.safe(f"{item.label} -> {lane.label}: {error}"))
                codes.append(error.exit_code if isinstance(error, EventlogError) else 1)
        lane.target.close()
    if as_json:
        output.print_json([dataclasses.asdict(one) for one in plans])
        return exit_code(codes)
    rows = [
        [
            one.id[:16],
            f"{one.project}/{one.name}",
            one.target,
            one.events,
            one.points,
            one.bytes,
            "?" if one.seconds is None else one.seconds,
            one.superseded,
            output.short(", ".join(f"{k} {v}" for k, v in sorted(one.mappings.items())), 80),
        ]
        for one in plans
    ]
    names = [
        "ID",
        "RUN",
        "TARGET",
        "EVENTS",
        "POINTS",
        "BYTES",
        "SECONDS",
        "SUPERSEDED",
        "MAPPINGS",
    ]
    output.print_table(names, rows)
    return exit_code(codes)
