"""The MLflow target against real stores: a database in this process, and servers over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import itertools
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog import frame
from eventlog.errors import AuthenticationError, EventlogError, TemporaryError, UsageError
from eventlog.event import make_rows
from eventlog.value import Stored, dumps
from replayers.mlflow_client import Failure, masked
from replayers.mlflow_identity import HELD, KEY, key_of
from replayers.mlflow_names import LIMIT, file_of, name_of
from replayers.mlflow_names import key_of as key_of_name
from replayers.positions import Positions
from replayers.target import Change, Down, Foreign, Rejected, Retry, RunInfo, RunState
from replayers.to_mlflow import MlflowTarget
from tests import warm
from tests.helpers import examples
from tests.targets.mlflow_server import (
    MlflowServer,
    make_database,
    postgresql,
    postgresql_binaries,
)

T0 = 1_700_000_000_000_000_000
STORES = ["sqlite-file", "http-sqlite", "http-postgresql"]
LARGEST = 1.7976931348623157e308
_number = itertools.count()


# ---------------------------------------------------------------------------------- stores


@pytest.fixture(scope="module")
def starting(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[MlflowServer]]]:
    """The servers, which start at the same time: each takes MLflow many seconds."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:

        def start(name: str, store: str | None) -> MlflowServer:
            folder = tmp_path_factory.mktemp(name)
            if store is not None:
                make_database(folder / "mlflow.db", tmp_path_factory)
            address = store or stack.enter_context(postgresql())
            server = MlflowServer(folder, address.format(folder=folder))
            stack.callback(server.kill)
            server.start()
            return server

        found = {"sqlite": pool.submit(start, "mlflow-sqlite", "sqlite:///{folder}/mlflow.db")}
        wanted = any("http-postgresql" in item.name for item in request.session.items)
        if wanted and postgresql_binaries() is not None:
            found["postgresql"] = pool.submit(start, "mlflow-postgresql", None)
        yield found


@pytest.fixture(scope="module")
def server(starting: dict[str, Future[MlflowServer]]) -> MlflowServer:
    return starting["sqlite"].result()


@pytest.fixture(scope="module")
def postgresql_server(starting: dict[str, Future[MlflowServer]]) -> MlflowServer:
    if "postgresql" not in starting:
        pytest.skip("PostgreSQL's server programs are not installed (apt-get install postgresql)")
    return starting["postgresql"].result()


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs, to be copied."""
    path = tmp_path_factory.mktemp("mlflow-fresh") / "mlflow.db"
    make_database(path, tmp_path_factory)
    return path


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mlflow-file") / "mlflow.db"
    make_database(path, tmp_path_factory)
    return f"sqlite:///{path}"


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest) -> str:
    """The address of each kind of store in turn."""
    if request.param == "sqlite-file":
        return str(request.getfixturevalue("sqlite_uri"))
    name = "server" if request.param == "http-sqlite" else "postgresql_server"
    return str(request.getfixturevalue(name).uri)


@pytest.fixture
def connect() -> Iterator[Callable[..., MlflowTarget]]:
    """Make targets that are closed when the test ends."""
    made: list[MlflowTarget] = []

    def make(uri: str, **more: Any) -> MlflowTarget:
        made.append(MlflowTarget(uri, **more))
        return made[-1]

    yield make
    for target in made:
        target.close()


def run_info(**more: Any) -> RunInfo:
    """Return a run that no other test has."""
    n = next(_number)
    plain: dict[str, Any] = {"id": f"run-{n}", "project": f"project {n}", "name": 'it\'s a "run"'}
    return RunInfo(**{**plain, "created": T0, **more})


# ---------------------------------------------------------------------------------- batches

Event = tuple[int, int, "int | None", str, dict[str, Any]]


def make_batch(events: list[Event], writer: str = "w") -> pa.Table:
    """Return events (seq, time, step, kind, values) as a batch."""
    rows = []
    for seq, time_, step, kind, values in events:
        made, refused = make_rows(kind, values.items())
        assert not refused
        rows += [{"seq": seq, "time": time_, "step": step, **row._asdict()} for row in made]
    kind_ = frame.schema().with_metadata({"eventlog.writer": writer})
    return pa.Table.from_pylist(rows, schema=kind_)


def steps(first: int, last: int, keys: int = 5, seed: int = 0) -> list[Event]:
    """Return events with a metric each of `keys` keys, some of them NaN."""
    events: list[Event] = []
    for seq in range(first, last):
        pick = random.Random(f"{seed} {seq}")
        values = {
            f"k/{k}": pick.choice([math.nan, *[pick.gauss(0, 1e9)] * 40]) for k in range(keys)
        }
        events.append((seq, T0 + seq * 1_500_000 + 123, seq // 2, "metric", values))
    return events


def hostile(first: int) -> list[Event]:
    """Return events with every value and key that MLflow could stumble over."""
    floats = [0.0, -0.0, math.inf, -math.inf, math.nan, LARGEST, -LARGEST, 5e-324, 1 / 3, 1e22]
    bits = random.Random(7)
    floats += [struct.unpack("<d", bits.randbytes(8))[0] for _ in range(90)]
    values: dict[str, Any] = {f"value/{i}": x for i, x in enumerate(floats)}
    values |= {"true": True, "small": 2**53, "big": 2**53 + 1, "bigger": 2**70 + 1}
    values |= {"beyond": 10**400, "text": "nan", "null": None, "list": [1, "x"]}
    keys = [
        "",
        "/",
        "a//b",
        ".",
        "..",
        "../x",
        "a/./b",
        "/a/",
        "val-core/gsm8k/mean@1",
        "%s",
        "a\n",
    ]
    keys += ["a_x40_b", "a@b", "損失", "\U0001f600", "a\\b", "x" * 250, "x" * 251, "x" * 9999, " "]
    keys += ["Loss", "loss", "it's", '"', "`", "system/own", "a:b", "_x0_", "nul\0", "é", "e\u0301"]
    odd: list[Event] = [(first, T0 + 1, 7, "metric", values)]
    odd.append((first + 1, T0 + 2, 2**63 - 1, "metric", dict.fromkeys(keys, 1.0)))
    odd.append((first + 2, T0 + 3, -(2**63), "metric", dict.fromkeys(keys, -1.5)))
    odd.append((first + 3, T0 + 4, None, "metric", {"stepless": 3, "k/0": 9.0}))
    odd.append((first + 4, -5, 3, "metric", {"before 1970": 1.0}))
    odd.append((first + 5, T0 + 5, None, "system", {"own": 0.5, "cpu": 99.0, "system/cpu": 1.0}))
    odd.append((first + 6, T0 + 6, None, "console", {"line": "hello"}))
    return odd


LATEST = ("config", "summary", "tag")


def image_of(target: MlflowTarget, *batches: pa.Table) -> Counter[str]:
    """Return the distinct points that the target should hold after these batches."""
    rows: Counter[str] = Counter()
    newest: dict[tuple[str, str], pa.Table] = {}
    for batch in batches:
        kinds = batch.column("kind").to_pylist()
        rows += as_counter(target.image(batch.filter(pa.array([k not in LATEST for k in kinds]))))
        for i, kind in enumerate(kinds):
            if kind in LATEST:
                newest[kind, batch.column("key")[i].as_py()] = batch.slice(i, 1)
    for row in newest.values():
        rows += as_counter(target.image(row))
    return Counter(set(rows))


def as_counter(table: pa.Table) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in table.to_pylist())


def read_back(session: Any) -> Counter[str]:
    rows: Counter[str] = Counter()
    for table in session.read_back():
        rows += as_counter(table)
    return rows


def rules(changes: list[Change]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for change in changes:
        counts[change.rule] += change.count
    return dict(counts)


class Spy:
    """Stands before a session's or target's store; `before` and `after` may raise for a call."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.logged: list[tuple[list[Any], dict[str, str], dict[str, str]]] = []
        self.before: Callable[..., None] = lambda *call: None
        self.after: Callable[..., None] = lambda *call: None

    def log(self, run: str, points: Any, params: Any, tags: Any) -> None:
        self.before(points, params, tags)
        self.logged.append((list(points), dict(params), dict(tags)))
        self._api.log(run, points, params, tags)
        self.after(points, params, tags)

    def create_run(self, *how: Any) -> Any:
        self.before("create")
        made = self._api.create_run(*how)
        self.after("create")
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)


