"""Everything that a run in W&B holds, as rows of an image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from eventlog.event import CONFIG, SUMMARY, TAG
from replayers.target import Retry
from replayers.wandb_api import WandbRun
from replayers.wandb_child import WandbChild
from replayers.wandb_map import ROW, ImageRow, as_table, points, setting_image
from replayers.wandb_state import KEY
from replayers.wandb_values import canonical

if TYPE_CHECKING:
    import pyarrow as pa

#: Returns the columns and data of a table's blob by its SHA-256; None if nobody reads blobs.
Cells = Callable[[str], dict[str, Any] | None]
_POINTS = 100_000


def read_back(run: WandbRun, child: WandbChild, cells: Cells) -> Iterator[pa.Table]:
    """Yield all rows, then config, summary and tags; nothing of a run that is not there."""

    def same(digest: str, value: Any) -> bool:
        """Whether a table that lies in W&B has the cells of the blob; a reference has none."""
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            return isinstance(value, str)
        try:
            there = json.loads(child.ask("table", name=value["path"]))
        except (Retry, ValueError):
            return False
        wanted = cells(digest)
        return wanted is None or canonical(wanted) == canonical(
            {"columns": there.get("columns"), "data": there.get("data")}
        )

    found = run.look()
    if found is None:
        return
    record = run.record(found)
    out: list[ImageRow] = []
    for number, row in enumerate(run.rows(0, found["last_step"] + 1)):
        if number < record.adopted:
            continue
        about = row.get(ROW)
        out += points(row, json.loads(about) if isinstance(about, str) else {}, same)
        if len(out) >= _POINTS:
            yield as_table(out)
            out = []
    config = {k: v for k, v in found["config"].items() if k not in (KEY, "_wandb")}
    out += setting_image(CONFIG, config)
    named = record.values(SUMMARY)
    out += setting_image(SUMMARY, {k: v for k, v in found["summary"].items() if k in named})
    tags = [tag for tag in found["tags"] if tag not in record.links()]
    out += setting_image(TAG, dict.fromkeys(tags, True))
    yield as_table(out)
