"""Which runs are selected by name, tag and time; what is not selected is not touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eventlog
from eventlog.catalog import Found, find_all
from eventlog.cli.main import run as run_command
from eventlog.errors import EventlogError, FormatError, UsageError
from eventlog.files import Files
from eventlog.reader import headers
from eventlog.seal import seal
from eventlog.selection import Asker, Selection, find_selected, parse_time, selection, tags_of
from eventlog.views import AsOf
from replayers.changes import Changes
from replayers.diff_command import parse_view
from tests.helpers import NOW

#: 1 January 2026, 00:00 UTC.
NEW_YEAR = NOW
DAY = 86_400 * 10**9


def make(journal: Path, id: str, *tags: str) -> eventlog.Run:
    return eventlog.init("p", id, id=id, dir=journal, tags=tags, quiet=True, resume="allow")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Runs with tags of many kinds, one that has none, one whose tag was taken away."""
    path = tmp_path / "j"
    for id, tags in (
        ("plain", ("team",)),
        ("nlp", ("team=nlp", "night")),
        ("vision", ("team=vision=2",)),
        ("odd", ("v[1]", "*", "a\nb", "é=ü")),
        ("none", ()),
    ):
        with make(path, id, *tags) as run:
            run.log({"loss": 1.0}, step=1)
    with make(path, "former", "team=nlp") as run:
        run.untag("team=nlp")
    return path


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the local time zone."""

    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


def ids(journal: Path, chosen: Selection) -> list[str]:
    found, bad = find_selected([str(journal)], chosen)
    assert not bad
    return sorted(item.run.id for item in found)


#: Globs, and the runs of `journal` that have a tag for each.
TAGS = [
    (["team"], ["nlp", "plain", "vision"]),
    (["team=*"], ["nlp", "vision"]),
    (["team=nlp"], ["nlp"]),
    (["team=n*", "night"], ["nlp"]),
    (["team=vision=?"], ["vision"]),
    (["team=nlp", "team=vision*"], []),
    (["TEAM"], []),
    (["v[1]"], ["odd"]),
    (["v1"], []),
    (["[*]"], ["odd"]),
    (["a\nb"], ["odd"]),
    (["é=[ü]"], ["odd"]),
    (["["], []),
    (["[!"], []),
    (["\\"], []),
    (["(?P<x>.)"], []),
    (["*"], ["nlp", "odd", "plain", "vision"]),
]


def test_a_tag_is_found_by_its_key_or_its_whole_text(journal: Path) -> None:
    for sealed in (False, True):
        if sealed:
            for item in find_all([str(journal)])[0]:
                seal(item.folder)
        for tags, expected in TAGS:
            assert ids(journal, selection(tags=tags)) == expected, (tags, sealed)


def test_names_tags_and_times_must_all_hold(journal: Path) -> None:
    assert ids(journal, selection(["n*"], ["team"])) == ["nlp"]
    assert ids(journal, selection(["n*"], since="1h", until="0s")) == ["nlp", "none"]
    assert ids(journal, selection(["n*"], ["team"], since="1h", until="1h")) == []


def test_the_cost_of_a_glob_is_bounded() -> None:
    from eventlog.selection import _means

    assert not _means("*a" * 30 + "b", "a" * 2000)


def test_tags_are_those_of_all_attempts_and_writers(tmp_path: Path) -> None:
    with make(tmp_path, "a", "first"):
        pass
    with make(tmp_path, "a", "second") as run:
        run.untag("first")
    folder = str(run.folder)
    assert tags_of(folder, headers(folder)) == ("second",)


# ------------------------------------------------------------------------------ times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", NEW_YEAR),
        ("2026-01-01T00:00Z", NEW_YEAR),
        ("2026-01-01 01:30+01:30", NEW_YEAR),
        ("2025-12-31T16:00:00.500-08:00", NEW_YEAR + 500_000_000),
        ("7d", NEW_YEAR - 7 * DAY),
        ("12h", NEW_YEAR - DAY // 2),
        ("2w", NEW_YEAR - 14 * DAY),
        ("0s", NEW_YEAR),
        ("1969-12-31T00:00Z", -DAY),
    ],
)
def test_a_time_is_read(text: str, expected: int) -> None:
    assert parse_time(text, NEW_YEAR, "--since") == expected


def test_a_time_without_a_zone_is_utc_wherever_one_is_taken(
    zone: Callable[[str], None], journal: Path
) -> None:
    zone("Asia/Kolkata")
    (item, *_others), _bad = find_selected([str(journal)], Selection())
    for text in ("2026-01-01", "2026-01-01T00:00", "2026-01-01T05:30+05:30"):
        assert parse_time(text, 0, "--since") == NEW_YEAR
        view = parse_view(f"as-of:{text}", item.folder)
        assert isinstance(view, AsOf)
        assert view.time == NEW_YEAR


@pytest.mark.parametrize(
    "text",
    [
        *"yesterday 7 d7 -7d 7d12h 9999999999d 1.5h \u0667d 26-01-01 20260101 2026-13-01".split(),
        *"2026-02-30 0000-01-01 2026-01-01Z 2026-01-01T25:00 2026-01-01T00:00+99:00".split(),
        *("2026-01-01T00:00:00.1", "", " 7d", "7d\n"),
    ],
)
def test_what_is_no_time_is_one_clear_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"--until .* is no time") as caught:
        parse_time(text, NEW_YEAR, "--until")
    assert "\n" not in str(caught.value)


def test_since_goes_by_the_last_event_and_until_by_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time_ns

    def at(moment: int) -> None:
        shift = moment - real()
        monkeypatch.setattr(time, "time_ns", lambda: real() + shift)

    at(NEW_YEAR)
    with make(tmp_path, "old") as run:
        run.log({"x": 1})
    long = make(tmp_path, "long")
    at(NEW_YEAR + 10 * DAY)
    long.log({"x": 1})
    long.finish()
    with make(tmp_path, "new") as run:
        run.log({"x": 1})
    for sealed in (False, True):
        if sealed:
            for item in find_all([str(tmp_path)])[0]:
                seal(item.folder)  # files get new times, and say nothing new
        assert ids(tmp_path, Selection(since=NEW_YEAR + DAY)) == ["long", "new"]
        assert ids(tmp_path, Selection(until=NEW_YEAR + DAY)) == ["long", "old"]
        assert ids(tmp_path, Selection(since=NEW_YEAR + DAY, until=NEW_YEAR + DAY)) == ["long"]
        assert ids(tmp_path, Selection(since=NEW_YEAR + 20 * DAY)) == []
        assert ids(tmp_path, Selection(until=NEW_YEAR)) == []


# ------------------------------------------------------------------------------ damage, no events


def test_a_run_without_events_is_selected_by_its_name_alone(journal: Path) -> None:
    (item,) = find_all([str(journal)], ["none"])[0]
    for path in Path(item.folder).rglob("*"):
        if path.is_file() and path.name != "run.json":
            path.unlink()
    assert ids(journal, selection(["none"])) == ["none"]
    assert ids(journal, selection(["none"], since="7d")) == []


def test_a_run_of_which_it_cannot_be_told_is_said_to_be_unreadable(journal: Path) -> None:
    (item,) = find_all([str(journal)], ["none"])[0]
    sealed = list(Path(item.folder).rglob("*.parquet"))
    for path in sealed:
        path.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    found, bad = find_selected([str(journal)], selection(tags=["team"]))
    assert sorted(i.run.id for i in found) == ["nlp", "plain", "vision"]
    assert [b.folder for b in bad] == [item.folder]
    assert isinstance(bad[0].error, FormatError)
    assert "cannot be told" in str(bad[0].error)


# ------------------------------------------------------------------------------ runs that match later


class Counting(Files):
    opened = 0

    def open(self, path: str):  # type: ignore[no-untyped-def]
        self.opened += 1
        return super().open(path)


def test_a_run_that_gets_its_tag_later_is_followed_and_stays(tmp_path: Path) -> None:
    now = [1000.0]
    files = Counting()
    asker = Asker(selection(tags=["good"]), files, clock=lambda: now[0])
    changes = Changes([str(tmp_path)], belongs=asker, clock=lambda: now[0])
    a, b = make(tmp_path, "a"), make(tmp_path, "b", "good")

    def followed() -> list[str]:
        changes.poll()
        return sorted(f.run.id for f in changes.runs())

    assert followed() == ["b"]
    now[0] += 10
    followed()
    before = files.opened
    for _ in range(5):
        now[0] += 1
        assert followed() == ["b"]
    assert files.opened == before, "a run that has not changed is not read again"
    a.log({"x": 1})
    assert followed() == ["b"]
    a.tag("good")
    assert followed() == ["a", "b"]
    b.untag("good")
    b.log({"x": 1})
    assert [f.run.id for f in changes.poll()] == ["b"], "what was begun is followed to its end"
    a.finish()
    b.finish()


def test_a_large_run_that_grows_is_read_seldom(tmp_path: Path) -> None:
    now = [0.0]

    class Slow(Counting):
        def open(self, path: str):  # type: ignore[no-untyped-def]
            now[0] += 0.25
            return super().open(path)

    files = Slow()
    asker = Asker(selection(tags=["good"]), files, clock=lambda: now[0])
    with make(tmp_path, "a") as run:
        (item,) = find_all([str(tmp_path)])[0]
        assert not asker(item)
        took, before = now[0], files.opened
        run.tag("good")
        now[0] += took * (Asker.SHARE - 1)
        assert not asker(item)
        assert files.opened == before
        now[0] += took
        assert asker(item)


def test_a_run_that_cannot_be_read_is_said_and_asked_again(tmp_path: Path) -> None:
    with make(tmp_path, "a"):
        pass
    answers: list[object] = [EventlogError("a bad file"), False, True]

    def belongs(_found: Found) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    changes = Changes([str(tmp_path)], belongs=belongs)
    assert changes.poll() == []
    assert len(changes.unreadable) == 1
    assert changes.poll() == []
    assert not changes.unreadable
    assert [f.run.id for f in changes.poll()] == ["a"]


# ------------------------------------------------------------------------------ commands


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("EVENTLOG_", "MLFLOW", "WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("alone")
def test_the_commands_select_alike(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("ls", "status", "verify", "seal", "compact"):
        arguments = [command, str(journal), "--tag", "team=n*", "--since", "1h", "--json"]
        assert run_command(arguments) == 0, command
        assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["nlp"], command


@pytest.mark.usefixtures("alone")
def test_a_sync_touches_what_is_selected_and_nothing_else(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def others() -> dict[str, tuple[int, bytes]]:
        return {
            str(p): (p.stat().st_mtime_ns, p.read_bytes())
            for p in journal.rglob("*")
            if p.is_file()
            and "nlp" not in p.parent.name + p.parent.parent.name
            and "_replay" not in str(p)
        }

    before = others()
    to = ["sync", str(journal), "--to", f"memory:{tmp_path / 'm'}", "--json"]
    assert run_command([*to, "--tag", "team=nlp", "--dry-run"]) == 0
    capsys.readouterr()
    assert run_command([*to, "--tag", "team=nlp"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in told] == ["nlp"]
    first = told[0]["sent"]
    assert first > 0
    assert others() == before
    states = sorted(p.name for p in (journal / "_replay").rglob("*") if p.is_dir())
    assert not [name for name in states if "vision" in name or "plain" in name]
    # Another selection, then none: what was sent is not sent again, the rest comes.
    assert run_command([*to, "--tag", "team"]) == 0
    told = {one["id"]: one["sent"] for one in json.loads(capsys.readouterr().out)}
    assert told["nlp"] == 0
    assert told["vision"] > 0
    assert run_command(to) == 0
    told = {one["id"]: one["sent"] for one in json.loads(capsys.readouterr().out)}
    assert told["nlp"] == told["vision"] == 0
    assert told["none"] > 0


@pytest.mark.usefixtures("alone")
def test_a_quiet_day_is_no_failure_and_a_wrong_name_is(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["sync", str(journal), "--to", f"memory:{tmp_path / 'm'}"]
    assert run_command([*to, "--tag", "nobody"]) == 0
    assert "leave out all of 6 runs" in capsys.readouterr().err
    assert run_command([*to, "--run", "nobody", "--tag", "team"]) == 2
    assert "no run is called 'nobody'" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "wrong",
    [
        ["--since", "yesterday"],
        ["--until", "2026-02-30"],
        ["--tag", ""],
        ["--tag", "=x"],
        ["--run", ""],
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    journal: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    for command in (["ls"], ["sync", "--to", "memory:x"], ["sync", "--to", "memory:x", "--watch"]):
        assert run_command([*command, str(journal), *wrong]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert len(told.err.splitlines()) == 1
        assert wrong[0] in told.err
