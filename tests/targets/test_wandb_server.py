"""The loopback W&B server does what its protocol says, and the genuine client believes it.

The first half speaks HTTP to the server. The second half runs wandb itself in child processes:
what it does there is what `replayers/to_wandb.py` is built upon.
"""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.targets.wandb_loopback import KEY, SERVER, WandbClient, WandbLoopback, wandb_loopback

__all__ = ["wandb_loopback"]  # a fixture is used by its name

HISTORY = "wandb-history.jsonl"
MAKE = (
    "mutation UpsertBucket($name: String, $config: JSONString, $tags: [String!]) { upsertBucket("
    "input: {name: $name, modelName: $project, config: $config, tags: $tags}) "
    "{ bucket { id historyLineCount } inserted } }"
).replace("$project", '"p"')
STREAM = "/files/lab/p/r/file_stream"


def lines(count: int, first: int = 0, **more: Any) -> list[str]:
    """History rows with consecutive steps."""
    return [json.dumps({"_step": first + i, "loss": (first + i) / 3, **more}) for i in range(count)]


def body(rows: list[str], offset: int = 0, **more: Any) -> dict[str, Any]:
    """A file_stream post of history rows."""
    return {"files": {HISTORY: {"offset": offset, "content": rows}}, **more}


@pytest.fixture
def lab(wandb_loopback: WandbLoopback) -> WandbLoopback:
    """A server that has the run lab/p/r, without rows."""
    assert wandb_loopback.graphql(MAKE, name="r")["data"]["upsertBucket"]["inserted"] is True
    return wandb_loopback


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbLoopback]:
    """The same, one for all tests in which everything is refused."""
    with WandbLoopback(tmp_path_factory.mktemp("shared")) as server:
        server.graphql(MAKE, name="r")
        yield server


