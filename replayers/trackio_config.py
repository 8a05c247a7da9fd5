"""A run's config in Trackio: the user's config, and under ``_eventlog`` what has no other place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from eventlog import event as events
from eventlog.frame import to_events
from eventlog.value import Stored
from replayers.batches import of_kinds
from replayers.target import RunInfo
from replayers.trackio_names import OWN_CONFIG, RULES, clean_text, config_key, iso_time
from replayers.trackio_values import UNREADABLE, DamagedError, Notes, plain

if TYPE_CHECKING:
    import pyarrow as pa

_SECTIONS = {
    events.SUMMARY: "summary",
    events.TAG: "tags",
    events.DEFINITION: "definitions",
    events.STATE: "states",
}
#: Kinds that become parts of the run's config.
CONFIG_KINDS = frozenset((events.CONFIG, *_SECTIONS))
#: Those of them that image and read-back show.
SHOWN_KINDS = frozenset((events.CONFIG, events.SUMMARY, events.TAG))

Config = dict[str, Any]


def fold(stored: Config | None, run: RunInfo, batch: pa.Table, writer: str, notes: Notes) -> Config:
    """Return the stored config with the batch's config, summary, tag, ... rows applied.

    Of two rows of a key, the later one wins: within a writer by seq, between writers by time.
    ``_eventlog.at`` remembers which row each value is of, so that an old batch that is sent again
    changes nothing, and nothing that is stored ever gets lost.
    """
    config: Config = {**(stored or {})}
    config.setdefault("_Created", iso_time(run.created))
    if run.owner:
        config.setdefault("_Username", clean_text(run.owner))
    own = {**_dict(config.get("_eventlog")), "rules": RULES, "run": identity(run)}
    stamps = _stamps(own)
    for section in _SECTIONS.values():
        own[section] = {**_dict(own.get(section))}
    for event in to_events(only(batch, CONFIG_KINDS)):
        for row in event.rows:
            stamp = Stamp(writer, event.seq, event.time)
            key, place, target = _place(row, config, own)
            if not stamp.beats(stamps.get(place)):
                continue
            target[key] = config_value(row, event.seq, notes)
            stamps[place] = stamp
    own["at"] = _grouped(stamps)
    config["_eventlog"] = own
    return config


def only(batch: pa.Table, kinds: frozenset[str]) -> pa.Table:
    """Return the rows of a batch that are of these kinds."""
    return of_kinds(batch, sorted(kinds))


def with_state(stored: Config | None, run: RunInfo, state: dict[str, Any]) -> Config:
    """Return the stored config with how the run stands."""
    config: Config = {"_Created": iso_time(run.created), **(stored or {})}
    own = {"rules": RULES, "run": identity(run), **_dict(config.get("_eventlog"))}
    config["_eventlog"] = own | {"state": state}
    return config


def with_successor(stored: Config | None, run: RunInfo, by: str) -> Config:
    """Return the stored config with the id of the run that replaces this one."""
    config: Config = {"_Created": iso_time(run.created), **(stored or {})}
    own = {"rules": RULES, "run": identity(run), **_dict(config.get("_eventlog"))}
    config["_eventlog"] = own | {"replaced_by": by}
    return config


def identity(run: RunInfo) -> dict[str, str]:
    """Return what names a run in its config."""
    shown = {"id": run.id, "project": run.project, "name": run.name, "owner": run.owner}
    if run.generation:
        shown |= {"generation": run.generation, "replaces": run.replaces}
    return {key: clean_text(value) for key, value in shown.items() if value}


def known_identity(config: Config | None) -> dict[str, Any]:
    """Return the identity that a stored config tells; empty if it tells none."""
    return _dict(_dict((config or {}).get("_eventlog")).get("run"))


def config_cells(config: Config) -> Iterator[tuple[str, str, Any]]:
    """Yield kind, key and value of everything the config holds that image shows."""
    for key, value in config.items():
        if key not in OWN_CONFIG:
            yield events.CONFIG, key, value
    own = _dict(config.get("_eventlog"))
    for kind in (events.SUMMARY, events.TAG):
        for key, value in _dict(own.get(_SECTIONS[kind])).items():
            yield kind, key, value


def _place(row: events.Row, config: Config, own: Config) -> tuple[str, str, dict[str, Any]]:
    if row.kind == events.CONFIG:
        key = config_key(row.key)
        return key, "config/" + key, config
    section = _SECTIONS[row.kind]
    return row.key, f"{section}/{row.key}", own[section]


def config_value(row: events.Row, seq: int, notes: Notes) -> Any:
    """Return what a row of `CONFIG_KINDS` becomes. Raises `DamagedError`."""
    rules: list[str] = []
    if row.kind == events.CONFIG and config_key(row.key) != row.key:
        rules.append("key-reserved")
    try:
        value = plain(Stored(row.type, row.num, row.data), rules)
    except UNREADABLE as error:
        raise DamagedError(seq, row.key, error) from error
    for rule in rules:
        notes.add(rule, row.key, seq)
    return value


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Which row a config value is of."""

    writer: str
    seq: int
    time: int

    def beats(self, other: Stamp | None) -> bool:
        """Return whether a value of this stamp replaces one of the other."""
        if other is None or other.writer == self.writer:
            return other is None or self.seq > other.seq
        return (self.time, self.writer) > (other.time, other.writer)

    def __str__(self) -> str:
        return f"{self.writer}:{self.seq}:{self.time}"


def _stamps(own: Config) -> dict[str, Stamp]:
    out: dict[str, Stamp] = {}
    for text, places in _dict(own.get("at")).items():
        writer, _, rest = text.partition(":")
        seq, _, time = rest.partition(":")
        try:
            stamp = Stamp(writer, int(seq), int(time))
        except ValueError:
            continue
        out.update((place, stamp) for place in places if isinstance(place, str))
    return out


def _grouped(stamps: dict[str, Stamp]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for place in sorted(stamps):
        out.setdefault(str(stamps[place]), []).append(place)
    return out


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
