"""Commands that change how a journal is kept, and never what it says: compact, salvage."""

from __future__ import annotations

import dataclasses

import click

from eventlog.catalog import find_all
from eventlog.cli import output
from eventlog.cli.commands import codes, json_option, paths_argument, report_unreadable, run_option
from eventlog.compact import compact as compact_run
from eventlog.errors import EventlogError


@click.command()
@paths_argument
@run_option
@json_option
def compact(paths: tuple[str, ...], patterns: tuple[str, ...], as_json: bool) -> int:
    """Put many sealed files of a run together into few: the same rows, found faster.

    Exit 4 if a file was left alone because something is wrong with it: see `eventlog verify`.
    """
    found, bad = find_all(paths, patterns)
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


ALL = (compact,)
