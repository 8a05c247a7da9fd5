"""Keys, tokens and passwords reach no file, no output and no process title, but the title of the
command in which a user typed one.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import eventlog

SECRETS = {
    "WANDB_API_KEY": "hush-wandb-0123456789012345678901234567890123456789",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": "hush-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "hush-mlflow-token",
    "TRACKIO_WRITE_TOKEN": "hush-trackio",
    "HF_TOKEN": "hush-hf",
}
TARGETS = (
    "mlflow:http://user:hush-in-address@127.0.0.1:9",
    "trackio:http://127.0.0.1:9/?write_token=hush-in-query",
    "trackio:{folder}",
    "wandb:http://127.0.0.1:9",
)
#: Notes the command line of every process of the machine for as long as the sync runs.
WATCH = """
import glob, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
seen = set()
while child.poll() is None:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                title = file.read()
            if str(os.getpid()) not in path and b"import glob, os" not in title:
                seen.add(title)
        except OSError:
            pass
    try:
        child.wait(0.05)
    except subprocess.TimeoutExpired:
        pass
sys.stdout.buffer.write(child.stdout.read())
titles = b"\\n".join(t for t in seen if b"replayers" in t or b"wandb" in t or b"trackio" in t)
print("TITLES", b"hush" in titles.replace(b"user:hush-in-address@", b"").replace(b"=hush-in-query", b""))
"""


def test_no_secret_reaches_a_file_an_output_or_a_title(tmp_path: Path) -> None:
    journal, state, home = tmp_path / "j", tmp_path / "state", tmp_path / "home"
    before = {name: os.environ.get(name) for name in SECRETS}
    os.environ.update(SECRETS)
    try:
        with eventlog.init("p", "n", id="x", dir=journal, quiet=True) as run:
            run.log({"loss": 1.0}, step=1)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    home.mkdir()
    command = [sys.executable, "-m", "eventlog.cli.main", "sync", str(journal)]
    for target in TARGETS:
        command += ["--to", target.format(folder=tmp_path / "trackio")]
    command += ["--state", str(state), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, **SECRETS, "HOME": str(home), "EVENTLOG_WANDB_PATIENCE": "1"},
        timeout=240,
        check=False,
    )
    assert "127.0.0.1:9" in done.stdout, done
    assert "TITLES False" in done.stdout
    assert "hush" not in done.stdout.replace("TITLES", "")
    assert "hush" not in done.stderr
    for path in tmp_path.rglob("*"):
        assert "hush" not in path.name
        if path.is_file():
            assert b"hush" not in path.read_bytes(), path
    folders = [state / name for name in os.listdir(state)]
    assert folders
    for folder in folders:
        assert not stat.S_IMODE(folder.stat().st_mode) & 0o077, folder
