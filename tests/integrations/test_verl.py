"""The logger of verl, with verl's genuine loggers: it registers, shares, ends, and never raises."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import types
from collections import UserDict, UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eventlog import blobs
from eventlog.catalog import find_all
from eventlog.event import CONFIG, NOTE, STATE
from eventlog.frame import to_events
from eventlog.glance import glance
from eventlog.reader import WriterReader, headers
from eventlog.table import Table
from eventlog.views import open_view
from tests.integrations import verl_source

pytestmark = pytest.mark.skipif(
    verl_source.find() is None, reason="verl's source is not there (tools/test brings it)"
)
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tracking() -> Any:
    """verl's genuine module, registered with."""
    return verl_source.tracking()


@pytest.fixture
def runs(tracking: Any) -> Any:
    """The runs of this process; none is left behind."""
    from eventlog.integrations import verl_runs

    yield verl_runs
    for shared in list(verl_runs._shared.values()):
        shared.end(None)
    verl_runs._shared.clear()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Any) -> None:
    monkeypatch.chdir(tmp_path)


def config(folder: Any = "journal", **settings: Any) -> dict[str, Any]:
    return {"trainer": {"logger": ["eventlog"], "eventlog": {"dir": str(folder), **settings}}}


def events(journal: str = "journal") -> list[Any]:
    """Every event of the journal's one run, writer by writer in the order of their starts."""
    (found,), bad = find_all((journal,))
    assert not bad
    writers = [w for a in glance(found.folder).attempts for w in a.writers]
    return [e for w in writers for e in WriterReader(found.folder, w).events()]


def metrics(journal: str = "journal") -> list[tuple[int | None, dict[str, Any]]]:
    return [(e.step, e.values()) for e in events(journal) if e.values()]


def ended(journal: str = "journal") -> Any:
    """How the run ended: (state, exit code)."""
    (found,), _ = find_all((journal,))
    look = glance(found.folder)
    return look.status, look.exit_code


def table(reference: dict[str, Any], journal: str = "journal") -> Table:
    (found,), _ = find_all((journal,))
    return Table.from_bytes(blobs.get(found.folder, reference["sha256"]))


# ------------------------------------------------------------------------------ registering


