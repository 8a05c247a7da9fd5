"""The folder of a child that runs wandb: what a killed sync left goes, everybody else's stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from eventlog.identity import process
from replayers import wandb_folder

#: Makes a folder, and is gone without a word.
KILLED = (
    "import os; from replayers.wandb_folder import make; print(make(), flush=True); os._exit(9)"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_sync_left_is_removed_by_the_next_one(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    left = Path(done.stdout.strip())
    assert left.is_dir(), done.stderr
    (left / "wandb-1-2-3").mkdir()
    (left / "wandb-1-2-3" / "socket").touch()
    mine = Path(wandb_folder.make())
    assert sorted(place.iterdir()) == [mine]
    other = Path(wandb_folder.make())  # a second child of the same process
    assert sorted(place.iterdir()) == sorted([mine, other])
    wandb_folder.remove(str(mine))
    wandb_folder.remove(str(mine))
    assert sorted(place.iterdir()) == [other]


def test_what_is_not_provably_of_a_dead_process_of_ours_stays(place: Path) -> None:
    gone = {**process(), "process_start": 1}
    tellings = {
        "alive": process(),
        "elsewhere": {**gone, "boot_id": "another machine"},
        "contained": {**gone, "pid_namespace": "pid:[1]"},
        "list": [gone],
        "empty": {},
    }
    for name, owner in tellings.items():
        folder = place / f"eventlog-wandb-{name}"
        folder.mkdir()
        (folder / "owner.json").write_text(json.dumps(owner))
    (place / "eventlog-wandb-garbage").mkdir()
    (place / "eventlog-wandb-garbage" / "owner.json").write_bytes(b"[" * 70_000)
    (place / "eventlog-wandb-nothing").mkdir()
    (place / "eventlog-wandb-file").touch()
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "owner.json").write_text(json.dumps(gone))
    (place / "eventlog-wandb-link").symlink_to(place / "elsewhere")
    (place / "wandb-1-2-3").mkdir()
    before = sorted(place.rglob("*"))
    wandb_folder.remove(wandb_folder.make())
    assert sorted(place.rglob("*")) == before
    # The control: what is dead goes.
    (place / "elsewhere").rename(place / "eventlog-wandb-dead")
    wandb_folder.remove(wandb_folder.make())
    assert not (place / "eventlog-wandb-dead").exists()


def test_a_socket_whose_path_would_be_too_long_goes_where_it_went() -> None:
    assert wandb_folder.temporary("/tmp/eventlog-wandb-12345678").keys() == {"TMPDIR"}
    assert wandb_folder.temporary("/tmp/" + "x" * 60) == {}