# The command


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--data", "d", "--key", "too-short"], "--key"),
        (["--data", "d", "--key", KEY, "--port", "65536"], "--port"),
        (["--data", "d", "--key", KEY, "--port", "x"], "--port"),
        (["--data", "/dev/null/d", "--key", KEY], "--data"),
        (["--key", KEY], "--data"),
    ],
)
def test_a_bad_argument_is_named_in_one_line(
    arguments: list[str], word: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(SERVER), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_prints_its_url_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, str(SERVER), "--data", str(tmp_path / "d"), "--key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        answer = httpx.get(f"{url}/_admin/state", auth=("api", KEY), trust_env=False)
        process.terminate()
        assert process.wait(timeout=180) == 0
    assert answer.json()["runs"] == []


def test_it_listens_on_the_one_loopback_address_only(wandb_loopback: WandbLoopback) -> None:
    socket.create_connection(("127.0.0.1", wandb_loopback.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", wandb_loopback.port), timeout=5)


def test_a_second_server_on_the_same_folder_is_refused(wandb_loopback: WandbLoopback) -> None:
    data = str(wandb_loopback.folder / "data")
    command = [sys.executable, str(SERVER), "--data", data, "--key", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2
    assert "another server" in done.stderr


# Requests


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/graphql"), ("POST", STREAM), ("GET", "/_admin/state"), ("POST", "/_admin/faults")],
)
def test_a_wrong_key_gets_401_everywhere(shared: WandbLoopback, method: str, path: str) -> None:
    with shared.http(key="x" * 40) as client:
        assert client.request(method, path, json=body(lines(1))).status_code == 401
    assert httpx.request(method, shared.url + path, trust_env=False).status_code == 401
    assert shared.run("r")["history_rows"] == 0


def test_gzipped_and_chunked_bodies_are_read(lab: WandbLoopback) -> None:
    def pieces(data: bytes) -> Iterator[bytes]:
        yield from (data[i : i + 1000] for i in range(0, len(data), 1000))

    plain = json.dumps(body(lines(200, 200))).replace('"offset": 0', '"offset": 200').encode()
    with lab.http() as client:
        packed = gzip.compress(json.dumps(body(lines(200))).encode())
        coded = {"Content-Encoding": "gzip"}
        assert client.post(STREAM, content=packed, headers=coded).status_code == 200
        assert client.post(STREAM, content=pieces(plain)).status_code == 200
        assert client.post(STREAM, content=packed[:50], headers=coded).status_code == 400
    report = lab.run("r")
    assert list(report["rows"].values()) == lines(400)


def test_an_overwritten_line_is_counted_by_how_much_it_changed(lab: WandbLoopback) -> None:
    first = [json.dumps({"_step": i, "_runtime": 1.0, "x": float("nan")}) for i in range(10)]
    slower = [text.replace('"_runtime": 1.0', '"_runtime": 2.0') for text in first]
    other = [text.replace("NaN", "7") for text in first]
    seen = []
    with lab.http() as client:
        for rows in (first, first, slower[:4], other[:3]):
            assert client.post(STREAM, json=body(rows)).status_code == 200
            report = lab.run("r")
            names = ("overwrites", "overwrites_changed", "overwrites_changed_exactly")
            seen.append(tuple(report[name] for name in names))
    assert seen == [(0, 0, 0), (10, 0, 0), (14, 0, 4), (17, 3, 7)]
    assert [report["rows"][str(i)] for i in range(10)] == other[:3] + slower[3:4] + first[4:]


def test_gaps_and_duplicate_steps_are_reported(lab: WandbLoopback) -> None:
    with lab.http() as client:
        client.post(STREAM, json=body(lines(3), 2))
        client.post(STREAM, json=body(lines(2, 1), 9))
    report = lab.run("r")
    assert report["gaps"] == [[0, 1], [5, 8]]
    assert report["duplicate_steps"] == {"1": 2, "2": 2}
    assert (report["history_rows"], report["history_line_count"]) == (5, 11)


def test_an_unknown_operation_is_an_error_and_is_listed(lab: WandbLoopback) -> None:
    for _ in range(2):
        answer = lab.graphql("query Wishes { viewer { wishes } }")
        assert "wishes" in answer["errors"][0]["message"]
    assert lab.graphql("this is not GraphQL")["errors"]
    state = lab.state()
    assert state["unknown_operations"]["Wishes"]["count"] == 2
    assert state["requests"]["graphql:Wishes"] == 2
    assert state["internal_errors"] == []


def test_introspection_and_server_features_are_answered(lab: WandbLoopback) -> None:
    asked = '{ __type(name: "Run") { fields { name } } serverInfo { features { name } } }'
    data = lab.graphql(asked)["data"]
    assert {"name": "historyLineCount"} in data["__type"]["fields"]
    assert data["serverInfo"] == {"features": []}


@pytest.mark.parametrize(
    "bad",
    [
        "no json",
        [],
        {"files": []},
        {"files": {HISTORY: {"offset": -1, "content": []}}},
        {"files": {HISTORY: {"offset": True, "content": []}}},
        {"files": {HISTORY: {"offset": 0, "content": [1]}}},
        {"files": {HISTORY: {"offset": 0, "content": [*lines(1), "{"]}}},
        {"files": {HISTORY: {"offset": 0, "content": ["[1]"]}}},
        {"files": {"output.log": {"offset": 0, "content": ["\ud800"]}}},
    ],
)
def test_a_malformed_post_is_refused_whole(shared: WandbLoopback, bad: Any) -> None:
    data = bad if isinstance(bad, str) else json.dumps(bad)
    with shared.http() as client:
        assert client.post(STREAM, content=data).status_code == 400
    state = shared.state(run="r")
    assert state["runs"][0]["lines_by_file"] == {}
    assert state["internal_errors"] == []


def test_a_deleted_run_is_gone_and_its_stream_is_refused(lab: WandbLoopback) -> None:
    asked = '{ project(name: "p") { run(name: "r") { id } } }'
    with lab.http() as client:
        client.post(STREAM, json=body(lines(5)))
        storage_id = lab.graphql(asked)["data"]["project"]["run"]["id"]
        delete = "mutation DeleteRun($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }"
        lab.graphql(delete, id=storage_id)
        assert client.post(STREAM, json=body(lines(5))).status_code == 404
    assert lab.graphql(asked)["data"]["project"]["run"] is None
    assert lab.graphql(MAKE, name="r")["data"]["upsertBucket"] == {
        "bucket": {"id": lab_id(lab), "historyLineCount": 0},
        "inserted": True,
    }


def lab_id(lab: WandbLoopback) -> str:
    """The opaque id that lab/p/r has now."""
    found = lab.graphql('{ project(name: "p") { run(name: "r") { id } } }')
    return str(found["data"]["project"]["run"]["id"])


def test_storage_takes_signed_links_only(lab: WandbLoopback) -> None:
    asked = (
        'mutation CreateRunFiles { createRunFiles(input: {projectName: "p", runName: "r", '
        'files: ["a b/c%.txt"]}) { files { name uploadUrl } } }'
    )
    (file,) = lab.graphql(asked)["data"]["createRunFiles"]["files"]
    url = file["uploadUrl"]
    assert httpx.get(url, trust_env=False).status_code == 404
    assert httpx.put(url, content=b"bytes", trust_env=False).status_code == 200
    assert httpx.get(url, trust_env=False).content == b"bytes"
    for forged in (url.partition("?")[0], url.replace("a%20b", "a%20c")):
        assert httpx.put(forged, content=b"x", trust_env=False).status_code == 403
    assert lab.run("r")["files"] == {"a b/c%.txt": 5}


def test_runs_are_filtered_and_ordered_and_an_unknown_filter_is_refused(
    wandb_loopback: WandbLoopback,
) -> None:
    for i, name in enumerate(("a", "b", "c")):
        config = json.dumps({"lr": {"value": i}, "journal.id": {"value": name * 2}})
        wandb_loopback.graphql(MAKE, name=name, config=config, tags=[f"tag-{name}"])

    def names(filters: dict[str, Any], order: str = "+created_at") -> Any:
        asked = (
            "query Runs($filters: JSONString, $order: String) { project(name: \"p\") { "
            "runs(filters: $filters, order: $order) { edges { node { name } } } } }"
        )  # fmt: skip
        answer = wandb_loopback.graphql(asked, filters=json.dumps(filters), order=order)
        if "errors" in answer:
            return answer["errors"][0]["message"]
        return [edge["node"]["name"] for edge in answer["data"]["project"]["runs"]["edges"]]

    assert names({}, "-config.lr.value") == ["c", "b", "a"]
    assert names({"config.journal.id.value": "bb"}) == ["b"]
    assert names({"$or": [{"tags": "tag-a"}, {"tags": {"$in": ["tag-c"]}}]}) == ["a", "c"]
    assert names({"config.lr.value": {"$gte": 1, "$lt": 2}, "state": "running"}) == ["b"]
    assert names({"display_name": {"$regex": "^[ab]$"}, "name": {"$ne": "a"}}) == ["b"]
    assert "unknown operator $near" in names({"config.lr.value": {"$near": 1}})
    assert "no field 'colour'" in names({"colour": "red"})


# What is acknowledged is kept


def test_sigkill_keeps_every_acknowledged_row(lab: WandbLoopback) -> None:
    acknowledged: list[str] = []

    def write() -> None:
        with lab.http() as client:
            for i in range(100_000):
                row = json.dumps({"_step": i, "x": i})
                client.post(STREAM, json=body([row], i)).raise_for_status()
                acknowledged.append(row)

    def write_until_killed() -> None:
        with pytest.raises(httpx.TransportError):
            write()

    writer = threading.Thread(target=write_until_killed)
    writer.start()
    while len(acknowledged) < 100:
        time.sleep(0.001)
    lab.kill()
    writer.join()
    lab.start()
    rows = list(lab.run("r")["rows"].values())
    assert rows[: len(acknowledged)] == acknowledged
    assert len(rows) - len(acknowledged) in (0, 1)


def test_a_clean_restart_keeps_files_summary_and_state(lab: WandbLoopback) -> None:
    summary = {"wandb-summary.json": {"offset": 0, "content": ['{"loss": NaN}']}}
    with lab.http() as client:
        client.post(STREAM, json=body(lines(4)))
        client.post(STREAM, json={"files": summary, "complete": True, "exitcode": 3})
    before = lab.run("r")
    assert lab.stop() == 0
    lab.start()
    after = lab.run("r")
    assert (after["state"], after["complete"], after["exitcode"]) == ("failed", True, 3)
    assert str(after) == str(before)


# Faults


@pytest.mark.parametrize(
    ("kind", "how", "stored"),
    [
        ("status", {"status": 503, "retry_after": 2}, 0),
        ("store_status", {"status": 500}, 10),
        ("half_status", {"status": 500}, 5),
        ("drop", {"when": "before"}, 0),
        ("drop", {"when": "after"}, 10),
        ("cut", {}, 10),
        ("stall", {"seconds": 0.5}, 10),
        ("exit", {"when": "before"}, 0),
        ("exit", {"when": "after"}, 10),
    ],
)
def test_a_fault_strikes_as_often_as_told_and_stores_what_it_says(
    lab: WandbLoopback, kind: str, how: dict[str, Any], stored: int
) -> None:
    lab.fail(kind, match="file_stream", run="r", skip=1, **how)
    with lab.http() as client:
        assert client.post(STREAM, json={"files": {}}).status_code == 200
        begin = time.monotonic()
        if kind in ("drop", "cut", "exit"):
            with pytest.raises(httpx.TransportError):
                client.post(STREAM, json=body(lines(10)))
        else:
            answer = client.post(STREAM, json=body(lines(10)))
            assert answer.status_code == how.get("status", 200)
            assert answer.headers.get("Retry-After") == ("2" if "retry_after" in how else None)
        assert time.monotonic() - begin >= how.get("seconds", 0)
    if kind == "exit":
        assert lab.process.wait(timeout=180) == 137
        lab.start()
    else:
        assert [(f["struck"], f["times_left"]) for f in lab.faults()] == [(1, 0)]
    assert lab.run("r")["history_rows"] == stored
    with lab.http() as client:
        assert client.post(STREAM, json=body(lines(10))).status_code == 200
    assert list(lab.run("r")["rows"].values()) == lines(10)


def test_a_fault_strikes_only_what_it_matches_and_can_be_lifted(lab: WandbLoopback) -> None:
    asked = "query {operation} {{ viewer {{ entity }} }}"
    lab.fail("status", match="graphql:Viewer", status=418, times=3)
    other = lab.fail("status", match="upload", times=9)
    with lab.http() as client:
        assert client.post("/graphql", json={"query": asked.format(operation="Other")}).is_success
        refused = client.post("/graphql", json={"query": asked.format(operation="Viewer")})
        assert refused.status_code == 418
        assert client.delete(f"/_admin/faults?id={other}").json() == {"lifted": 1}
        assert [f["times_left"] for f in lab.faults()] == [2]
        lab.heal()
        assert client.post("/graphql", json={"query": asked.format(operation="Viewer")}).is_success
    assert lab.faults() == []


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"kind": "flood"},
        {"kind": "status", "status": "500"},
        {"kind": "status", "times": 0},
        {"kind": "drop", "when": "never"},
        {"kind": "half_status", "match": "any"},
        {"kind": "status", "colour": "red"},
        {"kind": "status", "match": "nothing"},
        "status",
    ],
)
def test_a_fault_that_cannot_be_is_refused(shared: WandbLoopback, bad: Any) -> None:
    with shared.http() as client:
        assert client.post("/_admin/faults", json=bad).status_code == 400
    assert shared.faults() == []


