"""Which metrics of a run a target gets: a choice made with the first delivery, and kept from then
on.

Rows of metrics (``metric``, ``system``) whose key no glob matches are left out, and settled as if
the target held them; everything else of a run goes all the same. A cursor tells of whole events,
and in Trackio and W&B one event is one row, to which keys that were left out cannot be added. So
the cursor remembers the choice: a sync that names none goes on with it, another one is refused.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from eventlog.columns import is_word
from eventlog.delivery import Cursor
from eventlog.errors import UsageError
from eventlog.event import METRIC, SYSTEM

if TYPE_CHECKING:
    import pyarrow as pa

    from eventlog.views import View

#: The glob that leaves nothing out.
ALL = "*"


def keys_of(globs: Iterable[str]) -> tuple[str, ...]:
    """Return the globs that a user gives as a choice: sorted, each once, () for all keys.

    Raises
    ------
    UsageError
        For a glob that is empty or cannot be matched.
    """
    found = sorted(set(globs))
    for glob in found:
        try:
            if not glob:
                raise ValueError("it is empty")
            re.compile(fnmatch.translate(glob))
        except (ValueError, re.error, OverflowError, RecursionError, MemoryError) as error:
            raise UsageError(
                f"--key {glob[:80]!r} is no glob ({error})", hint=f"--key '{ALL}' takes all"
            ) from None
    return () if ALL in found else tuple(found)


def shown(keys: Iterable[str]) -> str:
    """Return a choice for people."""
    return ", ".join(keys) or "all keys"


def check_keys(wanted: tuple[str, ...], cursor: Cursor, label: str) -> None:
    """Refuse another choice than the one with which a run's first events were sent.

    Raises
    ------
    UsageError
    """
    if any(mark.attempted for mark in cursor.writers.values()):
        raise UsageError(
            f"this run was sent with other keys ({shown(cursor.keys)}); rows that a target has "
            f"cannot be given the keys of {shown(wanted)}",
            on=label,
            hint="leave out --key to go on as before, or name another target or project",
        )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A view without the metrics that a target does not get."""

    view: View
    keys: tuple[str, ...]
    _known: dict[str, bool] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """That of the view."""
        return self.view.name

    def rows(self, writer: str, table: pa.Table) -> pa.Table:
        """Return the rows that belong to the view and are chosen, in order."""
        rows = self.view.rows(writer, table)
        if not rows.num_rows:
            return rows
        import pyarrow.compute as pc

        column = rows.column("key")
        points = is_word(rows.column("kind"), METRIC, SYSTEM)
        keys = pc.unique(column.filter(points)).to_pylist()
        left_out = [key for key in keys if not self._matches(key)]
        if not left_out:
            return rows
        gone = pc.and_(points, is_word(column, *left_out))
        return rows.filter(pc.invert(gone))

    @property
    def nothing(self) -> bool:
        """Whether metrics were looked at, and none was chosen."""
        return bool(self._known) and not any(self._known.values())

    def _matches(self, key: str) -> bool:
        if key not in self._known:
            # A run with a new key in each event must not fill the memory.
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[key] = any(fnmatch.fnmatchcase(key, glob) for glob in self.keys)
        return self._known[key]


def only(view: View, keys: tuple[str, ...]) -> View:
    """Return a view without the metrics that a target does not get."""
    return Chosen(view, keys) if keys else view
