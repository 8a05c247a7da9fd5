"""``eventlog diff``: every point of a run against what a target reads back."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from time import time_ns as now_ns
from typing import TYPE_CHECKING, Any

import click

from eventlog.catalog import Found, resolve
from eventlog.cli import output
from eventlog.delivery import Cursor, Delivery, state_folder
from eventlog.errors import IntegrityError, UsageError
from eventlog.selection import parse_time
from eventlog.views import AsOf, View, effective, open_view
from replayers.awaited import LOST, NEVER
from replayers.compare import Comparer, Difference
from replayers.keys import only, shown
from replayers.outcome import DEFAULT_VIEW
from replayers.positions import Positions
from replayers.registry import target_of
from replayers.replay import delivery_of, run_info
from replayers.sent_view import recorded_restarts
from replayers.superseding import APPEND
from replayers.target import Absent, Change, RunState, Session, Target, image_schema

if TYPE_CHECKING:
    import pyarrow as pa


@click.command()
@click.argument("run")
@click.option("--to", "spec", required=True, metavar="TARGET", help="The target to compare with.")
@click.option(
    "--view",
    default="effective",
    show_default=True,
    metavar="VIEW",
    help="effective, all, or as-of:TIME (ISO 8601, or nanoseconds since 1970).",
)
@click.option("--journal", metavar="PATH", help="Where to look for RUN.")
@click.option("--state", metavar="FOLDER", help="Where cursors and ledgers are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def diff(
    run: str, spec: str, view: str, journal: str | None, state: str | None, as_json: bool
) -> int:
    """Compare every point of RUN with what a target reads back; nothing is written.

    Exit 0 if the target holds the view, or a rule of its mapping explains each difference; 4
    otherwise. `eventlog sync --repair` sends what is missing.
    """
    item = resolve(run, journal)
    opened, sent = parse_view(view, item.folder), None
    target = target_of(spec, lambda: [item], [item.journal])
    try:
        delivery = delivery_of(item, target, state_folder(item.journal, state))
        cursor, _known = delivery.load()
        if view == DEFAULT_VIEW or (cursor.view or DEFAULT_VIEW) == DEFAULT_VIEW:
            # As the syncs that delivered it took it.
            sent = effective(item.folder, recorded=recorded_restarts(cursor), ripe=True)
            opened = sent if view == DEFAULT_VIEW else opened
        keys = tuple(cursor.keys)
        opened = only(opened, keys)
        found, known_as = _compare(item, target, opened, sent and only(sent, keys), delivery)
    finally:
        target.close()
    label = f"{target.kind}:{target.address}"
    if cursor.replaced and not as_json:
        former = ", ".join(id for id, _generation in cursor.replaced)
        output.say(output.safe(f"{known_as} replaced {former} ({cursor.superseded})"))
    if keys and not as_json:
        output.say(output.safe(f"compared: metrics of {shown(keys)}, as they were sent"))
    if as_json:
        output.print_json({**report(item, label, known_as, view, found), **chosen(cursor)})
    else:
        _print(found)
        verdict = "the same" if found.explained else "different"
        lost = any(cause.cause in (LOST, NEVER) for cause in found.causes)
        if found.explained and (found.missing or found.superseded or found.extra or lost):
            verdict += ", but for what is explained above"
        output.say(output.safe(f"{item.label} and {label} ({known_as or 'no run'}): {verdict}"))
    return 0 if found.explained else IntegrityError.exit_code


def parse_view(text: str, folder: str) -> View:
    """Return the view that a user names: ``effective``, ``all``, ``as-of:TIME``.

    Raises
    ------
    UsageError
        If there is none of that name, or the time is none.
    """
    name, colon, time = text.partition(":")
    if name != "as-of" or not colon:
        return open_view(folder, text)
    try:
        if time.isdecimal():
            return AsOf(_held(int(time)))
        return AsOf(_held(parse_time(time, now_ns(), "as-of")))
    except ValueError:
        raise UsageError(
            f"{time!r} is no time",
            hint="as-of:2026-01-31T12:00:00 (UTC), or nanoseconds since 1970",
        ) from None


def _held(time: int) -> int:
    """Return a time that 64 bits hold. Raises `ValueError` for another one."""
    if not -(2**63) <= time < 2**63:
        raise ValueError("beyond 64 bits")
    return time


def _compare(
    item: Found, target: Target, view: View, sent: View | None, delivery: Delivery
) -> tuple[Difference, str | None]:
    cursor, known = delivery.load()
    try:
        info = run_info(item, cursor.known_as, create=False, generation=cursor.generation)
        session: Session = target.open(info)
        known_as: str | None = session.known_as
    except Absent:
        session, known_as = _Nothing(), None
    comparer = Comparer(
        item.folder, target, session, view, cursor=cursor if known else None, sent=sent
    )
    return comparer.run(), known_as


class _Nothing:
    """The session of a run that a target does not have."""

    known_as = ""

    def held(self) -> Positions:
        return Positions()

    def send(self, batch: pa.Table) -> list[Change]:  # noqa: ARG002 - the protocol's
        raise AssertionError("nothing is sent to compare")

    def confirm(self, batch: pa.Table) -> bool:  # noqa: ARG002 - the protocol's
        return False

    def read_back(self) -> Iterator[pa.Table]:
        with contextlib.suppress(StopIteration):
            yield image_schema().empty_table()

    def close(self, state: RunState) -> None:
        """Nothing to let go of."""


def value_of(row: dict[str, Any]) -> str | None:
    """Return the number that a row of an image has, as text; None if it has none."""
    bits = row.get("bits")
    return None if bits is None else repr(struct.unpack("<d", struct.pack("<q", bits))[0])


def report(
    item: Found, label: str, known_as: str | None, view: str, found: Difference
) -> dict[str, Any]:
    """Return what is found as an object of JSON; values are exact, as they are compared."""
    fields = dataclasses.asdict(found)
    del fields["positions"]
    for row in (row for examples in fields["examples"].values() for row in examples):
        row["value"] = value_of(row)
    about = {"target": label, "known_as": known_as, "view": view, "explained": found.explained}
    return {**dataclasses.asdict(item.run), **about, **fields}


def chosen(cursor: Cursor) -> dict[str, Any]:
    """Return which metrics are sent there (none: all), what is done with superseded points, and the
    runs that were replaced for it.
    """
    replaced = [known_as for known_as, _generation in cursor.replaced]
    choice = cursor.superseded or APPEND
    return {"keys": cursor.keys, "superseded_choice": choice, "replaced": replaced}


def _print(found: Difference) -> None:
    rows: list[list[object]] = [["equal", "", found.equal, ""]]
    changed = [c for c in found.causes if c.kind == "equal"]
    rows += [["equal", f"changed by {c.cause}", c.count, "explained"] for c in changed]
    rows += [
        [c.kind, c.cause or "-", c.count, "explained" if c.explained else "NOT EXPLAINED"]
        for c in found.causes
        if c.kind != "equal"
    ]
    output.print_table(["POINTS", "CAUSE", "COUNT", ""], rows)
    for kind, examples in found.examples.items():
        for row in examples:
            shown = {**row, "bits": None, "value": value_of(row)}
            text = ", ".join(
                f"{k}={output.short(v, 40)}" for k, v in shown.items() if v is not None
            )
            output.print_text(output.safe(f"{kind}: {text}"))
