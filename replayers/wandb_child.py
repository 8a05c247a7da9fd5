"""The parent's side of the child process in which wandb lives (`replayers.wandb_worker`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from eventlog.errors import UsageError
from replayers import wandb_folder
from replayers.pipe import talk
from replayers.target import Down, Retry, Unauthorised

_WORKER = Path(__file__).with_name("wandb_worker.py")
#: What of ``WANDB_*`` says where the server is and who asks; the rest would change the run.
_KEPT = frozenset(
    "WANDB_API_KEY WANDB_BASE_URL WANDB_CONFIG_DIR WANDB_CREDENTIALS_FILE WANDB_HTTP_TIMEOUT "
    "WANDB_IDENTITY_TOKEN_FILE WANDB_INSECURE_DISABLE_SSL WANDB_X_EXTRA_HTTP_HEADERS "
    "WANDB__EXTRA_HTTP_HEADERS".split()
)


class WandbChild:
    """One child, started by the first question and again after it died.

    Parameters
    ----------
    base_url:
        The server; "" for what wandb itself finds in its environment and settings.
    shown:
        The target's address for messages.
    deadline:
        Seconds after which a child that gives no answer is killed.
    """

    def __init__(self, base_url: str, shown: str, *, deadline: float = 180.0) -> None:
        self._base_url = base_url
        self._shown = shown
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    @property
    def alive(self) -> bool:
        """Whether there is a child now."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id, which is that of its group, if there is one now."""
        return None if self._process is None else self._process.pid

    def ask(self, op: str, **arguments: Any) -> Any:
        """Have the child do something; see `replayers.wandb_worker.Worker`.

        Raises
        ------
        Retry
            If it failed, died, or gave no answer in time: nobody knows what was stored.
        Down
            If nothing answers at the server's address.
        Unauthorised
            If there is no key, or the server refused it.
        UsageError
            If wandb cannot be imported.
        """
        child = self._started()
        request = json.dumps({"op": op, **arguments}).encode()
        try:
            reply = talk(child, request, time.monotonic() + self._deadline)
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            slow = isinstance(error, TimeoutError)
            what = "gave no answer" if slow else "died"
            raise Retry(f"the process that runs wandb {what}", on=self._shown) from error
        except BaseException:  # half a frame is in the pipe: this child cannot be spoken to again
            self.kill()
            raise
        kind, what = reply.get("error"), reply.get("what", "")
        if kind is None:
            return reply.get("ok")
        raise _error(kind, what, self._shown)

    def kill(self) -> None:
        """End the child and its wandb-core at once."""
        child, self._process = self._process, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            child.wait()
        if self._folder:
            wandb_folder.remove(self._folder)
            self._folder = ""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()  # wandb-core may have outlived it
        self._folder = wandb_folder.make()
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment(),
            cwd=self._folder,  # wandb reads settings and defaults from the working folder
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith("WANDB_")}
        if self._base_url:
            kept["WANDB_BASE_URL"] = self._base_url
        return (
            kept
            | wandb_folder.temporary(self._folder)
            | {
                "WANDB_DIR": self._folder,
                "WANDB_CACHE_DIR": self._folder,
                "WANDB_DATA_DIR": self._folder,
                "WANDB_ERROR_REPORTING": "false",
                "WANDB_SILENT": "true",
                "WANDB_CONSOLE": "off",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
        )


def _error(kind: str, what: str, shown: str) -> Exception:
    if kind == "unauthorised":
        return Unauthorised(
            f"W&B refused the credentials, or there are none ({what})",
            on=shown,
            hint="set WANDB_API_KEY, or run wandb login",
        )
    if kind == "down":
        return Down(f"the W&B server does not answer ({what})", on=shown, hint="try later")
    if kind == "missing":
        return UsageError(
            f"wandb cannot be used ({what})", hint="pip install 'eventlog-journal[wandb]'"
        )
    return Retry(f"W&B could not be used now ({what})", on=shown)
