"""W&B: a new run that replaces one with superseded points; people find the way both ways."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.cli.main import run as cli
from replayers.target import Foreign, RunInfo
from replayers.wandb_state import KEY, RunRecord
from replayers.wandb_values import run_id
from tests import warm
from tests.targets.test_to_wandb import (
    arguments,
    begin,
    clean_environment,
    environment,
    rows_of,
    whole,
)
from tests.targets.wandb_loopback import WandbLoopback, wandb_loopback

__all__ = ["clean_environment", "wandb_loopback"]  # a fixture is used by its name

RUN = RunInfo("run-1", "p", "n", 0)
LATER = RunInfo("run-1", "p", "n", 0, generation="r0123456789ab", replaces="me/p/run-1")

ID = """
query Q($entity: String!, $project: String!, $run: String!) {
  project(name: $project, entityName: $entity) { run(name: $run) { id } }
}
"""
#: Changes a run as W&B's pages do.
TAGS = """
mutation M($id: String!, $tags: [String!]) {
  upsertBucket(input: {id: $id, tags: $tags}) { inserted }
}
"""


def configured(record: RunRecord) -> dict[str, Any]:
    """Return what the server shows of a run with this record."""
    return {"count": record.rows, "config": json.loads(json.dumps(record.config()))}


@given(st.text(max_size=200), st.text(max_size=90))
def test_the_id_of_a_later_run_follows_from_that_of_the_first(name: str, given: str) -> None:
    first = RunInfo(name, "p", "n", 0)
    later = RunInfo(name, "p", "n", 0, generation="r0123456789ab")
    one, other = run_id(first, given), run_id(later, given)
    assert 0 < len(other) <= 64
    assert set(other) <= set(one) | set("r0123456789abcdef-")
    assert other == run_id(later, given) != one
    assert other == f"{one}-r0123456789ab" or len(other) == 32


def test_a_run_says_what_it_replaces_and_what_replaces_it() -> None:
    record = RunRecord.read(LATER, None, "there")
    again = RunRecord.read(LATER, configured(record), "there")
    assert again.links() == {"replaces:run-1"}
    again.replaced_by = "me/p/" + "x" * 64
    last = RunRecord.read(LATER, configured(again), "there")
    assert (last.replaces, last.replaced_by) == ("me/p/run-1", "me/p/" + "x" * 64)
    assert all(len(tag) <= 64 for tag in last.links())
    assert sorted([*last.links(), "people's"]) == last.tags(["people's"])
    plain = RunRecord.read(RUN, None, "there").config()[KEY]
    assert not {"generation", "replaces", "replaced_by"} & set(plain)


def test_a_run_of_another_generation_is_another_run() -> None:
    for mine, other in ((RUN, LATER), (LATER, RUN)):
        there = configured(RunRecord.read(mine, None, "there"))
        with pytest.raises(Foreign, match="another run of a journal"):
            RunRecord.read(other, there, "there")


def test_why_it_cannot_be_rebuilt_is_said_before_anybody_is_asked(
    tmp_path: Path, capsys: Any
) -> None:
    begin(tmp_path).finish()
    before = signal.getsignal(signal.SIGTERM)
    options = ["--to", "wandb:http://127.0.0.1:9", "--superseded", "rebuild"]
    assert cli(["sync", str(tmp_path / "journal"), *options]) == 2
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert "W&B never gives the id of a deleted run again" in said
    assert "append or new-run" in said


@pytest.mark.long
def test_the_new_run_and_the_old_one_name_each_other(
    wandb_loopback: WandbLoopback, tmp_path: Path
) -> None:
    server, env = wandb_loopback, environment(wandb_loopback, tmp_path)
    choice = ["--superseded", "new-run"]

    def command(*what: str) -> Any:
        done = warm.run([*what, "--json"], env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def attempt(steps: range) -> str:
        with begin(tmp_path, id="from-name", tags=["nlp"], config={"lr": 1}) as run:
            for step in steps:
                run.log({"a": step / 7}, step=step)
        command(*arguments(server, tmp_path), *choice)
        return str(run.id)

    first = attempt(range(30))
    (report,) = server.state()["runs"]
    where = {"entity": report["entity"], "project": report["project"], "run": first}
    answer = server.graphql(ID, **where)
    server.graphql(TAGS, id=answer["data"]["project"]["run"]["id"], tags=["nlp", "somebody's"])
    for steps in (range(20, 50), range(40, 60)):
        attempt(steps)
    runs = [server.run(r["run"]) for r in server.state()["runs"]]
    assert [r["run"].partition("-r")[0] for r in runs] == [first] * 3
    paths = [f"{r['entity']}/{r['project']}/{r['run']}" for r in runs]
    own = [r["config"][KEY]["value"] for r in runs]
    assert [o.get("replaces") for o in own] == [None, *paths[:2]]
    assert [o.get("replaced_by") for o in own] == [*paths[1:], None]
    ids = [r["run"] for r in runs]
    assert runs[0]["tags"] == sorted(["nlp", "somebody's", f"replaced-by:{ids[1]}"])
    assert runs[2]["tags"] == sorted(["nlp", f"replaces:{ids[1]}"])
    assert [r["display_name"] for r in runs] == [
        "run",
        *(f"run ({o['generation']})" for o in own[1:]),
    ]
    assert {r["state"] for r in runs} == {"finished"}
    for r, held in zip(runs, (range(30), range(50), range(60)), strict=True):
        whole(r)
        assert sorted(row["a"] for row in rows_of(r)) == [step / 7 for step in held]
    place = ["--to", f"wandb:{server.url}", "--state", str(tmp_path / "state")]
    found = command("diff", first, "--journal", str(tmp_path / "journal"), *place)
    assert (found["explained"], found["superseded"], found["extra"]) == (True, 0, 0)
    assert (found["known_as"], found["replaced"]) == (paths[2], paths[:2])
