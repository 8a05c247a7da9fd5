"""What a measurement comes to: figures by round, bars held against them, tables."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """The same figure of several rounds: its median, least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of the figures of the rounds."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def text(self) -> str:
        """Return ``median (least to most)``."""
        return f"{short(self.median)} ({short(self.least)} to {short(self.most)})"


def ratios(of: Iterable[float], to: Iterable[float]) -> Spread:
    """Return the spread of the ratios, round by round."""
    return Spread.of(a / b for a, b in zip(of, to, strict=True))


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` of all lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def short(value: float) -> str:
    """Return a number with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure that was asked for, and what was found: the median of the rounds counts."""

    what: str
    limit: float
    found: Spread
    unit: str
    least: bool = False  # the figure must be at least the limit, not at most

    @property
    def met(self) -> bool:
        """Whether the median holds the bar."""
        return self.found.median >= self.limit if self.least else self.found.median <= self.limit

    def row(self) -> list[str]:
        """Return the cells of a line of the table of bars."""
        limit = f"{'≥' if self.least else '≤'} {short(self.limit)} {self.unit}".rstrip()
        return [self.what, limit, self.found.text(), "yes" if self.met else "NO"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures for people."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """What one part of the bench found."""

    name: str
    bars: Sequence[Bar] = ()
    tables: Sequence[Table] = ()
    command: str = ""
    seconds: float = 0.0
    other_load: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        fields = dataclasses.asdict(self)
        for bar, one in zip(self.bars, fields["bars"], strict=True):
            one["met"] = bar.met
        return fields
