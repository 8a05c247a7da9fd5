"""Commands that need a journal and nothing else: ls, show, seal, verify."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from eventlog import audit
from eventlog.attempts import attempts
from eventlog.catalog import Found, resolve
from eventlog.cli import output
from eventlog.cli.selecting import report_unreadable, selecting
from eventlog.columns import is_word, numbers
from eventlog.delivery import deliveries_of, state_folder
from eventlog.errors import EventlogError, IntegrityError, worst
from eventlog.event import CONFIG, DEFINITION, METRIC, NOTE, SUMMARY, TAG, Event, Row
from eventlog.frame import to_events
from eventlog.glance import Glance, glance
from eventlog.reader import WriterReader, headers
from eventlog.restored import contradictions
from eventlog.seal import seal as seal_run
from eventlog.selection import Selection, find_selected
from eventlog.value import Stored
from eventlog.views import NAMES, Effective, open_view

if TYPE_CHECKING:
    import pyarrow as pa

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
paths_argument = click.argument("paths", nargs=-1, metavar="[PATH]...")


@click.command()
@paths_argument
@selecting
@json_option
def ls(paths: tuple[str, ...], chosen: Selection, as_json: bool) -> int:
    """List the runs of journals (by default ./eventlog-data or EVENTLOG_DIR)."""
    found, bad = find_selected(paths, chosen)
    seen, failed = look_at(found)
    if as_json:
        output.print_json([_summary(item, look) for item, look in seen])
    else:
        rows = [
            [
                item.run.id[:16],
                item.run.project,
                item.run.name,
                look.status,
                len(look.attempts),
                "-" if look.last_step is None else look.last_step,
                look.events,
                look.points,
                output.when(look.start),
                output.when(look.last),
            ]
            for item, look in seen
        ]
        names = ["ID", "PROJECT", "NAME", "STATE", "ATTEMPTS", "STEP", "EVENTS", "POINTS"]
        output.print_table([*names, "STARTED (UTC)", "LAST EVENT"], rows)
    for item, look in seen:
        _say_unreadable(item, look)
    damaged = [IntegrityError.exit_code for _item, look in seen if look.unreadable]
    return worst([report_unreadable(bad), *failed, *damaged])


def look_at(found: list[Found]) -> tuple[list[tuple[Found, Glance]], list[int]]:
    """Return every run that can be read, with a glance at it; say why others cannot, and return
    the exit codes of that.
    """
    seen: list[tuple[Found, Glance]] = []
    failed: list[int] = []
    for item in found:
        try:
            seen.append((item, glance(item.folder, run=item.run)))
        except (OSError, EventlogError) as error:
            output.say(output.safe(f"{item.label}: {error}"))
            failed.append(error.exit_code if isinstance(error, EventlogError) else 1)
    return seen, failed


def _say_unreadable(item: Found, look: Glance) -> None:
    for reason in look.unreadable.values():
        output.say(output.safe(f"{item.label}: {reason}"))


def _summary(item: Found, look: Glance) -> dict[str, Any]:
    fields = dataclasses.asdict(look)
    return {**dataclasses.asdict(item.run), "folder": item.folder, **fields}


@click.command()
@click.argument("run")
@click.option("--journal", metavar="PATH", help="Where to look for RUN.")
@click.option("--view", type=click.Choice(NAMES), default="effective", show_default=True)
@click.option("--last", default=10, show_default=True, help="How many of the last events to show.")
@click.option("--key", "keys", multiple=True, help="Only metrics of this name.")
@json_option
def show(
    run: str, journal: str | None, view: str, last: int, keys: tuple[str, ...], as_json: bool
) -> int:
    """Show one run: how it stands, its attempts, config, summary and last events.

    RUN is a path, the start of an id, a name, or project/name.
    """
    item = resolve(run, journal)
    look = glance(item.folder, run=item.run)
    _say_unreadable(item, look)
    chosen = open_view(item.folder, view)
    told = _tell(item, chosen, last, keys)
    recorded = _recorded(item)
    if as_json:
        summary = {**_summary(item, look), "view": view, "recorded": recorded}
        output.print_json(output.plain({**summary, **told}))
        return 0
    head = [
        ("run", f"{item.label}  ({item.run.id})"),
        ("folder", item.folder),
        ("state", look.status + ("" if look.exit_code is None else f" (exit {look.exit_code})")),
        ("owner", look.owner),
        ("started", output.when(look.start)),
        ("last event", output.when(look.last)),
        ("events", f"{look.events} by {output.many(len(look.writers), 'writer')}"),
        ("points", f"{look.points} in all, {told['points']} in view {view}"),
        ("tags", ", ".join(told["tags"])),
    ]
    for name, text in head:
        if text:
            output.print_text(f"{name:<12}{output.safe(text)}")
    _print_attempts(look, chosen)
    for target, restarts in recorded.items():
        for ordinal, (step, how) in restarts.items():
            text = f"with attempt {ordinal} starting again at step {step} ({how})"
            output.print_text(f"{'delivered':<12}{output.safe(target)}: {text}")
    for kind in (CONFIG, SUMMARY):
        for key, value in told[kind].items():
            output.print_text(f"{kind:<12}{output.safe(key)} = {output.short(value)}")
    if told["last"]:
        output.print_text()
        rows = [
            [
                e["writer"],
                e["seq"],
                "-" if e["step"] is None else e["step"],
                output.when(e["time"]),
                output.short(", ".join(f"{k}={_shown(v)}" for k, v in e["metrics"].items()), 90),
            ]
            for e in told["last"]
        ]
        output.print_table(["WRITER", "SEQ", "STEP", "TIME (UTC)", "METRICS"], rows)
    return 0


def _shown(value: Any) -> str:
    reference = isinstance(value, dict) and value.keys() >= {"columns", "rows", "sha256"}
    if reference and isinstance(value["columns"], list):
        return f"table({output.short(value['rows'], 12)} x {len(value['columns'])})"
    return output.short(value, 24)


def _recorded(item: Found) -> dict[str, dict[str, tuple[int, str]]]:
    """Return, by target and attempt, at which step what was delivered took it to start again."""
    ordinals = {a.key: str(a.ordinal) for a in attempts(headers(item.folder))}
    found = {}
    for cursor in deliveries_of(state_folder(item.journal), item.run.project, item.run.id):
        told = {ordinals.get(key, key): place for key, place in cursor.restarts.items()}
        if told:
            found[f"{cursor.kind}:{cursor.address}"] = told
    return found


def _print_attempts(look: Glance, view: object) -> None:
    for attempt in look.attempts:
        text = f"{attempt.ordinal}: started {output.when(attempt.start)}, {attempt.evidence}"
        events = sum(look.writers.get(w, 0) for w in attempt.writers)
        text += f", {events} events"
        if isinstance(view, Effective):
            restart = view.restarts.get(attempt.key)
            if restart is not None and restart.how == "fresh":
                text += ", a fresh start: it supersedes only the points that it logged again"
            elif restart is not None and restart.step is not None:
                text += f", starts again at step {restart.step} ({restart.how})"
            side = [a.ordinal for a, b in view.parallel if b.key == attempt.key]
            if side:
                text += f", beside attempt {', '.join(map(str, side))}: supersedes nothing of it"
        output.print_text(f"{'attempt':<12}{text}")


def _tell(item: Found, view: Any, last: int, keys: tuple[str, ...]) -> dict[str, Any]:
    told: dict[str, Any] = {CONFIG: {}, SUMMARY: {}, DEFINITION: {}, NOTE: {}, "points": 0}
    tags: dict[str, bool] = {}
    tail: deque[tuple[str, Event]] = deque(maxlen=max(last, 0))
    for attempt in attempts(headers(item.folder)):
        for writer in attempt.writers:
            for table in WriterReader(item.folder, writer, skip_missing=True).tables():
                metrics, others = _split(view.rows(writer, table))
                told["points"] += metrics.num_rows
                for event in to_events(others):
                    for row in event.rows:
                        if row.kind == TAG:
                            tags[row.key] = bool(_value(row))
                        elif row.kind in told:
                            told[row.kind][row.key] = _value(row)
                tail.extend((writer, event) for event in _last(metrics, last, keys))
    told["tags"] = sorted(tag for tag, there in tags.items() if there)
    told["last"] = [
        {
            "writer": writer,
            "seq": event.seq,
            "step": event.step,
            "time": event.time,
            "metrics": {row.key: _value(row) for row in event.rows},
        }
        for writer, event in tail
    ]
    return told


def _split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the metrics among rows, and the others."""
    import pyarrow.compute as pc

    metric = is_word(table.column("kind"), METRIC)
    return table.filter(metric), table.filter(pc.invert(metric))


