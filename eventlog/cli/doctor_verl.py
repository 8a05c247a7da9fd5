"""`eventlog doctor verl`: whether verl sees the logger, and if not, why.

verl hides what goes wrong when it loads a plug-in, so every step of it is done here one by one,
the import of verl itself in a child process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any

from eventlog.cli.findings import BAD, INFO, OK, WARN, Finding

GROUP = "verl.plugins"
MODULE = "eventlog.integrations.verl"
_POLICY = "VERL_USE_EXTERNAL_PLUGINS"
_MODULES = "VERL_USE_EXTERNAL_MODULES"
_WORKAROUND = f"set {_MODULES}={MODULE}"

_CHILD = """
import json, sys
told = {}
try:
    import verl
    told["by_itself"] = sys.argv[1] in sys.modules
except BaseException as error:
    told["verl"] = f"{type(error).__name__}: {error}"
else:
    try:
        __import__(sys.argv[1])
        from verl.utils.tracking import Tracking
        told["seen"] = "eventlog" in Tracking.supported_backend
    except BaseException as error:
        told["plugin"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(told))
"""


def look_at_verl(timeout: float) -> list[Finding]:
    """Look at this environment's verl; `timeout` seconds for its import."""
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        return [Finding(BAD, "verl", f"not installed in {sys.prefix}")]
    try:
        version = metadata.version("verl")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    folder = os.path.dirname(spec.origin)
    found = [Finding(OK, "verl", f"{version} in {folder}")]
    forced = MODULE in os.environ.get(_MODULES, "").split(",")
    if forced:
        found.append(Finding(OK, _MODULES, os.environ[_MODULES]))
    found += _plug_in(spec.origin, forced=forced)
    if any(finding.state == BAD for finding in found):
        return found
    return [*found, *_imported(timeout)]


def _plug_in(source: str, *, forced: bool) -> list[Finding]:
    """Return what keeps verl from looking for the plug-in, where nothing else loads it."""
    mine = [p for p in metadata.entry_points(group=GROUP) if p.value == MODULE]
    missing = WARN if forced else BAD
    found = []
    if mine:
        found.append(Finding(OK, "entry point", f"{mine[0].name} in the group {GROUP}"))
    else:
        text = f"none of eventlog in the group {GROUP}: install eventlog-journal again"
        found.append(Finding(missing, "entry point", text))
    try:
        with open(source, encoding="utf-8", errors="replace") as file:
            looks = GROUP in file.read()
    except OSError as error:
        return [*found, Finding(WARN, "plug-ins", f"{source} cannot be read ({error.strerror})")]
    if not looks:
        text = f"this verl is too old to look for plug-ins: {_WORKAROUND}"
        found.append(Finding(missing, "plug-ins", text))
    policy = os.environ.get(_POLICY, "auto").strip().lower()
    names = {name.strip() for name in policy.split(",")}
    if policy != "auto" and not names & {p.name for p in mine}:
        text = f"{_POLICY}={os.environ[_POLICY]} leaves eventlog out: add it, or {_WORKAROUND}"
        found.append(Finding(missing, _POLICY, text))
    return found


def _imported(timeout: float) -> list[Finding]:
    """Import verl in a child, and see whether it has the logger."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, MODULE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Finding(BAD, "import", f"verl was not imported within {timeout:g} s")]
    told: dict[str, Any] = {}
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        told = json.loads(lines[-1])
    if not told:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return [Finding(BAD, "import", f"importing verl ended the process: {last}")]
    if "verl" in told:
        return [Finding(BAD, "import", f"verl cannot be imported: {told['verl']}")]
    if "plugin" in told:
        return [Finding(BAD, "import", f"the plug-in fails: {told['plugin']}")]
    if not told["seen"] or not told["by_itself"]:
        return [Finding(BAD, "import", f"verl did not load the plug-in: {_WORKAROUND}")]
    here = "each of Ray's actors needs eventlog-journal in its own environment"
    return [
        Finding(OK, "logger", 'trainer.logger=["console","eventlog"] will work'),
        Finding(INFO, "actors", here),
    ]
