"""The commands of the replay side, one module each: what the entry points name."""

from replayers.config_command import config
from replayers.diff_command import diff
from replayers.exec_command import exec_
from replayers.status_command import status
from replayers.sync_command import sync

__all__ = ["config", "diff", "exec_", "status", "sync"]
