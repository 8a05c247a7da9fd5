"""`eventlog doctor`: each thing that keeps logging from working is found, and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parent.parent


def doctor(
    *arguments: str, path: Path | None = None, code: int = 0, **environ: str
) -> dict[str, tuple[str, str]]:
    """Run it; return what it found: state and text by subject."""
    places = [str(p) for p in (path, TOP) if p]
    done = subprocess.run(
        [sys.executable, "-m", "eventlog.cli.main", "doctor", *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return {f["what"]: (f["state"], f["text"]) for f in json.loads(done.stdout)}


def test_it_says_what_is_seen(tmp_path: Path) -> None:
    found = doctor(
        EVENTLOG_DIR=str(tmp_path), EVENTLOG_OWNER="team", SLURM_JOB_ID="7", SLURM_RESTART_COUNT="2"
    )
    for name in ("eventlog", "python", "pyarrow", "numpy", "journal"):
        assert found[name][0] == "ok"
    assert str(tmp_path) in found["journal"][1]
    assert found["launch"][1] == "slurm:7.batch, started again 2 times"
    assert found["owner"][1] == "team"
    assert found["EVENTLOG_DIR"] == ("info", str(tmp_path))
    assert "GiB free" in found["disk"][1]
    assert list(tmp_path.iterdir()) == []  # and it leaves nothing behind


def test_a_journal_that_is_not_there_yet_is_none_of_its_business(tmp_path: Path) -> None:
    found = doctor("--journal", str(tmp_path / "not" / "yet"))
    assert found["journal"][0] == "ok"
    assert "not made yet" in found["journal"][1]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = doctor("--journal", str(tmp_path / "file" / "journal"), code=1)
    assert found["journal"][0] == "BAD"


def test_a_command_of_another_package_that_breaks_is_named(tmp_path: Path) -> None:
    points = "[eventlog.commands]\nbroken = nowhere.at_all:command\n"
    distribution(tmp_path, "other", points)
    found = doctor(path=tmp_path, code=1)
    assert found["eventlog broken"][0] == "BAD"
    assert "nowhere.at_all:command" in found["eventlog broken"][1]


def test_wrong_usage_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "eventlog.cli.main", "doctor", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


# ------------------------------------------------------------------------------ verl

POINT = "[verl.plugins]\neventlog = eventlog.integrations.verl\n"
#: A verl as small as can be: it loads plug-ins as the genuine one does.
LOADS = """
from importlib.metadata import entry_points
for point in entry_points(group="verl.plugins"):
    try:
        point.load()
    except Exception:
        pass
"""
TRACKING = 'class Tracking:\n    supported_backend = ["console"]\n'


def distribution(folder: Path, name: str, points: str, version: str = "1") -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)


def small_verl(folder: Path, init: str = LOADS, points: str = POINT, more: str = "") -> Path:
    (folder / "verl" / "utils").mkdir(parents=True)
    (folder / "verl" / "__init__.py").write_text(init)
    (folder / "verl" / "utils" / "__init__.py").write_text("")
    (folder / "verl" / "utils" / "tracking.py").write_text(TRACKING + more)
    distribution(folder, "verl", "", "0.0.1")
    distribution(folder, "of-a-test", points)
    return folder


def test_a_verl_that_sees_the_logger_is_well(tmp_path: Path) -> None:
    found = doctor("verl", path=small_verl(tmp_path))
    assert found["verl"] == ("ok", f"0.0.1 in {tmp_path}/verl")
    assert found["logger"] == ("ok", 'trainer.logger=["console","eventlog"] will work')


@pytest.mark.parametrize(
    ("made", "environ", "subject", "text"),
    [
        ({"init": ""}, {}, "plug-ins", "too old"),
        ({}, {"VERL_USE_EXTERNAL_PLUGINS": "none"}, "VERL_USE_EXTERNAL_PLUGINS", "leaves eventlog"),
        ({}, {"VERL_USE_EXTERNAL_PLUGINS": "a,b"}, "VERL_USE_EXTERNAL_PLUGINS", "leaves eventlog"),
        ({"init": "import not_there  # verl.plugins"}, {}, "import", "No module named 'not_there'"),
        ({"init": "raise SystemExit  # verl.plugins"}, {}, "import", "SystemExit"),
        ({"init": "import os; os._exit(3)  # verl.plugins"}, {}, "import", "status 3"),
        ({"more": "raise ValueError('no')"}, {}, "import", "the plug-in fails: ValueError: no"),
        ({"init": "# verl.plugins"}, {}, "import", "did not load the plug-in"),
    ],
)
def test_what_keeps_verl_from_seeing_the_logger_is_named(
    tmp_path: Path, made: dict[str, Any], environ: dict[str, str], subject: str, text: str
) -> None:
    found = doctor("verl", path=small_verl(tmp_path, **made), code=1, **environ)
    assert found[subject][0] == "BAD"
    assert text in found[subject][1]
    assert "logger" not in found


def test_a_verl_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    path = small_verl(tmp_path, init="import time; time.sleep(60)  # verl.plugins")
    found = doctor("verl", "--timeout", "0.2", path=path, code=1)
    assert found["import"] == ("BAD", "verl was not imported within 0.2 s")


def test_an_older_verl_can_be_told_to_import_the_module(tmp_path: Path) -> None:
    init = "import os, importlib\nfor m in os.environ['VERL_USE_EXTERNAL_MODULES'].split(','):\n"
    path = small_verl(tmp_path, init=init + "    importlib.import_module(m)\n")
    environ = {"VERL_USE_EXTERNAL_MODULES": "eventlog.integrations.verl"}
    found = doctor("verl", path=path, **environ)
    assert found["plug-ins"][0] == "warn"
    assert found["logger"][0] == "ok"