@pytest.mark.parametrize(
    ("part", "count", "step"), [("count", 7, 9), ("tail", 10, 6), ("both", 7, 6)]
)
def test_a_stale_answer_is_late_in_the_part_it_says(
    lab: WandbLoopback, part: str, count: int, step: int
) -> None:
    asked = (
        'query Look { project(name: "p") { run(name: "r") '
        "{ historyLineCount historyTail historyKeys } } }"
    )
    with lab.http() as client:
        client.post(STREAM, json=body(lines(10)))
    lab.fail("stale", match="graphql", lines=3, part=part)
    seen = []
    for _ in range(2):
        lab.graphql("query Other { viewer { entity } }")  # reads no count, uses up nothing
        run = lab.graphql(asked)["data"]["project"]["run"]
        last = json.loads(json.loads(run["historyTail"])[-1])["_step"]
        assert last == run["historyKeys"]["lastStep"]
        seen.append((run["historyLineCount"], last))
    assert seen == [(count, step), (10, 9)]


# The genuine client: a run's life

STORY = """
run = start("story", resume="allow", name="Story", tags=["a", "b"], notes="hi", config={"lr": 0.5})
first = [run.starting_step, run.resumed]
run.define_metric("val/*", step_metric="epoch")
for i in range(40):
    run.log({"loss": i / 3, "epoch": i // 10, "val/x": -i, "big": 2**60, "deep": {"s": "é"}})
run.log({"odd": [math.nan, 1], "nan": math.nan, "inf": -math.inf}, step=100)
run.log({"table": wandb.Table(columns=["n", "s"], data=[[1, "x"], [2, "ÿ"]])}, step=101)
with open("note.txt", "w") as file:
    file.write("a file of the run")
run.save("note.txt", policy="now")
run.summary["best"] = 0.25
run.finish()

run = start("story", resume="must")
run.define_metric("val/*", step_metric="epoch")  # a resumed client forgets what it defined
second = [run.starting_step, run.resumed, run.config["lr"], list(run.tags), run.summary["best"]]
for i in range(10):
    run.log({"loss": -i})
run.finish(exit_code=3)

errors = {}
for mode, name in (("never", "story"), ("must", "nowhere")):
    try:
        start(name, resume=mode)
    except Exception as error:
        errors[mode] = [type(error).__name__, str(error)]

api = wandb.Api()
run = api.run("lab/lab-tests/story")
files = {file.name: file for file in run.files()}
(table,) = [name for name in files if name.startswith("media/table/")]
tell({
    "first": first, "second": second, "errors": errors,
    "fields": [run.state, run.name, run.tags, run.notes, run.config, run.historyLineCount],
    "last_step": run.lastHistoryStep, "summary": {key: run.summary[key] for key in ("best", "_step")},
    "all": list(run.scan_history()), "pages": len(list(run.scan_history(page_size=7))),
    "range": [row["_step"] for row in run.scan_history(min_step=38, max_step=102)],
    "keys": list(run.scan_history(keys=["loss", "val/x"])),
    "key_range": [row["_step"] for row in run.scan_history(keys=["loss"], min_step=5, max_step=8)],
    "nonfinite": list(run.scan_history(keys=["nan", "inf"])),
    "history": len(run.history(samples=500, pandas=False)),
    "sampled": [row["_step"] for row in run.history(keys=["loss"], samples=3, pandas=False)],
    "files": sorted(files), "sizes": {name: file.size for name, file in files.items()},
    "table": json.load(files[table].download(root="down")),
    "note": files["note.txt"].download(root="down").read(),
    "runs": [one.id for one in api.runs("lab/lab-tests", filters={"config.lr.value": 0.5})],
    "none": len(api.runs("lab/lab-tests", filters={"state": "running"})),
    "entity": api.default_entity,
})
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Any]]:
    """What a client saw of a run it made, resumed and read back, and the server's own state."""
    folder = tmp_path_factory.mktemp("story")
    with WandbLoopback(folder / "server") as server:
        told = WandbClient(server, folder / "client", STORY).told()
        yield told, server.state()