def test_importing_the_plug_in_loads_neither_pyarrow_nor_a_backend() -> None:
    code = (
        "import sys; from tests.integrations import verl_source; t = verl_source.tracking(); "
        "names = 'pyarrow numpy wandb mlflow trackio torch ray'.split(); "
        "print(t.Tracking.supported_backend[-1], [m for m in names if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "eventlog []"


def test_the_entry_point_names_the_module_that_registers() -> None:
    text = (TOP / "pyproject.toml").read_text()
    group = text.partition('[project.entry-points."verl.plugins"]\n')[2]
    assert group.startswith('eventlog = "eventlog.integrations.verl"\n')


def test_registering_again_changes_nothing(tracking: Any) -> None:
    from eventlog.integrations.verl import register

    before = dict(vars(tracking.Tracking)), list(tracking.Tracking.supported_backend)
    register(tracking)
    tracking.Tracking.supported_backend.remove("eventlog")  # a test of ours: as if half done
    register(tracking)
    assert tracking.Tracking.supported_backend == before[1]
    for name in ("__init__", "finish", "__del__"):
        assert vars(tracking.Tracking)[name] is before[0][name]


def test_a_verl_that_has_a_backend_of_this_name_is_left_alone() -> None:
    from eventlog.integrations.verl import register

    class Tracking:
        supported_backend = ("console", "eventlog")

    before = dict(vars(Tracking))
    register(types.SimpleNamespace(Tracking=Tracking))  # type: ignore[arg-type]
    assert dict(vars(Tracking)) == before


def test_an_older_verl_without_finish_and_tables_is_registered_with() -> None:
    from eventlog.integrations.verl import register

    class Tracking:
        supported_backend = ("console",)

        def __init__(self, project_name: str, experiment_name: str, default_backend: Any) -> None:
            self.logger: dict[str, Any] = {}

    register(types.SimpleNamespace(Tracking=Tracking))  # type: ignore[arg-type]
    old = Tracking("p", "n", "eventlog")
    old.logger["eventlog"].log(data={"loss": 0.5}, step=1)
    old.logger["eventlog"].finish()
    assert metrics("eventlog-data") == [(1, {"loss": 0.5})]


def test_a_logger_that_verl_does_not_know_is_still_refused(tracking: Any) -> None:
    with pytest.raises(AssertionError, match="nonsense is not supported"):
        tracking.Tracking("p", "n", ["nonsense"])


# ------------------------------------------------------------------------------ logging


@pytest.mark.parametrize("loggers", [["file", "eventlog"], ["eventlog"], "eventlog"])
def test_a_list_of_loggers_or_a_text_works(tracking: Any, loggers: Any) -> None:
    one = tracking.Tracking("p", "n", loggers, config())
    one.log({"loss": 0.5}, 1)
    one.log(data={"loss": 0.25}, step=2, backend=["eventlog"])
    one.finish()
    assert metrics() == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    if "file" in loggers:  # the others go on as they did
        (line,) = Path("p/n.jsonl").read_text().splitlines()
        assert json.loads(line) == {"step": 1, "data": {"loss": 0.5}}


def test_without_our_name_nothing_is_recorded(tracking: Any) -> None:
    one = tracking.Tracking("p", "n", "file", config())
    tracking.ValidationGenerationsLogger("p", "n").log(["file"], [("a", "b", 1.0)], 1)
    one.finish()
    assert not Path("journal").exists()


def test_the_id_is_the_start_of_the_md5_of_the_names_unless_given(
    tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(journal: str, **settings: Any) -> str:
        tracking.Tracking("p", "n", "eventlog", config(journal, **settings)).finish()
        (found,), _ = find_all((journal,))
        assert (found.run.project, found.run.name) == ("p", "n")
        return found.run.id

    assert of("a") == hashlib.md5(b"p/n").hexdigest()[:16]
    monkeypatch.setenv("EVENTLOG_RUN_ID", "of-the-environment")
    assert of("b") == "of-the-environment"
    assert of("c", run_id="of-the-config") == "of-the-config"  # the config comes first


def test_values_of_any_type_at_any_depth_are_kept(tracking: Any) -> None:
    import pandas as pd

    one = tracking.Tracking("p", "n", "eventlog", config())
    given = {
        "a": {"b": {"c": np.float32(0.5)}},
        "list": [np.int64(3), {"x": np.array([1.5, 2.5])}],
        "text": "é",
        "none": None,
        "flag": np.bool_(True),
        "other": UserDict({"deep": UserList([1, 2])}),
        "frame": pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
        "nan": float("nan"),
    }
    one.log(given, np.int64(7))
    one.finish()
    ((step, kept),) = metrics()
    assert step == 7
    assert kept["a/b/c"] == np.float32(0.5)
    assert type(kept["a/b/c"]) is np.float32
    assert kept["list"][0] == 3
    assert kept["list"][1]["x"].tolist() == [1.5, 2.5]
    assert (kept["text"], kept["none"], kept["flag"]) == ("é", None, True)
    assert kept["other/deep"] == [1, 2]
    assert table(kept["frame"]).data[0] == [1, "x"]
    assert kept["nan"] != kept["nan"]


def test_the_resolved_config_is_recorded(tracking: Any) -> None:
    given = config() | {"actor": {"lr": 1e-6, "betas": UserList([0.9, 0.95])}, "x": None}
    tracking.Tracking("p", "n", "eventlog", given).finish()
    kept = {k: v for e in events() for k, v in e.values(CONFIG).items()}
    assert kept == given | {"actor": {"lr": 1e-6, "betas": [0.9, 0.95]}}


def test_the_journals_absolute_path_is_printed(
    tracking: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracking.Tracking("p", "n", "eventlog", config("below/here")).finish()
    assert f"is logged to {tmp_path}/below/here/project=p/run=" in capfd.readouterr().err


def test_where_training_starts_again_is_recorded_as_the_config_tells_it(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ck" / "global_step_8").mkdir(parents=True)
    (tmp_path / "ck" / "latest_checkpointed_iteration.txt").write_text("8")

    def rewinds(journal: str, **settings: Any) -> list[int]:
        given = config(journal, **settings)
        given["trainer"] |= {"resume_mode": "auto", "default_local_dir": "ck"}
        tracking.Tracking("p", "n", "eventlog", given).finish()
        return [e.values(STATE)["rewind"] for e in events(journal) if "rewind" in e.values(STATE)]

    assert rewinds("a") == [8]
    assert rewinds("b", resume_step=4) == [4]
    monkeypatch.setenv("EVENTLOG_RESUME_STEP", "6")
    assert rewinds("c") == [6]


def test_an_old_name_without_a_checkpoint_is_told_how_to_be_another_run(
    tracking: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    tracking.Tracking("p", "n", "eventlog", config()).finish()
    assert "another run" not in capfd.readouterr().err
    tracking.Tracking("p", "n", "eventlog", config()).finish()
    said = capfd.readouterr().err
    assert "this is attempt 2 of n" in said
    assert "if it is another run, give it another trainer.experiment_name" in said


# ------------------------------------------------------------------------------ the end


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ("finished", 0)),
        ({"exit_code": 1}, ("failed", 1)),
    ],
)
def test_finish_says_how_it_ended(tracking: Any, how: dict[str, int], expected: Any) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    one.finish(**how)
    one.finish(exit_code=9)
    assert ended() == expected


def test_a_logger_that_is_dropped_is_closed_with_outcome_unknown(tracking: Any) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    one.log({"loss": 0.5}, 1)
    del one
    gc.collect()
    assert ended() == ("closed", None)
    assert metrics() == [(1, {"loss": 0.5})]


def test_a_logger_that_could_not_be_made_is_dropped_in_peace(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AssertionError):
        tracking.Tracking("p", "n", ["eventlog", "nonsense"])
    gc.collect()
    assert "eventlog" not in caplog.text


def test_loggers_of_the_same_names_share_a_run_and_the_last_one_ends_it(tracking: Any) -> None:
    first = tracking.Tracking("p", "n", "eventlog", config())
    second = tracking.Tracking("p", "n", "eventlog", config())
    first.finish(exit_code=1)
    second.log({"loss": 0.5}, 1)
    second.finish(exit_code=0)
    (found,), _ = find_all(("journal",))
    assert len(headers(found.folder)) == 1
    assert ended() == ("finished", 0)


def test_a_second_logger_in_the_middle_of_training_rewinds_nothing(
    tracking: Any, tmp_path: Path
) -> None:
    """It would find the checkpoint of this launch, which did not start there."""
    given = config()
    given["trainer"] |= {"resume_mode": "auto", "default_local_dir": "ck"}
    checkpoints = tmp_path / "ck"

    def save(step: int) -> None:
        (checkpoints / f"global_step_{step}").mkdir(parents=True)
        (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))

    one = tracking.Tracking("p", "n", "eventlog", given)
    for step in range(1, 13):
        one.log({"loss": 0.75}, step)
    one.finish()
    save(8)
    one = tracking.Tracking("p", "n", "eventlog", given)
    for step in range(9, 20):
        one.log({"loss": 0.5}, step)
    save(16)
    tracking.Tracking("p", "n", "eventlog", given).log({"loss": 0.25}, 20)
    one.finish()
    said = [e.values(STATE)["rewind"] for e in events() if "rewind" in e.values(STATE)]
    assert said == [8]
    (found,), _ = find_all(("journal",))
    view = open_view(found.folder)
    kept = [
        event.step
        for attempt in glance(found.folder).attempts
        for writer in attempt.writers
        for rows in WriterReader(found.folder, writer).tables()
        for event in to_events(view.rows(writer, rows))
        if event.values()
    ]
    assert kept == list(range(1, 21))


def test_the_owner_of_one_run_is_not_that_of_the_next(
    tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for outside in (None, "somebody"):
        if outside is not None:
            monkeypatch.setenv("EVENTLOG_OWNER", outside)
        exercise(tracking, config(f"of-{outside}", owner="ada"))
        assert os.environ.get("EVENTLOG_OWNER") == outside


def test_a_second_training_in_one_process_is_a_second_attempt(tracking: Any) -> None:
    for step in (1, 2):
        one = tracking.Tracking("p", "n", "eventlog", config())
        one.log({"loss": 0.5}, step)
        one.finish()
    (found,), _ = find_all(("journal",))
    assert [a.ordinal for a in glance(found.folder).attempts] == [1, 2]


# ------------------------------------------------------------------------------ tables


def test_generations_are_rows_of_a_table_once(tracking: Any) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    logger = tracking.ValidationGenerationsLogger("p", "n")
    logger.log(["eventlog"], [("a", "b", 1.0), ("c", "d", np.float32(0.5))], 3)
    logger.log("eventlog", [("e", "f", None)], 6)
    one.finish()
    (three, first), (six, second) = metrics()
    assert (three, six) == (3, 6)
    kept = table(first["val/generations"])
    assert kept.columns == ["input", "output", "score"]
    assert kept.data == [["a", "b", 1.0], ["c", "d", np.float32(0.5)]]
    assert table(second["val/generations"]).data == [["e", "f", None]]  # not the first ones again


@pytest.mark.parametrize(
    ("samples", "columns", "rows"),
    [
        ([], ["input", "output", "score"], []),
        (["only text"], ["input", "output", "score"], [["only text", None, None]]),
        (
            [("a", "b", 1.0, {"x": 1}), ("c",)],
            ["input", "output", "score", "extra_1"],
            [["a", "b", 1.0, {"x": 1}], ["c", None, None, None]],
        ),
        ([("a", object, 1.0)], ["input", "output", "score"], [["a", "<class 'object'>", 1.0]]),
    ],
)
def test_generations_of_an_odd_form_are_kept(
    tracking: Any, samples: Any, columns: Any, rows: Any
) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    tracking.ValidationGenerationsLogger("p", "n").log(["eventlog"], samples, 1)
    one.finish()
    ((_step, values),) = metrics()
    kept = table(values["val/generations"])
    assert (kept.columns, kept.data) == (columns, rows)


def test_groups_that_dapo_left_out_are_a_table(tracking: Any) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    logger = tracking.DapoFilteredRewardTableLogger("p", "n")
    logger.log(["eventlog"], {np.float32(1.0): np.int64(5), 0.0: 3}, 4)
    one.finish()
    ((step, values),) = metrics()
    kept = table(values["training/filter_groups/filtered_reward_counts"])
    assert (step, kept.columns, kept.data) == (4, ["reward", "count"], [[0.0, 3], [1.0, 5]])


class Listed(UserList):
    """A list that knows the config it is part of, as OmegaConf's do."""

    def __init__(self, items: list[str], root: Any) -> None:
        super().__init__(items)
        self.root = root

    def _get_root(self) -> Any:
        return self.root


def test_an_actor_that_logs_generations_alone_finds_the_settings_in_the_list_of_loggers(
    tracking: Any, runs: Any
) -> None:
    """The rollouter of fully asynchronous training has no `Tracking`."""
    loggers = Listed(["console", "eventlog"], UserDict(config("elsewhere")))
    tracking.ValidationGenerationsLogger("p", "n").log(loggers, [("a", "b", 1.0)], 1)
    ((_step, values),) = metrics("elsewhere")
    assert len(table(values["val/generations"], "elsewhere")) == 1
    assert not any(e.values(CONFIG) for e in events("elsewhere"))  # that is the trainer's to tell


def test_where_the_loggers_are_a_text_the_callers_config_is_taken(tracking: Any) -> None:
    class Rollouter:
        def __init__(self) -> None:
            self.config = config("elsewhere")
            self.logger = tracking.ValidationGenerationsLogger("p", "n")

        def validate(self) -> None:
            self.logger.log("eventlog", [("a", "b", 1.0)], 1)

    Rollouter().validate()
    assert len(metrics("elsewhere")) == 1


def test_the_config_comes_before_the_environment_and_the_working_folder(
    tracking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor of Ray has an environment and a folder of its own, and they must not count."""
    for variable, value in {
        "DIR": str(tmp_path / "wrong"),
        "RUN_ID": "wrong",
        "PROJECT": "wrong",
        "NAME": "wrong",
        "OWNER": "wrong",
        "MODE": "disabled",
        "DURABILITY": "memory",
    }.items():
        monkeypatch.setenv(f"EVENTLOG_{variable}", value)
    told = {"run_id": "right", "owner": "me", "mode": "journal", "durability": "sync"}
    given = config(tmp_path / "right", **told, project="right", name="right")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        one = tracking.Tracking("p", "n", "eventlog", given)
        one.log({"loss": 0.5}, 1)
        one.finish()
    (found,), _ = find_all((str(tmp_path / "right"),))
    look = glance(found.folder)
    assert (found.run.project, found.run.name, found.run.id) == ("right", "right", "right")
    assert len(look.attempts) == 2
    assert not (tmp_path / "wrong").exists()


def test_what_is_recorded_of_where_a_run_came_from(
    tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer.logger=eventlog", "hub.api_key=hush"])
    tracking.Tracking("p", "n", "eventlog", config()).finish()
    (told,) = (e.values(NOTE)["provenance"] for e in events() if e.values(NOTE))
    assert told["command"] == ["train.py", "trainer.logger=eventlog", "hub.api_key=***"]
    assert told["slurm"]["job_id"] == "77"
    assert told["ray"]["job_id"] == "01000000"
    assert {"host", "python", "platform", "git", "packages", "working_folder"} <= set(told)


def test_without_any_config_the_environment_says_where(
    tracking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTLOG_DIR", "by-environment")
    tracking.ValidationGenerationsLogger("p", "n").log(["eventlog"], [("a", "b", 1.0)], 1)
    assert len(metrics("by-environment")) == 1


# ------------------------------------------------------------------------------ trouble


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def exercise(tracking: Any, given: Any) -> None:
    """Train as if all were well."""
    one = tracking.Tracking("p", "n", "eventlog", given)
    samples = tracking.ValidationGenerationsLogger("p", "n")
    for step in range(3):
        samples.log("eventlog", [("a", "b", 1.0)], step)
        one.log({"loss": 0.5}, step)
    one.finish()


def test_a_folder_that_cannot_be_written_costs_one_warning(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Path("file").write_text("in the way")
    exercise(tracking, config("file/journal"))
    first, *last = warnings(caplog)
    assert "nothing is recorded yet" in first
    assert "give +trainer.eventlog.dir a folder" in first
    assert last == ["eventlog: 6 calls of log() are lost"]  # said at the end, not at each call


def test_a_disk_that_comes_late_gets_what_was_kept_back(
    tracking: Any, runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "RETRY_SECONDS", 0.0)
    Path("file").write_text("in the way")
    given = config("file/journal") | {"lr": 1}
    one = tracking.Tracking("p", "n", "eventlog", given)
    tracking.Tracking("p", "n", "eventlog").finish()  # which has none
    changed: dict[str, Any] = {}
    for step in range(3):
        changed["loss"] = step / 2
        one.log(changed, step)
    Path("file").unlink()
    one.log({"loss": 9.0}, 3)
    one.finish()
    kept = [(step, values["loss"]) for step, values in metrics("file/journal")]
    assert kept == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 9.0)]
    assert {k: v for e in events("file/journal") for k, v in e.values(CONFIG).items()} == given
    assert ended("file/journal") == ("finished", 0)
    assert "with 3 calls of log() that waited; 0 are lost" in caplog.text


def test_what_is_kept_back_is_bounded_and_what_is_lost_is_counted(
    tracking: Any, runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "KEPT_BACK", 2)
    Path("file").write_text("in the way")
    one = tracking.Tracking("p", "n", "eventlog", config("file/journal"))
    for step in range(5):
        one.log({"loss": 0.5}, step)
    Path("file").unlink()
    one.finish()
    assert [step for step, _ in metrics("file/journal")] == [3, 4]
    assert "with 2 calls of log() that waited; 3 are lost" in caplog.text


def test_what_is_lost_of_what_was_kept_back_is_counted_whole(
    tracking: Any, runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "KEPT_BACK", 2)
    Path("file").write_text("in the way")
    exercise(tracking, config("file/journal"))
    assert warnings(caplog)[1:] == ["eventlog: 6 calls of log() are lost"]


def test_a_run_of_somebody_else_is_not_joined_and_training_goes_on(
    tracking: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exercise(tracking, config(owner="ada"))
    exercise(tracking, config(owner="bob"))
    (said,) = warnings(caplog)
    assert "this run is not recorded: this run belongs to ada" in said
    assert len(metrics()) == 6


@pytest.mark.parametrize(
    "given",
    [None, "text", 7, {"trainer": 5}, {"trainer": {"eventlog": True}}, {"a": object()}],
)
def test_a_broken_config_costs_one_warning_at_most(
    tracking: Any, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    exercise(tracking, given)
    assert len(metrics("eventlog-data")) == 6
    assert len(warnings(caplog)) <= 1


def test_a_setting_that_is_not_understood_is_said_once(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    exercise(tracking, config(durability="always"))
    (said,) = warnings(caplog)
    assert "trainer.eventlog.durability='always' was left out" in said
    assert len(metrics()) == 6


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_kept_costs_itself_and_one_warning(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    for step in range(3):
        one.log({"loss": 0.5, "bad": Hostile()}, step)
    one.finish()
    assert metrics() == [(step, {"loss": 0.5}) for step in range(3)]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("data", [None, 5, "text", [1]])
def test_data_that_is_no_mapping_costs_one_warning(
    tracking: Any, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    one.log(data, 1)
    one.log({"loss": 0.5}, 2)
    one.finish()
    assert metrics() == [(2, {"loss": 0.5})]
    assert len(warnings(caplog)) == 1


def test_data_that_is_no_mapping_stops_nothing_while_the_disk_is_away(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Path("file").write_text("in the way")
    one = tracking.Tracking("p", "n", "eventlog", config("file/journal"))
    for data in (None, 5, "text", {"loss": 0.5}):
        one.log(data, 1)
    Path("file").unlink()
    one.finish()
    assert metrics("file/journal") == [(1, {"loss": 0.5})]
    assert sum("log() could not keep" in text for text in warnings(caplog)) == 3


def test_a_verl_whose_loggers_take_more_is_called_as_it_was() -> None:
    from eventlog.integrations.verl import register

    class Tracking:
        supported_backend = ("console",)

    class Later:
        def __init__(self) -> None:
            self.project_name, self.experiment_name = "p", "n"

        def log(
            self, loggers: Any, samples: Any, step: Any, kind: str = "", *, top: int = 0
        ) -> Any:
            return loggers, samples, step, kind, top

    class Other:
        def log(self, what: Any) -> Any:
            return what

    register(
        types.SimpleNamespace(  # type: ignore[arg-type]
            Tracking=Tracking,
            ValidationGenerationsLogger=Later,
            DapoFilteredRewardTableLogger=Other,
        )
    )
    samples = [("a", "b", 1.0)]
    given = Later().log(["eventlog"], samples, step=3, kind="x", top=2)
    assert given == (["eventlog"], samples, 3, "x", 2)
    assert Other().log(7) == 7
    ((step, values),) = metrics("eventlog-data")
    assert (step, table(values["val/generations"], "eventlog-data").data) == (3, [["a", "b", 1.0]])


def test_tables_that_cannot_be_made_cost_a_warning(
    tracking: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = tracking.Tracking("p", "n", "eventlog", config())
    tracking.ValidationGenerationsLogger("p", "n").log(["eventlog"], 5, 1)
    tracking.DapoFilteredRewardTableLogger("p", "n").log(["eventlog"], {"x": "y"}, 1)
    one.finish()
    assert ended() == ("finished", 0)
    assert len(warnings(caplog)) == 2


def test_a_disk_that_is_full_in_training_stops_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails writes as a full disk does, from some point on."""
    code = """
import json, resource, signal, sys
from tests.integrations import verl_source
tracking = verl_source.tracking()
one = tracking.Tracking("p", "n", "eventlog", json.loads(sys.argv[1]))
samples = tracking.ValidationGenerationsLogger("p", "n")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
one.log({"loss": 0.5}, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
for step in range(1, 200):
    one.log({f"metric_{i}": i / 2 for i in range(20)}, step)
samples.log("eventlog", [("a" * 5000, "b" * 5000, 1.0)], 200)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for step in range(201, 203):
    import time; time.sleep(1.1)
    one.log({"loss": 0.5}, step)
one.finish()
"""
    given = json.dumps(config(tmp_path / "journal"))
    done = subprocess.run(
        [sys.executable, "-c", code, given],
        cwd=TOP,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logged = metrics(str(tmp_path / "journal"))
    kept = [step for step, _ in logged]
    assert kept == [*range(201), 201, 202]  # what waited was written when there was room
    (reference,) = [values["val/generations"] for step, values in logged if step == 200]
    assert table(reference, str(tmp_path / "journal")).data[0][0] == "a" * 5000
    warned = [line for line in done.stderr.splitlines() if "could not" in line or "cannot" in line]
    assert len(warned) == 2, warned  # one of the segment, one of the disk
    assert "wait in memory" in warned[1]


def test_a_logger_that_outlives_the_plug_in_says_nothing_while_python_ends(tmp_path: Path) -> None:
    code = """
import builtins, sys
from tests.integrations import verl_source
tracking = verl_source.tracking()
one = tracking.Tracking("p", "n", "eventlog")
one.log({"loss": 0.5}, 0)

class Last:
    held = one, vars(sys.modules["eventlog.integrations.verl"])
    def __del__(self, tracking=tracking):
        one, names = self.held
        names.update(dict.fromkeys(names))  # as Python empties modules
        type(one).__del__(one)

builtins.last = Last()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TOP,
        env={**os.environ, "EVENTLOG_DIR": str(tmp_path / "journal")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Exception" not in done.stderr, done.stderr
    assert "n closed, 3 events" in done.stderr


@pytest.mark.parametrize("mended", [True, False])
def test_what_waits_for_a_disk_is_tried_a_last_time_when_python_ends(
    tmp_path: Path, mended: bool
) -> None:
    code = """
import os, sys
from tests.integrations import verl_source
one = verl_source.tracking().Tracking("p", "n", "eventlog")
one.log({"loss": 0.5}, 0)
if sys.argv[1] == "True":
    os.remove(os.environ["EVENTLOG_DIR"])
"""
    (tmp_path / "journal").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-c", code, str(mended)],
        cwd=TOP,
        env={**os.environ, "EVENTLOG_DIR": str(tmp_path / "journal")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("1 calls of log() are lost" in done.stderr) == (not mended), done.stderr
    if mended:
        assert metrics(str(tmp_path / "journal")) == [(0, {"loss": 0.5})]


# ------------------------------------------------------------------------------ a full disk


@pytest.mark.parametrize(
    ("numbers", "room", "lost"),
    [
        (1, False, "[0-9]+ tables or large values were lost, .*; that is recorded: "),
        (60, False, "[0-9]+ events and [0-9]+ tables .* were lost, .*; that could not be recorded"),
        (60, True, ""),
    ],
)
def test_a_disk_that_stays_full_is_told_once_in_training_and_what_is_lost_once_at_the_end(
    tmp_path: Path, numbers: int, room: bool, lost: str
) -> None:
    code = """
import json, subprocess, sys
from tests.integrations import verl_source
folder, numbers, room = sys.argv[1], *map(json.loads, sys.argv[2:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder], check=True)
tracking = verl_source.tracking()
one = tracking.Tracking("p", "n", "eventlog", {"trainer": {"eventlog": {"dir": folder}}})
samples = tracking.ValidationGenerationsLogger("p", "n")
for step in range(12):
    samples.log("eventlog", [(str(step) * 20_000, "b" * 20_000, 1.0)], step)
    for _ in range(numbers // 2):
        one.log({f"metric_{i}": step / 3 for i in range(numbers)}, step)
if room:
    subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
one.finish()
"""
    here = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*here, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace of its own can be had here")
    done = subprocess.run(
        [*here, sys.executable, "-c", code, str(tmp_path), str(numbers), json.dumps(room)],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    # A table that is tried again takes the last room for a moment, and a segment may meet that.
    lines = [line for line in done.stderr.splitlines() if "a new one was begun" not in line]
    begun, training, *end, finished = lines
    assert ("is logged to" in begun, "n finished" in finished) == (True, True), done.stderr
    assert "training goes on, up to 64 MiB of events wait" in training
    assert len(end) == bool(lost), done.stderr
    assert all(re.search(lost, line) for line in end), done.stderr
