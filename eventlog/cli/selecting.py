"""The options that select runs, the same ones for every command that takes several."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

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
        "(local), 2026-01-31T12:00Z, or how long ago: 12h, 7d.",
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
