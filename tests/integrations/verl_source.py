"""The genuine source of verl, loaded by its path.

verl itself imports torch, ray and more. Its ``utils/tracking.py`` does not: with empty packages
``verl`` and ``verl.utils`` that point to the genuine folders, it is imported as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

VERSION = "0.9.1"


def find() -> Path | None:
    """Return the folder of the package verl: beside this environment, or installed in it."""
    beside = Path(sys.prefix) / "verl-source" / "verl"
    told = Path(os.environ.get("VERL_SOURCE", beside))
    if (told / "utils" / "tracking.py").exists():
        return told
    loaded = sys.modules.get("verl")
    if loaded is not None:
        return Path(loaded.__path__[0])
    spec = importlib.util.find_spec("verl")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def tracking() -> Any:
    """Return the genuine module ``verl.utils.tracking``, with the plug-in imported behind it as
    verl imports it.
    """
    top = find()
    assert top is not None, "verl's source is not there (tools/requirements-verl-source.lock)"
    for name, folder in (("verl", top), ("verl.utils", top / "utils")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    found = importlib.import_module("verl.utils.tracking")
    importlib.import_module("eventlog.integrations.verl")
    return found
