"""What a user holds: init, log, config, summary, finish, and that none of it hurts training."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eventlog
from eventlog.event import CONFIG, DEFINITION, METRIC, NOTE, STATE, SUMMARY, TAG, Event
from eventlog.reader import WriterReader, listing


def events(run: eventlog.Run) -> list[Event]:
    """Return every event of a run, writer by writer."""
    assert run.folder is not None
    out: list[Event] = []
    for writer in listing(run.folder).writers:
        out += WriterReader(run.folder, writer).events()
    return out


def logged(run: eventlog.Run, kind: str = METRIC) -> dict[str, Any]:
    """Return the last value of each key of a kind."""
    return {row.key: row.value for e in events(run) for row in e.rows if row.kind == kind}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with eventlog.init(project="p", name="n", dir=tmp_path, quiet=True) as run:
        yield run


def test_what_goes_in_comes_out_with_its_type(run: eventlog.Run) -> None:
    data = {
        "float": 0.1,
        "negative zero": -0.0,
        "nan": float("nan"),
        "inf": -math.inf,
        "int": 3,
        "big": 2**53 + 1,
        "huge": 10**400,
        "bool": True,
        "none": None,
        "text": "é\ud800",
        "f32": np.float32(0.1),
        "f16": np.float16(0.1),
        "i64": np.int64(2**62 + 1),
        "u64": np.uint64(2**64 - 1),
        "zero-d": np.array(2.5),
        "one": np.array([7], np.int32),
        "list": [1, (np.float32(2), {"a": np.int8(3)})],
    }
    run.log(data, step=1)
    out = logged(run)
    assert list(out) == list(data)
    assert math.isnan(out.pop("nan"))
    assert math.copysign(1, out.pop("negative zero")) == -1
    for key, value in out.items():
        want = data[key].item() if isinstance(data[key], np.ndarray) else data[key]
        assert out[key] == want, key
    kept = {row.key: row.type for row in events(run)[-1].rows}
    assert kept["f32"] == "float32"
    assert kept["u64"] == "uint64"
    assert kept["one"] == "int32"
    assert type(out["f16"]) is np.float16
    assert type(out["list"][1][1]["a"]) is np.int8


def test_anything_with_item_is_a_scalar(run: eventlog.Run) -> None:
    class Tensor:
        dtype = "torch.bfloat16"

        def item(self) -> float:
            return 1.5

    run.log({"t": Tensor()})
    row = events(run)[-1].rows[0]
    assert (row.type, row.value) == ("bfloat16", 1.5)


def test_nested_mappings_flatten_with_a_slash_and_the_last_of_two_wins(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.log({"a": {"b": 1, "c": {"d": 2}}, "a/b": 3, 7: 8})
    assert logged(run) == {"a/c/d": 2, "a/b": 3, "7": 8}
    assert sum("twice" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("bad", [object(), {1, 2}, lambda: None, type])
def test_a_value_that_cannot_be_kept_costs_one_warning_and_nothing_else(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture, bad: object
) -> None:
    for step in range(3):
        run.log({"bad": bad, "good": step}, step=step)
    assert logged(run) == {"good": 2}
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'bad'" in warnings[0].message


def test_a_cycle_is_refused_for_its_key(run: eventlog.Run) -> None:
    loop: list[Any] = []
    loop.append(loop)
    circle: dict[str, Any] = {"x": 1}
    circle["circle"] = circle
    run.log({"loop": loop, "good": 1})
    run.log(circle)
    assert logged(run) == {"good": 1, "x": 1}


@pytest.mark.parametrize("data", [None, 3, "text", [1, 2], object()])
def test_log_of_what_is_no_mapping_does_not_raise(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture, data: Any
) -> None:
    assert run.log(data) is None
    assert caplog.records


@dataclasses.dataclass
class Inner:
    rate: float = 0.5


@dataclasses.dataclass
class Settings:
    """What a training loop may hold: not everything in it can be copied."""

    lr: float = 0.1
    lock: Any = dataclasses.field(default_factory=threading.Lock)
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: list[Inner] = dataclasses.field(default_factory=lambda: [Inner(1.0)])


def test_a_dataclass_of_things_that_cannot_be_copied_is_a_config(tmp_path: Path) -> None:
    run = eventlog.init(dir=tmp_path, config=Settings(), quiet=True)
    run.config.update({"again": {"x": 1}}, more=2)
    run.finish()
    kept = logged(run, CONFIG)
    assert "lock" in kept.pop("lock")
    assert kept == {
        "lr": 0.1,
        "inner": {"rate": 0.5},
        "many": [{"rate": 1.0}],
        "again": {"x": 1},
        "more": 2,
    }


def test_a_config_or_definition_that_is_none_does_not_raise_into_training(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.config.update(5)
    run.summary.update({"good": 1}, ["bad"])
    run.define_metric("x", step_metric=object())  # type: ignore[arg-type]
    assert logged(run, SUMMARY) == {"good": 1}
    assert len(caplog.records) == 3
    with pytest.raises(eventlog.UsageError):
        eventlog.init(dir=Path(run.folder or "").parents[1], config=5, quiet=True)


def test_a_warning_is_no_longer_than_people_read(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.log({"k" * 10**6: object()})
    assert len(caplog.records[0].getMessage()) < 3000


def test_strict_raises_and_still_keeps_the_rest(tmp_path: Path) -> None:
    run = eventlog.init(dir=tmp_path, strict=True, quiet=True)
    with pytest.raises(eventlog.ValueRefused, match="bad"):
        run.log({"bad": object(), "good": 1})
    run.finish()
    assert logged(run) == {"good": 1}


@pytest.mark.parametrize("step", [5, 5.0, np.int64(5), np.float32(5), np.array(5)])
def test_an_integral_step_of_any_type_is_an_int(run: eventlog.Run, step: Any) -> None:
    run.log({"a": 1}, step=step)
    assert events(run)[-1].step == 5


@pytest.mark.parametrize("step", [1.5, "5", True, math.nan, 2**63, object()])
def test_another_step_keeps_the_event_without_one_and_warns_once(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture, step: Any
) -> None:
    run.log({"a": 1}, step=step)
    run.log({"a": 2}, step=step)
    assert [e.step for e in events(run)[-2:]] == [None, None]
    assert sum("step" in r.message for r in caplog.records) == 1


def test_config_summary_tags_definitions_and_state_are_events(tmp_path: Path) -> None:
    config = {"lr": np.float32(1e-3), "model": {"layers": [1, 2]}, "fn": print}
    run = eventlog.init("p", "n", dir=tmp_path, config=config, tags=["a", "b"], quiet=True)
    run.config["lr"] = 2e-3
    run.config.update({"seed": 7})
    run.summary["best"] = 0.9
    run.untag("b")
    run.define_metric("val/*", step_metric="epoch")
    run.finish()
    assert logged(run, CONFIG)["model"] == {"layers": [1, 2]}
    assert logged(run, CONFIG)["lr"] == 2e-3
    assert "built-in function print" in logged(run, CONFIG)["fn"]
    assert logged(run, SUMMARY) == {"best": 0.9}
    assert logged(run, TAG) == {"a": True, "b": False}
    assert logged(run, DEFINITION) == {"val/*": {"step_metric": "epoch"}}
    state = logged(run, STATE)
    assert (state["state"], state["exit_code"]) == ("finished", 0)
    (writer,) = listing(str(run.folder)).writers
    assert state["writers"] == {writer: len(events(run))}
    assert dict(run.config)["seed"] == 7


def test_a_table_is_kept_as_a_blob_and_comes_back(run: eventlog.Run) -> None:
    from eventlog import blobs
    from eventlog.table import Table

    run.log({"t": Table(["a", "b"], [[1, np.float32(2)], ["x", None]])}, step=1)
    reference = logged(run)["t"]
    table = Table.from_bytes(blobs.get(str(run.folder), reference["sha256"]))
    assert (table.columns, table.data) == (["a", "b"], [[1, np.float32(2)], ["x", None]])
    assert reference["rows"] == 2


def test_a_value_over_a_mebibyte_is_a_blob(run: eventlog.Run) -> None:
    from eventlog import blobs

    run.log({"big": "x" * (2**20 + 1)})
    reference = logged(run)["big"]
    assert reference["type"] == "str"
    assert blobs.get(str(run.folder), reference["sha256"]) == b"x" * (2**20 + 1)


def test_the_module_speaks_for_the_latest_run(tmp_path: Path) -> None:
    run = eventlog.init(dir=tmp_path, quiet=True)
    eventlog.log({"a": 1}, step=1)
    eventlog.config["lr"] = 1
    eventlog.summary["b"] = 2
    eventlog.flush()
    eventlog.finish()
    assert logged(run) == {"a": 1}
    assert logged(run, CONFIG) == {"lr": 1}


def test_the_context_manager_records_a_failure(tmp_path: Path) -> None:
    run = eventlog.init(dir=tmp_path, quiet=True)
    with pytest.raises(KeyError), run:
        raise KeyError
    assert logged(run, STATE)["state"] == "failed"


def test_logging_after_finish_warns_and_never_raises(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.finish()
    run.finish()
    run.log({"a": 1})
    assert "finished" in caplog.text


def test_disabled_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENTLOG_MODE", "disabled")
    with eventlog.init(config={"a": 1}) as run:
        assert run.log({"a": 1}) is None
        run.summary["x"] = 1
        run.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [{"mode": "x"}, {"durability": "x"}, {"resume": "x"}, {"resume": "must", "name": "n"},
     {"id": "from-name"}],
)  # fmt: skip
def test_wrong_arguments_are_usage_errors(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(eventlog.UsageError):
        eventlog.init(dir=tmp_path, quiet=True, **arguments)


def test_a_journal_that_cannot_be_opened_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(eventlog.JournalError, match="file"):
        eventlog.init(dir=tmp_path / "file" / "journal", quiet=True)


def test_variables_name_the_run_and_arguments_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DIR": tmp_path, "PROJECT": "vp", "NAME": "vn", "RUN_ID": "vid"}.items():
        monkeypatch.setenv(f"EVENTLOG_{name}", str(value))
    with eventlog.init(name="argument", quiet=True) as run:
        assert (run.project, run.name, run.id) == ("vp", "argument", "vid")
        assert str(run.folder).startswith(str(tmp_path))


def test_names_for_other_places_are_recorded_and_keys_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t-value")
    monkeypatch.setattr(sys, "argv", ["t.py", "--api-key", "s3cr3t-value", "--token=s3cr3t-value"])
    with eventlog.init(dir=tmp_path, quiet=True) as run:
        run.log({"a": 1})
    assert logged(run, NOTE)["env/MLFLOW_RUN_ID"] == "abc"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"s3cr3t-value" not in path.read_bytes(), path
    assert "s3cr3t-value" not in str(logged(run, NOTE))


def test_from_name_is_the_seed_of_verl(tmp_path: Path) -> None:
    import hashlib

    with eventlog.init("p", "n", id="from-name", dir=tmp_path, quiet=True) as run:
        assert run.id == hashlib.md5(b"p/n").hexdigest()[:16]
    with eventlog.init("p", "n", id="from-name", dir=tmp_path, quiet=True) as again:
        assert (again.id, again.attempt) == (run.id, 2)


def test_many_threads_lose_nothing(run: eventlog.Run) -> None:
    def work(n: int) -> None:
        for step in range(500):
            run.log({f"thread{n}": step}, step=step)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = [r.key for e in events(run) for r in e.rows if r.kind == METRIC]
    assert {n: points.count(f"thread{n}") for n in range(4)} == dict.fromkeys(range(4), 500)


def test_a_forked_child_has_a_writer_of_its_own_and_ends_no_run(run: eventlog.Run) -> None:
    run.log({"parent": 1})
    child = os.fork()
    if child == 0:
        try:
            run.log({"child": 1})
            run.finish()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    run.log({"parent": 2})
    run.flush()
    writers = listing(str(run.folder)).writers
    assert len(writers) == 2
    found = events(run)
    assert sorted((r.key, r.value) for e in found for r in e.rows if r.kind == METRIC) == [
        ("child", 1), ("parent", 1), ("parent", 2)
    ]  # fmt: skip
    assert "exit_code" not in logged(run, STATE)


END = {
    "run.finish()": "finished",
    "run.finish(3)": "failed",
    "pass": "closed",
    "raise SystemExit(0)": "closed",
    "raise ValueError('x')": "failed",
    "import threading; threading.Thread(target=run.log, args=({'late': 1},)).start()": "closed",
}


@pytest.mark.parametrize("end", list(END))
def test_every_way_a_process_ends_is_recorded(tmp_path: Path, end: str) -> None:
    code = (
        f"import eventlog; run = eventlog.init('p', 'n', id='x', dir={str(tmp_path)!r});"
        f"run.log({{'a': 1}}, step=1)\n{end}"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=180, check=False)
    folder = tmp_path / "project=p" / "run=x"
    (writer,) = listing(str(folder)).writers
    found = list(WriterReader(str(folder), writer).events())
    state = {r.key: r.value for e in found for r in e.rows if r.kind == STATE}
    assert state["state"] == END[end]
    assert any(r.key == "a" for e in found for r in e.rows)


def test_every_run_of_a_process_is_ended_at_its_exit(tmp_path: Path) -> None:
    """Each of them takes itself out of the list of those that are open."""
    code = f"""
