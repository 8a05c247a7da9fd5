"""What a sync reports: a line of a table, or an object of JSON, for each run and target."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from typing import Any

from eventlog.catalog import Found
from eventlog.cli import output
from eventlog.errors import worst
from replayers.lane import Lane
from replayers.pace import Stopped
from replayers.replay import Outcome
from replayers.stream import Stream

#: The exit code of what an interrupt left undone.
INTERRUPTED = 130


def exit_code(codes: list[int]) -> int:
    """Return the exit code of several runs and targets: partial if some did well."""
    failed = [code for code in codes if code]
    if failed and len(failed) < len(codes) and worst(failed) not in (4, 5):
        return 3
    return worst(failed)


def report_of(lane: Lane, stream: Stream, *, interrupted: bool = False) -> dict[str, Any]:
    """Return the report of one run and target, and say what people should know. Of a sync that was
    `interrupted`, a run that is not wholly there, and did not fail by itself, is so too.
    """
    item, label = stream.found, lane.label
    code, error = stream.exit_code, stream.reason
    stands = error is not None and not isinstance(stream.error, Stopped)
    if interrupted and not stands and stream.behind_since is not None:
        code, error = INTERRUPTED, "interrupted; the next sync goes on"
    report: dict[str, Any] = {
        **dataclasses.asdict(item.run),
        "target": label,
        "exit_code": code,
        "error": error,
        "seconds": round(stream.seconds, 3),
    }
    if stream.outcome is not None:
        _add_outcome(report, stream.outcome, item, label)
    return report


def _add_outcome(report: dict[str, Any], outcome: Outcome, item: Found, label: str) -> None:
    fields = dataclasses.asdict(outcome)
    for name in ("run", "target", "more"):
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
        report["exit_code"] = report["exit_code"] or 4
    if outcome.unexplained:
        report["exit_code"] = report["exit_code"] or 4
    if outcome.quarantined and not report["exit_code"]:
        many = output.many(outcome.quarantined, "event")
        output.say(output.safe(f"{item.label} -> {label}: {many} in quarantine"))
        report["exit_code"] = 3


def print_reports(reports: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print a table, or JSON."""
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
            _result(report),
        ]
        for report in reports
    ]
    names = ["ID", "RUN", "TARGET", "SENT", "POINTS", "SETTLED", "SECONDS", "RESULT"]
    output.print_table(names, rows)


def _result(report: dict[str, Any]) -> str:
    if report["exit_code"] == INTERRUPTED:
        return "interrupted"
    if report["error"]:
        return "failed"
    return "partial" if report["exit_code"] else "ok"


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Have an interrupt wait for the end of the block: half a report is none. A second one, where
    nobody reads what is printed, does not wait.
    """
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if ours else ()
    before = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt
