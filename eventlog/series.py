"""One metric of a run as an Arrow table, without reading the others.

Sealed files are read by column: of a row group that lacks the key only the keys are unpacked.
Programs that read the sealed Parquet themselves get the same rows by
``WHERE key = '...' ORDER BY writer, seq``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eventlog import frame as frames
from eventlog import runfile
from eventlog.attempts import attempts
from eventlog.catalog import resolve
from eventlog.columns import repeated
from eventlog.errors import UsageError
from eventlog.files import LOCAL, Store
from eventlog.listing import listing
from eventlog.reader import WriterReader, headers
from eventlog.views import open_view

if TYPE_CHECKING:
    import pyarrow as pa


def read_series(
    run: str, key: str, *, view: str = "effective", journal: str | None = None
) -> pa.Table:
    """Return every row of one metric of a run as an Arrow table; see `series`.

    Parameters
    ----------
    run:
        A run as the command line takes it: a path, the start of an id, a name, or project/name.
    journal:
        Where to look for it, by default ``EVENTLOG_DIR`` or ``./eventlog-data``.

    Raises
    ------
    UsageError
        If there is no such run, or more than one.
    """
    return series(resolve(run, journal).folder, key, view=view)


def series(
    folder: str,
    key: str,
    *,
    view: str = "effective",
    skip_missing: bool = False,
    store: Store = LOCAL,
) -> pa.Table:
    """Return every row of one key of a run, live or sealed.

    Parameters
    ----------
    folder:
        The run's folder.
    key:
        The metric's whole name.
    view:
        ``effective`` (without what a later attempt superseded) or ``all``.
    skip_missing:
        Go on behind events that no file holds; a writer's rows end in front of them otherwise.

    Returns
    -------
    pyarrow.Table
        The journal's columns (FORMAT.md) and `writer`, in many chunks; writers in the order of
        their attempts, the rows of each in the order in which they were logged. Numbers that a float64 holds are in
        `num`; `eventlog.value.decode` makes values of the rest.

    Raises
    ------
    UsageError
        If there is no view of that name.
    FormatError
        For a file that cannot be what its name says.
    IntegrityError
        If ``run.json`` says that the folder is that of another run.
    OSError
        If a file is there and cannot be read.
    """
    import pyarrow as pa

    schema = frames.schema().append(pa.field("writer", pa.utf8(), nullable=False))
    tables = list(_tables(folder, key, view, skip_missing, store))
    none = pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    return pa.concat_tables([none, *tables])


def _tables(
    folder: str, key: str, view: str, skip_missing: bool, store: Store
) -> Iterator[pa.Table]:
    import pyarrow as pa

    chosen = open_view(folder, view, store)
    known = headers(folder, store)
    with contextlib.suppress(UsageError):  # a folder of files without a run.json is read as well
        runfile.read(folder, store).check(folder, known)
    writers = [writer for attempt in attempts(known) for writer in attempt.writers]
    # Of whom no header could be read: reading gives the rows or says why not.
    writers += [writer for writer in listing(folder, store).writers if writer not in known]
    for writer in writers:
        reader = WriterReader(folder, writer, skip_missing=skip_missing, store=store, key=key)
        for table in reader.tables():
            rows = chosen.rows(writer, table)
            names = repeated(writer, rows.num_rows)
            yield rows.append_column(pa.field("writer", pa.utf8(), nullable=False), names)
