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
#: The first sentence of each one's help, so that a list of them loads none.
SUMMARIES = {
    "ls": "List the runs of journals (by default ./eventlog-data or EVENTLOG_DIR).",
    "show": "Show one run: how it stands, its attempts, config, summary and last events.",
    "seal": "Turn closed segments into Parquet: the same rows, a tenth of the size.",
    "verify": "Read every byte of runs: checksums, gaps, forks, blobs; hold them against the cursors.",
    "compact": "Put many sealed files of a run together into few: the same rows, found faster.",
    "salvage": "Copy what is provably good of damaged runs into a new journal; the old one is only "
    "read.",
    "doctor": "Say what is seen from here: versions, the journal's disk, the launcher, backends.",
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self._in_short(ctx).format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        shown = self._in_short(ctx).commands.items()
        found = [
            CompletionItem(name, help=command.get_short_help_str())
            for name, command in shown
            if name.startswith(incomplete) and not command.hidden
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def _in_short(self, ctx: click.Context) -> click.Group:
        """Return a group of the same commands, ours only with what a list says of them."""
        found = {}
        for name in self.list_commands(ctx):
            summary = SUMMARIES.get(name) or entrypoints.summary(GROUP, name)
            command = click.Command(name, help=summary) if summary else self.get_command(ctx, name)
            if command is not None:
                found[name] = command
        return click.Group(commands=found)

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
