"""verl's config as it is recorded: resolved, whatever of it breaks, and without secrets.

verl's config is OmegaConf's, whose values may be interpolations (``${data.path}``, ``${oc.env:X}``):
one that leads nowhere must not cost the others. It is recorded as it is written, behind a mark. A
value that must still be given (``???``) is recorded as that.

A config is recorded whole, and nobody chose each of its values; so the rules of a recorded command
line hold here too: what has a name like a secret's, or comes of a variable with such a name, is
``***``, and so are credentials in addresses.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from eventlog.provenance import is_secret, without_credentials
from eventlog.recorded import as_mapping

#: Before the text of a value that cannot be resolved.
MARK = "unresolved: "

_MISSING = "???"
_HIDDEN = "***"
_DEEPEST = 64
#: A shorter secret is only looked for as a whole value.
_SHORTEST = 6
_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([A-Za-z0-9_]+)")


def resolved(config: Any) -> tuple[dict[str, Any], list[str]]:
    """Return a config as plain values, and the keys (``a.b[0]``) of those that cannot be resolved.

    Raises
    ------
    UsageError
        For what is no mapping, no dataclass and no Namespace.
    """
    walk = _Walk()
    values = walk.mapping(config if isinstance(config, Mapping) else as_mapping(config), None, "")
    return {str(key): value for key, value in values.items()}, walk.broken


class _Walk:
    """One way through a config; `broken` are the keys that could not be resolved."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self._above: list[int] = []
        self._secrets: set[str] = set()

    def mapping(self, node: Mapping[Any, Any], written: Any, path: str) -> dict[Any, Any]:
        """Return a mapping as a dict; `written` is how it stands in the file, if that is known."""
        written = self._as_written(node) if written is None else written
        dot = f"{path}." if path else ""
        return {key: self._value(node, key, written, f"{dot}{key}") for key in list(node)}

    def _items(self, node: Any, written: Any, path: str) -> list[Any]:
        written = self._as_written(node) if written is None else written
        return [self._value(node, i, written, f"{path}[{i}]") for i in range(len(node))]

    def _as_written(self, node: Any) -> Any:
        """Return what stands in the file, interpolations unresolved; None of what is no config."""
        if not _is_config(node):
            return None
        try:
            written = sys.modules["omegaconf"].OmegaConf.to_container(node, resolve=False)
        except Exception:
            return None
        values = {v: os.environ.get(v, "") for v in _VARIABLE.findall(str(written))}
        self._secrets |= {value for v, value in values.items() if value and is_secret(v, value)}
        return written

    def _value(self, node: Any, key: Any, written: Any, path: str) -> Any:
        written = _at(written, key)
        if isinstance(written, str) and written == _MISSING:
            return _MISSING
        try:
            return self._plain(node[key], written, path)
        except Exception:  # whatever a resolver of somebody's raises
            self.broken.append(path)
            text = written if isinstance(written, str) else "it cannot be read"
            return MARK + _without_secrets(path, text)

    def _plain(self, value: Any, written: Any, path: str) -> Any:
        if not isinstance(value, (Mapping, list, tuple)) and not _is_config(value):
            return self._leaf(path, value)
        if id(value) in self._above or len(self._above) >= _DEEPEST:
            raise RecursionError("a value that contains itself")
        self._above.append(id(value))
        try:
            inside = None if isinstance(written, str) else written
            if isinstance(value, Mapping):
                return self.mapping(value, inside, path)
            items = self._items(value, inside, path)
            return tuple(items) if isinstance(value, tuple) else items
        finally:
            self._above.pop()

    def _leaf(self, path: str, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (str, int, float)):
            text = str(value)
            if any(s == text or (len(s) >= _SHORTEST and s in text) for s in self._secrets):
                return _HIDDEN
        return _without_secrets(path, value)


def _is_config(value: Any) -> bool:
    """Return whether a value is a mapping or list of OmegaConf's, which nothing here imports."""
    omegaconf = sys.modules.get("omegaconf")
    return omegaconf is not None and isinstance(value, (omegaconf.DictConfig, omegaconf.ListConfig))


def _at(written: Any, key: Any) -> Any:
    try:
        return written[key] if isinstance(written, (dict, list)) else None
    except (LookupError, TypeError):
        return None


def _without_secrets(path: str, value: Any) -> Any:
    if isinstance(value, (str, int, float, bytes)) and is_secret(path, str(value)):
        return _HIDDEN
    return without_credentials(value) if type(value) is str and "://" in value else value
