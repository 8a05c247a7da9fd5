"""One request and its answer through the pipes of a child: JSON behind its length, with a deadline.

The children (`trackio_worker`, `wandb_worker`) import nothing of this project and read and write
the same frames themselves: four bytes of length, highest first, then the JSON.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import time
from typing import IO, Any

LENGTH = struct.Struct(">I")


def talk(child: subprocess.Popen[bytes], request: bytes, until: float) -> dict[str, Any]:
    """Send a request and return the answer.

    Parameters
    ----------
    until:
        When to give up, by `time.monotonic`, in seconds.

    Raises
    ------
    TimeoutError, EOFError, OSError
        If the child does not answer in time, or has died.
    ValueError
        If the answer is no JSON object.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    view = memoryview(LENGTH.pack(len(request)) + request)
    while view:
        _wait(child.stdin, select.POLLOUT, until)
        view = view[os.write(child.stdin.fileno(), view[:65536]) :]
    (size,) = LENGTH.unpack(_read(child.stdout, LENGTH.size, until))
    reply = json.loads(_read(child.stdout, size, until))
    if not isinstance(reply, dict):
        raise ValueError("an answer that is no object")
    return reply


def _read(pipe: IO[bytes], size: int, until: float) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        _wait(pipe, select.POLLIN, until)
        part = os.read(pipe.fileno(), min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _wait(pipe: IO[bytes], what: int, until: float) -> None:
    poll = select.poll()
    poll.register(pipe.fileno(), what)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError
