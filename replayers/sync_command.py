"""``eventlog sync``: bring runs into backends."""

from __future__ import annotations

import functools
import os
import threading

import click

from eventlog import blobs
from eventlog.catalog import Found, find_all
from eventlog.cli import output
from eventlog.cli.commands import report_unreadable
from eventlog.delivery import state_folder
from eventlog.errors import EventlogError, UsageError
from eventlog.layout import run_folder
from eventlog.seal import seal
from replayers.lane import Lane, work
from replayers.pace import Pace, parse_rate
from replayers.registry import make_target
from replayers.replay import BATCH_ROWS, Settings, delivery_of, unchanged
from replayers.stream import Stream
from replayers.sync_report import exit_code, print_reports, report_of
from replayers.target import RunInfo, Target


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--to",
    "specs",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="mlflow, trackio, wandb, or an address such as mlflow:sqlite:///m.db. May be repeated.",
)
@click.option("--run", "patterns", multiple=True, metavar="GLOB", help="Only these runs.")
@click.option("--state", metavar="FOLDER", help="Where cursors and ledgers are kept.")
@click.option(
    "--view",
    type=click.Choice(["effective", "all"]),
    default="effective",
    show_default=True,
    help="What is sent: all events, or the history.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=BATCH_ROWS,
    show_default=True,
    metavar="ROWS",
    help="Rows that are sent, confirmed and acknowledged at once.",
)
@click.option(
    "--adopt-by-name",
    is_flag=True,
    help="Take over the one run of that name which no journal made.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1, max=64),
    default=1,
    show_default=True,
    metavar="N",
    help="How many runs are sent at once, to each target.",
)
@click.option(
    "--rate",
    metavar="ROWS",
    help="Rows a second, at most, to each target; 30/min and 1000/h are rates too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def sync(
    paths: tuple[str, ...],
    specs: tuple[str, ...],
    patterns: tuple[str, ...],
    state: str | None,
    view: str,
    batch: int,
    adopt_by_name: bool,
    jobs: int,
    rate: str | None,
    as_json: bool,
) -> int:
    """Bring runs into backends, exactly once. Runs and targets that fail hold up no others."""
    found, bad = find_all(paths, patterns)
    if patterns and not found and not bad:
        raise UsageError(f"no run is called {' or '.join(map(repr, patterns))}", hint="eventlog ls")
    _check_elsewhere(found)
    settings = Settings(view=view, batch_rows=batch, adopt_by_name=adopt_by_name)
    stop = threading.Event()
    lanes = [
        Lane(
            functools.partial(_target, spec, found),
            jobs=jobs,
            pace=Pace(parse_rate(rate) if rate else None, stop=stop),
            tell=lambda text: output.say(output.safe(text)),
        )
        for spec in specs
    ]
    codes = [item.error.exit_code for item in bad]
    report_unreadable(bad)
    for item in found:
        if not all(_is_settled(item, lane.target, state) for lane in lanes):
            _seal_quietly(item)
    with output.bars(quiet=as_json) as more:
        for lane in lanes:
            for item in found:
                bar = more(f"{item.label} -> {lane.target.kind}")
                where = state_folder(item.journal, state)
                lane.add(Stream(item, where, settings, lane.pace, bar))
        work(lanes, stop)
    reports = [report_of(lane, stream) for lane in lanes for stream in lane.streams()]
    print_reports(reports, as_json=as_json)
    return exit_code([*codes, *(report["exit_code"] for report in reports)])


def _check_elsewhere(found: list[Found]) -> None:
    """One run id of a target cannot stand for several runs."""
    for variable in ("MLFLOW_RUN_ID", "WANDB_RUN_ID"):
        if len(found) > 1 and os.environ.get(variable):
            raise UsageError(
                f"{variable} names one run, and {len(found)} are selected",
                hint=f"select one with --run, or unset {variable}",
            )


def _target(spec: str, found: list[Found]) -> Target:
    folders = {(item.run.project, item.run.id): item.folder for item in found}

    def read_blob(run: RunInfo, digest: str) -> bytes:
        folder = folders.get((run.project, run.id)) or run_folder(".", run.project, run.id)
        return blobs.get(folder, digest)

    return make_target(spec, read_blob, places=sorted({item.journal for item in found}))


def _is_settled(item: Found, target: Target, state: str | None) -> bool:
    try:
        delivery = delivery_of(item, target, state_folder(item.journal, state))
        return unchanged(item, delivery) is not None
    except (OSError, EventlogError):
        return False


def _seal_quietly(item: Found) -> None:
    try:
        seal(item.folder)
    except (OSError, EventlogError) as error:
        output.say(output.safe(f"{item.label}: not sealed ({error})"))
