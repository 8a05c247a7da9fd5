"""Commands that change how a journal is kept, and never what it says: compact, salvage."""

from __future__ import annotations

import collections
import dataclasses
import os

import click

from eventlog.archiving import UNCHANGED_SECONDS, archive
from eventlog.catalog import Found, find, resolve
from eventlog.cli import output
from eventlog.cli.commands import codes, json_option, paths_argument
from eventlog.cli.selecting import report_unreadable, selecting
from eventlog.compact import compact as compact_run
from eventlog.errors import EventlogError, UsageError, worst
from eventlog.files import LOCAL
from eventlog.home import prepare
from eventlog.layout import run_folder
from eventlog.salvage import Salvaged, identify
from eventlog.salvage import salvage as salvage_run
from eventlog.selection import Selection, find_selected

#: Marks a journal that salvages may write to.
SALVAGE_FILE = "salvage.json"


@click.command()
@paths_argument
@selecting
@click.option(
    "--runs",
    is_flag=True,
    help="Put small runs of a project together into archives: thousands of files become few.",
)
@click.option(
    "--unchanged",
    metavar="HOURS",
    type=click.FloatRange(min=0),
    help="With --runs: leave alone what changed in the last HOURS (24).",
)
@click.option("--dry-run", is_flag=True, help="With --runs: say what would be done.")
@json_option
def compact(
    paths: tuple[str, ...],
    chosen: Selection,
    runs: bool,
    unchanged: float | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Put many sealed files of a run together into few: the same rows, found faster.

    With --runs, those of many runs: of runs that are sealed and that nothing was written to for a
    time. Every command shows them as before; a run that goes on writes to its own folder.

    Exit 4 if a file was left alone because something is wrong with it: see `eventlog verify`.
    """
    if runs:
        return _archive(paths, chosen, unchanged, dry_run=dry_run, as_json=as_json)
    if dry_run or unchanged is not None:
        raise UsageError("--unchanged and --dry-run are for --runs")
    found, bad = find_selected(paths, chosen)
    out = []
    failed: list[int] = []
    with output.progress("compacting", quiet=as_json) as bar:
        for i, item in enumerate(found):
            bar(i, len(found))
            try:
                done = compact_run(item.folder)
            except (OSError, EventlogError) as error:
                output.say(output.safe(f"{item.label}: {error}"))
                failed.append(error.exit_code if isinstance(error, EventlogError) else 1)
                continue
            for text in done.kept:
                output.say(output.safe(f"{item.label}: left alone: {text}"))
            failed += [4] if done.kept else []
            out.append({**dataclasses.asdict(item.run), **dataclasses.asdict(done)})
    if as_json:
        output.print_json(out)
    else:
        rows = [
            [r["id"][:16], r["name"], len(r["files"]), r["rows"], r["removed"], len(r["kept"])]
            for r in out
        ]
        output.print_table(["ID", "NAME", "MADE", "ROWS", "REMOVED", "KEPT"], rows)
    return codes([*failed, report_unreadable(bad)], some=bool(out))


def _archive(
    paths: tuple[str, ...],
    chosen: Selection,
    unchanged: float | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    found, bad = find_selected(paths, chosen)
    projects: dict[str, list[Found]] = {}
    for item in found:
        projects.setdefault(os.path.dirname(item.folder), []).append(item)
    seconds = UNCHANGED_SECONDS if unchanged is None else unchanged * 3600
    out, failed = [], []
    with output.progress("archiving", quiet=as_json) as bar:
        for i, (place, items) in enumerate(sorted(projects.items())):
            bar(i, len(projects))
            folders = [item.folder for item in items]
            name = items[0].run.project
            try:
                done = archive(place, folders, unchanged=seconds, dry_run=dry_run)
            except (OSError, EventlogError) as error:
                output.say(output.safe(f"{name}: {error}"))
                failed.append(error.exit_code if isinstance(error, EventlogError) else 1)
                continue
            for run in done.wrong:
                output.say(output.safe(f"{name}: {run}: left alone: {done.left[run]}"))
            reasons = collections.Counter(w for r, w in done.left.items() if r not in done.wrong)
            for why, count in reasons.items():
                output.say(output.safe(f"{name}: {count} runs left alone: {why}"))
            failed += [4] if done.wrong else []
            out.append({"project": name, "dry_run": dry_run, **dataclasses.asdict(done)})
    if as_json:
        output.print_json(out)
    else:
        rows = [
            [r["project"], len(r["runs"]), len(r["archives"]), r["removed"], r["rows"], r["bytes"]]
            for r in out
        ]
        output.print_table(["PROJECT", "RUNS", "ARCHIVES", "REMOVED", "ROWS", "BYTES"], rows)
    return codes([*failed, report_unreadable(bad)], some=bool(out))


@click.command()
@click.argument("source", metavar="RUN|JOURNAL")
@click.option("--to", "target", required=True, metavar="PATH", help="The new journal.")
@click.option("--journal", metavar="PATH", help="Where to look for RUN.")
@json_option
def salvage(source: str, target: str, journal: str | None, as_json: bool) -> int:
    """Copy what is provably good of damaged runs into a new journal; the old one is only read.

    Events keep their positions. What could not be brought back is recorded in the new journal, and
    named here with file and offset. Exit 0 if nothing is lost, 3 if something is, 4 if nothing of a
    run could be read.
    """
    runs = _runs(source, journal)
    _check_target(target, [folder for folder, _label in runs])
    out, failed = [], []
    with output.progress("salvaging", quiet=as_json) as bar:
        for i, (folder, label) in enumerate(runs):
            bar(i, len(runs))
            try:
                run = identify(folder)
                done = salvage_run(folder, run_folder(os.path.abspath(target), run.project, run.id))
            except EventlogError as error:
                output.say(output.safe(f"{label}: {error}"))
                failed.append(error.exit_code)
                continue
            _say_salvaged(label, done)
            events = sum(w.events for w in done.writers)
            failed += [] if done.whole else [3 if events else 4]
            out.append({**dataclasses.asdict(run), **dataclasses.asdict(done), "events": events})
    if as_json:
        output.print_json(out)
    else:
        rows = [
            [
                r["id"][:16],
                r["name"],
                r["events"],
                sum(gap["last"] - gap["first"] + 1 for w in r["writers"] for gap in w["lost"]),
                r["blobs"],
                "written" if r["changed"] else "already there",
            ]
            for r in out
        ]
        output.print_table(["ID", "NAME", "EVENTS", "LOST", "BLOBS", "STATE"], rows)
    return worst(failed)


def _runs(source: str, journal: str | None) -> list[tuple[str, str]]:
    """Return the folders of the runs that are meant, also of those whose ``run.json`` is bad."""
    if not os.path.isdir(source):
        item = resolve(source, journal)
        return [(item.folder, item.label)]
    found = [
        (item.folder, item.label if isinstance(item, Found) else os.path.basename(item.folder))
        for item in find(source)
    ]
    if not found:
        raise UsageError("there is no run here", on=source)
    return found


def _check_target(target: str, folders: list[str]) -> None:
    """Make the new journal, or raise `UsageError` if something else is there already."""
    there = os.path.realpath(target)
    for folder in folders:
        above = os.path.dirname(os.path.dirname(os.path.realpath(folder)))
        for old in (above, os.path.realpath(folder)):
            if os.path.commonpath([old, there]) == old or old.startswith(there + os.sep):
                raise UsageError(
                    "the new journal may not lie in the old one, nor the old one in it",
                    on=target,
                    hint="give a folder elsewhere",
                )
    marked = os.path.join(there, SALVAGE_FILE)
    if os.path.lexists(there) and not os.path.isdir(there):
        raise UsageError("this is a file", on=target, hint="give a new folder")
    if LOCAL.names(there) and not LOCAL.exists(marked):
        raise UsageError(
            "this folder holds something that no salvage put there",
            on=target,
            hint="give a new or empty folder",
        )
    LOCAL.make_folder(there)
    if not LOCAL.exists(marked):
        LOCAL.write_whole(marked, b'{"made_by": "eventlog salvage"}\n')
    prepare(there)


def _say_salvaged(label: str, done: Salvaged) -> None:
    for one in done.writers:
        for bad in one.bad:
            where = "" if bad.offset < 0 else f" at offset {bad.offset}"
            output.say(output.safe(f"{label}: {bad.name}{where}: {bad.what}"))
        for first, last in one.behind_damage:
            text = f"events {first} to {last} of {one.writer} lie behind damage and were copied"
            output.say(output.safe(f"{label}: {text}"))
        for gap in one.lost:
            text = f"events {gap.first} to {gap.last} of {one.writer} are lost: {gap.reason}"
            output.say(output.safe(f"{label}: {text}"))
    for text in done.bad_archives:
        output.say(output.safe(f"{label}: {text}"))
    for name in done.bad_blobs:
        output.say(output.safe(f"{label}: the blob {name} is not what its name says: not copied"))
