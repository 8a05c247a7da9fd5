"""`eventlog doctor`: what is seen from here, and whether logging will work. Changes nothing."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata

import click

import eventlog
from eventlog import identity
from eventlog.cli import output
from eventlog.cli.doctor_verl import look_at_verl
from eventlog.cli.findings import BAD, INFO, OK, WARN, Finding
from eventlog.errors import EventlogError
from eventlog.files import LOCAL, NETWORK_FILE_SYSTEMS
from eventlog.layout import default_journal

#: Less free space than this, in bytes, is worth a word.
LITTLE = 2**30
_BACKENDS = {"mlflow": "mlflow", "trackio": "trackio", "wandb": "wandb", "query": "duckdb"}
_SUBJECTS = ("verl",)


@click.command()
@click.argument("subject", required=False, type=click.Choice(_SUBJECTS), metavar="[verl]")
@click.option("--journal", metavar="PATH", help="The journal to look at.")
@click.option(
    "--timeout",
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long verl may take to import.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(subject: str | None, journal: str | None, timeout: float, as_json: bool) -> int:
    """Say what is seen from here: versions, the journal's disk, the launcher, backends.

    With `verl`, whether verl sees the logger. Exit 1 if something will not work.
    """
    if subject == "verl":
        found = look_at_verl(timeout)
    else:
        found = [*_versions(), *_journal(journal or default_journal()), *_launch(), *_others()]
    if as_json:
        output.print_json([dataclasses.asdict(finding) for finding in found])
    else:
        output.print_table(["STATE", "WHAT", "FINDING"], [[f.state, f.what, f.text] for f in found])
    bad = sum(finding.state == BAD for finding in found)
    if bad:
        output.say(f"{bad} of {len(found)} things will not work")
    return int(bool(bad))


def _versions() -> list[Finding]:
    place = os.path.dirname(os.path.abspath(eventlog.__file__))
    found = [
        Finding(OK, "eventlog", f"{eventlog.__version__} in {place}"),
        Finding(OK, "python", f"{platform.python_version()} in {sys.prefix}"),
    ]
    for name in ("pyarrow", "numpy"):
        try:
            version = importlib.import_module(name).__version__
        except Exception as error:
            found.append(Finding(BAD, name, f"cannot be imported: {error}"))
        else:
            found.append(Finding(OK, name, version))
    return found


def _journal(path: str) -> list[Finding]:
    path = os.path.abspath(path)
    found = []
    there = path
    while not os.path.exists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    made = "" if there == path else ", not made yet"
    if not os.path.isdir(there):
        return [Finding(BAD, "journal", f"{path}: {there} is no folder")]
    try:
        begun = time.monotonic()
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        took = time.monotonic() - begun
    except OSError as error:
        found.append(Finding(BAD, "journal", f"{path} cannot be written ({error.strerror})"))
    else:
        found.append(Finding(OK, "journal", f"{path}{made}; a sync takes {took * 1e3:.1f} ms"))
    try:
        kind, free = LOCAL.kind_of(there), shutil.disk_usage(there).free
    except OSError as error:
        return [*found, Finding(WARN, "disk", f"{there} cannot be looked at ({error.strerror})")]
    away = kind in NETWORK_FILE_SYSTEMS
    text = f"{kind or 'unknown file system'}, {free / 2**30:.1f} GiB free"
    if away:
        text += "; a server that is away can block training: log to a local disk and copy"
    return [*found, Finding(WARN if away or free < LITTLE else OK, "disk", text)]


def _launch() -> list[Finding]:
    launch = identity.launch()
    text = launch.id or "no launcher seen: each start makes a run of its own unless it is named"
    if any(launch.restart):
        text += f", started again {'.'.join(map(str, launch.restart))} times"
    if launch.world > 1:
        text += f", rank {launch.rank} of {launch.world}"
    named = [n for n in os.environ if n.startswith("EVENTLOG_") or n in identity.ELSEWHERE]
    return [
        Finding(INFO, "launch", text),
        Finding(INFO, "owner", identity.owner()),
        *(Finding(INFO, name, os.environ[name]) for name in sorted(named)),
    ]


def _others() -> list[Finding]:
    found = []
    for extra, package in _BACKENDS.items():
        version = version_of(package)
        text = version or f"not installed: pip install eventlog-journal[{extra}]"
        found.append(Finding(OK if version else INFO, package, text))
    for point in metadata.entry_points(group="eventlog.commands"):
        try:
            point.load()
        except Exception as error:
            text = str(error) if isinstance(error, EventlogError) else repr(error)
            found.append(Finding(BAD, f"eventlog {point.name}", f"{point.value}: {text}"))
    if version_of("verl"):
        found.append(Finding(INFO, "verl", f"{version_of('verl')}: see eventlog doctor verl"))
    return found


def version_of(package: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
