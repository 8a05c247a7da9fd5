"""The options that `eventlog sync` and `eventlog exec` share: where to, and how it is sent."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from replayers.keys import keys_of
from replayers.outcome import BATCH_ROWS, DEFAULT_VIEW, Settings
from replayers.pace import parse_rate
from replayers.superseding import CHOICES, check_view


@dataclasses.dataclass(frozen=True)
class Sending:
    """What a user said of how runs are sent; each as the option of its name.

    Attributes
    ----------
    specs:
        What `replayers.registry.make_target` takes, a target each.
    superseded, keys, rate:
        None, or nothing, for what ``eventlog.toml`` says.
    batch, jobs:
        None for the default.
    interval:
        Seconds between two looks for what is new.
    """

    specs: tuple[str, ...]
    state: str | None = None
    view: str = DEFAULT_VIEW
    superseded: str | None = None
    keys: tuple[str, ...] = ()
    batch: int | None = None
    adopt_by_name: bool = False
    jobs: int | None = None
    rate: str | None = None
    interval: float = 1.0

    def settings(self, **more: Any) -> Settings:
        """Return how the loop is to behave, with the settings that only one command has."""
        return Settings(
            view=self.view, batch_rows=self.batch, adopt_by_name=self.adopt_by_name, **more
        )

    def told(self) -> dict[str, Any]:
        """Return it as an object of JSON, which `of` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Sending:
        """Return what `told` gave."""
        return cls(**{**told, **{name: tuple(told[name]) for name in ("specs", "keys")}})


_OPTIONS = (
    click.option(
        "--to",
        "specs",
        multiple=True,
        required=True,
        metavar="TARGET",
        help="mlflow, trackio, wandb, or an address such as mlflow:sqlite:///m.db. May be "
        "repeated.",
    ),
    click.option("--state", metavar="FOLDER", help="Where cursors and ledgers are kept."),
    click.option(
        "--view",
        type=click.Choice(["effective", "all"]),
        default=DEFAULT_VIEW,
        show_default=True,
        help="What is sent: all events, or the history.",
    ),
    click.option(
        "--superseded",
        type=click.Choice(CHOICES),
        help="What becomes of superseded points that a target holds. [default: append, or "
        "what eventlog.toml says]",
    ),
    click.option(
        "--key",
        "keys",
        multiple=True,
        metavar="GLOB",
        help="Only metrics of these keys, of runs that a target does not have yet; kept from then "
        "on. May be repeated. [default: all, or what eventlog.toml says]",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        metavar="ROWS",
        help="Rows that are sent, confirmed and acknowledged at once. "
        f"[default: {BATCH_ROWS}, or what the target says]",
    ),
    click.option(
        "--adopt-by-name",
        is_flag=True,
        help="Take over the one run of that name which no journal made.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1, max=64),
        metavar="N",
        help="How many runs are sent at once, to each target. [default: 1; those of a program "
        "2; with --watch 4]",
    ),
    click.option(
        "--rate",
        metavar="ROWS",
        help="Rows a second, at most, to each target; 30/min and 1000/h are rates too.",
    ),
    click.option(
        "--interval",
        type=click.FloatRange(min=0.05),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help="How often to look for what is new, while runs are followed.",
    ),
)
_NAMES = tuple(field.name for field in dataclasses.fields(Sending))


def sending_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command these options as one argument: `how`, a `Sending` that can be done.

    Raises
    ------
    UsageError
        When it is called, for a rate or a glob that is none, or options that do not go together.
    """

    @functools.wraps(command)
    def told(**given: Any) -> int:
        how = Sending(**{name: given.pop(name) for name in _NAMES})
        if how.rate is not None:
            parse_rate(how.rate)
        keys_of(how.keys)
        if how.superseded is not None:
            check_view(how.superseded, how.view)
        return command(how=how, **given)

    made: Callable[..., int] = told
    for option in reversed(_OPTIONS):
        made = option(made)
    return made
