"""The commands of the replay side, one module each: what the entry points name."""

from replayers.status_command import status
from replayers.sync_command import sync

__all__ = ["status", "sync"]