def test_the_client_makes_resumes_and_refuses_to_resume(
    story: tuple[dict[str, Any], Any],
) -> None:
    told, state = story
    assert told["first"] == [0, False]
    assert told["second"] == [102, True, 0.5, ["a", "b"], 0.25]
    assert {mode: name for mode, (name, _) in told["errors"].items()} == {
        "never": "UsageError",
        "must": "UsageError",
    }
    assert [run["run"] for run in state["runs"]] == ["story"]


def test_the_api_reads_every_row_back(story: tuple[dict[str, Any], Any]) -> None:
    told, _ = story
    rows = told["all"]
    steps = [*range(40), 100, 101, *range(102, 112)]
    assert [row["_step"] for row in rows] == steps
    assert [row["loss"] for row in rows if "loss" in row] == [
        *(i / 3 for i in range(40)), *(-i for i in range(10)),
    ]  # fmt: skip
    assert all(row["big"] == 2**60 and row["deep"] == {"s": "é"} for row in rows[:40])
    odd = rows[40]
    assert str(odd["nan"]) == "nan"
    assert odd["inf"] == -float("inf")
    assert told["pages"] == len(steps)
    assert told["range"] == [38, 39, 100, 101]
    assert [row["val/x"] for row in told["keys"]] == [-i for i in range(40)]
    assert told["key_range"] == [5, 6, 7]
    assert told["nonfinite"] == [{"_step": 100, "nan": "NaN", "inf": "-Infinity"}]
    assert told["history"] == len(steps)
    assert told["sampled"] == [0, 24, 111]  # first, middle, last


