"""The image of a batch in MLflow, and what is read back, as rows that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventlog.event import METRIC
from replayers.mlflow_map import IMAGED, Mapping
from replayers.target import Change, Rejected, image_schema

if TYPE_CHECKING:
    import pyarrow as pa

#: The rules by which a row of a metric has no point in MLflow.
OMITS = frozenset(("not-a-number", "int-out-of-range", "table-not-held"))


class ImageRows:
    """Collects rows of `image_schema`."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def point(self, name: str, step: int, ms: int, bits: int) -> None:
        """Add a point of a metric."""
        self._rows.append((METRIC, name, step, ms * 1_000_000, bits, None))

    def text(self, kind: str, name: str, text: str) -> None:
        """Add a config, summary or tag."""
        self._rows.append((kind, name, None, None, None, text))

    def sheet(self, name: str, step: int, sha256: str) -> None:
        """Add a table: the text is the SHA-256 of its blob."""
        self._rows.append(("table", name, step, None, None, sha256))

    def table(self) -> pa.Table:
        """Return the rows."""
        import pyarrow as pa

        columns = list(zip(*self._rows, strict=True)) or [()] * 6
        kind = image_schema()
        arrays = [pa.array(c, f.type) for c, f in zip(columns, kind, strict=True)]
        return pa.Table.from_arrays(arrays, schema=kind)


def image(batch: pa.Table, *, tables: bool) -> pa.Table:
    """Return what these rows become, a row per point; events that are refused give nothing."""
    mapping = Mapping(batch, tables=tables, fold=False)
    out = ImageRows()
    for event in mapping.events:
        if event.seq in mapping.refused:
            continue
        for point in event.points:
            out.point(point.name, point.step, point.ms, point.bits)
        for text in event.texts:
            if text.group in IMAGED:
                out.text(text.group, text.name, text.text)
        for sheet in event.sheets:
            out.sheet(sheet.name, sheet.step, sheet.sha256)
    return out.table()


def changes(batch: pa.Table, *, tables: bool) -> list[Change]:
    """Return what the rules change of these rows, each row by itself.

    Raises
    ------
    Rejected
        If events of it are no valid rows.
    """
    mapping = Mapping(batch, tables=tables, fold=False)
    if mapping.refused:
        raise Rejected("rows that are not what their type says", seqs=mapping.refused)
    return mapping.changes.listed()
