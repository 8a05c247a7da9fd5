"""From what a user types after ``--to`` to a target.

``mlflow``, ``trackio`` and ``wandb`` take address and credentials from the variables of their own
ecosystem; ``mlflow:http://host:5000`` or ``trackio:./folder`` say the address; a name stands for a
section ``[targets.<name>]`` of ``eventlog.toml``. Other packages add kinds by the entry point
group ``eventlog.targets``: a callable that takes the address ("" if none was said) and a
`ReadBlob`, and returns a `replayers.target.Target`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eventlog import blobs, entrypoints
from eventlog.catalog import Found
from eventlog.errors import UsageError
from eventlog.layout import run_folder

if TYPE_CHECKING:
    from replayers.target import RunInfo, Target

#: Returns the content of a run's blob by its SHA-256.
ReadBlob = Callable[["RunInfo", str], bytes]
Maker = Callable[[str, ReadBlob], "Target"]

GROUP = "eventlog.targets"
CONFIG_FILE = "eventlog.toml"


def make_target(spec: str, read_blob: ReadBlob, *, places: list[str] | None = None) -> Target:
    """Return the target that `spec` names.

    Raises
    ------
    UsageError
        For an unknown kind or name, or an address that makes no sense.
    """
    kind, colon, address = spec.partition(":")
    if not colon and not _is_kind(kind):
        kind, address = _named(spec, places or [])
    maker: Maker | None = _BUILT_IN.get(kind) or entrypoints.load(GROUP, kind)
    if maker is None:
        raise UsageError(
            f"{kind!r} is no kind of target", hint=f"the kinds are {', '.join(sorted(_kinds()))}"
        )
    try:
        return maker(address, read_blob)
    except ValueError as error:  # what `urllib` says of an address; ours may hold a password
        raise UsageError(f"this address makes no sense ({error})", on=kind) from None


def target_of(spec: str, runs: Callable[[], Sequence[Found]], places: Sequence[str]) -> Target:
    """Return the target that `spec` names, which reads blobs of the runs that are known by then;
    see `make_target`.
    """

    def read_blob(run: RunInfo, digest: str) -> bytes:
        wanted = (run.project, run.id)
        folders = [f.folder for f in runs() if (f.run.project, f.run.id) == wanted]
        return blobs.get((folders or [run_folder(".", *wanted)])[0], digest)

    return make_target(spec, read_blob, places=sorted(places))


def told_of(spec: str, places: list[str], setting: str) -> str | None:
    """Return a setting (``rate``, ``superseded``) that ``eventlog.toml`` gives a target that is
    named there, if any.

    Raises
    ------
    UsageError
        If the file cannot be read.
    """
    if ":" in spec or _is_kind(spec):
        return None
    section = _section(spec, places)
    return str(section[setting]) if section and setting in section else None


def list_of(spec: str, places: list[str], setting: str) -> list[str]:
    """Return a setting of texts (``keys``), as `told_of` finds it; none where there is none.

    Raises
    ------
    UsageError
        If it is no list of texts, or the file cannot be read.
    """
    section = None if ":" in spec or _is_kind(spec) else _section(spec, places)
    found = (section or {}).get(setting, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(
            f"{setting} of the target {spec!r} is no list of texts",
            on=CONFIG_FILE,
            hint=f'{setting} = ["loss", "val/*"]',
        )
    return found


def _without_secret(text: str) -> str:
    return f"***@{text.rpartition('@')[2]}" if "@" in text else text


def _kinds() -> set[str]:
    return {*_BUILT_IN, *entrypoints.names(GROUP)}


def _is_kind(word: str) -> bool:
    return word in _BUILT_IN or word in entrypoints.names(GROUP)


def _named(name: str, places: list[str]) -> tuple[str, str]:
    """Look a name up in ``eventlog.toml``: ``[targets.NAME]`` with ``kind`` and ``address``."""
    section = _section(name, places)
    if section is not None:
        if not _is_kind(str(section.get("kind"))):
            raise UsageError(f"the target {name!r} has no known kind", on=CONFIG_FILE)
        return str(section["kind"]), str(section.get("address", ""))
    raise UsageError(
        f"{_without_secret(name)!r} is neither a kind of target nor a name from {CONFIG_FILE}",
        hint=f"the kinds are {', '.join(sorted(_kinds()))}; for example mlflow:sqlite:///m.db",
    )


def _section(name: str, places: list[str]) -> dict[str, Any] | None:
    # The user's own first: a journal may come from a stranger, and the credentials do not.
    for place in [os.getcwd(), _user_folder(), *places]:
        section = _sections(os.path.join(place, CONFIG_FILE)).get(name)
        if isinstance(section, dict):
            return section
    return None


def configured(places: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, file and section of every target that ``eventlog.toml`` names, as it would be
    found from here.

    Raises
    ------
    UsageError
        If a file cannot be read.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place in [os.getcwd(), _user_folder(), *places]:
        path = os.path.join(os.path.abspath(place), CONFIG_FILE)
        for name, section in _sections(path).items():
            if isinstance(section, dict):
                found.setdefault(name, (path, section))
    return [(name, path, section) for name, (path, section) in sorted(found.items())]


def _sections(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        return {}
    if sys.version_info < (3, 11):
        raise UsageError("names from eventlog.toml need Python 3.11", on=path)
    import tomllib

    try:
        with open(path, "rb") as file:
            sections = tomllib.load(file).get("targets", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"this configuration cannot be read ({error})", on=path) from error
    return sections if isinstance(sections, dict) else {}


def _user_folder() -> str:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(home, "eventlog")


def _mlflow(address: str, read_blob: ReadBlob) -> Target:
    from replayers.to_mlflow import MlflowTarget

    uri = address or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UsageError(
            "mlflow needs an address",
            hint="set MLFLOW_TRACKING_URI, or write --to mlflow:sqlite:///m.db",
        )
    return MlflowTarget(uri, read_blob=read_blob)


def _trackio(address: str, read_blob: ReadBlob) -> Target:
    from replayers.to_trackio import TrackioTarget

    place = address or os.environ.get("TRACKIO_SERVER_URL") or os.environ.get("TRACKIO_DIR", "")
    if not place:
        cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
        place = os.path.join(cache, "trackio")
    return TrackioTarget(place, read_blob=read_blob)


def _wandb(address: str, read_blob: ReadBlob) -> Target:
    from replayers.to_wandb import WandbTarget

    return WandbTarget(address, read_blob=read_blob)


_MEMORY: dict[str, Target] = {}


def _memory(address: str, _read_blob: ReadBlob) -> Target:
    from replayers.to_memory import MemoryTarget

    return _MEMORY.setdefault(address, MemoryTarget(address or "here"))


_BUILT_IN: dict[str, Maker] = {
    "mlflow": _mlflow,
    "trackio": _trackio,
    "wandb": _wandb,
    "memory": _memory,
}