def test_the_api_reads_fields_files_and_tables_back(story: tuple[dict[str, Any], Any]) -> None:
    told, _ = story
    assert told["fields"] == ["failed", "Story", ["a", "b"], "hi", {"lr": 0.5}, 52]
    assert told["last_step"] == 111
    assert (told["summary"]["best"], told["summary"]["_step"]) == (0.25, 111)
    assert told["table"] == {"columns": ["n", "s"], "data": [[1, "x"], [2, "ÿ"]]}
    assert told["note"] == "a file of the run"
    assert told["sizes"]["note.txt"] == len("a file of the run")
    assert {"config.yaml", "wandb-summary.json"} < set(told["files"])
    assert (told["runs"], told["none"], told["entity"]) == (["story"], 0, "lab")


def test_the_server_saw_a_plain_run(story: tuple[dict[str, Any], Any]) -> None:
    _, state = story
    (run,) = state["runs"]
    assert (run["state"], run["complete"], run["exitcode"]) == ("failed", True, 3)
    assert (run["history_rows"], run["gaps"], run["duplicate_steps"]) == (52, [], {})
    assert run["overwrites"] == 0
    metrics = run["config"]["_wandb"]["value"]["m"]
    assert {"val/*", "epoch"} <= {m.get("1") or m.get("2") for m in metrics}
    (artifact,) = run["artifacts"]
    assert (artifact["type"], artifact["state"]) == ("run_table", "COMMITTED")
    assert set(state["answers"]) == {"200"}
    assert state["unknown_operations"] == {}
    assert state["graphql_errors"] == state["internal_errors"] == []


