"""``eventlog exec``: run a program with a sync beside it.

The program is a child in the same process group, with the same terminal, files, folder and
variables, but for ``EVENTLOG_DIR`` (made absolute) and a token by which the sync knows its runs.
The sync (`replayers.beside`) is another child, in a session of its own: neither a terminal's Ctrl-C
nor a scheduler's signal ends it before its last drain, and it ends with this process. Nothing that
happens to it reaches the program.

Signals that somebody sends to this process are passed on. Those of a terminal are not: the kernel
gives them to the whole group, and so to the program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

import click

from eventlog.cli import output
from eventlog.errors import EventlogError, UsageError
from eventlog.layout import default_journal
from eventlog.resume import EXEC
from replayers.sync_options import Sending, sending_options

#: Signals that are passed on, as far as this process was not started to ignore them.
PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")
#: What Linux says of signals that come from the kernel: from a terminal.
_FROM_KERNEL = 128
#: How much longer than its drain the sync is waited for, in seconds.
_SLACK = 15.0


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@sending_options
@click.option("--dir", "journal", metavar="PATH", help="The journal. [default: as for init]")
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long, once the program has ended, what is left is still sent.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM...")
def exec_(
    how: Sending,
    journal: str | None,
    drain: float,
    command: tuple[str, ...],
) -> int:
    """Run a program, and send what it logs while it runs.

    The exit code is the program's: a tracker that is missing, refuses or is down changes nothing
    but a line on stderr. What could not be sent is sent by a later `eventlog sync`.
    """
    where = os.path.abspath(journal or default_journal())
    token = os.urandom(8).hex()
    environ = {**os.environ, "EVENTLOG_DIR": where, EXEC: token}
    how = dataclasses.replace(how, state=how.state and os.path.abspath(how.state))
    told = {"how": how.told(), "journal": where, "drain": drain, "token": token}
    return Supervisor(list(command), environ, told, drain).run()


class Supervisor:
    """One program and the sync beside it."""

    def __init__(
        self, command: list[str], environ: dict[str, str], told: Mapping[str, object], drain: float
    ) -> None:
        self._command = command
        self._environ = environ
        self._told = told
        self._drain = drain
        self._wanted = {
            number
            for name in PASSED_ON
            if (number := getattr(signal, name, None)) is not None
            and signal.getsignal(number) != signal.SIG_IGN
        }

    def run(self) -> int:
        """Run both to their end; return the program's exit code, or die of what it died of."""
        # From here on signals wait, so that none gets lost between the two starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._wanted, signal.SIGCHLD})
        beside = self._start_beside(mask)
        try:
            program = self._start(mask)
        except BaseException:
            _stop(beside)
            raise
        status = self._wait(program)
        if beside is not None:
            self._finish(beside)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return status if status >= 0 else _die_of(-status)

    # ---------------------------------------------------------------- the program

    def _start(self, mask: Iterable[int]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command,
                env=self._environ,
                close_fds=False,  # what was handed to us is the program's
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
        except OSError as error:
            what = f"the program cannot be started ({error.strerror})"
            if isinstance(error, FileNotFoundError):
                raise _NotFound(what, on=self._command[0]) from None
            raise _NotExecutable(what, on=self._command[0]) from None

    def _wait(self, program: subprocess.Popen[bytes]) -> int:
        """Pass signals on until the program has ended; return its status, negative for a signal."""
        while (status := program.poll()) is None:
            info = signal.sigtimedwait({*self._wanted, signal.SIGCHLD}, 0.5)
            if info is None or info.si_signo == signal.SIGCHLD or info.si_code == _FROM_KERNEL:
                continue
            with contextlib.suppress(ProcessLookupError):
                program.send_signal(info.si_signo)
        return status

    # ---------------------------------------------------------------- the sync

    def _start_beside(self, mask: Iterable[int]) -> subprocess.Popen[bytes] | None:
        arguments = [sys.executable, "-m", "replayers.beside", str(os.getpid())]
        try:
            beside = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
            assert beside.stdin is not None
            # Not among the arguments: everybody may read those.
            beside.stdin.write(json.dumps(dict(self._told)).encode() + b"\n")
            beside.stdin.flush()
        except OSError as error:
            output.say(f"no sync beside the program ({error})")
            return None
        return beside

    def _finish(self, beside: subprocess.Popen[bytes]) -> None:
        """Let the sync send what is left; a signal ends that."""
        assert beside.stdin is not None
        with contextlib.suppress(OSError):
            beside.stdin.write(b"drain\n")
            beside.stdin.flush()
        until = time.monotonic() + self._drain + _SLACK
        while beside.poll() is None and time.monotonic() < until:
            info = signal.sigtimedwait({*self._wanted, signal.SIGCHLD}, 0.2)
            if info is not None and info.si_signo != signal.SIGCHLD:
                break
        _stop(beside)


def _stop(beside: subprocess.Popen[bytes] | None) -> None:
    """End the sync: it sees the end of its input, and has a moment to end behind a batch."""
    if beside is None:
        return
    assert beside.stdin is not None
    with contextlib.suppress(OSError):
        beside.stdin.close()
    try:
        beside.wait(timeout=_SLACK)
    except subprocess.TimeoutExpired:
        beside.kill()
        beside.wait()


def _die_of(number: int) -> int:
    """End this process by a signal, as the program ended."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program left one if it was to
    sys.stderr.flush()
    with contextlib.suppress(OSError, ValueError):  # some have no other action
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


class _NotFound(UsageError):
    """As shells say it."""

    exit_code = 127


class _NotExecutable(EventlogError):
    """As shells say it."""

    exit_code = 126
