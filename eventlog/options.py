"""How a writer writes: its level of durability, and its limits."""

from __future__ import annotations

import dataclasses

#: The levels of durability, weakest first.
LEVELS = ("memory", "os", "group", "sync")
#: A segment is followed by a new one when it has grown beyond this many bytes.
SEGMENT_BYTES = 64 * 2**20
#: Longest time, in seconds, that the group commit leaves an event unsynced before it starts.
GROUP_SECONDS = 0.5
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
