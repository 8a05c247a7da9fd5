"""One request to ``/files/{entity}/{project}/{run}/file_stream``, and what it does to the store.

The body is a JSON object. ``files`` maps a file name to ``{"offset": N, "content": [...]}``, where
``content[i]`` is the line at offset ``N + i``. ``wandb-history.jsonl`` and ``wandb-events.jsonl``
hold one JSON object a line, ``output.log`` one console line; ``wandb-summary.json`` is no log: its
last line is the whole summary. ``complete`` with ``exitcode`` ends the run, ``preempting`` says
that it is about to be stopped, ``uploaded`` names files whose upload has ended. Any post that does
not say ``complete`` brings the run back to ``running``.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from typing import Any

from .lines import EVENTS, HISTORY, SUMMARY, Line
from .runs import Run
from .store import Store

SURROGATE = re.compile("[\ud800-\udfff]")


class StreamError(ValueError):
    """A body that is not what the protocol says; the message tells where."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of one file."""

    file: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Post:
    """A parsed body."""

    chunks: tuple[Chunk, ...]
    complete: bool = False
    exit_code: int | None = None
    preempting: bool = False

    def half(self) -> Post:
        """The first half of the lines of every file, and nothing of the rest."""
        chunks = (
            replace(chunk, lines=chunk.lines[: len(chunk.lines) // 2]) for chunk in self.chunks
        )
        return Post(tuple(chunks))


def _step(file: str, text: str) -> int | None:
    """The ``_step`` of a history row; checks that a row is a JSON object."""
    if file not in (HISTORY, EVENTS):
        return None
    try:
        row = json.loads(text)
    except ValueError as error:
        raise StreamError(f"{file}: a line is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise StreamError(f"{file}: a line is not a JSON object")
    step = row.get("_step") if file == HISTORY else None
    return step if isinstance(step, int) and -(2**63) <= step < 2**63 else None


def _chunk(file: str, value: Any) -> Chunk:
    if not isinstance(value, dict):
        raise StreamError(f"files[{file!r}] is not an object")
    offset, content = value.get("offset"), value.get("content")
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < 2**53:
        raise StreamError(f"files[{file!r}].offset is not a line number")
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise StreamError(f"files[{file!r}].content is not a list of strings")
    if any(not text.isascii() and SURROGATE.search(text) for text in content):
        raise StreamError(f"files[{file!r}].content has half of a surrogate pair")
    lines = (Line(offset + i, _step(file, text), text) for i, text in enumerate(content))
    return Chunk(file, tuple(lines))


def parse(body: bytes) -> Post:
    """Read a body.

    Raises:
        StreamError: it is not JSON, or not of the shape above.
    """
    try:
        value = json.loads(body)
    except ValueError as error:
        raise StreamError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StreamError("the body is not an object")
    files = {} if value.get("files") is None else value["files"]
    if not isinstance(files, dict):
        raise StreamError("files is not an object")
    exit_code = value.get("exitcode")
    if exit_code is not None and not isinstance(exit_code, int):
        raise StreamError("exitcode is not a number")
    return Post(
        chunks=tuple(_chunk(file, chunk) for file, chunk in files.items()),
        complete=value.get("complete") is True,
        exit_code=exit_code,
        preempting=value.get("preempting") is True,
    )


def _state(run: Run, post: Post) -> str:
    if not post.complete:
        return "preempting" if post.preempting else "running"
    if not post.exit_code:
        return "finished"
    return "preempted" if post.preempting or run.state == "preempting" else "failed"


def apply(store: Store, run_id: int, post: Post) -> None:
    """Store a post; on the disk when this returns.

    Raises:
        LookupError: the run was deleted meanwhile.
    """
    with store.database.transaction():
        run = store.runs.by_number(run_id)
        if run is None:
            raise LookupError("the run was deleted")
        counts = [0, 0, 0]
        summary = run.summary
        for chunk in post.chunks:
            if chunk.file == SUMMARY:
                summary = chunk.lines[-1].text if chunk.lines else summary
                continue
            over = store.lines.write(run_id, chunk.file, chunk.lines)
            counts = [
                counts[0] + over.all,
                counts[1] + over.changed,
                counts[2] + over.changed_exactly,
            ]
        store.runs.change(
            run_id,
            {
                "summary": summary,
                "state": _state(run, post),
                "complete": int(post.complete),
                "exit_code": post.exit_code if post.complete else None,
                "heartbeat": time.time(),
                "overwrites": run.overwrites + counts[0],
                "overwrites_changed": run.overwrites_changed + counts[1],
                "overwrites_changed_exactly": run.overwrites_changed_exactly + counts[2],
            },
        )
