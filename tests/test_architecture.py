"""The structure holds: floors, no circles, what may be imported where."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

import eventlog
from eventlog import entrypoints
from eventlog.cli.main import OWN, group
from eventlog.cli.main import run as command

TOP = Path(__file__).resolve().parent.parent

#: Each module imports only modules of lower floors (and the standard library, pyarrow, numpy).
EVENTLOG = [
    {"errors", "entrypoints"},
    {"value", "files", "layout", "options", "background", "steps", "pages", "columns", "formats"}
    | {"ahead"},
    {"event", "identity", "blobs", "table"},
    {"tally", "frame", "backlog", "intake", "recorded", "provenance", "fingerprint"},
    {"strip", "shape"},
    {"segment", "shapes"},
    {"chain", "footer", "headless", "runfile"},
    {"sealed"},
    {"archive", "sealedwriter", "lookup"},
    {"commit", "archived"},
    {"listing"},
    {"blobstore"},
    {"journal", "reader", "attempts", "home"},
    {"seal", "forks", "gaps", "views", "glance", "resume", "catalog", "mentions", "archivewriter"},
    {"ledger", "selection"},
    {"delivery"},
    {"restored", "pieces"},
    {"audit", "series", "compact", "salvage"},
    {"archiving"},
    {"run"},
    {"start"},
    {"__init__"},
    {"integrations.__init__", "integrations.verl_config", "integrations.verl_settings"},
    {"integrations.verl_runs"},
    {"integrations.verl"},
    {"cli.output", "cli.findings"},
    {"cli.selecting"},
    {"cli.doctor_verl"},
    {"cli.doctor"},
    {"cli.commands", "cli.__init__"},
    {"cli.keeping"},
    {"cli.main"},
]
#: Everything that capture loads; it may import nothing else from outside.
CAPTURE = {"errors", "value", "files", "layout", "event", "identity", "blobs", "table", "frame"}
CAPTURE |= {"backlog", "segment", "journal", "reader", "runfile", "attempts", "home", "seal"}
CAPTURE |= {"options", "intake", "background", "shape", "shapes", "chain", "commit", "blobstore"}
CAPTURE |= {"resume", "recorded", "provenance", "run", "start", "__init__"}
CAPTURE |= {"strip", "sealed", "sealedwriter", "archive", "fingerprint", "pages", "columns"}
CAPTURE |= {"ahead", "footer", "lookup", "formats", "listing", "tally", "archived"}


def modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by their name below it."""
    root = TOP / package
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in sorted(root.rglob("*.py"))
    }


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def inside(package: str, path: Path) -> set[str]:
    """Return the modules of `package` that a file imports, by their name below it."""
    known = modules(package)
    found = set()
    for name in imported(path):
        below = name.removeprefix(package + ".")
        if name.startswith(package + ".") and below in known:
            found.add(below)
        elif name.startswith(package + ".") and f"{below}.__init__" in known:
            found.add(f"{below}.__init__")
    return found


def test_every_module_of_eventlog_has_a_floor() -> None:
    assert set(modules("eventlog")) == set().union(*EVENTLOG)


@pytest.mark.parametrize("name", sorted(modules("eventlog")))
def test_eventlog_imports_only_lower_floors(name: str) -> None:
    floor = next(i for i, names in enumerate(EVENTLOG) if name in names)
    lower = set().union(*EVENTLOG[:floor])
    path = modules("eventlog")[name]
    package = {f"{name.rpartition('.')[0]}.__init__"} if "." in name else set()
    assert inside("eventlog", path) - lower - package <= set()


@pytest.mark.parametrize("name", sorted(modules("eventlog")))
def test_eventlog_knows_no_backend_and_not_its_replayers(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(modules("eventlog")[name])}
    assert not roots & {"replayers", "tools", "wandb", "mlflow", "trackio"}


@pytest.mark.parametrize("name", sorted(CAPTURE))
def test_capture_imports_pyarrow_and_numpy_only(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported(modules("eventlog")[name])}
    assert roots - set(sys.stdlib_module_names) <= {"eventlog", "pyarrow", "numpy"}


def test_replayers_have_no_circle() -> None:
    graph = {name: inside("replayers", path) for name, path in modules("replayers").items()}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name in graph if name not in done and graph[name] <= done}
        assert ready, f"these import each other: {sorted(set(graph) - done)}"
        done |= ready