def spied(target: MlflowTarget, run: RunInfo | None = None) -> Spy:
    """Put a spy before a target's store; it has to be open."""
    target.open(run or run_info())
    spy = Spy(target._api)
    target._api = spy
    return spy


def once(error: Failure, when: Callable[..., bool] = lambda *call: True) -> Callable[..., None]:
    left = [error]

    def fail(*call: Any) -> None:
        if left and when(*call):
            raise left.pop()

    return fail


LOST = Failure(0, "TIMEOUT", "the answer was lost")


# ---------------------------------------------------------------------------------- values


def test_every_point_reads_back_bit_for_bit(uri: str, connect: Callable[..., MlflowTarget]) -> None:
    target, run = connect(uri), run_info()
    session = target.open(run)
    batches = [make_batch(steps(0, 300)), make_batch(hostile(300)), make_batch(steps(307, 500))]
    changes = [change for batch in batches for change in session.send(batch)]
    assert all(session.confirm(batch) for batch in batches)
    assert session.held() == Positions.upto("w", 499)
    want = image_of(target, *batches)
    assert len(want) > 2500
    assert read_back(session) == want
    seen = rules(changes)
    assert seen["inf-clamped"] == 2
    assert seen["negative-zero"] == 1
    assert seen["int-rounded"] == 2
    assert seen["int-out-of-range"] == 1
    assert seen["not-a-number"] == 3
    assert seen["step-from-seq"] == 2
    assert seen["time-clamped"] == 1
    assert seen["kind-not-held"] == 1
    assert seen["time-to-ms"] == 499


def test_mlflow_itself_shows_the_same_points(
    uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    from mlflow.tracking import MlflowClient

    target = connect(uri)
    session = target.open(run_info())
    batch = make_batch([*steps(0, 200), *hostile(200)])
    session.send(batch)
    client = MlflowClient(tracking_uri=uri)
    names = sorted({row["key"] for row in target.image(batch).to_pylist()})
    shown: Counter[tuple[Any, ...]] = Counter()
    for name in [*[n for n in names if n.startswith("k/")], *names[::40]]:
        for point in client.get_metric_history(session.known_as, name):
            bits = struct.unpack("<q", struct.pack("<d", float(point.value)))[0]
            shown[name, point.step, point.timestamp * 1_000_000, bits] += 1
    want = {
        (row["key"], row["step"], row["time"], row["bits"])
        for row in target.image(batch).to_pylist()
        if (row["key"], 0, 0, 0)[0] in {name for name, *_ in shown}
    }
    assert shown == Counter(want)
    assert len(shown) > 1000


def test_values_become_what_the_table_of_rules_says(connect: Callable[..., MlflowTarget]) -> None:
    target = connect("http://127.0.0.1:9")  # an image needs no server
    nan = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]
    events: list[Event] = [
        (0, T0 + 1_999_999, 4, "metric", {"a": math.inf, "b": -0.0, "c": nan, "d": 2**53 + 1})
    ]
    rows = {row["key"]: row for row in target.image(make_batch(events)).to_pylist()}
    bits = {key: struct.pack("<q", row["bits"]).hex() for key, row in rows.items()}
    assert bits["a"] == struct.pack("<d", LARGEST).hex()
    assert bits["b"] == bytes(8).hex()
    assert bits["c"] == "000000000000f87f"
    assert bits["d"] == struct.pack("<d", 2.0**53).hex()
    assert {row["time"] for row in rows.values()} == {T0 + 1_000_000}
    assert {row["step"] for row in rows.values()} == {4}