import eventlog
for n in range(4):
    run = eventlog.init('p', 'n', id=f'x{{n}}', dir={str(tmp_path)!r}, durability='memory')
    run.log({{'a': n}})
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=180, check=True)
    for n in range(4):
        folder = str(tmp_path / "project=p" / f"run=x{n}")
        (writer,) = listing(folder).writers
        found = list(WriterReader(folder, writer).events())
        told = {r.key: r.value for e in found for r in e.rows if r.kind in (STATE, METRIC)}
        assert (told["state"], told["a"]) == ("closed", n)


def test_finish_in_a_signal_handler_does_not_take_the_time_to_seal(tmp_path: Path) -> None:
    code = f"""
import eventlog, os, signal, sys, time
run = eventlog.init("p", "n", id="x", dir={str(tmp_path)!r})
run.log({{"a": 1}}, step=1)
def stop(number, frame):
    run.finish(1)
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    folder = tmp_path / "project=p" / "run=x"
    assert not (folder / "sealed").exists()
    assert len(list(folder.glob("*.arrows"))) == 1


def test_the_journal_ignores_itself_for_git_and_says_what_it_is(run: eventlog.Run) -> None:
    journal = Path(str(run.folder)).parent.parent
    assert (journal / ".gitignore").read_text() == "*\n"
    assert "eventlog" in (journal / "README.txt").read_text()


class Hostile:
    """Has no text, no sign and no number."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def item(self) -> object:
        raise RuntimeError("no number")


