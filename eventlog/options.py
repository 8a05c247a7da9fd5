"""How a writer writes: its level of durability, and its limits.

What each level promises of an event once `log` has returned:

=========  ============================  =========================================================
level      after a SIGKILL               after a power cut
=========  ============================  =========================================================
memory     may be lost: what was logged  as `group`
           in the last half second, or
           the last MiB
os         there                         may be lost, until the system has written it by itself
                                         (often 30 s), or `flush` or `finish` has returned
group      there                         may be lost: what was logged since the last group commit,
                                         which begins 0.5 s after an event, or with 8 MiB, and
                                         takes as long as the disk takes
sync       there                         there (one sync a call)
=========  ============================  =========================================================

At every level an event is there after a power cut once `flush` or `finish` has returned. All of it
holds while the disk works: while it fails, `health` says ``degraded``.
"""

from __future__ import annotations

import dataclasses

#: The levels of durability, weakest first.
LEVELS = ("memory", "os", "group", "sync")
#: A segment is followed by a new one when it has grown beyond this many bytes.
SEGMENT_BYTES = 64 * 2**20
#: Longest time, in seconds, that the group commit leaves an event unsynced before it starts.
GROUP_SECONDS = 0.5
#: The group commit begins at once when so many bytes are not durable.
GROUP_BYTES = 8 * 2**20
#: Memory for events that wait for a disk, and for events that wait for their sync, in bytes each.
MEMORY_BYTES = 64 * 2**20
#: The level ``memory`` writes when so many bytes wait.
BUFFER_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """How a writer writes."""

    durability: str = "group"
    segment_bytes: int = SEGMENT_BYTES
    group_seconds: float = GROUP_SECONDS
    memory_bytes: int = MEMORY_BYTES

    @property
    def commits(self) -> bool:
        """Whether a thread makes durable what was appended, without being asked."""
        return self.durability in ("group", "memory")
