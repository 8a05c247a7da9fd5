"""The demo's story: what is started, killed, started again, synced, and compared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import TOP

from eventlog.cli.output import print_table

OUT = TOP / "demo-out"
WANDB_KEY = "demo" * 10
STEPS = 2000
KILL_AT = 1250


def main(arguments: list[str]) -> int:
    """Run the demo; return 0 if every target holds exactly what the journal says."""
    if arguments:
        print("usage: tools/demo", file=sys.stderr)
        return 2
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    journal = OUT / "journal"
    with _wandb_server() as address:
        targets = {
            "MLflow": f"mlflow:sqlite:///{OUT / 'mlflow.db'}",
            "Trackio": f"trackio:{OUT / 'trackio'}",
            "W&B": f"wandb:{address}",
        }
        return _story(journal, targets)


def _story(journal: Path, targets: dict[str, str]) -> int:
    _say(f"1. train {STEPS} steps, SIGKILL the trainer at about step {KILL_AT}")
    killed_at = _train(journal, kill_at=KILL_AT)
    _say(f"   killed at step {killed_at}; 2. start it again: it goes on from its checkpoint")
    _train(journal, kill_at=None)
    _say("3. sync the journal into the backends")
    first = _sync(journal, targets)
    _say("4. sync it again: there is nothing to send")
    second = _sync(journal, targets)
    _say("5. read every backend back and compare it with the journal, bit by bit\n")
    equal = _table(journal, targets, first, second)
    _how_to_look(journal, targets)
    return 0 if equal else 1


@contextlib.contextmanager
def _wandb_server() -> Iterator[str]:
    """Run the loopback W&B server; the genuine client will talk to it as to any other."""
    ready = OUT / "wandb-port"
    command = [sys.executable, str(TOP / "tools" / "wandb_server"), "--data", str(OUT / "wandb")]
    command += ["--key", WANDB_KEY, "--port-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        end = time.monotonic() + 30
        while not ready.exists() and server.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if not ready.exists():
            server.kill()
            sys.exit("the loopback W&B server did not start")
        os.environ["WANDB_API_KEY"] = WANDB_KEY
        try:
            yield f"http://127.0.0.1:{ready.read_text().strip()}"
        finally:
            server.terminate()


def _train(journal: Path, kill_at: int | None) -> int:
    """Run the trainer; kill it when it has logged `kill_at`. Return the last step it told."""
    command = [sys.executable, str(TOP / "tools" / "demo_trainer.py"), "--report"]
    command += ["--journal", str(journal), "--checkpoints", str(OUT / "checkpoints")]
    command += ["--steps", str(STEPS)]
    step = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            step = int(line)
            if step == kill_at:
                process.send_signal(signal.SIGKILL)
    if kill_at is None and process.returncode:
        sys.exit(f"the trainer failed ({process.returncode})")
    return step


def _sync(journal: Path, targets: dict[str, str]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "eventlog.cli.main", "sync", str(journal), "--json"]
    for spec in targets.values():
        command += ["--to", spec]
    begun = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=_env())
    if done.returncode:
        sys.exit(f"the sync failed ({done.returncode})")
    _say(f"   {time.monotonic() - begun:.1f} s")
    reports = json.loads(done.stdout)
    return dict(zip(targets, reports, strict=True))


def _env() -> dict[str, str]:
    """Return the environment without what the user has set for servers of their own."""
    foreign = ("MLFLOW_", "TRACKIO_", "WANDB_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {**kept, "WANDB_API_KEY": WANDB_KEY}


def _table(
    journal: Path,
    targets: dict[str, str],
    first: dict[str, dict[str, Any]],
    second: dict[str, dict[str, Any]],
) -> bool:
    from eventlog import blobs
    from eventlog.catalog import find_all
    from eventlog.glance import glance
    from replayers.compare import compare
    from replayers.registry import make_target
    from replayers.replay import run_info

    (found,), _bad = find_all([str(journal)])
    look = glance(found.folder)
    rows = []
    equal = True
    for name, spec in targets.items():
        target = make_target(spec, lambda _run, sha: blobs.get(found.folder, sha))
        try:
            session = target.open(run_info(found, first[name]["known_as"]))
            result = compare(found.folder, target, session)
        finally:
            target.close()
        equal = equal and result.equal and not second[name]["sent"]
        rows.append(
            [
                name,
                look.points,
                first[name]["points"],
                result.expected,
                result.held,
                second[name]["sent"],
                "equal" if result.equal else "NOT EQUAL",
            ]
        )
    columns = ["TARGET", "JOURNAL: ALL", "EFFECTIVE", "AS THE TARGET MAPS IT", "TARGET HOLDS"]
    print_table([*columns, "2ND SYNC SENT", "COMPARED"], rows)
    print("\nMLflow keeps the tables of generations as artifacts, which are no points.")
    return equal


def _how_to_look(journal: Path, targets: dict[str, str]) -> None:
    bin_folder = Path(sys.executable).parent
    print(f"""
How to look at what was made (each is one command):

  {bin_folder}/eventlog show digits-mlp --journal {journal}
  {bin_folder}/eventlog status {journal}
  {bin_folder}/mlflow ui --backend-store-uri sqlite:///{OUT / "mlflow.db"}
  TRACKIO_DIR={OUT / "trackio"} {bin_folder}/trackio show --project demo

W&B was the genuine client against a loopback server, which has no pages.
""")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
