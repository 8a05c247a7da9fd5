"""The names and times of a run in Trackio: pure functions, each one to one.

The rules, with their names in the ledger, are the table at the head of `replayers.to_trackio`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re

from replayers.target import RunInfo

RULES = "trackio-1"
#: Names that Trackio's log call keeps for itself; it writes ``__`` before them, and so do we.
RESERVED_KEYS = frozenset(("project", "run", "timestamp", "step", "time", "metrics"))
#: Where a row has its own time, in a store that keeps none.
TIME_KEY = "_eventlog/time"
#: Config keys that are not the user's.
OWN_CONFIG = frozenset(("_Created", "_Group", "_Username", "_eventlog"))
#: What ends the names of Trackio's own files beside a project's database.
_RESERVED_SUFFIXES = (
    *("_system", "_configs", "_traces", "_artifacts", "_artifact_versions", "_artifact_aliases"),
    *("_run_artifact_links", "_external_run_artifact_links"),
)
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,120}")
_RENAMED = re.compile(r".*--[0-9a-f]{16}")
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_HASHED = re.compile(r"sha-[0-9a-f]{40}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:\+00:00|Z)")
_EPOCH = dt.datetime(1970, 1, 1)


def project_name(run: RunInfo) -> str:
    """Return the Trackio project of a run, a name that Trackio keeps as it is.

    Trackio drops every character but ``[A-Za-z0-9_-]``, so that ``my.p`` and ``myp`` would share
    one database. A name it would change, or refuse, or that looks like the result of this rule,
    becomes a readable rest of it, ``--`` and 16 hexadecimal digits of its SHA-256.
    """
    name = run.elsewhere.get("TRACKIO_PROJECT") or run.project
    plain = _PROJECT.fullmatch(name) and not _RENAMED.fullmatch(name)
    if plain and not name.startswith("registry-") and not name.endswith(_RESERVED_SUFFIXES):
        return name
    rest = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "project"
    if f"{rest}-".startswith("registry-"):
        rest = "p-" + rest
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{rest}--{digest[:16]}"


def run_id(run: RunInfo) -> str:
    """Return the run's id in Trackio: its own where that is short, lower-case and plain."""
    name = f"{run.id}.{run.generation}" if run.generation else run.id
    if _RUN_ID.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    return "sha-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def run_name(run: RunInfo) -> str:
    """Return the run's display name (Trackio trims it and wants one)."""
    name = clean_text(run.name).strip() or run_id(run)
    return f"{name} ({run.generation})" if run.generation else name


def metric_key(key: str) -> str:
    """Return a metric's key as Trackio's own log call would write it."""
    reserved = key in RESERVED_KEYS or key.startswith("__") or key == TIME_KEY
    return "__" + key if reserved else key


def config_key(key: str) -> str:
    """Return a config key that is none of Trackio's or ours: those get one more underscore."""
    return "_" + key if key.startswith("_") and "_" + key.lstrip("_") in OWN_CONFIG else key


def iso_time(nanoseconds: int) -> str:
    """Return ISO 8601 in UTC with six digits, or nine where six would lose some.

    Trackio keeps the text as it is. Times of both lengths sort as text in the order of time,
    because ``+`` sorts before every digit.
    """
    seconds, rest = divmod(nanoseconds, 10**9)
    moment = (_EPOCH + dt.timedelta(seconds=seconds)).isoformat()
    digits = f"{rest:09d}" if rest % 1000 else f"{rest // 1000:06d}"
    return f"{moment}.{digits}+00:00"


def parse_time(text: object) -> int | None:
    """Return the nanoseconds since 1970 of a text that `iso_time` or Trackio wrote, or None."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    seconds = (dt.datetime.fromisoformat(match[1]) - _EPOCH) // dt.timedelta(seconds=1)
    return seconds * 10**9 + int((match[2] or "0").ljust(9, "0"))


def clean_text(text: str) -> str:
    r"""Return text without lone surrogates, which become ``\udXXX`` in ASCII."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
