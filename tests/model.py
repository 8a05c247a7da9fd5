"""What the model target holds, as plain rows: to look at, and to be tampered with."""

from __future__ import annotations

import pyarrow as pa

from replayers.target import image_schema
from replayers.to_memory import StoredRun

Row = tuple[str, str, "int | None", "int | None", "int | None", "str | None"]
Place = tuple[str, int, int]

_SCHEMA = pa.schema([pa.field("seq", pa.int64()), *image_schema()])


def rows_of(stored: StoredRun) -> dict[Place, Row]:
    """Return the points by writer, seq, and number within the event."""
    found: dict[Place, Row] = {}
    for writer, tables in stored.points.items():
        for table in tables:
            for row in table.to_pylist():
                seq = row.pop("seq")
                number = 0
                while (writer, seq, number) in found:
                    number += 1
                found[writer, seq, number] = tuple(row.values())  # type: ignore[assignment]
    return found


def keep(stored: StoredRun, rows: dict[Place, Row]) -> None:
    """Have a run hold these points and no others; what it says that it holds stays."""
    stored.points = {}
    for writer in {place[0] for place in rows}:
        mine = [(place[1], *rows[place]) for place in sorted(rows) if place[0] == writer]
        columns = zip(*mine, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        stored.points[writer] = [pa.Table.from_arrays(arrays, schema=_SCHEMA)]
