"""The journal's folder: where it is, and what it carries for whoever finds it."""

from __future__ import annotations

import contextlib
import os

from eventlog.errors import JournalError
from eventlog.files import LOCAL, NETWORK_FILE_SYSTEMS, Files
from eventlog.layout import default_journal

_README = """This folder is an event log of machine-learning runs (eventlog-journal).

  project=<project>/run=<run id>/      one run
    run.json                           its id, project and name
    <writer>-<n>.arrows                what is being logged: Arrow IPC streams, append-only
    sealed/*.parquet                   the same rows, sealed
    blobs/<sha256>                     tables and large values
  project=<project>/sealed/*.parquet   archives: what many runs had in their own folders sealed/

Look at it:     eventlog ls <this folder>
Send it on:     eventlog sync <this folder> --to mlflow
Copy it:        any copy (rsync, S3, USB) of any prefix is a valid journal

Do not edit the files. What was logged cannot be brought back once they are deleted.
"""


def prepare(folder: str | None = None, files: Files = LOCAL) -> tuple[str, str | None]:
    """Create the journal's folder if need be.

    Returns
    -------
    Its absolute path, and one line of advice if it lies on a network file system.

    Raises
    ------
    JournalError
        If it cannot be created or written, naming the path.
    """
    path = os.path.abspath(folder or default_journal())
    try:
        files.make_folder(path)
        if not files.exists(os.path.join(path, ".gitignore")):
            files.write_whole(os.path.join(path, ".gitignore"), b"*\n", durable=False)
            files.write_whole(os.path.join(path, "README.txt"), _README.encode(), durable=False)
    except OSError as error:
        raise JournalError(
            f"the journal cannot be opened ({error.strerror})",
            on=path,
            hint="give dir= or EVENTLOG_DIR a folder that this user can write",
        ) from error
    kind = ""
    with contextlib.suppress(OSError):
        kind = files.kind_of(path)
    if kind not in NETWORK_FILE_SYSTEMS:
        return path, None
    return path, (
        f"{path} is on {kind}: a server that is away can block any write to it, and so training; "
        "to rule that out set EVENTLOG_DIR to a local disk and copy the folder later"
    )
