r"""Keys of a journal <-> names that MLflow takes.

MLflow takes names of at most 250 characters of ``[/\w.\- :]`` that a path's normalisation leaves
alone. A key that fits is its own name. In any other, each character that does not fit becomes
``_x<hex>_``, its code point in 2 to 6 lowercase hexadecimal digits:

=============================================  ==========================================
in a key                                       in the name
=============================================  ==========================================
a character that MLflow refuses (``@``)        ``_x40_``
``/`` at an end, or after another ``/``        ``_x2f_``
the first ``.`` of a segment ``.`` or ``..*``  ``_x2e_``
``_`` where the name would show an escape      ``_x5f_``
that the key does not have
the empty key                                  ``_x0_``
a name that would be longer than it may        the key's beginning, then ``_xh`` and 32
                                               hexadecimal digits of the key's SHA-256, ``_``
=============================================  ==========================================

No two keys have the same name (shortened ones: no two that anyone can find), and `key_of` turns a
name that was not shortened back into its key.

Which letters MLflow takes depends on the Python that its server runs. So that the rule is the
same everywhere and for ever, the letters and decimal digits of Unicode 3.2 are kept, which every
Python knows, and younger ones are escaped.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable

#: The most characters of a metric's, param's or tag's name.
LIMIT = 250

_EASY = re.compile(r"[A-Za-z0-9_\-:][A-Za-z0-9_\-: ]*")
_PUNCTUATION = frozenset("_.- :/")
_KEPT = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd"))
_LOOKS_ESCAPED = re.compile(r"_x(?:0|[0-9a-f]{2,6}|h[0-9a-f]{32})(?![0-9a-f])")
_ESCAPE = re.compile(r"_x(0|[0-9a-f]{2,6})_")
_SHORTENED = re.compile(r"_xh[0-9a-f]{32}_")
_EMPTY = "_x0_"
#: Letters of Unicode 3.2 that are none since Unicode 9.
_LETTERS_NO_MORE = "\u1885\u1886"


@functools.lru_cache(maxsize=65536)
def name_of(key: str, limit: int = LIMIT) -> str:
    """Return the name of a key, of at most `limit` characters (at least 64)."""
    if len(key) <= limit and "_x" not in key and _EASY.fullmatch(key):
        return key
    name = _escaped(key) if key else _EMPTY
    return name if len(name) <= limit else _shortened(key, limit)


@functools.lru_cache(maxsize=4096)
def file_of(key: str) -> str:
    """Return the name of a key as that of one file or folder: ASCII, without ``/``, ``:``, spaces
    and capitals, which some artifact stores fold, and at most 128 characters.
    """
    return _ascii(key) if len(_ascii(key)) <= 128 else _shortened(key, 128, plain=_is_ascii_plain)


def key_of(name: str) -> str | None:
    """Return the key that has this name; None for a shortened one, which does not hold it."""
    if _SHORTENED.search(_ESCAPE.sub(" ", name)):
        return None
    return _ESCAPE.sub(lambda m: "" if m[1] == "0" else chr(int(m[1], 16)), name)


def _is_plain(char: str) -> bool:
    if char.isascii():
        return char.isalnum() or char in _PUNCTUATION
    return unicodedata.ucd_3_2_0.category(char) in _KEPT and char not in _LETTERS_NO_MORE


def _is_ascii_plain(char: str) -> bool:
    return char.isascii() and (char.islower() or char.isdigit() or char in "_-")


def _ascii(key: str) -> str:
    return _escaped(key, plain=_is_ascii_plain) if key else _EMPTY


def _escaped(key: str, plain: Callable[[str], bool] = _is_plain) -> str:
    marked = [not plain(char) or _breaks_path(key, i) for i, char in enumerate(key)]
    for match in _LOOKS_ESCAPED.finditer(key):
        end = match.end()
        if end < len(key) and (key[end] == "_" or marked[end]):
            marked[match.start()] = True
    return "".join(f"_x{ord(c):02x}_" if mark else c for c, mark in zip(key, marked, strict=True))


def _breaks_path(key: str, i: int) -> bool:
    """Return whether this slash or dot would not survive the normalisation of a path."""
    starts = i == 0 or key[i - 1] == "/"
    if key[i] == "/":
        return starts or i + 1 == len(key)
    return key[i] == "." and starts and key[i + 1 : i + 2] in ("", ".", "/")


def _shortened(key: str, limit: int, plain: Callable[[str], bool] = _is_plain) -> str:
    digest = "xh" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32] + "_"
    # The underscore belongs to what is escaped: the beginning must not run into the digest.
    kept = limit - len(digest)
    while len(beginning := _escaped(key[:kept] + "_", plain)) > limit - len(digest):
        kept -= 1 + (len(beginning) - limit + len(digest)) // 11
    return beginning + digest
