"""Run as a folder (``python tools/wandb_server``) or as a module (``python -m …wandb_server``)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if not __package__:
    # Run by path, the interpreter put this very folder first: its modules would hide others.
    folder = Path(__file__).resolve().parent
    sys.path[0:1] = []
    sys.path.append(str(folder.parent))
    __package__ = folder.name

sys.exit(importlib.import_module(".command", __package__).main())
