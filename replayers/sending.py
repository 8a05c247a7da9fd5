"""From what a user selects (targets, runs, a rate) to lanes and streams."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import traceback
from collections.abc import Callable, Sequence

from eventlog.catalog import Found
from eventlog.cli import output
from eventlog.delivery import state_folder
from eventlog.errors import EventlogError, UsageError
from replayers.keys import keys_of
from replayers.lane import Lane
from replayers.outcome import DEFAULT_VIEW
from replayers.pace import Pace, parse_rate
from replayers.registry import list_of, target_of, told_of
from replayers.replay import Progress, Settings
from replayers.stream import Stream
from replayers.superseding import APPEND, check_choice


def say(text: str) -> None:
    """Talk to the user: names in `text` come from other people's journals."""
    output.say(output.safe(text))


def lanes_to(
    specs: Sequence[str],
    runs: Callable[[], list[Found]],
    places: Sequence[str],
    stop: threading.Event,
    *,
    jobs: int,
    rate: str | None = None,
    stay: bool = False,
    superseded: str | None = None,
    view: str = DEFAULT_VIEW,
    keys: Sequence[str] = (),
) -> list[Lane]:
    """Return a lane for each target that a user named.

    Parameters
    ----------
    runs:
        Returns the runs that are known by now.
    places:
        Journals in which ``eventlog.toml`` is looked for.
    stop:
        Ends every wait.
    rate:
        Rows a second, as a user writes it; over that of ``eventlog.toml``.
    superseded, view:
        The choice of `replayers.superseding`, likewise, and the view with which it has to go.
    keys:
        Globs of the metrics that the targets get (`replayers.keys`), likewise.

    Raises
    ------
    UsageError
    """
    lanes = []
    for spec in specs:
        told = rate or told_of(spec, sorted(places), "rate")
        pace = Pace(parse_rate(told) if told else None, stop=stop)
        make = functools.partial(target_of, spec, runs, places)
        lane = Lane(make, jobs=jobs, stay=stay, pace=pace, tell=say)
        lane.superseded = superseded or told_of(spec, sorted(places), "superseded") or APPEND
        globs = keys or list_of(spec, sorted(places), "keys")
        lane.keys = keys_of(globs) if globs else None
        check_choice(lane.superseded, lane.target, lane.label, view)
        lanes.append(lane)
    return lanes


def stream_of(
    found: Found,
    lane: Lane,
    state: str | None,
    settings: Settings,
    progress: Progress = lambda settled, events: None,
) -> Stream:
    """Return a run on its way into a lane's target."""
    settings = dataclasses.replace(settings, superseded=lane.superseded, keys=lane.keys)
    return Stream(found, state_folder(found.journal, state), settings, lane.pace, progress)


def check_elsewhere(found: Sequence[Found]) -> None:
    """One run id of a target cannot stand for several runs. Raises `UsageError`."""
    for variable in ("MLFLOW_RUN_ID", "WANDB_RUN_ID"):
        if len(found) > 1 and os.environ.get(variable):
            raise UsageError(
                f"{variable} names one run, and {len(found)} are selected",
                hint=f"select one with --run, or unset {variable}",
            )


def seal_unsettled(item: Found, streams: Sequence[tuple[Stream, Lane]]) -> None:
    """Seal what is closed of a run, unless every target has it as it is; say so if that fails."""
    if all(stream.settled(lane.target) for stream, lane in streams):
        return
    from eventlog.seal import seal  # it writes, which a sync with nothing to do does not

    try:
        seal(item.folder)
    except (OSError, EventlogError) as error:
        say(f"{item.label}: not sealed ({error})")
    except Exception as error:  # one run holds up no others
        if os.environ.get("EVENTLOG_DEBUG"):
            traceback.print_exc()
        say(f"{item.label}: not sealed; this is a bug: {type(error).__name__}: {error}")
    for stream, _lane in streams:
        stream.wake()