def _last(metrics: pa.Table, count: int, keys: tuple[str, ...]) -> list[Event]:
    """Return the last events of some metrics, of all if no key is given."""
    import numpy as np

    if keys:
        metrics = metrics.filter(is_word(metrics.column("key"), *keys))
    if count <= 0 or not metrics.num_rows:
        return []
    seqs = numbers(metrics.column("seq"))
    at = int(np.searchsorted(seqs, np.unique(seqs)[-count:][0]))
    return to_events(metrics.slice(at))


def _value(row: Row) -> Any:
    """Return a row's value, or what is stored if no value is stored like that."""
    try:
        return row.value
    except ValueError:
        return Stored(row.type, row.num, row.data)


@click.command()
@paths_argument
@selecting
@click.option(
    "--abandoned",
    is_flag=True,
    help="Also seal what no process writes to any more, on any machine: you know, we cannot see it.",
)
@json_option
def seal(paths: tuple[str, ...], chosen: Selection, abandoned: bool, as_json: bool) -> int:
    """Turn closed segments into Parquet: the same rows, a tenth of the size."""
    found, bad = find_selected(paths, chosen)
    out = []
    failed: list[int] = []
    with output.progress("sealing", quiet=as_json) as bar:
        for i, item in enumerate(found):
            bar(i, len(found))
            try:
                done = seal_run(item.folder, abandoned=abandoned)
            except (OSError, EventlogError) as error:
                output.say(output.safe(f"{item.label}: {error}"))
                failed.append(error.exit_code if isinstance(error, EventlogError) else 1)
                continue
            out.append({**dataclasses.asdict(item.run), **dataclasses.asdict(done)})
    if as_json:
        output.print_json(out)
    else:
        rows = [
            [r["id"][:16], r["name"], len(r["files"]), r["events"], r["removed"], len(r["kept"])]
            for r in out
        ]
        output.print_table(["ID", "NAME", "SEALED", "EVENTS", "REMOVED", "KEPT"], rows)
    return codes([*failed, report_unreadable(bad)], some=bool(out))


