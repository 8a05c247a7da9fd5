"""Attempts: the launches of one run, who wrote in each, and which provably followed which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlog.segment import Header

#: How a run's id came about (``id_from`` in a segment's header) where the user named the run.
NAMED = ("given", "from-name")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One launch of a run; all its ranks and forked children share it.

    Attributes
    ----------
    key:
        What its writers have in common.
    launch, restart:
        The launcher's id and restart counts, None and () if it has none.
    start:
        When its first writer started, in nanoseconds since 1970 UTC.
    evidence:
        Why it belongs to this run: ``first``, ``restart`` (same launch, started again),
        ``explicit`` (the user named the run, or asked to resume it) or ``joined``.
    writers:
        Their names, in the order in which they started.
    ordinal:
        1 for the first attempt of the run.
    named:
        Whether the user named the run (an id, or one from its name), which is consent to join it
        wherever copies of it meet: on a fresh disk every attempt is the first.
    """

    key: str
    launch: str | None
    restart: tuple[int, ...]
    start: int
    evidence: str
    writers: tuple[str, ...]
    ordinal: int = 0
    named: bool = False


def attempts(headers: Mapping[str, Sequence[Header]]) -> list[Attempt]:
    """Return the attempts of a run in order.

    They are ordered by their recorded start; those of one launch by its restart count, which no
    clock can turn round.
    """
    groups: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for writer, parts in headers.items():
        if not parts:
            continue
        about = parts[0].identity
        recorded = about.get("attempt")
        recorded = dict(recorded) if isinstance(recorded, dict) else {}
        recorded["named"] = about.get("id_from") in NAMED
        key = str(recorded.get("key") or writer)
        start = _integer(recorded.get("writer_start"), _integer(recorded.get("start"), 0))
        groups.setdefault(key, []).append((start, writer, recorded))
    found = [_attempt(key, sorted(group, key=lambda g: g[:2])) for key, group in groups.items()]
    found.sort(key=lambda a: (a.start, a.key))
    return [dataclasses.replace(a, ordinal=i + 1) for i, a in enumerate(_by_restart(found))]


def _attempt(key: str, group: list[tuple[int, str, dict[str, Any]]]) -> Attempt:
    _start, _writer, recorded = group[0]
    launch = recorded.get("launch")
    restart = recorded.get("restart")
    return Attempt(
        key=key,
        launch=launch if isinstance(launch, str) else None,
        restart=tuple(_integer(n, 0) for n in restart) if isinstance(restart, list) else (),
        start=min(_integer(fields.get("start"), start) for start, _w, fields in group),
        evidence=str(recorded.get("evidence") or "joined"),
        writers=tuple(writer for _s, writer, _f in group),
        named=any(fields["named"] for _s, _w, fields in group),
    )


def _by_restart(found: list[Attempt]) -> list[Attempt]:
    """Put the attempts of each launch into the order of their restarts, in the places they have."""
    out = list(found)
    for launch in {a.launch for a in found if a.launch is not None}:
        places = [i for i, a in enumerate(found) if a.launch == launch]
        ordered = sorted((found[i] for i in places), key=lambda a: (a.restart, a.start, a.key))
        for place, attempt in zip(places, ordered, strict=True):
            out[place] = attempt
    return out


def follows(later: Attempt, earlier: Attempt, last_event: int) -> bool:
    """Return whether `later` provably started after `earlier` had ended.

    `last_event` is the time of the last event of `earlier`. Proof is a higher restart count of
    the same launch, or a user who named the run or asked to resume it while no event of the
    other came after that. Clocks alone prove nothing.
    """
    same = later.launch is not None and later.launch == earlier.launch
    if same and later.restart != earlier.restart:
        return later.restart > earlier.restart
    joined = later.named or later.evidence in ("explicit", "restart")
    return joined and last_event < later.start


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
