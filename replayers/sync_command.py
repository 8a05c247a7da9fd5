"""``eventlog sync``: bring runs into backends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import click

from eventlog.catalog import Found, Unreadable, find_all
from eventlog.cli import output
from eventlog.cli.selecting import report_unreadable, selecting
from eventlog.errors import UsageError
from eventlog.selection import Asker, Selection, find_selected
from replayers.lane import Lane, work
from replayers.outcome import TRIES
from replayers.sending import check_elsewhere, lanes_to, say, seal_unsettled, stream_of
from replayers.stream import Stream
from replayers.sync_options import Sending, sending_options
from replayers.sync_report import exit_code, print_reports, report_of, whole

#: How many runs at once, if it is not said: to end soon, and to hold up none that is live.
JOBS, JOBS_LIVE = 1, 4
#: How often a batch is tried in one go when the run comes again anyway.
TRIES_LIVE = 2


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@selecting
@sending_options
@click.option("--watch", is_flag=True, help="Follow runs while they are written, new ones too.")
@click.option(
    "--until-finished",
    is_flag=True,
    help="With --watch: end once all runs have ended and everything is delivered.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --until-finished: how long ended runs must stand still; a restart may follow.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="With --until-finished: give up a target that takes nothing for so long behind the end "
    "of the runs. [default: never]",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Compare each run with the target afterwards, and send what is missing.",
)
@click.option(
    "--retry-quarantined",
    is_flag=True,
    help="Send again the events that a target refused for good.",
)
@click.option(
    "--without-missing",
    is_flag=True,
    help="Send events whose tables have not come, or not whole, without them: null in the target, "
    "for good, and recorded as lost.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be sent; contact no target.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def sync(
    paths: tuple[str, ...],
    chosen: Selection,
    how: Sending,
    watch: bool,
    until_finished: bool,
    grace: float,
    drain: float | None,
    repair: bool,
    retry_quarantined: bool,
    without_missing: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring runs into backends, exactly once. Runs and targets that fail hold up no others."""
    if until_finished and not watch:
        raise UsageError("--until-finished goes with --watch")
    if watch and (repair or retry_quarantined or without_missing or dry_run):
        raise UsageError(
            "--repair, --retry-quarantined, --without-missing and --dry-run do not go with --watch"
        )
    state = how.state
    settings = how.settings(
        repair=repair,
        retry_quarantined=retry_quarantined,
        without_missing=without_missing,
        # A lane that stays tries again by itself, and says so.
        tries=TRIES_LIVE if watch else TRIES,
    )
    stop = threading.Event()
    lanes: list[Lane] = []
    bad: list[Unreadable] = []
    interrupted = False
    try:
        if watch:
            from replayers.changes import Changes
            from replayers.watch import Watch, display

            changes = Changes(paths, chosen.patterns, belongs=Asker(chosen))
            lanes = lanes_to(
                how.specs,
                changes.runs,
                changes.paths,
                stop,
                jobs=how.jobs or JOBS_LIVE,
                rate=how.rate,
                stay=True,
                superseded=how.superseded,
                view=how.view,
                keys=how.keys,
            )
            with display(as_json=as_json) as show:
                following = Watch(
                    changes,
                    lanes,
                    lambda found, lane: stream_of(found, lane, state, settings),
                    interval=how.interval,
                    until_finished=until_finished,
                    grace=grace,
                    drain=drain,
                    show=show,
                )
                work(lanes, stop, following.tick)
            bad = list(changes.unreadable.values())
        else:
            found, bad = find_selected(paths, chosen)
            if not found and not bad:
                _say_none(paths, chosen)
            check_elsewhere(found)
            places = sorted({item.journal for item in found})
            lanes = lanes_to(
                how.specs,
                lambda: found,
                places,
                stop,
                jobs=how.jobs or JOBS,
                rate=how.rate,
                superseded=how.superseded,
                view=how.view,
                keys=how.keys,
            )
            report_unreadable(bad)
            if dry_run:
                from replayers.plan_report import show_plans

                return show_plans(found, lanes, bad, state, settings, as_json=as_json)
            _send(
                found,
                lanes,
                stop,
                lambda item, lane, bar: stream_of(item, lane, state, settings, bar),
                quiet=as_json,
            )
    except KeyboardInterrupt:
        if dry_run:
            raise
        interrupted = True  # what was done is said first
    with whole():
        reports = [
            report_of(lane, stream, interrupted=interrupted)
            for lane in lanes
            for stream in lane.streams()
        ]
        if watch and as_json:
            output.print_json_line({"reports": reports})
        else:
            print_reports(reports, as_json=as_json)
    if interrupted:
        raise KeyboardInterrupt
    codes = [item.error.exit_code for item in bad]
    return exit_code([*codes, *(report["exit_code"] for report in reports)])


def _say_none(paths: tuple[str, ...], chosen: Selection) -> None:
    """Say that no run is selected: a name that no run has is a mistake, a quiet day is none."""
    known, _bad = find_all(paths, chosen.patterns) if chosen.reads else ([], [])
    if chosen.patterns and not known:
        names = " or ".join(map(repr, chosen.patterns))
        raise UsageError(f"no run is called {names}", hint="eventlog ls")
    if known:
        many = output.many(len(known), "run")
        say(f"nothing is selected: --tag, --since and --until leave out all of {many}")


def _send(
    found: list[Found],
    lanes: list[Lane],
    stop: threading.Event,
    make: Callable[[Found, Lane, output.Bar], Stream],
    *,
    quiet: bool,
) -> None:
    """Seal every run, and bring it into every target once."""
    with output.bars(quiet=quiet) as more:
        streams = {
            (item.folder, lane): make(item, lane, more(f"{item.label} -> {lane.target.kind}"))
            for lane in lanes
            for item in found
        }
        for (_folder, lane), stream in streams.items():
            lane.add(stream)
        for item in found:  # an interrupt of that has a report too
            seal_unsettled(item, [(streams[item.folder, lane], lane) for lane in lanes])
        work(lanes, stop)
