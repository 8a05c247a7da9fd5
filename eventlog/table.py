"""Tables: rows of columns that are logged as one value, such as validation generations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eventlog.errors import UsageError
from eventlog.value import Stored, dumps, loads


def is_frame(kind: type) -> bool:
    """Return whether a type looks like the data frames of pandas or polars."""
    return kind.__name__ == "DataFrame"


def as_table(value: Any) -> Any:
    """Return a data frame (of pandas or polars) as a `Table`, anything else as it is."""
    kind = type(value)
    if not is_frame(kind):
        return value
    if hasattr(kind, "itertuples"):
        return Table(dataframe=value)
    return Table(value.columns, value.iter_rows()) if hasattr(kind, "iter_rows") else value


class Table:
    """A table of any values that can be logged.

    It is kept as a blob of typed JSON, ``{"columns": [...], "data": [[...], ...]}``, and the event
    names the blob.

    Parameters
    ----------
    columns:
        Names, one a column.
    data:
        Rows, each with one value a column. A pandas frame may be given as ``dataframe=``.

    Raises
    ------
    UsageError
        If a row has another number of values than there are columns.
    """

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        data: Iterable[Sequence[Any]] = (),
        *,
        dataframe: Any = None,
    ) -> None:
        if dataframe is not None:
            columns = [str(name) for name in dataframe.columns]
            rows = dataframe.itertuples(index=False, name=None)
            data = [[None if type(c).__name__ == "NAType" else c for c in row] for row in rows]
        self.columns = [str(name) for name in columns or ()]
        self.data: list[list[Any]] = []
        for row in data:
            self.add_data(*row)

    def add_data(self, *row: Any) -> None:
        """Append one row."""
        if len(row) != len(self.columns):
            raise UsageError(
                f"a row of {len(row)} values in a table of {len(self.columns)} columns"
            )
        self.data.append(list(row))

    def __len__(self) -> int:
        return len(self.data)

    def to_bytes(self) -> bytes:
        """Return the content of the table's blob. Raises `ValueRefused` for a cell of no value."""
        return dumps({"columns": self.columns, "data": self.data})

    @classmethod
    def from_bytes(cls, content: bytes) -> Table:
        """Read the content of a table's blob. Raises `ValueError` if it is none."""
        tree = loads(content)
        try:
            return cls(tree["columns"], tree["data"])
        except (KeyError, TypeError, UsageError) as error:
            raise ValueError(f"this is no table ({error!r})") from error

    def __eventlog__(self, put_blob: Callable[[bytes], str]) -> Stored:
        """Keep the table beside the segments and return the reference to it."""
        content = self.to_bytes()
        digest = put_blob(content)
        reference = {
            "sha256": digest,
            "size": len(content),
            "rows": len(self.data),
            "columns": self.columns,
        }
        return Stored("table", None, dumps(reference))
