"""How runs and targets stand, in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replayers.standing import Standing

_RUN = ("project", "name", "id")
_METRICS: tuple[tuple[str, str, Callable[[Standing], float | None]], ...] = (
    ("acknowledged_events", "Events that the target is proven to hold.", lambda s: s.acknowledged),
    (
        "behind_events",
        "Events of the journal that the target is not proven to hold.",
        lambda s: s.behind,
    ),
    ("last_step", "The last step that was acknowledged.", lambda s: s.last_step),
    ("quarantined_events", "Events that the target refused for good.", lambda s: s.quarantined),
    ("lost_events", "Events that the target holds and the journal lost.", lambda s: s.lost),
    (
        "synced_timestamp_seconds",
        "When the cursor last moved.",
        lambda s: None if s.synced is None else s.synced / 1e9,
    ),
)


def exposition(found: Sequence[Standing]) -> str:
    """Return the text, each metric once with its help, ending in a newline."""
    runs = {(s.project, s.name, s.id): s for s in found}
    lines = ["# HELP eventlog_run_events Events of a run in the journal."]
    lines.append("# TYPE eventlog_run_events gauge")
    lines += [_sample("run_events", _about(s), s.events) for s in runs.values()]
    lines.append("# HELP eventlog_run_state How a run stands: 1 for its state.")
    lines.append("# TYPE eventlog_run_state gauge")
    lines += [_sample("run_state", {**_about(s), "state": s.state}, 1) for s in runs.values()]
    lines.append("# HELP eventlog_target_superseded_choice What it does with superseded points: 1.")
    lines.append("# TYPE eventlog_target_superseded_choice gauge")
    for s in found:
        if s.target is not None:
            about = {**_about(s), "target": s.target, "choice": str(s.superseded_choice)}
            lines.append(_sample("target_superseded_choice", about, 1))
    for name, help_, value in _METRICS:
        lines += [f"# HELP eventlog_target_{name} {help_}", f"# TYPE eventlog_target_{name} gauge"]
        for s in found:
            number = value(s)
            if s.target is not None and number is not None:
                lines.append(_sample(f"target_{name}", {**_about(s), "target": s.target}, number))
    return "\n".join(lines) + "\n"


def _about(standing: Standing) -> dict[str, str]:
    return {"run" if name == "id" else name: getattr(standing, name) for name in _RUN}


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    text = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"eventlog_{name}{{{text}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
