"""Whether a key may occur in a run, found out without reading events: a search through bytes.

The frames of a segment hold keys as they are, so a segment without the key's bytes has no row of
it. That checks no checksum and believes nothing: who is told yes, reads.
"""

from __future__ import annotations

import os

from eventlog.archive import open_sealed
from eventlog.errors import FormatError
from eventlog.files import LOCAL, Store
from eventlog.listing import listing

_CHUNK = 2**20


def may_mention(
    folder: str, writer: str, key: str, *, start: int = 0, store: Store = LOCAL
) -> bool:
    """Return False if no event of a writer from seq `start` on has a row of this key, as far as its
    files can be read.
    """
    found = listing(folder, store)
    live = [os.path.join(folder, str(name)) for name in found.segments.get(writer, ())]
    names = [name for name in found.parquet(writer) if name.last >= start]
    sealed = [os.path.join(folder, name.path) for name in names]
    try:
        return any(_in_bytes(path, key.encode(), store) for path in live) or any(
            _in_words(path, key, start, store) for path in sealed
        )
    except (OSError, FormatError):  # sealed in this moment, say: whoever reads finds out
        return True


def _in_bytes(path: str, word: bytes, store: Store) -> bool:
    held = b""
    with store.open(path) as file:
        while chunk := file.read(_CHUNK):
            if word in chunk or word in held + chunk[: len(word)]:
                return True
            held = chunk[-len(word) :]
    return False


def _in_words(path: str, word: str, start: int, store: Store) -> bool:
    with open_sealed(path, store) as file:
        return any(
            last >= start and file.may_have(group, "key", word)
            for group, (_rows, _first, last, _print) in enumerate(file.groups)
        )
