"""What a run's config in W&B says of the journal it comes from: the value of its key ``eventlog``.

``run``, ``project`` and ``rules`` are the identity. ``claim`` names the session that writes now;
one that ended well took it away and left ``rows``, the history rows that were confirmed. ``marks``
says for each writer how far its events went; ``state`` has the settings with their stamps, so that
an older value sent late changes nothing. Both are text: W&B would make a column of each key.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from eventlog.event import CONFIG, DEFINITION, NOTE, SUMMARY, TAG
from replayers.target import Foreign, RunInfo
from replayers.wandb_map import RULES, Setting

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
    """

    run: RunInfo
    rows: int = 0
    adopted: int = 0
    marks: dict[str, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, dict[str, tuple[Any, tuple[int, str, int]]]] = dataclasses.field(
        default_factory=lambda: {kind: {} for kind in _KINDS}
    )
    claim: str | None = None

    @classmethod
    def read(cls, run: RunInfo, found: dict[str, Any] | None, shown: str) -> RunRecord:
        """Read the record from what the server has of the run (None: nothing).

        Raises
        ------
        Foreign
            If the run is not this one's, or nobody's and has rows that may not be taken over.
        """
        if found is None:
            return cls(run)
        kept = found["config"].get(KEY)
        if not isinstance(kept, dict) or "run" not in kept:
            return cls._adopted(run, found["count"], shown)
        if (kept.get("run"), kept.get("project")) != (run.id, run.project):
            raise Foreign(
                f"the W&B run is that of {kept.get('project')}/{kept.get('run')}, another run "
                "of a journal",
                on=shown,
                hint="give one of them another WANDB_RUN_ID",
            )
        if kept.get("rules") != RULES:
            raise Foreign(
                f"the W&B run was written by the rules {kept.get('rules')}, not {RULES}", on=shown
            )
        record = cls(run, rows=int(kept.get("rows", 0)), adopted=int(kept.get("adopted", 0)))
        record.claim = kept.get("claim")
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
        return cls(run, rows=count, adopted=count)

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

    def config(self) -> dict[str, Any]:
        """Return the run's config with this record in it."""
        state: dict[str, Any] = {}
        for kind, found in self.settings.items():
            # The values of the config lie in it already.
            state[kind] = {
                key: [None if kind == CONFIG else value, stamp]
                for key, (value, stamp) in found.items()
            }
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
            },
        }


def _later(stamp: tuple[int, str, int], than: tuple[int, str, int]) -> bool:
    if stamp[1] == than[1]:
        return stamp[2] >= than[2] and stamp != than
    return (stamp[0], stamp[1]) > (than[0], than[1])
