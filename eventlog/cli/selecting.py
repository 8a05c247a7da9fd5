"""The options that select runs, the same ones for every command that takes several."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from eventlog.catalog import Unreadable
from eventlog.cli import output
from eventlog.errors import worst
from eventlog.selection import selection

_OPTIONS = (
    click.option(
        "--run",
        "patterns",
        multiple=True,
        metavar="GLOB",
        help="Only runs of this id, name or project/name.",
    ),
    click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="KEY[=GLOB]",
        help="Only runs with this tag: KEY finds the tags KEY and KEY=VALUE, KEY=GLOB those "
        "whose value matches. Of several all must match.",
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Only runs whose last event is of TIME or later: 2026-01-31, 2026-01-31T12:00 "
        "(UTC, as all times are shown), 2026-01-31T12:00+01:00, or how long ago: 12h, 7d.",
    ),
    click.option(
        "--until", metavar="TIME", help="Only runs whose first attempt started before TIME."
    ),
)


def selecting(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options that select runs, as one argument: `chosen`, a
    `eventlog.selection.Selection`.
    """

    @functools.wraps(command)
    def selected(
        *,
        patterns: tuple[str, ...],
        tags: tuple[str, ...],
        since: str | None,
        until: str | None,
        **others: Any,
    ) -> int:
        return command(chosen=selection(patterns, tags, since, until), **others)

    made: Callable[..., int] = selected
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def report_unreadable(bad: list[Unreadable]) -> int:
    """Say which folders of runs cannot be read; return the exit code of that."""
    for item in bad:
        named = item.error.on is not None and item.error.on.startswith(item.folder)
        where = "" if named else f"{item.folder}: "
        output.say(output.safe(f"{where}{item.error}"))
    return worst([item.error.exit_code for item in bad])
