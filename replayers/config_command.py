"""``eventlog config show``: which settings hold here, and where each comes from."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from eventlog.cli import output
from eventlog.delivery import state_folder
from eventlog.layout import DEFAULT_JOURNAL
from replayers.registry import configured

#: Variables that decide what the commands do; those of secrets are shown as set, never as they are.
VARIABLES = (
    *(
        f"EVENTLOG_{name}"
        for name in (
            "DIR STATE PROJECT NAME RUN_ID RESUME RESUME_STEP OWNER MODE DURABILITY ATTEMPT "
            "WANDB_SETTLE WANDB_PATIENCE"
        ).split()
    ),
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "TRACKIO_DIR",
    "TRACKIO_SERVER_URL",
    "TRACKIO_WRITE_TOKEN",
    "HF_HOME",
    "HF_TOKEN",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    "WANDB_PROJECT",
    "WANDB_RUN_ID",
    "WANDB_API_KEY",
)
_SECRET = re.compile(r"(?i)(key|token|passw|secret|credential)")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_IN_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:key|token|passw|secret)[^=&\s]*=)[^&\s]+")


@click.group()
def config() -> None:
    """Settings: arguments, then variables, then eventlog.toml."""


@config.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--state", metavar="FOLDER", help="As sync takes it.")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def show(paths: tuple[str, ...], state: str | None, origin: bool, as_json: bool) -> int:
    """Show which settings hold here. Secrets are masked."""
    found = list(_settings(paths, state))
    if as_json:
        fields = ("name", "value", "origin") if origin else ("name", "value")
        output.print_json([{name: row[name] for name in fields} for row in found])
        return 0
    rows = [[r["name"], output.safe(r["value"]), *([r["origin"]] if origin else [])] for r in found]
    output.print_table(["SETTING", "VALUE", *(["ORIGIN"] if origin else [])], rows)
    return 0


def _settings(paths: tuple[str, ...], state: str | None) -> list[dict[str, Any]]:
    environ = os.environ
    journals = list(paths) or [environ.get("EVENTLOG_DIR") or DEFAULT_JOURNAL]
    named = "argument" if paths else "EVENTLOG_DIR" if environ.get("EVENTLOG_DIR") else "default"
    out = []
    for journal in journals:
        out.append(_row("journal", os.path.abspath(journal), named))
        told = "argument" if state else "EVENTLOG_STATE" if environ.get("EVENTLOG_STATE") else ""
        out.append(_row("state", state_folder(journal, state), told or "default"))
    for name, path, section in configured(journals):
        for key, value in section.items():
            out.append(_row(f"targets.{name}.{key}", str(value), path))
    out += [_row(name, environ[name], "variable") for name in VARIABLES if environ.get(name)]
    return out


def _row(name: str, value: str, origin: str) -> dict[str, Any]:
    return {"name": name, "value": masked(name, value), "origin": origin}


def masked(name: str, value: str) -> str:
    """Return a setting's value without what is secret: the whole of it, or what an address holds."""
    last = name.rpartition(".")[2]
    if _SECRET.search(last) and last != "keys":  # those are globs of metrics
        return "***"
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub("***@", value))
