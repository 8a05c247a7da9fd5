"""Everything the server keeps, in one data folder."""

from __future__ import annotations

from pathlib import Path

from .blobs import Blobs
from .database import Database
from .lines import Lines
from .runs import Runs


class Store:
    """The tables, side by side over one database."""

    def __init__(self, folder: Path) -> None:
        """Open or create.

        Raises:
            OSError: the folder cannot be used.
        """
        self.database = Database(folder)
        self.runs = Runs(self.database)
        self.lines = Lines(self.database)
        self.blobs = Blobs(self.database)

    def close(self) -> None:
        """Close the database."""
        self.database.close()
