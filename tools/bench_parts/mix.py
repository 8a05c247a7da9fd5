"""The metrics that are measured with: what a training run logs, twenty numbers a step.

Ten noisy doubles, four that were float32, three learning rates, two counters, one number rounded
to three digits. They have as many digits as real values, so that ways that write text pay for
them. The learning rates decay (``decay=True``: each value has other digits, about 7 bytes of them)
or stay as they are.
"""

from __future__ import annotations

import os
from typing import Any

METRICS = 20
_PERIOD = 256
#: Data that are made at once for a journal.
_AT_ONCE = 20_000
#: A step of a journal takes so many nanoseconds, give or take.
_STEP_NS, _JITTER_NS = 300e6, 5e6
_EPOCH = 1_767_225_600_000_000_000


def steps(
    count: int = _PERIOD, metrics: int = METRICS, *, first: int = 0, decay: bool = True
) -> list[dict[str, float]]:
    """Return the data of so many steps: floats, the same keys in each."""
    import numpy as np

    random = np.random.default_rng(first + 1)
    at = np.arange(first, first + count)
    columns = [_column(i % METRICS, at, random, decay).tolist() for i in range(metrics)]
    groups = ("actor", "critic", "rollout", "perf")
    names = [f"{groups[i % 4]}/metric_{i}" for i in range(metrics)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column(i: int, at: Any, random: Any, decay: bool) -> Any:
    import numpy as np

    if i < 10:
        return random.normal(i + 1 / (1 + at / 1000), 0.1)
    if i < 14:
        return random.normal(i, 1, len(at)).astype(np.float32).astype(np.float64)
    if i < 17:
        return 3e-4 * (i - 13) * (1 - at / 1e7 if decay else np.ones(len(at)))
    if i < 19:
        return at * (4096.0 if i == 17 else 8.0)
    return np.round(random.gamma(2, 1, len(at)), 3)


def journal(
    folder: str, count: int, metrics: int = METRICS, *, decay: bool = True, run: str = "mix"
) -> str:
    """Write a run of so many steps into a journal, closed and not sealed; return its folder."""
    import numpy as np

    from eventlog.event import METRIC
    from eventlog.files import LOCAL
    from eventlog.journal import Options, Writer
    from eventlog.layout import run_folder
    from eventlog.runfile import RunFile, claim

    told = RunFile(id=run, project="bench", name="mix")
    path = run_folder(os.path.abspath(folder), told.project, told.id)
    LOCAL.make_folder(path)
    claim(path, told)
    identity = {"project": told.project, "name": told.name}
    writer = Writer(path, told.id, identity, options=Options(durability="os"))
    now = _EPOCH
    for first in range(0, count, _AT_ONCE):
        data = steps(min(_AT_ONCE, count - first), metrics, first=first, decay=decay)
        took = np.random.default_rng(first).normal(_STEP_NS, _JITTER_NS, len(data))
        for i, (values, nanoseconds) in enumerate(
            zip(data, took.astype(int).tolist(), strict=True)
        ):
            now += nanoseconds
            writer.append(METRIC, values, first + i, now)
    writer.close()
    return path