def test_a_wrong_key_is_an_error_to_the_client(
    wandb_loopback: WandbLoopback, tmp_path: Path
) -> None:
    script = """
    try:
        start("r")
        tell("started")
    except Exception as error:
        tell([type(error).__name__, str(error)])
    """
    kind, message = WandbClient(wandb_loopback, tmp_path / "c", script, key="w" * 40).told()
    assert kind == "CommError"
    assert "wrong or missing API key" in message
    assert wandb_loopback.state()["runs"] == []


@pytest.mark.long
def test_default_settings_rewind_alert_image_artifact_and_delete_meet_nothing_unknown(
    wandb_loopback: WandbLoopback, tmp_path: Path
) -> None:
    script = """
    import numpy
    os.environ.pop("WANDB_ERROR_REPORTING")
    run = wandb.init(project="full", id="f")
    for i in range(20):
        print("console line", i)
        run.log({"x": i})
    run.log({"image": wandb.Image(numpy.zeros((4, 4, 3), dtype=numpy.uint8))})
    run.alert("title", "text")
    artifact = wandb.Artifact("data", "dataset")
    with artifact.new_file("f.txt") as file:
        file.write("content")
    run.log_artifact(artifact)
    run.finish()
    wait_for_parent()
    run = wandb.init(project="full", resume_from="f?_step=9")
    run.log({"x": -1})
    run.finish()
    run = wandb.Api().run("lab/full/f")
    rows = [(row["_step"], row["x"]) for row in run.scan_history()]
    run.delete()
    tell([rows, len(wandb.Api().runs("lab/full"))])
    """
    client = WandbClient(wandb_loopback, tmp_path / "c", script)
    client.wait_ready()
    run = wandb_loopback.run("f")
    assert run["alerts"] == [{"title": "title", "text": "text", "severity": "INFO"}]
    assert [(one["collection"], one["state"]) for one in run["artifacts"]] == [
        ("data", "COMMITTED")
    ]
    assert any(name.startswith("media/images/") for name in run["files"])
    assert run["lines_by_file"]["output.log"] >= 20
    client.go_on()
    rows, runs = client.told()
    assert rows == [*([i, i] for i in range(10)), [10, -1]]
    assert runs == 0
    state = wandb_loopback.state()
    assert (set(state["answers"]), state["unknown_operations"]) == ({"200"}, {})
    assert state["graphql_errors"] == state["internal_errors"] == []


