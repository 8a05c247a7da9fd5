"""URLs under which bytes are uploaded and downloaded.

A client sends no key with them, so each carries a signature of what it is for.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote

PREFIX = "/storage/"


@dataclass(frozen=True)
class Links:
    """Makes and checks links below ``base``, the address by which the client reached us."""

    base: str
    key: str

    def _signature(self, owner: str, name: str) -> str:
        message = f"{owner}\0{name}".encode()
        return hmac.new(self.key.encode(), message, hashlib.sha256).hexdigest()[:32]

    def link(self, owner: str, name: str) -> str:
        """The URL of an owner's file, for PUT and GET alike."""
        path = f"{PREFIX}{quote(owner, safe='')}/{quote(name)}"
        return f"{self.base}{path}?sig={self._signature(owner, name)}"

    def opened(self, path: str, query: str) -> tuple[str, str] | None:
        """The (owner, name) of a link's path and query, if the signature is ours."""
        owner, _, name = path.removeprefix(PREFIX).partition("/")
        owner, name = unquote(owner), unquote(name)
        given = parse_qs(query).get("sig", [""])[0]
        if not hmac.compare_digest(given.encode(), self._signature(owner, name).encode()):
            return None
        return owner, name