@click.command()
@paths_argument
@selecting
@click.option(
    "--require",
    type=click.Choice(["complete"]),
    help="Fail unless every writer declared how many events it has, and has them.",
)
@click.option("--state", metavar="PATH", help="Where cursors are (EVENTLOG_STATE).")
@json_option
def verify(
    paths: tuple[str, ...],
    chosen: Selection,
    require: str | None,
    state: str | None,
    as_json: bool,
) -> int:
    """Read every byte of runs: checksums, gaps, forks, blobs; hold them against the cursors.

    Exit 4 for the verdicts corrupt, missing, fork (one position, two contents) and restored (an
    older journal than was delivered, or a changed one). No failures: ok, torn (the end of it was
    never acknowledged), salvaged (what is missing is recorded as lost), a run that has not ended.
    """
    found, bad = find_selected(paths, chosen)
    reports = []
    failed: list[int] = []
    with output.progress("verifying", quiet=as_json) as bar:
        for i, item in enumerate(found):
            bar(i, len(found))
            try:
                report = audit.verify(item.folder, run=item.run)
                where = state_folder(item.journal, state)
                cursors = deliveries_of(where, item.run.project, item.run.id)
                found_out = contradictions(item.folder, item.run.id, item.run.project, cursors)
                reports.append((item, audit.held_against(report, found_out)))
            except (OSError, EventlogError) as error:
                output.say(output.safe(f"{item.label}: {error}"))
                failed.append(error.exit_code if isinstance(error, EventlogError) else 1)
    code = 0
    for _item, report in reports:
        if report.failed or (require and report.complete != "complete"):
            code = 4
    if as_json:
        output.print_json(
            [{**dataclasses.asdict(i.run), **dataclasses.asdict(r)} for i, r in reports]
        )
    else:
        rows = [
            [
                i.run.id[:16],
                i.label,
                r.verdict,
                r.complete,
                len(r.writers),
                sum(w.events for w in r.writers),
                sum(len(w.files) for w in r.writers),
            ]
            for i, r in reports
        ]
        output.print_table(["ID", "RUN", "VERDICT", "COMPLETE", "WRITERS", "EVENTS", "FILES"], rows)
    for item, report in reports:
        for problem in [*report.problems, *(p for w in report.writers for p in w.problems)]:
            output.say(output.safe(f"{item.label}: {problem}"))
    return worst([code, report_unreadable(bad), *failed])


def codes(codes: list[int], *, some: bool) -> int:
    """Return the exit code of several runs: partial if some did well and others did not."""
    bad = [code for code in codes if code]
    if bad and some and worst(bad) not in (4, 5):
        return 3
    return worst(bad)
