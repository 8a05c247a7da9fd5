"""The version of what lies on disk, and which versions this package reads."""

from __future__ import annotations

from eventlog.errors import FormatError

FORMAT = "1.0"
_MAJOR = 1


def check_format(version: str) -> None:
    """Raise `FormatError` for a version of the format that this package cannot read."""
    major = version.partition(".")[0]
    if major != str(_MAJOR):
        raise FormatError(
            f"format {version} is not format {_MAJOR}, which this version of eventlog reads",
            hint="install a newer eventlog-journal",
        )