@pytest.mark.parametrize("step", ["x", 1.5, None, 2**70, True, Hostile()])
def test_a_rewind_to_what_is_no_step_is_one_warning_and_changes_nothing(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture, step: Any
) -> None:
    run.rewind(step)
    run.rewind(step)
    run.log({"a": 1}, step=3)
    (warning,) = caplog.records
    assert "rewind" in warning.getMessage()
    assert "rewind" not in logged(run, STATE)
    assert logged(run) == {"a": 1}


def test_a_tag_that_has_no_text_is_left_out_with_one_warning(
    run: eventlog.Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.tag(Hostile(), "good", Hostile())  # type: ignore[arg-type]
    run.untag(Hostile())  # type: ignore[arg-type]
    (warning,) = caplog.records
    assert "tag" in warning.getMessage()
    assert logged(run, TAG) == {"good": True}


def test_strict_raises_for_them(tmp_path: Path) -> None:
    with eventlog.init("p", "n", dir=tmp_path, quiet=True, strict=True) as run:
        with pytest.raises(eventlog.errors.ValueRefused, match="rewind"):
            run.rewind("x")  # type: ignore[arg-type]
        with pytest.raises(eventlog.errors.ValueRefused, match="tag"):
            run.tag(Hostile())  # type: ignore[arg-type]