@pytest.mark.parametrize("name", sorted(modules("replayers")))
def test_replayers_import_a_backend_only_where_it_is_opened(name: str) -> None:
    tree = ast.parse(modules("replayers")[name].read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    roots = {a.name.partition(".")[0] for n in top if isinstance(n, ast.Import) for a in n.names}
    roots |= {(n.module or "").partition(".")[0] for n in top if isinstance(n, ast.ImportFrom)}
    assert not roots & {"wandb", "mlflow", "trackio"}


def test_packages_do_not_import_tools() -> None:
    for package in ("eventlog", "replayers"):
        for path in modules(package).values():
            assert not {n for n in imported(path) if n.partition(".")[0] == "tools"}, path


def test_importing_eventlog_loads_neither_pyarrow_nor_numpy() -> None:
    code = (
        "import sys, eventlog; dir(eventlog); "
        "print([m for m in ('pyarrow', 'numpy', 'click', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sync_with_nothing_to_do_loads_nothing_that_reads_or_sends(tmp_path: Path) -> None:
    run = eventlog.init(dir=str(tmp_path / "j"), quiet=True)
    run.log({"a": 1}, step=1)
    run.finish()
    arguments = ["sync", str(tmp_path / "j"), "--to", "memory", "--json"]
    assert command(arguments) == 0
    code = f"""
import sys
before = set(sys.modules)
from eventlog.cli.main import run
code = run({arguments!r})
loaded = set(sys.modules) - before
heavy = "pyarrow numpy rich importlib.metadata socket asyncio email.message http.client "
heavy += "eventlog.reader eventlog.segment eventlog.journal eventlog.seal eventlog.audit "
heavy += "eventlog.archive eventlog.archived eventlog.views eventlog.cli.commands "
heavy += "replayers.loop replayers.watch"
print(code, [name for name in heavy.split() if name in loaded], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    (report,) = json.loads(done.stdout)
    assert report["settled"] == report["events"] > 0
    assert not report["contacted"]


def test_every_command_of_ours_is_where_the_command_line_looks_for_it() -> None:
    for name, module in OWN.items():
        assert getattr(importlib.import_module(module), name).name == name
    for point in metadata.entry_points(group="eventlog.commands"):
        if point.value.startswith("replayers."):
            assert entrypoints.load("eventlog.commands", point.name).name == point.name


def test_a_list_of_commands_says_of_each_what_its_help_says_and_loads_none() -> None:
    context = click.Context(group)
    listed = group._in_short(context).commands
    whole = {name: group.get_command(context, name) for name in group.list_commands(context)}
    assert listed.keys() == whole.keys()
    for name, one in whole.items():
        assert one is not None
        for limit in (20, 45, 58, 200):
            said = listed[name].get_short_help_str(limit)
            assert said == one.get_short_help_str(limit), name
    for width in (50, 80, 120):
        ours, plain = click.HelpFormatter(width=width), click.HelpFormatter(width=width)
        group.format_commands(context, ours)
        click.Group.format_commands(group, context, plain)
        assert ours.getvalue() == plain.getvalue()
    code = """
import sys
from eventlog.cli.main import group, run
from click.shell_completion import BashComplete
code = run(["--help"])
found = [item.value for item in BashComplete(group, {}, "eventlog", "_X").get_completions([], "s")]
loaded = [name for name in sys.modules if name.startswith(("eventlog.", "replayers."))]
print(code, found, sorted(loaded), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few = ["cli", "cli.main", "cli.output", "entrypoints", "errors"]
    loaded = [*(f"eventlog.{name}" for name in few), "replayers.commands"]
    commands = ["salvage", "seal", "show", "status", "sync"]
    assert done.stderr.strip() == f"0 {commands} {loaded}"
    assert "Bring runs into backends" in done.stdout


def test_capture_opens_no_connection_and_loads_no_client(tmp_path: Path) -> None:
    code = f"""
import sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name) if name.startswith("socket.") else None)
import eventlog
run = eventlog.init(dir={str(tmp_path)!r}, quiet=True)
run.log({{"a": 1}}, step=1)
run.finish()
print([m for m in ("http.client", "requests", "httpx", "click", "rich") if m in sys.modules])
print(sorted(set(seen) - {{"socket.gethostname"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_eventlog_reads_no_credentials() -> None:
    for path in modules("eventlog").values():
        text = path.read_text()
        for name in ("API_KEY", "WRITE_TOKEN", "TRACKING_PASSWORD", "TRACKING_TOKEN", "netrc"):
            assert name not in text, (path, name)