# The genuine client: faults. One child streams many runs at once, each with a fault of its own.

RETRIED: dict[str, dict[str, Any]] = {
    "status-500": {"kind": "status", "status": 500, "times": 2},
    "status-503": {"kind": "status", "status": 503},
    "status-429": {"kind": "status", "status": 429, "retry_after": 1},
    "store-500": {"kind": "store_status", "status": 500},
    "half-503": {"kind": "half_status", "status": 503},
    "drop-before": {"kind": "drop", "when": "before"},
    "drop-after": {"kind": "drop", "when": "after"},
    "cut": {"kind": "cut"},
    "stall": {"kind": "stall", "seconds": 2, "when": "after"},
}
RESENT = {"store-500", "half-503", "drop-after"}  # stored; a cut answer's 200 acknowledges
FATAL = (400, 401, 403, 404, 409, 410, 413, 422, 501)
STREAMS = """
retried, fatal = RETRIED_AND_FATAL
faults = retried | {f"fatal-{status}": {"kind": "status", "status": status} for status in fatal}
runs = {name: start(name, reinit="create_new") for name in faults}
for run in runs.values():
    for i in range(40):
        run.log({"x": i})
wait_for_rows(runs)  # the first have gone out; what follows meets the faults
for name, fault in faults.items():
    fail(match="file_stream:rows", run=name, **fault)
for run in runs.values():
    for i in range(40, 101):
        run.log({"x": i})
ended = {}

def finish(name, run):
    try:
        run.finish()
        ended[name] = "returned"
    except BaseException as error:
        ended[name] = repr(error)

threads = [threading.Thread(target=finish, args=pair) for pair in runs.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
tell(ended)
"""


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Any]]:
    """How each run's `finish()` ended, and the server after it."""
    folder = tmp_path_factory.mktemp("streams")
    script = STREAMS.replace("RETRIED_AND_FATAL", repr((RETRIED, FATAL)))
    with WandbLoopback(folder / "server") as server:
        yield WandbClient(server, folder / "client", script).told(), server


@pytest.mark.parametrize("name", RETRIED)
def test_a_passing_fault_is_retried_with_the_same_lines(
    streams: tuple[dict[str, str], WandbLoopback], name: str
) -> None:
    ended, server = streams
    assert ended[name] == "returned"
    (fault,) = [fault for fault in server.faults() if fault["run"] == name]
    assert fault["times_left"] == 0
    run = server.run(name)
    assert [json.loads(text)["x"] for text in run["rows"].values()] == list(range(101))
    assert (run["gaps"], run["duplicate_steps"]) == ([], {})
    assert (run["overwrites"] > 0) == (name in RESENT)
    assert run["overwrites_changed_exactly"] == 0
    assert (run["state"], run["exitcode"]) == ("finished", 0)