def test_infinities_are_listed_and_texts_kept_in_tags(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    session = target.open(run_info())
    session.send(
        make_batch(
            [
                (0, T0, 0, "metric", {"a@b": math.inf, "c": "old", "huge": 10**400}),
                (1, T0 + 1, 1, "metric", {"a@b": -math.inf, "c": "new\ud800"}),
            ]
        )
    )
    tags = target._api.run(session.known_as).tags
    assert "Infinity" in tags["eventlog.inf.a_x40_b"]
    assert tags["eventlog.text.c"] == '"new\\ud800"'
    assert json.loads(tags["eventlog.text.huge"])["value"] == hex(10**400)


def test_equal_points_of_a_batch_fold_and_are_counted(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    session = target.open(run_info())
    same = [(seq, T0 + seq, 5, "metric", {"a": math.nan, "b": float(seq)}) for seq in range(4)]
    batch = make_batch(same)
    assert rules(session.send(batch))["folded"] == 3
    assert read_back(session) == image_of(target, batch)
    assert sum(read_back(session).values()) == 5


# ---------------------------------------------------------------------------------- texts


def test_config_summary_and_tags_read_back(uri: str, connect: Callable[..., MlflowTarget]) -> None:
    target = connect(uri)
    session = target.open(run_info())
    config = {"lr": 1e-3, "model": {"name": "q\0wen", "sizes": [1, 2]}, "none": None, "on": True}
    config |= {
        "long": "y" * 7000,
        "": "empty key",
        "empty": "",
        "損/失@": "ü",
        **{f"p{i}": i for i in range(230)},
    }
    batch = make_batch(
        [
            (0, T0, None, "config", config),
            (1, T0, None, "summary", {"best": 0.1, "worst": math.nan, "note": "z" * 9000}),
            (2, T0, None, "tag", {"baseline": True}),
            (3, T0, None, "summary", {"best": 0.30000000000000004}),
            (4, T0, None, "definition", {"val/*": {"step_metric": "epoch"}}),
            (5, T0, None, "state", {"state": "running"}),
        ]
    )
    changes = rules(session.send(batch))
    assert session.confirm(batch)
    assert changes["value-cut"] == 2
    assert changes["nul-stripped"] == 1
    got = read_back(session)
    latest = image_of(target, batch)
    assert got == latest
    view = target._api.run(session.known_as)
    assert view.params["model/name"] == "qwen"
    assert view.params["model/sizes"] == "[1,2]"
    assert view.params["none"] == "None"
    assert view.tags["eventlog.summary.best"] == "0.30000000000000004"
    assert view.tags["eventlog.tag.baseline"] == "true"
    assert view.tags["eventlog.state.state"] == '"running"'
    assert target._api.files(session.known_as, "eventlog/values/config") == {"long.txt"}


def test_a_param_that_changes_becomes_a_tag(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    first = make_batch([(0, T0, None, "config", {"lr": 0.1, "seed": 1})])
    second = make_batch([(1, T0, None, "config", {"lr": 0.2})])
    third = make_batch([(2, T0, None, "config", {"lr": 0.1})])
    session = target.open(run)
    assert "param-immutable" not in rules(session.send(first))
    assert rules(session.send(second))["param-immutable"] == 1
    assert read_back(session) == image_of(target, first, second)
    session = target.open(run)
    session.send(third)
    assert read_back(session) == image_of(target, first, second, third)
    session.send(second)  # comes again, late
    session.send(first)
    assert read_back(session) == image_of(target, first, second, third)


def test_an_older_summary_that_comes_late_does_not_replace_a_newer(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    batches = [make_batch([(i, T0 + i, None, "summary", {"best": i})]) for i in range(5)]
    session = target.open(run)
    for batch in batches:
        session.send(batch)
    session.send(batches[1])
    reopened = target.open(run)
    reopened.send(batches[2])
    assert read_back(reopened) == image_of(target, *batches)


# ---------------------------------------------------------------------------------- exactly once


def test_a_batch_sent_again_whole_in_part_and_out_of_order_changes_nothing(
    uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(uri), run_info()
    events = [*steps(0, 150), *hostile(150)]
    batch = make_batch(events)
    session = target.open(run)
    session.send(make_batch(events[:100]))
    session.send(make_batch(events[50:]))
    session.send(make_batch(events[20:40]))
    assert session.held() == Positions.upto("w", 156)
    again = target.open(run)
    again.send(batch)
    assert again.held() == Positions.upto("w", 156)
    assert again.confirm(batch)
    assert read_back(again) == image_of(target, batch)


def test_a_sender_killed_at_any_point_leaves_nothing_double_and_nothing_out(uri: str) -> None:
    run, events = run_info(), steps(0, 240, keys=8)
    before = MlflowTarget(uri)
    before.open(run)
    before.close()  # no connection crosses the fork
    seen = [0]
    for kill, delay in enumerate((0.0, 0.01, 0.02, 0.04)):
        told, tell = os.pipe()
        allowed, allow = os.pipe()
        os.write(allow, b"." * 9)  # not all of them, however late the kill
        child = os.fork()
        if child == 0:
            _send_rest(uri, run, events, tell, allowed)
        for _ in range(3 + kill):  # as many batches are begun before the kill
            os.read(told, 1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (told, tell, allowed, allow):
            os.close(end)
        target = MlflowTarget(uri)
        seen.append(target.open(run).held().prefix("w"))
        target.close()
    assert seen == sorted(seen)
    assert 0 < seen[-1] < len(events), "no kill hit a send that was under way"
    target = MlflowTarget(uri)
    session = target.open(run)
    session.send(make_batch(events[seen[-1] :]))
    assert session.held() == Positions.upto("w", 239)
    assert read_back(session) == image_of(target, make_batch(events))
    target.close()


def _send_rest(uri: str, run: RunInfo, events: list[Event], tell: int, allowed: int) -> None:
    try:
        session = MlflowTarget(uri).open(run)
        for at in range(session.held().prefix("w"), len(events), 6):
            os.read(allowed, 1)
            os.write(tell, b".")
            session.send(make_batch(events[at : at + 6]))
    finally:
        os._exit(0)


def test_a_server_killed_under_way_is_temporary_and_loses_nothing(
    server: MlflowServer, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(server.uri), run_info(), steps(0, 400, keys=20)
    session = target.open(run)
    killer = threading.Timer(0.1, server.kill)
    sent = 0
    try:
        with pytest.raises(TemporaryError):
            for at in range(0, len(events), 10):
                if at == 50:
                    killer.start()
                if at == len(events) - 10:
                    killer.join()  # whatever kept it: the last one meets no server
                session.send(make_batch(events[at : at + 10]))
                sent = at + 10
        with pytest.raises(TemporaryError) as down:
            session.held()
        assert server.uri in str(down.value)
    finally:
        killer.join()
        server.start()
    held = session.held().prefix("w")
    assert len(events) > held >= sent > 0
    session.send(make_batch(events[held:]))
    assert session.confirm(make_batch(events))
    assert read_back(session) == image_of(target, make_batch(events))


@pytest.mark.parametrize("lost_after", [False, True], ids=["request lost", "answer lost"])
def test_a_lost_answer_is_retried_and_changes_nothing(
    sqlite_uri: str, connect: Callable[..., MlflowTarget], lost_after: bool
) -> None:
    target, run = connect(sqlite_uri), run_info()
    spy = spied(target, run)
    session = target.open(run)
    batch = make_batch(steps(0, 100))
    setattr(spy, "after" if lost_after else "before", once(LOST))
    with pytest.raises(Retry):
        session.send(batch)
    session.send(batch)
    assert session.confirm(batch)
    assert read_back(session) == image_of(target, batch)


def test_a_lost_answer_to_the_creation_of_a_run_makes_no_second_one(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    spy = spied(target)
    spy.after = once(LOST, lambda what, *rest: what == "create")
    session = target.open(run)
    experiment = target._api.experiment(run.project)[0]
    assert [view.id for view in target._api.search([experiment], "")] == [session.known_as]


@pytest.fixture
def lossy(server: MlflowServer) -> Iterator[tuple[str, list[str]]]:
    """A proxy before the server: it loses the answer to a request whose path ends as the first
    of the list does, after the server has done it."""
    lose: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            onward = http.client.HTTPConnection("127.0.0.1", server.port)
            kind = self.headers.get("Content-Type", "application/json")
            onward.request(self.command, self.path, body, {"Content-Type": kind})
            answer = onward.getresponse()
            content = answer.read()
            onward.close()
            if lose and self.path.endswith(lose[0]):
                lose.pop(0)
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _pass_on

        def log_message(self, *args: Any) -> None:
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}", lose
    proxy.shutdown()
    proxy.server_close()


def test_answers_that_a_network_loses_make_no_second_run_and_no_second_point(
    lossy: tuple[str, list[str]], connect: Callable[..., MlflowTarget]
) -> None:
    uri, lose = lossy
    target, run, batch = connect(uri), run_info(), make_batch(steps(0, 400))
    lose += ["runs/create", "runs/log-batch", "runs/log-batch"]
    session = target.open(run)
    experiment = target._api.experiment(run.project)[0]
    assert [view.id for view in target._api.search([experiment], "")] == [session.known_as]
    for _ in range(2):
        with pytest.raises(TemporaryError):
            session.send(batch)
    assert lose == []
    session.send(batch)
    assert session.confirm(batch)
    assert read_back(session) == image_of(target, batch)


def test_a_creation_that_never_arrived_is_temporary(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    spy = spied(target)
    spy.before = once(LOST, lambda what, *rest: what == "create")
    with pytest.raises(TemporaryError):
        target.open(run)
    assert target.open(run).held() == Positions()


def test_with_its_tag_lost_a_run_is_filled_up_without_sending_what_is_there(
    uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(uri), run_info(), [*steps(0, 300), *hostile(300)]
    session = target.open(run)
    session.send(make_batch(events[:200]))
    target._api.log(session.known_as, [], {}, {HELD + "w": "gone"})
    spy = spied(target, run)
    session = target.open(run)
    assert session.held() == Positions()
    session.send(make_batch(events))
    sent = sum(len(points) for points, _, _ in spy.logged)
    assert sent == len(image_of(target, make_batch(events[200:])))
    assert session.held() == Positions.upto("w", 306)
    assert read_back(session) == image_of(target, make_batch(events))


def test_filling_up_sends_what_lies_before_the_points_of_another_writer(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    ours, theirs = make_batch(steps(0, 400), "w1"), make_batch(steps(0, 400, seed=1), "w2")
    session = target.open(run)
    session.send(make_batch(steps(0, 250), "w1"))
    session.send(theirs)
    target._api.log(session.known_as, [], {}, {HELD + "w1": ""})
    spy = spied(target, run)
    session = target.open(run)
    session.send(ours)
    missing = image_of(target, make_batch(steps(250, 400))) - image_of(target, theirs)
    assert sum(len(points) for points, _, _ in spy.logged) == missing.total() > 700
    assert session.held() == Positions.upto("w1", 399) | Positions.upto("w2", 399)
    assert read_back(session) == image_of(target, ours, theirs)


def test_a_server_that_stumbles_over_known_points_gets_only_the_others(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(sqlite_uri), run_info(), steps(0, 60)
    session = target.open(run)
    session.send(make_batch(events[:40]))
    known = {
        (row["key"], row["step"], row["time"], row["bits"])
        for row in target.image(make_batch(events[:40])).to_pylist()
    }

    def stumble(points: Any, *rest: Any) -> None:
        if any((p.name, p.step, p.ms * 1_000_000, p.bits) in known for p in points):
            raise Failure(
                500, "INTERNAL_ERROR", "(sqlite3.IntegrityError) UNIQUE constraint failed"
            )

    spy = spied(target, run)
    session = target.open(run)
    session.send(make_batch(events[59:]))  # the writer is past doubt now
    spy.before = stumble
    session._delivery.held.clear()
    session.send(make_batch(events))
    assert read_back(session) == image_of(target, make_batch(events))


def test_writers_are_held_each_by_its_own_tag(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    session = target.open(run)
    ours, theirs = make_batch(steps(0, 30), "w1"), make_batch(steps(0, 20, seed=1), "w2")
    session.send(ours)
    session.send(theirs)
    assert session.held() == Positions.upto("w1", 29) | Positions.upto("w2", 19)
    assert not session.confirm(make_batch(steps(0, 1), "w3"))
    assert read_back(session) == image_of(target, ours, theirs)


def test_an_event_wider_than_a_request_is_held_only_with_its_last_part(
    sqlite_uri: str, connect: Callable[..., MlflowTarget], repeats: Callable[[int, int], int]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    spy = spied(target, run)
    session = target.open(run)
    keys = repeats(1050, 2000)  # a request takes 1,000
    wide: Event = (3, T0, 0, "metric", {f"wide/{i}": float(i) for i in range(keys)})
    batch = make_batch([*steps(0, 3), wide, *steps(4, 6)])
    spy.before = once(
        LOST, lambda points, *rest: any(p.name == f"wide/{keys - 10}" for p in points)
    )
    with pytest.raises(Retry):
        session.send(batch)
    assert session.held() == Positions.upto("w", 2)
    assert not session.confirm(batch)
    session.send(batch)
    assert session.confirm(batch)
    assert session.held() == Positions.upto("w", 5)
    assert all(len(p) + len(c) + len(t) <= 1000 for p, c, t in spy.logged)
    assert read_back(session) == image_of(target, batch)


def test_confirm_sees_that_points_are_gone(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    import sqlite3

    target, run = connect(sqlite_uri), run_info()
    session, batch = target.open(run), make_batch(steps(0, 10))
    session.send(batch)
    assert session.confirm(batch)
    with sqlite3.connect(sqlite_uri[len("sqlite:///") :]) as database:
        for table in ("metrics", "latest_metrics"):
            where = "WHERE run_uuid = ? AND key = 'k/3'"
            database.execute(f"DELETE FROM {table} {where}", [session.known_as])
    database.close()
    assert not session.confirm(batch)
    session.send(batch)
    assert session.confirm(batch)
    assert read_back(session) == image_of(target, batch)


# ---------------------------------------------------------------------------------- identity


def test_opening_twice_gives_one_run_with_its_own_start_and_name(
    uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    run = run_info(owner="ada", id='löwe\'s "id"' + str(next(_number)))
    first, second = connect(uri), connect(uri)
    opened = first.open(run)
    assert second.open(run).known_as == opened.known_as
    wrong = RunInfo(**{**vars(run), "known_as": "no such run"})
    assert second.open(wrong).known_as == opened.known_as
    from mlflow.tracking import MlflowClient

    shown = MlflowClient(tracking_uri=uri).get_run(opened.known_as)
    assert shown.info.start_time == T0 // 1_000_000
    assert shown.info.run_name == run.name
    assert shown.data.tags["mlflow.user"] == "ada"
    assert shown.data.tags["eventlog.run"] == run.id


def test_runs_of_the_same_name_or_of_another_project_stay_apart(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    a, b = run_info(project="p", id="1"), run_info(project="p", id="2")
    c = run_info(project="q", id="1")
    assert len({target.open(run).known_as for run in (a, b, c)}) == 3


def test_a_run_that_moved_to_another_experiment_is_found(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    elsewhere = RunInfo(**{**vars(run), "elsewhere": {"MLFLOW_EXPERIMENT_NAME": "other" + run.id}})
    assert target.open(run).known_as == target.open(elsewhere).known_as


def test_many_who_open_a_run_at_once_end_with_one(
    server: MlflowServer, connect: Callable[..., MlflowTarget]
) -> None:
    run, errors = run_info(), []
    target = connect(server.uri)
    target.open(run_info())

    def open_it() -> None:
        try:
            target.open(run)
        except EventlogError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = target.open(run)
    session.send(make_batch(steps(0, 5)))
    where = f"tags.`{KEY}` = '{key_of(run)}'"
    found = target._api.search(target._api.experiments(), where)
    assert [view.id for view in found if view.active] == [session.known_as]
    assert all(isinstance(error, (Foreign, TemporaryError)) for error in errors)


def test_of_two_runs_the_one_with_data_is_kept_and_the_empty_one_deleted(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    kept = target.open(run)
    kept.send(make_batch(steps(0, 3)))
    view = target._api.run(kept.known_as)
    twins = [
        target._api.create_run(view.experiment, 0, "", "twin", {KEY: key_of(run)}) for _ in range(5)
    ]
    again = target.open(run)
    assert again.known_as == kept.known_as
    assert rules(again.send(make_batch(steps(3, 4))))["empty-twin-deleted"] == 5
    assert not any(target._api.run(twin.id).active for twin in twins)
    third = target._api.create_run(view.experiment, 0, "", "twin", {KEY: key_of(run)})
    target._api.log(third.id, [], {"a": "1"}, {})
    with pytest.raises(Foreign, match="several runs"):
        target.open(run)


def test_mlflow_run_id_is_adopted_unless_it_is_anothers(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    target.open(run_info())
    experiment = target._api.create_experiment("given" + str(next(_number)))
    given = target._api.create_run(experiment, 5, "someone", "theirs", {"their": "tag"}).id
    run = run_info(elsewhere={"MLFLOW_RUN_ID": given})
    session = target.open(run)
    assert session.known_as == given
    assert target.open(run).known_as == given
    session.send(make_batch(steps(0, 3)))
    assert target._api.run(given).tags["their"] == "tag"
    with pytest.raises(Foreign, match="belongs to another"):
        target.open(run_info(elsewhere={"MLFLOW_RUN_ID": given}))
    with pytest.raises(UsageError, match="does not exist"):
        target.open(run_info(elsewhere={"MLFLOW_RUN_ID": "0" * 32}))


def test_mlflow_run_id_of_this_environment_counts_where_none_was_recorded(
    sqlite_uri: str, connect: Callable[..., MlflowTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = connect(sqlite_uri)
    run = run_info()
    first = target.open(run)
    experiment = target._api.create_experiment("here" + str(next(_number)))
    theirs = target._api.create_run(experiment, 5, "someone", "theirs", {}).id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    with pytest.raises(UsageError, match=f"was delivered to {first.known_as}"):
        target.open(run)
    session = target.open(run_info())
    assert (session.known_as, session.found_by) == (theirs, "MLFLOW_RUN_ID")


def test_a_session_says_how_its_run_was_found(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    run = run_info()
    made = target.open(run)
    assert made.found_by is None
    assert target.open(run).found_by == "its tag eventlog.key"
    known = RunInfo(**{**vars(run), "known_as": made.known_as})
    assert target.open(known).found_by == "its id"


def test_a_run_is_adopted_by_name_only_with_consent_and_only_if_it_is_the_only_one(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    run = run_info(name='it\'s `the` "one"')
    target.open(run_info())
    experiment = target._api.create_experiment(run.project)
    theirs = target._api.create_run(experiment, 5, "", run.name, {}).id
    consent = RunInfo(**{**vars(run), "adopt_by_name": True})
    other = RunInfo(**{**vars(run), "id": "other"})
    assert target.open(other).known_as != theirs
    adopted = target.open(consent)
    assert (adopted.known_as, adopted.found_by) == (theirs, "its name")
    for _ in range(2):
        target._api.create_run(experiment, 5, "", "same", {})
    with pytest.raises(UsageError, match="2 runs have the name"):
        target.open(RunInfo(**{**vars(consent), "id": "third", "name": "same"}))


def test_a_deleted_run_is_refused_and_says_how_to_restore_it(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    session = target.open(run)
    target._api.delete(session.known_as)
    for action in (
        lambda: target.open(run),
        lambda: target.open(RunInfo(**{**vars(run), "known_as": session.known_as})),
        session.held,
        lambda: session.send(make_batch(steps(0, 2))),
        lambda: session.close(RunState("finished")),
    ):
        with pytest.raises(Foreign, match="restore"):
            action()


def test_a_deleted_experiment_is_named(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    target.open(run_info())
    experiment = target._api.create_experiment(run.project)
    target._api._store.delete_experiment(experiment)
    with pytest.raises(UsageError, match="was deleted"):
        target.open(run)


def test_a_known_run_that_lost_its_identity_is_not_replaced_in_silence(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    session = target.open(run)
    target._api._store.delete_tag(session.known_as, KEY)
    with pytest.raises(Foreign, match="lost its tag"):
        target.open(RunInfo(**{**vars(run), "known_as": session.known_as}))
    with pytest.raises(Foreign, match="lost its tag"):
        session.held()


# ---------------------------------------------------------------------------------- the end


def test_the_original_status_and_end_are_set_and_a_resumed_run_is_reopened(
    uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(uri)
    session = target.open(run_info())
    spy = target._api

    def shown() -> tuple[str, int | None]:
        view = spy.run(session.known_as)
        return view.status, view.ended

    session.close(RunState("running"))
    assert shown() == ("RUNNING", None)
    for status, word in {
        "finished": "FINISHED",
        "failed": "FAILED",
        "closed": "FINISHED",
        "unknown": "KILLED",
    }.items():
        session.close(RunState(status, T0 + 5_000_000_000, 0))
        session.close(RunState(status, T0 + 5_000_000_000, 0))
        assert shown() == (word, T0 // 1_000_000 + 5000)
    session.close(RunState("running"))
    assert shown()[0] == "RUNNING"


# ---------------------------------------------------------------------------------- refusals


def test_the_events_that_mlflow_refuses_are_named_and_the_others_stored(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(sqlite_uri), run_info(), steps(0, 120)
    spy = spied(target, run)
    session = target.open(run)
    bad_steps = {23, 41}

    def refuse(points: Any, *rest: Any) -> None:
        if any(p.step in bad_steps for p in points):
            raise Failure(400, "INVALID_PARAMETER_VALUE", "no such step")

    spy.before = refuse
    with pytest.raises(Rejected) as refused:
        session.send(make_batch(events))
    assert refused.value.seqs == {46, 47, 82, 83}
    good = [event for event in events if event[0] not in refused.value.seqs]
    session.send(make_batch(good))
    assert session.confirm(make_batch(good))
    assert read_back(session) == image_of(target, make_batch(good))


def test_a_batch_that_fails_inside_the_server_twice_is_searched_too(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(sqlite_uri), run_info(), steps(0, 50)
    spy = spied(target, run)
    session = target.open(run)

    def fail(points: Any, *rest: Any) -> None:
        if any(p.step == 7 for p in points):
            raise Failure(500, "INTERNAL_ERROR", "poison")

    spy.before = fail
    with pytest.raises(Retry):
        session.send(make_batch(events))
    with pytest.raises(Rejected) as refused:
        session.send(make_batch(events))
    assert refused.value.seqs == {14, 15}


def test_a_proxy_that_takes_only_small_requests_gets_small_ones(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run, events = connect(sqlite_uri), run_info(), steps(0, 100)
    spy = spied(target, run)
    session = target.open(run)

    def limit(points: Any, *rest: Any) -> None:
        if len(points) > 150:
            raise Failure(413, "", "Request Entity Too Large")

    spy.before = limit
    session.send(make_batch(events))
    assert session.confirm(make_batch(events))
    assert read_back(session) == image_of(target, make_batch(events))


def test_a_server_that_fails_at_everything_rejects_no_event(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target, run = connect(sqlite_uri), run_info()
    spy = spied(target, run)
    session = target.open(run)

    def fail(*call: Any) -> None:
        raise Failure(500, "INTERNAL_ERROR", "out of order")

    spy.before = fail
    for _ in range(3):
        with pytest.raises(Retry):
            session.send(make_batch(steps(0, 20)))


def test_rows_that_are_not_what_their_type_says_are_rejected(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri)
    session = target.open(run_info())
    batch = make_batch([*steps(0, 3), (3, T0, 0, "metric", {"x": Stored("int", None, b"1o1")})])
    with pytest.raises(Rejected, match="'x' is no valid int") as refused:
        session.send(batch)
    assert refused.value.seqs == {3}
    assert len(target.image(batch)) == 15


# ---------------------------------------------------------------------------------- tables

SHEET = dumps({"columns": ["text", "score"], "data": [["a", 0.5], ["b", math.nan]]})
SHA = hashlib.sha256(SHEET).hexdigest()


def table_batch(seq: int, sha256: str = SHA) -> pa.Table:
    reference = dumps({"sha256": sha256, "size": len(SHEET), "rows": 2, "columns": 2})
    stored = Stored("table", None, reference)
    return make_batch([(seq, T0, 7, "metric", {"val/generations": stored, "loss": 1.0})])


def test_a_table_becomes_an_artifact_before_it_is_held(
    uri: str,
    connect: Callable[..., MlflowTarget],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = connect(uri, read_blob=lambda run, sha256: {SHA: SHEET}[sha256])
    session = target.open(run_info())
    batch = table_batch(0)
    assert not session.confirm(batch)
    changes = session.send(batch)
    assert rules(changes)["table-nonfinite"] == 1
    session.send(batch)
    assert session.confirm(batch)
    assert read_back(session) == image_of(target, batch)
    if uri.startswith("http"):
        from mlflow.tracking import MlflowClient

        path = f"eventlog/tables/{file_of('val/generations')}/step=7-{SHA}.json"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow 3.1 heeds nothing else here
        client = MlflowClient(tracking_uri=uri)
        local = client.download_artifacts(session.known_as, path, str(tmp_path))
        assert json.loads(Path(local).read_text()) == {
            "columns": ["text", "score"],
            "data": [["a", 0.5], ["b", None]],
        }
    else:
        (local_path,) = Path(uri[len("sqlite:///") :] + ".artifacts").rglob(f"*{SHA}.json")
        local_path.unlink()
        assert not session.confirm(batch)


def test_a_table_whose_blob_is_gone_is_rejected_and_without_blobs_left_out(
    sqlite_uri: str, connect: Callable[..., MlflowTarget]
) -> None:
    target = connect(sqlite_uri, read_blob=lambda run, sha256: {SHA: SHEET}[sha256])
    with pytest.raises(Rejected) as refused:
        target.open(run_info()).send(table_batch(5, "0" * 64))
    assert refused.value.seqs == {5}
    plain = connect(sqlite_uri)
    session = plain.open(run_info())
    assert rules(session.send(table_batch(0)))["table-not-held"] == 1
    assert read_back(session) == image_of(plain, table_batch(0))


# ---------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "uri",
    [
        "file:///tmp/mlruns",
        "./mlruns",
        "databricks",
        "databricks://profile",
        "sqlite://",
        "ftp://x",
    ],
)
def test_what_cannot_be_a_target_is_refused_with_a_reason(uri: str) -> None:
    with pytest.raises(UsageError) as refused:
        MlflowTarget(uri)
    assert len(str(refused.value)) > 40


def test_addresses_and_messages_carry_no_credentials(connect: Callable[..., MlflowTarget]) -> None:
    target = connect("http://ada:secret@127.0.0.1:9/ml?token=secret")
    assert target.address == "http://127.0.0.1:9/ml"
    with pytest.raises(Down) as down:
        connect("http://ada:secret@127.0.0.1:9").open(run_info())
    assert "secret" not in str(down.value)
    assert "127.0.0.1:9" in str(down.value)
    assert (
        masked("GET http://a:b@h/x?token=abc&y=1 failed") == "GET http://h/x?token=***&y=1 failed"
    )


def test_a_database_in_a_folder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="folder"):
        MlflowTarget("sqlite:////no/such/folder/m.db").open(run_info())


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that gives one and the same answer to every request."""
    answer: dict[str, Any] = {"status": 200, "headers": {}, "body": b"{}"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(answer["status"])
            for name, value in answer["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        do_GET = do_POST = _answer

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"", AuthenticationError),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', AuthenticationError),
        (429, b"", Retry),
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "oops"}', Retry),
        (503, b"<html>", Retry),
        (200, b"<html>please log in</html>", UsageError),
        (404, b"<html>", UsageError),
    ],
)
def test_answers_become_the_right_error(
    answering: tuple[str, dict[str, Any]],
    connect: Callable[..., MlflowTarget],
    status: int,
    body: bytes,
    error: type[EventlogError],
) -> None:
    uri, answer = answering
    answer |= {"status": status, "body": body, "headers": {"Retry-After": "17"}}
    with pytest.raises(error) as raised:
        connect(uri).open(run_info())
    assert type(raised.value) is error
    assert uri in str(raised.value)
    if isinstance(raised.value, Retry):
        assert raised.value.after == 17.0


def test_importing_needs_no_mlflow(tmp_path: Path) -> None:
    code = """
import sys
from replayers.to_mlflow import MlflowTarget
MlflowTarget(sys.argv[1])
assert "mlflow" not in sys.modules
"""
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/m.db"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("start", ["warm", pytest.param("cold", marks=pytest.mark.long)])
def test_delivering_prints_nothing(start: str, fresh_database: Path, tmp_path: Path) -> None:
    shutil.copy(fresh_database, tmp_path / "m.db")
    code = """
import sys
from replayers.target import RunInfo, RunState
from replayers.to_mlflow import MlflowTarget
target = MlflowTarget(sys.argv[1])
session = target.open(RunInfo("id", "project", "name", 10**18))
session.close(RunState("finished", 10**18 + 5))
target.close()
"""
    uri = f"sqlite:///{tmp_path}/m.db"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if start == "warm":
        done = warm.python(code, uri, imports=warm.MLFLOW, cwd=tmp_path, env=env)
    else:
        command = [sys.executable, "-c", code, uri]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made = {path.name for path in tmp_path.iterdir()}  # MLflow 3.1 makes the artifacts at once
    assert made <= {"m.db", "m.db-wal", "m.db-shm", "m.db.artifacts"}


@pytest.mark.long
def test_a_new_database_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    code = """
import sys
from replayers.target import RunInfo
from replayers.to_mlflow import MlflowTarget
MlflowTarget(sys.argv[1]).open(RunInfo("id", "project", "name", 10**18))
"""
    database = tmp_path / "new.db"
    command = [sys.executable, "-c", code, f"sqlite:///{database}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not any(p.stat().st_size > 100_000 for p in tmp_path.glob("new.db.new-*")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "it was made before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert not database.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert database.exists()


def test_a_port_that_is_no_number_is_wrong_usage() -> None:
    for uri in ("postgresql://u:secret@h:notaport/db", "http://h:x"):
        with pytest.raises(UsageError) as caught:
            MlflowTarget(uri)
        assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------- names

keys = st.text(
    st.one_of(st.sampled_from("_x0f4@/. :-h"), st.characters(codec="utf-8")), max_size=40
)
long_keys = st.builds(lambda part, n: (part * n)[:700], keys.filter(bool), st.integers(1, 60))


def is_valid(name: str, limit: int) -> bool:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(name)  # MLflow's own rule: raises
    return len(name) <= limit


@settings(max_examples=examples(50, 150), deadline=None)
@given(st.one_of(keys, long_keys), st.sampled_from([64, 120, LIMIT]))
def test_every_key_has_a_name_that_mlflow_takes_and_that_leads_back(key: str, limit: int) -> None:
    name = name_of(key, limit)
    assert is_valid(name, limit)
    assert key_of_name(name) in (key, None)
    assert key_of_name(name_of(key, 10**6)) == key
    assert len(file_of(key)) <= 128
    assert set(file_of(key)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


@settings(max_examples=examples(100, 400), deadline=None)
@given(st.lists(st.one_of(keys, long_keys), min_size=2, max_size=2, unique=True), st.data())
def test_no_two_keys_have_the_same_name(pair: list[str], data: st.DataObject) -> None:
    first, second = pair
    assert name_of(first) != name_of(second)
    assert file_of(first) != file_of(second)
    # What a name looks like is a key, too.
    assert name_of(name_of(first)) != name_of(first) or name_of(first) == first
    cut = data.draw(st.integers(0, 300))
    assert name_of(first) != name_of(name_of(first)[:cut]) or first == name_of(first)[:cut]


def test_a_key_that_looks_like_a_shortened_name_has_another_name() -> None:
    for ending in ("_x40", "_x40_", "_", "_x4"):
        for width in range(190, 225):
            name = name_of("y" * width + ending + "z" * 300)
            plain = name.replace("_x40_xh", "@xh").replace("_x4_xh", "\x04xh")
            assert name_of(plain) != name
            assert name_of(name) != name


def test_every_letter_that_is_kept_is_one_for_mlflow() -> None:
    kept = [chr(c) for c in range(0x30000) if name_of(chr(c)) == chr(c)]
    assert len(kept) > 80_000
    assert all(
        is_valid("".join(kept[at : at + 100]).strip("/."), 100) for at in range(0, len(kept), 100)
    )
