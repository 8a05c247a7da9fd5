"""What a sync reports: a line of a table, or an object of JSON, for each run and target."""

from __future__ import annotations

import dataclasses
from typing import Any

from eventlog.catalog import Found
from eventlog.cli import output
from eventlog.errors import worst
from replayers.lane import Lane
from replayers.replay import Outcome
from replayers.stream import Stream


def exit_code(codes: list[int]) -> int:
    """Return the exit code of several runs and targets: partial if some did well."""
    failed = [code for code in codes if code]
    if failed and len(failed) < len(codes) and worst(failed) not in (4, 5):
        return 3
    return worst(failed)


def report_of(lane: Lane, stream: Stream) -> dict[str, Any]:
    """Return the report of one run and target, and say what people should know."""
    item, label = stream.found, lane.label
    report: dict[str, Any] = {
        **dataclasses.asdict(item.run),
        "target": label,
        "exit_code": stream.exit_code,
        "error": stream.reason,
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
            (report["error"] and "failed") or ("ok" if not report["exit_code"] else "partial"),
        ]
        for report in reports
    ]
    names = ["ID", "RUN", "TARGET", "SENT", "POINTS", "SETTLED", "SECONDS", "RESULT"]
    output.print_table(names, rows)
