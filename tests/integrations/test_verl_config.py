"""verl's config as it is recorded: what resolves, what does not, and no secret."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest

from eventlog.catalog import find_all
from eventlog.event import CONFIG
from eventlog.glance import glance
from eventlog.integrations.verl_config import resolved
from eventlog.integrations.verl_settings import settings
from eventlog.reader import WriterReader
from tests.integrations import verl_source


class Breaking(UserDict):  # type: ignore[type-arg]
    """A mapping of which one key cannot be read."""

    def __getitem__(self, key: str) -> Any:
        if key == "bad":
            raise RuntimeError("no")
        return super().__getitem__(key)


def test_a_key_that_breaks_costs_no_other() -> None:
    given = {"a": Breaking({"good": 1, "bad": 2}), "list": [Breaking({"bad": 1}), 0.5]}
    marked = "unresolved: it cannot be read"
    assert resolved(given) == (
        {"a": {"good": 1, "bad": marked}, "list": [{"bad": marked}, 0.5]},
        ["a.bad", "list[0].bad"],
    )


def test_what_contains_itself_or_is_too_deep_is_marked() -> None:
    ring: dict[str, Any] = {"x": 1}
    ring["ring"] = ring
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    values, broken = resolved({"ring": ring, "deep": deep, "same": [1], "again": [1]})
    assert values["ring"] == {"x": 1, "ring": "unresolved: it cannot be read"}
    assert len(broken) == 2
    assert broken[0] == "ring.ring"
    assert values["same"] == values["again"] == [1]


def test_a_dataclass_is_a_config_and_a_number_is_none() -> None:
    @dataclasses.dataclass
    class Config:
        lr: float = 0.5

    assert resolved(Config()) == ({"lr": 0.5}, [])
    with pytest.raises(Exception, match="no mapping"):
        resolved(7)


def test_values_named_like_secrets_and_credentials_in_addresses_are_not_recorded() -> None:
    given = {
        "hub": {"hf_token": "hush", "password": 1234, "api_keys": ["hush"], "secret": None},
        "url": "https://me:hush@host/x?write_token=hush",
        "max_token_len": 512,
        "mode": {"tokenizer": "a/path", "use_token": True, "tokenization": "strict", "key": "x"},
    }
    values, broken = resolved(given)
    assert values == {
        "hub": {"hf_token": "***", "password": "***", "api_keys": ["***"], "secret": None},
        "url": "https://***@host/x?write_token=***",
        "max_token_len": 512,
        "mode": given["mode"],
    }
    assert not broken


# ------------------------------------------------------------------------------ OmegaConf


@pytest.fixture(scope="module")
def omega() -> Any:
    """OmegaConf, which is there with the whole of verl (`tools/verl`)."""
    conf = pytest.importorskip("omegaconf").OmegaConf

    def raising(*_args: Any) -> Any:
        raise ZeroDivisionError("of somebody's")

    conf.register_new_resolver("raises", raising, replace=True)
    return conf


def test_whatever_does_not_resolve_is_recorded_as_it_is_written(
    omega: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_FOLDER", "/data")
    written = {
        "good": {"folder": "${oc.env:A_FOLDER}/x", "same": "${good.folder}", "all": "${lists.ok}"},
        "nested": {"deep": {"broken": "${nowhere.key}", "fine": 1}},
        "text": "a/${nowhere}/b",
        "lists": {"ok": [1, "${nested.deep.fine}"], "bad": ["${nowhere}", 2, {"x": "${text}"}]},
        "whole": "${nested.deep}",
        "itself": "${itself}",
        "ring": {"a": "${ring.b}", "b": "${ring.a}", "up": "${ring}"},
        "missing": "???",
        "of_missing": "${missing}",
        "raises": "${raises:1,2}",
        "unknown": "${no_such_resolver:1}",
        "env": "${oc.env:NOT_THERE_AT_ALL}",
        "default": "${oc.env:NOT_THERE_AT_ALL,7}",
        "null": None,
    }
    values, broken = resolved(omega.create(written))

    def marked(text: str) -> str:
        return f"unresolved: {text}"

    deep = {"broken": marked("${nowhere.key}"), "fine": 1}
    ring = {"a": marked("${ring.b}"), "b": marked("${ring.a}"), "up": marked("${ring}")}
    assert values == {
        "good": {"folder": "/data/x", "same": "/data/x", "all": [1, 1]},
        "nested": {"deep": deep},
        "text": marked("a/${nowhere}/b"),
        "lists": {"ok": [1, 1], "bad": [marked("${nowhere}"), 2, {"x": marked("${text}")}]},
        "whole": deep,
        "itself": marked("${itself}"),
        "ring": ring,
        "missing": "???",
        "of_missing": marked("${missing}"),
        "raises": marked("${raises:1,2}"),
        "unknown": marked("${no_such_resolver:1}"),
        "env": marked("${oc.env:NOT_THERE_AT_ALL}"),
        "default": omega.create(written).default,
        "null": None,
    }
    assert {"nested.deep.broken", "lists.bad[0]", "lists.bad[2].x", "ring.up"} <= set(broken)
    assert len(broken) == len(set(broken)) == 13


def test_a_secret_of_the_environment_is_not_recorded(
    omega: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEBODYS_API_KEY", "hush-hush")
    written = {
        "a": "${oc.env:SOMEBODYS_API_KEY}",
        "b": "x-${oc.env:SOMEBODYS_API_KEY}",
        "c": "${a}",
    }
    written |= {"password": "${oc.env:HOME}", "list": ["${oc.env:SOMEBODYS_API_KEY}"]}
    values, broken = resolved(omega.create(written))
    assert values == dict.fromkeys("abc", "***") | {"password": "***", "list": ["***"]}
    assert not broken


def test_a_whole_config_that_is_missing_or_leads_nowhere_stops_nothing(omega: Any) -> None:
    from omegaconf import DictConfig

    for content in ("???", None, "${x}"):
        assert resolved(DictConfig(content)) == ({}, [])
    held = omega.create({"a": DictConfig("???"), "b": DictConfig(None), "c": DictConfig("${x}")})
    assert resolved(held) == ({"a": "???", "b": None, "c": "unresolved: ${x}"}, ["c"])


def test_a_setting_that_does_not_resolve_is_said(omega: Any) -> None:
    told = settings(omega.create({"trainer": {"eventlog": {"dir": "${nowhere}", "group": "g"}}}))
    assert (told.dir, told.group) == (None, "g")
    (problem,) = told.problems
    assert problem.startswith("trainer.eventlog.dir cannot be resolved, and was left out (")
    for tags in (["a", "${nowhere}"], ["a", "???"]):
        told = settings(omega.create({"trainer": {"eventlog": {"tags": tags, "group": "g"}}}))
        assert (told.tags, told.group, len(told.problems)) == ((), "g", 1)
    (problem,) = settings(omega.create({"trainer": {"eventlog": "${nowhere}"}})).problems
    assert problem.startswith("trainer.eventlog cannot be resolved, and was left out (")


@pytest.mark.skipif(verl_source.find() is None, reason="verl's source is not there")
@pytest.mark.parametrize("genuine", [True, False])
def test_a_broken_config_costs_one_warning_and_the_rest_is_recorded(
    genuine: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    tracking = importlib.import_module("tests.integrations.verl_source").tracking()
    written = {"trainer": {"eventlog": {"dir": str(tmp_path / "j")}}, "lr": 0.5}
    if genuine:
        given = request.getfixturevalue("omega").create({**written, "bad": "${nowhere}"})
        text = "unresolved: ${nowhere}"
    else:
        given, text = Breaking({**written, "bad": 1}), "unresolved: it cannot be read"
    for _ in range(2):
        one = tracking.Tracking("p", "n", "eventlog", given)
        two = tracking.Tracking("p", "n", "eventlog", given)
        one.log({"loss": 0.5}, 1)
        one.finish()
        two.finish()
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warned) == 2  # one a run
    assert set(warned) == {
        "eventlog: the config has 1 values that cannot be resolved; each is recorded as it is "
        "written, behind 'unresolved: ': bad"
    }
    (found,), _ = find_all((str(tmp_path / "j"),))
    writers = [writer for attempt in glance(found.folder).attempts for writer in attempt.writers]
    events = [e for writer in writers for e in WriterReader(found.folder, writer).events()]
    recorded = {k: v for e in events for k, v in e.values(CONFIG).items()}
    assert recorded == {**written, "bad": text}
