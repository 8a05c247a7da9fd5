"""Which run of a tracking store is a journal's run: found by a tag, made if there is none.

The tag ``eventlog.key`` is the SHA-256 of project and id, because MLflow's filters cannot quote
every text; ``eventlog.run`` and ``eventlog.project`` say it in words. The order of search:

1. ``MLFLOW_RUN_ID``, as recorded when the run was logged: it must exist, and is taken over unless
   it is another journal run's; the one of this environment counts likewise where none was
   recorded, unless the run was delivered to another before, which is an error;
2. the id that the state remembers, if the run of that id has the tag;
3. the tag: in the run's experiment, then in all others, among deleted runs too;
4. with consent, the one run of that name in the experiment which no journal made.

Two processes that create the run at once make two of them; whoever looks next keeps the one that
holds data, else the first by id, and deletes the other, which holds nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import NamedTuple

from eventlog.errors import UsageError
from replayers.mlflow_client import Api, Failure, RunView
from replayers.mlflow_map import RULES
from replayers.mlflow_values import clean
from replayers.target import Absent, Change, Foreign, Retry, RunInfo

KEY = "eventlog.key"
HELD = "eventlog.held."
#: On a run that was rebuilt, set before it is deleted: it counts as gone, whoever is killed between.
DISCARDED = "eventlog.discarded"
#: MLflow's databases hold a run's name in 250 characters, an experiment's or user's in 256.
_NAME, _EXPERIMENT = 250, 256


def key_of(run: RunInfo) -> str:
    """Return the value of the tag by which a run is searched."""
    parts = [run.project, run.id, *([run.generation] if run.generation else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Identified(NamedTuple):
    """The store's run of a journal's run; `found_by` says how, None if it was made."""

    view: RunView
    notes: list[Change]
    found_by: str | None


def identify(api: Api, run: RunInfo, on: str) -> Identified:
    """Return the store's run of a journal's run, and what there is to tell of how it was found.

    Raises
    ------
    Foreign, UsageError, Retry, Failure
    """
    key = key_of(run)
    # Whoever named a run named the first one.
    given = None if run.generation else run.elsewhere.get("MLFLOW_RUN_ID")
    if given:
        return Identified(_given(api, run, given, on), [], "MLFLOW_RUN_ID")
    here = None if run.generation else os.environ.get("MLFLOW_RUN_ID")
    known = api.run(run.known_as) if run.known_as else None
    if known is not None and DISCARDED in known.tags:
        known = None
    if known is not None and known.tags.get(KEY) == key:
        return Identified(_same(_active(known, on), here, on), [], "its id")
    experiment = _experiment(api, run, on)
    found, notes = _by_tag(api, key, experiment, on)
    if found is not None:
        return Identified(_same(found, here, on), notes, f"its tag {KEY}")
    if here:
        return Identified(_given(api, run, here, on), [], "MLFLOW_RUN_ID")
    if known is not None and KEY not in known.tags and not run.adopt_by_name:
        raise Foreign(
            f"the run {known.id}, to which this run was delivered before, has lost its tag {KEY}",
            on=on,
            hint=f"set that tag to {key} again, or forget the state of this run to start anew",
        )
    if run.adopt_by_name:
        same = _of_that_name(api, run, experiment, on)
        if same is not None:
            return Identified(_adopt(api, run, same), [], "its name")
    if not run.create:
        raise Absent("MLflow has no run of this journal's run", on=on)
    view, notes = _create(api, run, experiment, on)
    return Identified(view, notes, None)


def _same(view: RunView, here: str | None, on: str) -> RunView:
    if here and here != view.id:
        raise UsageError(
            f"MLFLOW_RUN_ID names the run {here}, and this run was delivered to {view.id}",
            on=on,
            hint="unset MLFLOW_RUN_ID",
        )
    return view


def check(view: RunView | None, key: str, on: str) -> RunView:
    """Return a run that was asked for anew, if it is still there and still ours.

    Raises
    ------
    Foreign
    """
    if view is None:
        raise Foreign("the run is gone from MLflow for good", on=on, hint="forget its state")
    if view.tags.get(KEY) != key:
        raise Foreign(f"the run {view.id} has lost its tag {KEY}, or is another's now", on=on)
    return _active(view, on)


def _given(api: Api, run: RunInfo, id: str, on: str) -> RunView:
    view = api.run(id)
    if view is None:
        raise UsageError(f"MLFLOW_RUN_ID names a run that does not exist: {id}", on=on)
    if view.tags.get(KEY) == key_of(run):
        return _active(view, on)
    if KEY in view.tags:
        owner = f"{view.tags.get('eventlog.project')}/{view.tags.get('eventlog.run')}"
        raise Foreign(
            f"MLFLOW_RUN_ID names the run {id}, which belongs to another run, {owner}", on=on
        )
    return _adopt(api, run, _active(view, on))


def _active(view: RunView, on: str) -> RunView:
    if view.active:
        return view
    raise Foreign(
        f"the run {view.id} was deleted in MLflow",
        on=on,
        hint=f"to bring it back: mlflow runs restore --run-id {view.id}; to send it anew, purge it "
        "with mlflow gc",
    )


def _adopt(api: Api, run: RunInfo, view: RunView) -> RunView:
    api.log(view.id, (), {}, _tags(run))
    adopted = api.run(view.id)
    return view if adopted is None else adopted


def _experiment(api: Api, run: RunInfo, on: str) -> str:
    """Return the id of the run's experiment; create it if there is none."""
    named = run.elsewhere.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    name = named or run.project or "Default"
    name = _short(clean(name)[0], _EXPERIMENT)
    found = api.experiment(name)
    if found is None:
        if not run.create:
            raise Absent("MLflow has no experiment of this name", on=name)
        try:
            return api.create_experiment(name)
        except Failure as failure:  # another process may have been faster
            found = api.experiment(name)
            if found is None:
                raise failure
    id, active = found
    if not active:
        raise UsageError(
            f"the experiment {name!r} was deleted in MLflow, which keeps its name",
            on=on,
            hint=f"mlflow experiments restore --experiment-id {id}, or mlflow gc to be rid of it",
        )
    return id


