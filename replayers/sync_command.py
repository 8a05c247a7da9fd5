"""``eventlog sync``: bring runs into backends."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from typing import Any

import click

from eventlog import blobs
from eventlog.catalog import Found, find_all
from eventlog.cli import output
from eventlog.cli.commands import report_unreadable
from eventlog.delivery import state_folder
from eventlog.errors import (
    AuthenticationError,
    EventlogError,
    TemporaryError,
    UsageError,
)
from eventlog.layout import run_folder
from eventlog.seal import seal
from replayers.registry import make_target
from replayers.replay import BATCH_ROWS, Settings, replay
from replayers.sync_report import add_outcome, exit_code, label_of, print_reports, report_of
from replayers.target import Down, RunInfo, Target

#: How many runs in a row find a target down before the others are not tried.
LOOKS = 3
#: What the system says of a full disk: of the state folder, say.
FULL = (errno.ENOSPC, errno.EDQUOT)


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
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def sync(
    paths: tuple[str, ...],
    specs: tuple[str, ...],
    patterns: tuple[str, ...],
    state: str | None,
    view: str,
    batch: int,
    adopt_by_name: bool,
    as_json: bool,
) -> int:
    """Bring runs into backends, exactly once. Runs and targets that fail hold up no others."""
    found, bad = find_all(paths, patterns)
    if patterns and not found and not bad:
        raise UsageError(f"no run is called {' or '.join(map(repr, patterns))}", hint="eventlog ls")
    _check_elsewhere(found)
    settings = Settings(view=view, batch_rows=batch, adopt_by_name=adopt_by_name)
    targets = [_target(spec, found) for spec in specs]
    reports: list[dict[str, Any]] = []
    codes = [item.error.exit_code for item in bad]
    report_unreadable(bad)
    try:
        for item in found:
            _seal_quietly(item)
        for target in targets:
            reports += _all(found, target, state, settings, quiet=as_json)
        codes += [report["exit_code"] for report in reports]
    finally:
        for target in targets:
            target.close()
    print_reports(reports, as_json=as_json)
    return exit_code(codes)


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


def _seal_quietly(item: Found) -> None:
    try:
        seal(item.folder)
    except (OSError, EventlogError) as error:
        output.say(output.safe(f"{item.label}: not sealed ({error})"))


def _all(
    found: list[Found], target: Target, state: str | None, settings: Settings, *, quiet: bool
) -> list[dict[str, Any]]:
    """Bring every run into one target, unless it refuses us or cannot be reached for any."""
    reports: list[dict[str, Any]] = []
    down = 0
    for i, item in enumerate(found):
        # Of a target that is down, one run finds out with patience; the next ones only look.
        patience = dataclasses.replace(settings, tries=1) if down else settings
        report, error = _one(item, target, state, patience, quiet=quiet)
        reports.append(report)
        if isinstance(error, Down):
            down += 1
        elif report.get("contacted"):
            down = 0
        # The next run would be refused as well.
        refused = isinstance(error, AuthenticationError)
        left = found[i + 1 :]
        if left and (refused or down >= LOOKS):
            why = "refused our credentials" if refused else "cannot be reached"
            text = f"not tried: {label_of(target)} {why}"
            output.say(output.safe(f"{len(left)} more runs {text}"))
            code = report["exit_code"]
            reports += [
                {**report_of(rest, target), "exit_code": code, "error": text} for rest in left
            ]
            break
    return reports


def _one(
    item: Found, target: Target, state: str | None, settings: Settings, *, quiet: bool
) -> tuple[dict[str, Any], Exception | None]:
    label = label_of(target)
    report = report_of(item, target)
    failed: Exception | None = None
    begun = time.monotonic()
    try:
        with output.progress(f"{item.label} -> {target.kind}", quiet=quiet) as bar:
            outcome = replay(
                item, target, state_folder(item.journal, state), settings=settings, progress=bar
            )
    except EventlogError as error:
        output.say(output.safe(f"{item.label} -> {label}: {error}"))
        report.update(exit_code=error.exit_code, error=str(error))
        failed = error
    except OSError as error:
        # A write that fails names no file, and what is written is the state.
        text = f"{error.strerror or error}: {error.filename or state_folder(item.journal, state)}"
        output.say(output.safe(f"{item.label} -> {label}: {text}"))
        code = TemporaryError.exit_code if error.errno in FULL else 1
        report.update(exit_code=code, error=text)
    except Exception as error:
        if os.environ.get("EVENTLOG_DEBUG"):
            raise
        text = f"this is a bug in the replayer: {type(error).__name__}: {error}"
        output.say(output.safe(f"{item.label} -> {label}: {text}"))
        report.update(exit_code=1, error=text)
    else:
        add_outcome(report, outcome, item, label)
    report["seconds"] = round(time.monotonic() - begun, 3)
    return report, failed
