"""What a run's config in W&B says of the journal it comes from: the value of its key ``eventlog``.

``run``, ``project`` and ``rules`` are the identity. ``claim`` names the session that writes now;
one that ended well took it away and left ``rows``, the history rows that were confirmed. ``marks``
says for each writer how far its events went; ``state`` has the settings with their stamps, so that
an older value sent late changes nothing. Both are text: W&B would make a column of each key.
``generation``, ``replaces`` and ``replaced_by``, the latter two paths of runs, are there where a run
replaces another one (`replayers.superseding`); tags say it too, for people.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from eventlog.event import CONFIG, DEFINITION, NOTE, SUMMARY, TAG
from replayers.target import Foreign, RunInfo
from replayers.wandb_map import GLOBAL_STEP, RULES, Setting, definition
from replayers.wandb_values import tag_name

KEY = "eventlog"
_KINDS = (CONFIG, SUMMARY, TAG, DEFINITION, NOTE)


@dataclasses.dataclass
class RunRecord:
    """The record of one run.

    Attributes
    ----------
    rows:
        History rows that were confirmed when the record was written.
    adopted:
        Rows that the run had before this journal took it over; always the first ones.
    marks:
        By writer, the seq after the last event that has been sent.
    settings:
        By kind and key: value and stamp.
    claim:
        The session that writes; None after one that ended well.
    replaces, replaced_by:
        Paths ``entity/project/id`` of other runs, "" for none.
    """

    run: RunInfo
    rows: int = 0
    adopted: int = 0
    marks: dict[str, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, dict[str, tuple[Any, tuple[int, str, int]]]] = dataclasses.field(
        default_factory=lambda: {kind: {} for kind in _KINDS}
    )
    claim: str | None = None
    replaces: str = ""
    replaced_by: str = ""

    @classmethod
    def read(cls, run: RunInfo, found: dict[str, Any] | None, shown: str) -> RunRecord:
        """Read the record from what the server has of the run (None: nothing).

        Raises
        ------
        Foreign
            If the run is not this one's, or nobody's and has rows that may not be taken over.
        """
        if found is None:
            return cls(run, replaces=run.replaces)
        kept = found["config"].get(KEY)
        if not isinstance(kept, dict) or "run" not in kept:
            return cls._adopted(run, found["count"], shown)
        whose = (kept.get("run"), kept.get("project"), kept.get("generation", ""))
        if whose != (run.id, run.project, run.generation):
            raise Foreign(
                f"the W&B run is that of {' '.join(f'{whose[1]}/{whose[0]} {whose[2]}'.split())}, "
                "another run of a journal",
                on=shown,
                hint="give one of them another WANDB_RUN_ID",
            )
        if kept.get("rules") != RULES:
            raise Foreign(
                f"the W&B run was written by the rules {kept.get('rules')}, not {RULES}", on=shown
            )
        record = cls(run, rows=int(kept.get("rows", 0)), adopted=int(kept.get("adopted", 0)))
        record.claim = kept.get("claim")
        record.replaces = str(kept.get("replaces") or run.replaces)
        record.replaced_by = str(kept.get("replaced_by") or "")
        marks = json.loads(kept.get("marks") or "{}")
        record.marks = {str(writer): int(n) for writer, n in marks.items()}
        record._read_state(kept.get("state"), found["config"])
        return record

    @classmethod
    def _adopted(cls, run: RunInfo, count: int, shown: str) -> RunRecord:
        if count and not run.adopt_by_name:
            raise Foreign(
                f"a W&B run of this id has {count} rows that no journal sent",
                on=shown,
                hint="log under another run id, or allow it with --adopt-by-name",
            )
        return cls(run, rows=count, adopted=count, replaces=run.replaces)

    def _read_state(self, text: Any, config: dict[str, Any]) -> None:
        state = json.loads(text) if isinstance(text, str) else {}
        for kind in _KINDS:
            for key, (value, stamp) in state.get(kind, {}).items():
                own = config.get(key) if kind == CONFIG else value
                self.settings[kind][key] = (own, (stamp[0], stamp[1], stamp[2]))

    def values(self, kind: str) -> dict[str, Any]:
        """Return the settings of one kind."""
        return {key: value for key, (value, _stamp) in self.settings[kind].items()}

    def newer(self, settings: Iterable[Setting]) -> list[Setting]:
        """Return those that are newer than what is recorded.

        Within a writer by seq, between writers by time.
        """
        out = []
        for one in settings:
            _value, stamp = self.settings[one.kind].get(one.key, (None, None))
            if stamp is None or _later(one.stamp, stamp):
                out.append(one)
        return out

    def take(self, settings: Iterable[Setting]) -> None:
        """Record settings that are newer."""
        for one in settings:
            self.settings[one.kind][one.key] = (one.value, one.stamp)

    def definitions(self) -> list[dict[str, Any]]:
        """Return what is to be defined: the user's first, because the first that fits wins."""
        found = [definition(k, v) for k, v in self.values(DEFINITION).items()]
        everything = [{"name": "*", "step_metric": GLOBAL_STEP}]
        return found + [d for d in everything if not any(f["name"] == "*" for f in found)]

    def tags(self, there: Iterable[str]) -> list[str]:
        """Return our tags, and those of `there` that people gave the run in W&B."""
        ours = self.values(TAG)
        people = {tag for tag in there if tag not in ours}
        return sorted(people | {tag for tag, on in ours.items() if on} | self.links())

    def links(self) -> set[str]:
        """Return the tags that name the runs which this one replaces, or is replaced by."""
        told = {"replaces": self.replaces, "replaced-by": self.replaced_by}
        ids = {word: path.rpartition("/")[2] for word, path in told.items()}
        return {tag_name(f"{word}:{id}", []) for word, id in ids.items() if id}

    def config(self) -> dict[str, Any]:
        """Return the run's config with this record in it."""
        state: dict[str, Any] = {}
        for kind, found in self.settings.items():
            # The values of the config lie in it already.
            state[kind] = {
                key: [None if kind == CONFIG else value, stamp]
                for key, (value, stamp) in found.items()
            }
        told = (self.run.generation, self.replaces, self.replaced_by)
        kin = zip(("generation", "replaces", "replaced_by"), told, strict=True)
        return {
            **self.values(CONFIG),
            KEY: {
                "run": self.run.id,
                "project": self.run.project,
                "rules": RULES,
                "created": self.run.created / 1e9,
                "owner": self.run.owner,
                "rows": self.rows,
                "adopted": self.adopted,
                "claim": self.claim,
                "marks": json.dumps(self.marks),
                "state": json.dumps(state),
                **{name: text for name, text in kin if text},
            },
        }


def _later(stamp: tuple[int, str, int], than: tuple[int, str, int]) -> bool:
    if stamp[1] == than[1]:
        return stamp[2] >= than[2] and stamp != than
    return (stamp[0], stamp[1]) > (than[0], than[1])
