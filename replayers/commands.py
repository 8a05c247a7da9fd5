"""Commands of the replay side: sync and status."""

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
from eventlog.cli.commands import look_at, report_unreadable
from eventlog.delivery import deliveries, state_folder
from eventlog.errors import (
    AuthenticationError,
    EventlogError,
    TemporaryError,
    UsageError,
    worst,
)
from eventlog.layout import run_folder
from eventlog.seal import seal
from replayers.registry import make_target
from replayers.replay import BATCH_ROWS, Outcome, Settings, replay
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
    _print(reports, as_json=as_json)
    return _exit_code(codes)


def _exit_code(codes: list[int]) -> int:
    failed = [code for code in codes if code]
    if failed and len(failed) < len(codes) and worst(failed) not in (4, 5):
        return 3
    return worst(failed)


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
            text = f"not tried: {_label(target)} {why}"
            output.say(output.safe(f"{len(left)} more runs {text}"))
            code = report["exit_code"]
            reports += [
                {**_report(rest, target), "exit_code": code, "error": text} for rest in left
            ]
            break
    return reports


def _label(target: Target) -> str:
    return f"{target.kind}:{target.address}"


def _report(item: Found, target: Target) -> dict[str, Any]:
    about = {"target": _label(target), "exit_code": 0, "error": None, "seconds": 0.0}
    return {**dataclasses.asdict(item.run), **about}


def _one(
    item: Found, target: Target, state: str | None, settings: Settings, *, quiet: bool
) -> tuple[dict[str, Any], Exception | None]:
    label = _label(target)
    report = _report(item, target)
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
        _add_outcome(report, outcome, item, label)
    report["seconds"] = round(time.monotonic() - begun, 3)
    return report, failed


def _add_outcome(report: dict[str, Any], outcome: Outcome, item: Found, label: str) -> None:
    fields = dataclasses.asdict(outcome)
    for name in ("run", "target"):
        fields.pop(name)
    report.update(fields)
    for note in outcome.notes:
        output.say(output.safe(f"{item.label} -> {label}: {note}"))
    for writer, gaps in outcome.missing.items():
        for gap in gaps:
            if gap.last < gap.first:
                output.say(output.safe(f"{item.label} -> {label}: not sent: {gap.reason}"))
                continue
            output.say(
                output.safe(
                    f"{item.label} -> {label}: events {gap.first} to {gap.last} of writer {writer} "
                    f"are missing ({gap.reason}); what lies behind them was not sent"
                )
            )
        report["exit_code"] = 4
    if outcome.quarantined and not report["exit_code"]:
        output.say(f"{item.label} -> {label}: {outcome.quarantined} events in quarantine")
        report["exit_code"] = 3


def _print(reports: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        output.print_json(reports)
        return
    rows = [
        [
            report["id"][:16],
            f"{report['project']}/{report['name']}",
            report["target"],
            report.get("sent", 0),
            report.get("points", 0),
            f"{report.get('settled', '?')}/{report.get('events', '?')}",
            report["seconds"],
            (report["error"] and "failed") or ("ok" if not report["exit_code"] else "partial"),
        ]
        for report in reports
    ]
    names = ["ID", "RUN", "TARGET", "SENT", "POINTS", "SETTLED", "SECONDS", "RESULT"]
    output.print_table(names, rows)


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
