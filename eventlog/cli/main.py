"""The command group, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import click

from eventlog import __version__, entrypoints
from eventlog.cli import output
from eventlog.errors import EventlogError

GROUP = "eventlog.commands"
#: Our own commands by the module that has each: only that of the one that is wanted is loaded.
OWN = {
    "ls": "eventlog.cli.commands",
    "show": "eventlog.cli.commands",
    "seal": "eventlog.cli.commands",
    "verify": "eventlog.cli.commands",
    "compact": "eventlog.cli.keeping",
    "salvage": "eventlog.cli.keeping",
    "doctor": "eventlog.cli.doctor",
}


class Commands(click.Group):
    """Our own commands and those that other packages add by the entry point group
    ``eventlog.commands``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *OWN, *entrypoints.names(GROUP)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in OWN:
            command = getattr(import_module(OWN[cmd_name]), cmd_name)
        return command or entrypoints.load(GROUP, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whoever read our output may have gone, and that is no failure."""
        try:
            result = super().invoke(ctx)
        except BrokenPipeError as error:  # click would end the process with 1 and no word
            if output.flush():
                raise EventlogError("a process that was talked to has ended") from error
            return 0
        output.flush()
        return result


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="eventlog")
def group() -> None:
    """A write-ahead local event log for machine-learning runs.

    Exit codes: 0 done, 1 failure, 2 wrong usage, 3 partial, 4 integrity, 5 authentication,
    75 temporary (try later), 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code; users see no traceback."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    output.begin()
    try:
        result: Any = group.main(arguments, prog_name="eventlog", standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        output.say("interrupted; what was done is kept")
        return 130
    except EventlogError as error:
        output.say(output.safe(str(error)))
        return error.exit_code
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        output.say(output.safe(f"{error.strerror or error}{where}"))
        return 1
    except MemoryError:
        output.say("out of memory")
        return 1
    except Exception as error:
        if os.environ.get("EVENTLOG_DEBUG"):
            raise
        output.say(
            output.safe(f"this is a bug in eventlog: {type(error).__name__}: {error} ")
            + "(set EVENTLOG_DEBUG=1 to see where)"
        )
        return 1
    return result if isinstance(result, int) else 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
