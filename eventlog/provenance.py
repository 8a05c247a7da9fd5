"""Where a run came from, for people and auditors: program, code, packages, machine, scheduler.

Never a secret: of a command line and of an address what looks like one is masked, and of the
environment only named variables are read. Never a reason to fail or to wait: what lies on a disk
is read beside, and what has not come after `PATIENCE` seconds (a file server that is away) is
left out and said.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from eventlog.identity import ray_job

#: How long, in seconds, `provenance` waits for the disk in all.
PATIENCE = 1.0
_MOST_PACKAGES = 5000
_LARGEST = 2**20

_SLURM = (
    "JOB_ID JOB_NAME ARRAY_JOB_ID ARRAY_TASK_ID RESTART_COUNT STEP_ID PROCID NTASKS NODEID "
    "JOB_NODELIST JOB_NUM_NODES JOB_PARTITION CLUSTER_NAME SUBMIT_DIR SUBMIT_HOST"
).split()
_SECRET = re.compile(r"(?i)api[-_]?key|access[-_]?key|passw|secret|credential")
_TOKEN = re.compile(r"(?i)token(?!i[sz])")
#: What no token is: ``max_token_len=4096`` is only named like one.
_HARMLESS = re.compile(r"(?i)[-+]?[0-9][0-9_.,]*(e[-+]?[0-9]+)?|true|false|none|null|")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_IN_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:token|key|passw|secret)[^=&\s]*=)[^&\s]+")


def provenance(
    environ: Mapping[str, str] = os.environ, *, patience: float = PATIENCE
) -> dict[str, Any]:
    """Return what made the run.

    Keys: ``command``, ``python``, ``platform``, ``host``, ``working_folder``; ``git`` (``commit``,
    ``branch``, ``remote``, ``changed``: whether tracked files differ from the commit) and
    ``packages`` (name to version), or instead of either a text that says why not; ``slurm`` and
    ``ray``, where there is one, with their ids.
    """
    told: dict[str, Any] = {
        "command": without_secrets([str(a) for a in sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }
    try:
        told["working_folder"] = folder = os.getcwd()
    except OSError as error:
        told["working_folder"] = folder = ""
        told["git"] = f"the working folder cannot be read ({error.strerror})"
    slurm = {name.lower(): environ.get(f"SLURM_{name}") for name in _SLURM}
    found = {"slurm": {k: v for k, v in slurm.items() if v}, "ray": _ray(environ)}
    told |= {key: value for key, value in found.items() if value}
    program = os.path.dirname(os.path.abspath(sys.argv[0])) if sys.argv and folder else ""
    told.setdefault("git", lambda: _git([f for f in (folder, program) if f]))
    told["packages"] = packages
    return _read_beside(told, patience)


def _read_beside(told: dict[str, Any], patience: float) -> dict[str, Any]:
    """Call the functions among the values in one thread, and wait for all of them so long."""
    wanted: dict[str, Callable[[], Any]] = {k: v for k, v in told.items() if callable(v)}
    seen: dict[str, Any] = {}

    def read() -> None:
        for key, function in wanted.items():
            try:
                seen[key] = function()
            except Exception as error:
                seen[key] = f"not read ({type(error).__name__}: {error})"

    thread = threading.Thread(target=read, name="eventlog-provenance", daemon=True)
    try:
        thread.start()
        thread.join(patience)
    except RuntimeError as error:  # no more threads, or the interpreter is ending
        seen = dict.fromkeys(wanted, f"not read ({error})")
    late = f"not read within {patience:g} s"
    return told | {key: seen.get(key, late) for key in wanted}


# ------------------------------------------------------------------------------ code


def _git(folders: list[str]) -> dict[str, Any] | str:
    """Return the commit of the first folder that lies in a working copy."""
    for folder in folders:
        top = folder
        while True:
            place = _git_folder(os.path.join(top, ".git"))
            if place is not None:
                return _describe(top, place)
            above = os.path.dirname(top)
            if above == top:
                break
            top = above
    return "no working copy of git"


def _git_folder(path: str) -> str | None:
    """Return the folder of git's own files: ``.git``, or where a worktree's file points to."""
    if os.path.isdir(path):
        return path
    text = _text(path)
    if text is None or not text.startswith("gitdir: "):
        return None
    return os.path.join(os.path.dirname(path), text.removeprefix("gitdir: "))


def _describe(top: str, place: str) -> dict[str, Any]:
    common = os.path.join(place, _text(os.path.join(place, "commondir")) or "")
    told: dict[str, Any] = {"folder": top}
    head = _text(os.path.join(place, "HEAD")) or ""
    if head.startswith("ref: "):
        name = head.removeprefix("ref: ")
        told["branch"] = name.removeprefix("refs/heads/")
        told["commit"] = _text(os.path.join(common, name)) or _packed(common, name)
    else:
        told["commit"] = head or None
    remote = re.search(r'\[remote "origin"\][^\[]*?\n\s*url\s*=\s*(\S+)', _config(common))
    if remote:
        told["remote"] = without_credentials(remote[1])
    told["changed"] = _changed(top)
    return told


def _packed(common: str, name: str) -> str | None:
    for line in (_text(os.path.join(common, "packed-refs"), 64 * _LARGEST) or "").splitlines():
        commit, _space, ref = line.partition(" ")
        if ref == name:
            return commit
    return None


def _config(common: str) -> str:
    return "\n" + (_text(os.path.join(common, "config")) or "")


def _text(path: str, most: int = _LARGEST) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(most).strip()
    except OSError:
        return None


def _changed(top: str) -> bool | None:
    """Return whether tracked files differ from the commit; None if git does not say."""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", top]
    try:
        done = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **quiet},
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return bool(done.stdout) if done.returncode == 0 else None


_PACKAGE = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._]*)-([^-]+)(?:-.*)?\.(?:dist|egg)-info$")


def packages() -> dict[str, str]:
    """Return the installed packages and their versions, by the names of their folders alone."""
    found: dict[str, str] = {}
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for name in names:
            match = _PACKAGE.match(name)
            if match and len(found) < _MOST_PACKAGES:
                found.setdefault(match[1].replace("_", "-").lower(), match[2])
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------ schedulers


def _ray(environ: Mapping[str, str]) -> dict[str, str]:
    """Return Ray's ids of this process, if Ray is running in it."""
    job, session = ray_job(environ)
    ids: dict[str, str | None] = {"job_id": job, "session": session}
    ray = sys.modules.get("ray")
    try:
        if ray is not None and ray.is_initialized():
            context = ray.get_runtime_context()
            ids |= {"node_id": context.get_node_id(), "actor_id": context.get_actor_id()}
    except Exception:  # a Ray that is half up, or of another version
        ids["context"] = "not read"
    return {key: str(value) for key, value in ids.items() if value}


# ------------------------------------------------------------------------------ secrets


def without_secrets(arguments: list[str]) -> list[str]:
    """Return a command line in which the values of options named like secrets, and what stands
    before the ``@`` of an address or behind such a name in one, are ``***``.
    """
    out: list[str] = []
    before = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if before and not argument.startswith("-") and is_secret(before, argument):
            argument = "***"
        elif equals and is_secret(name, value):
            argument = f"{name}=***"
        before = "" if equals or not argument.startswith("-") else argument
        out.append(without_credentials(argument))
    return out


def without_credentials(text: str) -> str:
    """Return a text in which the credentials of addresses are ``***``."""
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub("***@", text))


def is_secret(name: str, value: str) -> bool:
    """Return whether an option or a key is named like a secret, and its value may be one."""
    if _SECRET.search(name):
        return True
    return bool(_TOKEN.search(name)) and not _HARMLESS.fullmatch(value)