def _by_tag(api: Api, key: str, experiment: str, on: str) -> tuple[RunView | None, list[Change]]:
    where = f"tags.`{KEY}` = '{key}'"
    found = api.search([experiment], where)
    if not found:
        others = [id for id in api.experiments() if id != experiment]
        found = api.search(others, where) if others else []
    for view in found:
        if DISCARDED in view.tags and view.active:
            api.delete(view.id)  # who began it was killed
    found = [view for view in found if DISCARDED not in view.tags]
    live = [view for view in found if view.active]
    if not live:
        return (_active(found[0], on) if found else None), []
    return _one_of(api, live, on)


def _one_of(api: Api, found: list[RunView], on: str) -> tuple[RunView, list[Change]]:
    full = [view for view in found if _holds_data(view)]
    if len(full) > 1:
        ids = " ".join(sorted(view.id for view in full))
        raise Foreign(
            f"several runs with this run's tag hold data: {ids}",
            on=on,
            hint="delete all but one of them in MLflow",
        )
    kept = full[0] if full else min(found, key=lambda view: view.id)
    notes = []
    for view in sorted(found, key=lambda view: view.id):
        if view.id != kept.id:
            api.delete(view.id)
            notes.append(Change("empty-twin-deleted", "", 0, 0, 1, view.id))
    return kept, notes


def _holds_data(view: RunView) -> bool:
    return bool(view.latest or view.params) or any(tag.startswith(HELD) for tag in view.tags)


def _of_that_name(api: Api, run: RunInfo, experiment: str, on: str) -> RunView | None:
    name = run.name or run.id
    quotable = not set("\"'`\\%_") & set(name) and name.isprintable()
    where = f"attributes.run_name = '{name}'" if quotable else ""
    same = [
        view
        for view in api.search([experiment], where)
        if view.active and view.name == name and KEY not in view.tags
    ]
    if len(same) > 1:
        raise UsageError(
            f"{len(same)} runs have the name {name!r}; none is taken over",
            on=on,
            hint="candidates: " + " ".join(sorted(view.id for view in same)),
        )
    return same[0] if same else None


def _create(api: Api, run: RunInfo, experiment: str, on: str) -> tuple[RunView, list[Change]]:
    owner = _short(clean(run.owner)[0], _EXPERIMENT)
    tags = {
        **_tags(run),
        "mlflow.user": owner,
        "mlflow.source.name": "eventlog",
        "mlflow.source.type": "LOCAL",
    }
    shown = f"{run.name or run.id} ({run.generation})" if run.generation else run.name or run.id
    name = _short(clean(shown)[0], _NAME)
    start = max(0, run.created // 1_000_000)
    lost: Failure | None = None
    try:
        api.create_run(experiment, start, owner, name, {k: v for k, v in tags.items() if v})
    except Failure as failure:
        if not failure.transient:
            raise
        lost = failure  # its answer may be all that was lost: the search decides
    found, notes = _by_tag(api, key_of(run), experiment, on)
    if found is not None:
        return found, notes
    if lost is not None:
        raise lost
    raise Retry("the run was created, but MLflow does not find it yet", on=on, after=1.0)


def refuse_shared(view: RunView, files: set[str], on: str) -> None:
    """Refuse to delete a run that is not ours alone.

    Raises
    ------
    Foreign
    """
    others = [t for t in view.tags if not t.startswith(("eventlog.", "mlflow."))]
    others += [t for t in view.tags if t.startswith("mlflow.note")]
    why = f"somebody added {sorted([*others, *files])[0]!r} to it" if others or files else ""
    if view.tags.get("mlflow.source.name") != "eventlog":
        why = "no journal made it"
    if why:
        raise Foreign(
            f"the run {view.id} is not rebuilt: {why}; nothing was deleted",
            on=on,
            hint="--superseded new-run leaves it as it is",
        )


def _tags(run: RunInfo) -> dict[str, str]:
    more = {"eventlog.generation": run.generation, "eventlog.replaces": run.replaces}
    return {
        **{name: text for name, text in more.items() if run.generation and text},
        KEY: key_of(run),
        "eventlog.run": _short(clean(run.id)[0], 1000),
        "eventlog.project": _short(clean(run.project)[0], 1000),
        "eventlog.rules": RULES,
    }


def _short(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return text[: limit - 17] + "-" + hashlib.sha256(text.encode()).hexdigest()[:16]
