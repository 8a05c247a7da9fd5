"""What commands print: tables or JSON on stdout, talk and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

#: No column of a table is cut to less than this, to fit a terminal.
_NARROWEST = 20


def begin() -> None:
    """Have stdout and stderr escape what their encoding cannot write, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def say(text: str) -> None:
    """Talk to the user, if somebody still listens: what is being done goes on."""
    with contextlib.suppress(OSError):
        print(f"eventlog: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print data for programs."""
    print_text(json.dumps(value, indent=1, default=str))


def print_json_line(value: Any) -> None:
    """Print one object of a stream of them, on a line of its own."""
    print_text(json.dumps(value, default=str))


def print_text(text: str = "") -> None:
    """Print to stdout; whoever read it may have gone, which is no failure of what was done."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")  # at once: an interrupt leaves no line without its end
    flush()


def flush() -> bool:
    """Hand over what was printed; return whether somebody reads it. If not, nobody will."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], nothing: str = "no runs to show"
) -> None:
    """Print data for people: columns are as wide as they need, numbers stand at the right. Where a
    terminal is narrower, the widest texts are cut. Without rows, say `nothing`.
    """
    if not rows:
        say(nothing)
        return
    cells = [[safe(str(cell)) for cell in row] for row in rows]
    widths = [max(map(_cells, column)) for column in zip(columns, *cells, strict=True)]
    if sys.stdout.isatty():
        import shutil

        widths = _narrowed(widths, shutil.get_terminal_size().columns)
        cells = [[_cut(c, w) for c, w in zip(row, widths, strict=True)] for row in cells]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    bold, plain = ("\x1b[1m", "\x1b[0m") if _coloured() else ("", "")
    lines = [f"{bold}{_line(list(columns), widths, right)}{plain}"]
    print_text("\n".join([*lines, *(_line(row, widths, right) for row in cells)]))


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) or cell == "-"  # none is known


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for cell, width, at_right in zip(cells, widths, right, strict=True):
        more = width if cell.isascii() else width - _cells(cell) + len(cell)
        parts.append(cell.rjust(more) if at_right else cell.ljust(more))
    return "  ".join(parts).rstrip()


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich import cells

    return cells.cell_len(text)


def _narrowed(widths: Sequence[int], most: int) -> list[int]:
    """Return widths that fit, as far as the widest columns can give way."""
    out = list(widths)
    over = sum(out) + 2 * (len(out) - 1) - most
    while over > 0 and (widest := max(out)) > _NARROWEST:
        at = out.index(widest)
        others = [w for w in out if w < widest]
        take = min(over, widest - max([_NARROWEST, *others]))
        out[at] -= max(1, take)
        over -= max(1, take)
    return out


def _cut(text: str, width: int) -> str:
    if _cells(text) <= width:
        return text
    while _cells(text) > width - 3:
        text = text[: min(len(text) - 1, width - 3)]
    return text + "..."


def safe(text: str) -> str:
    """Return `text` with control characters escaped: names come from other people's journals."""
    if text.isprintable():  # nearly all is, and tables have thousands of lines
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def when(nanoseconds: int | None) -> str:
    """Return a time in UTC to the second."""
    if not nanoseconds:
        return "-"
    import datetime as dt

    try:
        stamp = dt.datetime.fromtimestamp(nanoseconds / 1e9, dt.timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(nanoseconds)
    return stamp.isoformat(" ", "seconds")[:19]  # strftime takes twenty times as long


#: What stands in a row in place of a table (see `eventlog.value`).
_TABLE = {"columns", "rows", "sha256", "size"}


def short(value: object, width: int = 60) -> str:
    """Return a value on one line of at most `width` characters."""
    if isinstance(value, dict) and value.keys() == _TABLE:
        value = f"table of {value['rows']} rows"
    # Of numpy's scalars the number: their type is of no use to who looks at a curve.
    plain = isinstance(value, str) or getattr(value, "shape", None) == ()
    text = safe(str(value) if plain else repr(value))
    return text if len(text) <= width else text[: width - 3] + "..."


def many(count: int, word: str) -> str:
    """Return a number and what it counts: ``1 run``, ``2 runs``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


#: Called with (done, total).
Bar = Callable[[int, int], None]


@contextlib.contextmanager
def progress(label: str, *, unit: str = "runs", quiet: bool = False) -> Iterator[Bar]:
    """Show how far something is: a bar with rate and time left on a terminal, nothing elsewhere."""
    with bars(unit=unit, quiet=quiet) as more:
        yield more(label)


@contextlib.contextmanager
def bars(*, unit: str = "events", quiet: bool = False) -> Iterator[Callable[[str], Bar]]:
    """Show how far several things are, from any thread: a bar for each label, made when it first
    moves and gone when it is full.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda label: lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:

        def more(label: str) -> Bar:
            task: list[TaskID] = []

            def bar(done: int, total: int) -> None:
                if not task:
                    task.append(shown.add_task(short(label, 48), total=None))
                full = total > 0 and done >= total
                shown.update(task[0], completed=done, total=total, visible=not full)

            return bar

        yield more


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: what is no JSON becomes text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 2) == 1:
        return plain(item())
    return str(value)