@pytest.mark.parametrize("status", FATAL)
def test_a_fatal_status_ends_the_stream_and_finish_says_nothing(
    streams: tuple[dict[str, str], WandbLoopback], status: int
) -> None:
    ended, server = streams
    name = f"fatal-{status}"
    assert ended[name] == "returned"
    run = server.run(name)
    assert 0 < run["history_rows"] < 101
    assert (run["state"], run["complete"]) == ("running", False)


# The genuine client: counts that lie, writers that collide, a server that dies


@pytest.mark.parametrize(
    ("part", "lost"),
    [
        pytest.param("count", 30, marks=pytest.mark.long),
        ("both", 30),
        pytest.param("tail", 0, marks=pytest.mark.long),
    ],
)
def test_a_stale_count_on_resume_overwrites_rows(
    wandb_loopback: WandbLoopback, tmp_path: Path, part: str, lost: int
) -> None:
    script = f"""
    run = start("r", resume="allow")
    for i in range(100):
        run.log({{"x": i}})
    run.finish()
    for operation in ("RunResumeStatus", "UpsertBucket"):
        fail("stale", match="graphql:" + operation, lines=30, part={part!r})
    run = start("r", resume="allow")
    for i in range(100, 150):
        run.log({{"x": i}})
    run.finish()
    tell(run.starting_step)
    """
    assert WandbClient(wandb_loopback, tmp_path / "c", script).told() in (70, 100)
    assert [fault["struck"] for fault in wandb_loopback.faults()] == [1, 1]
    run = wandb_loopback.run("r")
    kept = [json.loads(text)["x"] for text in run["rows"].values()]
    assert kept == [*range(100 - lost), *range(100, 150)]
    assert (run["overwrites"], run["overwrites_changed"]) == (lost, lost)


@pytest.mark.long
def test_two_writers_of_one_run_overwrite_each_other(
    wandb_loopback: WandbLoopback, tmp_path: Path
) -> None:
    script = """
    run = start("r", resume="allow")
    wait_for_parent()
    for i in range(50):
        run.log({"who": WHO, "x": i})
    run.finish()
    tell(run.starting_step)
    """
    writers = [
        WandbClient(wandb_loopback, tmp_path / who, script.replace("WHO", repr(who)))
        for who in ("a", "b")
    ]
    for writer in writers:
        writer.wait_ready()
    for writer in writers:
        writer.go_on()
        assert writer.told() == 0
    run = wandb_loopback.run("r")
    assert {json.loads(text)["who"] for text in run["rows"].values()} == {"b"}
    assert (run["history_rows"], run["overwrites_changed"]) == (50, 50)


@pytest.mark.long
def test_a_client_goes_on_after_sigkill_of_the_server(
    wandb_loopback: WandbLoopback, tmp_path: Path
) -> None:
    script = """
    run = start("r")
    for i in range(60):
        run.log({"x": i})
        time.sleep(0.05)
    wait_for_parent()
    for i in range(60, 100):
        run.log({"x": i})
    run.finish()
    tell("finished")
    """
    client = WandbClient(wandb_loopback, tmp_path / "c", script)
    deadline = time.monotonic() + 120
    while not any(run["history_rows"] for run in wandb_loopback.state()["runs"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = wandb_loopback.run("r")["rows"]
    wandb_loopback.kill()
    client.wait_ready()
    wandb_loopback.start()
    assert before.items() <= wandb_loopback.run("r")["rows"].items()
    client.go_on()
    assert client.told() == "finished"
    run = wandb_loopback.run("r")
    assert [json.loads(text)["x"] for text in run["rows"].values()] == list(range(100))
    assert before.items() <= run["rows"].items()
    assert (run["state"], run["gaps"], run["overwrites_changed"]) == ("finished", [], 0)
