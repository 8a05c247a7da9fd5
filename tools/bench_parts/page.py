"""How results are told: on a terminal of 100 columns, as JSON, and as the page of results."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench_parts.figures import Bar, Found, Table
from eventlog.cli.output import print_table, print_text

WIDTH = 100
#: From this share of the CPU time of others on, figures are marked as those of a busy machine.
BUSY = 0.1
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
    """Return what else the machine did, and what that means for the figures."""
    shares = [(one.name, one.other_load) for one in found if one.other_load is not None]
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    text = f"CPU time of the machine that other processes used meanwhile: {told}."
    if any(share > BUSY for _name, share in shares):
        text += (
            " The machine was busy: times by the clock are longer than on a quiet one, CPU times "
            "somewhat; ratios suffer least."
        )
    return text


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
