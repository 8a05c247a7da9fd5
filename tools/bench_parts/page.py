"""How results are told: on a terminal of 100 columns, as JSON, and as the page of results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench_parts.figures import Bar, Found, Table
from eventlog.cli.output import print_table, print_text

WIDTH = 100
BARS = ("what", "bar", "median (least to most)", "met")
_ABOUT = """\
# Results of `tools/bench`

Made by the command named with each table, on the machine below. Blocks of the ways alternate
within a round; every figure is the median of the rounds, with the least and the most in brackets;
ratios are made round by round. A bar is met if the median meets it.
"""


def show(found: Found) -> None:
    """Print what a part found."""
    for table in found.tables:
        print_text()
        print_text(table.title)
        print_table([c.upper() for c in table.columns], table.rows)
        if table.note:
            print_text(textwrap.fill(table.note, WIDTH))
    if found.bars:
        print_text()
        print_table([c.upper() for c in BARS], [bar.row() for bar in found.bars])


def load_of(found: Sequence[Found]) -> str:
    """Return one sentence on what else the machine did."""
    shares = [f"{one.name} {one.other_load:.0%}" for one in found if one.other_load is not None]
    return f"CPU time of the machine that other processes used meanwhile: {', '.join(shares)}."


def markdown(found: Sequence[Found], machine: Sequence[str], when: str) -> str:
    """Return the page of results."""
    parts = [_ABOUT, f"{when}; {'; '.join(machine)}.\n", load_of(found) + "\n"]
    bars = [(one, bar) for one in found for bar in one.bars]
    parts.append("## Bars\n")
    parts.append(_grid((*BARS, "command"), [[*bar.row(), f"`{one.command}`"] for one, bar in bars]))
    missed = [bar for _one, bar in bars if not bar.met]
    parts.append(f"{len(bars) - len(missed)} of {len(bars)} are met.\n")
    for one in found:
        parts.append(f"## `{one.command}`\n")
        parts += [_section(table) for table in one.tables]
    return "\n".join(parts)


def _section(table: Table) -> str:
    note = f"\n{table.note}.\n" if table.note else ""
    return f"**{table.title}**\n\n{_grid(table.columns, table.rows)}{note}"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def missed(found: Sequence[Found]) -> list[Bar]:
    """Return the bars that are not met."""
    return [bar for one in found for bar in one.bars if not bar.met]
