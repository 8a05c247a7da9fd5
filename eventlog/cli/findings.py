"""What the doctor finds: the one form in which every check tells it."""

from __future__ import annotations

import dataclasses

OK, INFO, WARN, BAD = "ok", "info", "warn", "BAD"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: `state` is `OK`, `INFO`, `WARN` or `BAD` (it will not work)."""

    state: str
    what: str
    text: str
