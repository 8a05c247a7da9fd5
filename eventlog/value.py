"""One value: any scalar, list or array that a training loop logs <-> its exact stored form.

The stored form is ``(type, num, data)``:

* ``type`` is a word that keeps the exact type (see `TYPES`);
* ``num`` is a float64 and holds the value if a float64 holds it exactly, bit for bit;
* ``data`` is bytes and holds what ``num`` cannot.

=====================  ==============================  ========================================
type                   num                             data
=====================  ==============================  ========================================
float64                the value, NaN payload kept     --
float32 float16        the value widened               the 4 or 2 bytes, little-endian, of a NaN
bfloat16                                               that widening would change
int                    if a float64 is exact           else a decimal literal, or a hexadecimal
int8..int64 uint8..64                                  one (``0x..``) beyond 64 bits; ASCII
bool                   0 or 1                          --
null                   --                              --
str                    --                              UTF-8 (a lone surrogate passes through)
bytes                  --                              the bytes
complex64 complex128   --                              real then imaginary part, little-endian
datetime, decimal      --                              ISO 8601 text; decimal literal
json                   --                              a list, tuple or dict (or other sequence or
                                                       mapping) as typed JSON, below
ndarray                --                              an array as a ``.npy`` file, no pickle (numpy's
                                                       datetime64 and timedelta64 scalars too)
table                  --                              typed JSON: reference to the table's blob
blob                   --                              typed JSON: reference to a value kept as a
                                                       blob, with the type it has there
=====================  ==============================  ========================================

Typed JSON is JSON in which a value that plain JSON would change is an object with ``$type``:
``{"$type":"float32","value":0.5}``; floats that are not finite carry ``bits`` (hexadecimal) in
place of ``value``; tuples and dicts that could be mistaken carry their items; text with lone
surrogates is ``base64`` of the bytes above, because JSON would join two of them.

An array of one element is a scalar: its shape is not kept.
"""

from __future__ import annotations

import base64
import datetime as _dt
import decimal as _decimal
import io
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from eventlog.errors import ValueRefused

#: Every type word of format 1. Readers keep and count words they do not know.
TYPES: frozenset[str] = frozenset(
    "float64 float32 float16 bfloat16 int int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
    "null str bytes complex64 complex128 datetime decimal json ndarray table blob".split()
)
NUMERIC: frozenset[str] = frozenset(
    "float64 float32 float16 bfloat16 int int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "bool".split()
)
_INTS = frozenset(t for t in TYPES if t.startswith(("int", "uint")))
_NARROW = {"float32": ("<f", "<I"), "float16": ("<e", "<H")}
#: Types that are neither mappings nor keep themselves: a quick way for what is logged most.
SCALARS: frozenset[type] = frozenset({float, int, bool, str, bytes, type(None)})
#: Every integer of at most this size is exact as a float64.
EXACT = 2**53
_DEPTH = 64
_FLOATS = {float}
_to_text = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=False
).encode
#: An array of values without bytes has at most so many of them.
_EMPTY = 2**16


class Stored(NamedTuple):
    """A value as it lies in a journal; see the table above."""

    type: str
    num: float | None
    data: bytes | None


def encode(value: object) -> Stored:
    """Return the stored form of `value`.

    Raises
    ------
    ValueRefused
        For an object that cannot be kept, a cycle, or nesting deeper than 64.
    """
    plain = _PLAIN.get(type(value)) or _numpy_maker(type(value))
    if plain is not None:
        return plain(value)
    own = _own_kind(type(value))
    if own is not None:
        return Stored("json", None, dumps(value))
    word = _dtype_word(value)
    if word is not None:
        return _from_array(value, word)
    for kind, maker in _SUBCLASSES:
        if isinstance(value, kind):
            return maker(value)
    if isinstance(value, (list, tuple, dict)):
        return Stored("json", None, dumps(value))
    item = getattr(value, "item", None)
    if callable(item):
        return _from_item(value, item)
    raise ValueRefused(f"a value of type {type(value).__qualname__} cannot be kept")


def decode(type: str, num: float | None, data: bytes | None) -> Any:
    """Return the value that was stored.

    Narrow numbers come back as numpy scalars, ``bfloat16`` as a float (numpy has no such type),
    references to blobs as dicts, and a word this version does not know as the `Stored` itself.

    Raises
    ------
    ValueError
        If no value of that type is stored like this: a journal may come from anyone.
    """
    try:
        return _decode(type, num, data)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # whatever a library makes of hostile bytes
        raise ValueError(f"no {type} is stored like this ({error!r})") from error


def _decode(type: str, num: float | None, data: bytes | None) -> Any:
    if type == "float64":
        return num
    if type == "null":
        return None
    if type == "str":
        return _need(data).decode("utf-8", "surrogatepass")
    if type == "bool":
        return num == 1.0
    if type in _INTS:
        number = int(_need(data), 0) if num is None else int(num)
        return number if type == "int" else _numpy_scalar(type, number)
    if type in _NARROW:
        return _narrow(type, num, data)
    reader = _READERS.get(type)
    if reader is None:
        return Stored(type, num, data)
    return reader(num, data)


def dumps(value: object) -> bytes:
    """Return `value` as typed JSON in ASCII. Raises `ValueRefused` as `encode` does."""
    if type(value) is list and {*map(type, value)} == _FLOATS:
        text = repr(value)
        if "n" not in text:  # neither nan nor inf
            return text.replace(" ", "").encode()
    tree = _to_json(value, 0, set())
    return _to_text(tree).encode()


def loads(data: bytes | str) -> Any:
    """Return the value of typed JSON; the inverse of `dumps`. Raises `ValueError` for all else."""
    try:
        return _from_json(json.loads(data))
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"this is no typed JSON ({error!r})") from error


# ------------------------------------------------------------------------------ encoding


def _float(value: float) -> Stored:
    return Stored("float64", float(value), None)


def _int(value: int, word: str = "int") -> Stored:
    if -EXACT <= value <= EXACT:
        return Stored(word, float(value), None)
    try:
        number = float(value)
    except OverflowError:
        number = 0.0
    if int(number) == value:
        return Stored(word, number, None)
    # Python refuses decimal text beyond some thousand digits; hexadecimal has no such limit.
    text = str(int(value)) if -(2**63) <= value < 2**64 else hex(value)
    return Stored(word, None, text.encode("ascii"))


def _text(value: str) -> bytes:
    # Of a text that is also an Enum, `str` gives the name and not the text.
    return str.__str__(value).encode("utf-8", "surrogatepass")


def _str(value: str) -> Stored:
    return Stored("str", None, _text(value))


#: What makes the data of values whose Python type alone says that they have no number, and which
#: type word.
DATA: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    bytes: bytes,
    list: dumps,
    tuple: dumps,
}


_PLAIN: dict[type, Callable[[Any], Stored]] = {
    float: lambda v: Stored("float64", v, None),
    int: _int,
    bool: lambda v: Stored("bool", float(v), None),
    str: _str,
    type(None): lambda v: Stored("null", None, None),
    bytes: lambda v: Stored("bytes", None, v),
    **dict.fromkeys((list, tuple, dict), lambda v: Stored("json", None, dumps(v))),
}
# Subclasses (numpy's float64 is a float, an IntEnum an int) in an order in which bool is no int.
_SUBCLASSES: tuple[tuple[type, Callable[[Any], Stored]], ...] = (
    (bool, _PLAIN[bool]),
    (int, lambda v: _int(int(v))),
    (float, _float),
    (str, _str),
    (bytes, lambda v: Stored("bytes", None, bytes(v))),
    (complex, lambda v: Stored("complex128", None, struct.pack("<dd", v.real, v.imag))),
    (_dt.datetime, lambda v: Stored("datetime", None, v.isoformat().encode())),
    (_dt.date, lambda v: Stored("datetime", None, v.isoformat().encode())),
    (_decimal.Decimal, lambda v: Stored("decimal", None, str(v).encode())),
)


def _numpy_maker(kind: type) -> Callable[[Any], Stored] | None:
    """Return how numpy's scalars of a type are kept, found by the type alone from now on."""
    if kind.__module__ != "numpy":
        return None
    import numpy as np

    if kind is np.float64:
        maker: Callable[[Any], Stored] = _float
    elif kind is np.bool_:
        maker = _PLAIN[bool]
    elif kind.__name__ in _INTS and issubclass(kind, np.integer):
        word = kind.__name__
        maker = lambda v: _int(int(v), word)  # noqa: E731
    elif kind.__name__ in _NARROW:
        narrow = kind.__name__
        maker = lambda v: _narrow_stored(v, float(v), narrow)  # noqa: E731
    else:
        return None
    _PLAIN[kind] = maker
    return maker


_own_kinds: dict[type, type[dict[Any, Any] | list[Any]] | None] = {}


def _own_kind(kind: type) -> type[dict[Any, Any] | list[Any]] | None:
    """Return what the mappings and sequences of others (OmegaConf's, say) are kept as; None for
    every other type.
    """
    if kind in _own_kinds:
        return _own_kinds[kind]
    own: type[dict[Any, Any] | list[Any]] | None = None
    if not issubclass(kind, (dict, list, tuple, str, bytes, bytearray, memoryview)):
        own = dict if issubclass(kind, Mapping) else list if issubclass(kind, Sequence) else None
    if len(_own_kinds) >= 512:  # types made by the thousand
        _own_kinds.clear()
    _own_kinds[kind] = own
    return own


def _dtype_word(value: object) -> str | None:
    """Return the dtype's name of a numpy, torch or jax value (``torch.float32`` -> float32)."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "item"):
        return None
    name = getattr(dtype, "name", None) or str(dtype)
    return str(name).rsplit(".", 1)[-1]


def _from_array(value: Any, word: str) -> Stored:
    if word.startswith(("datetime64", "timedelta64", "void")):
        return _from_many(value)  # Python's own have no nanoseconds, and no fields
    if word == "object":
        raise ValueRefused("an array of objects cannot be kept")
    try:
        number = value.item()
    except (ValueError, RuntimeError, TypeError):  # more than one element: numpy, torch
        return _from_many(value)
    if word in _NARROW:
        return _narrow_stored(value, float(number), word)
    if word in _INTS:
        return _int(int(number), word)
    if word == "bfloat16":
        return _brain_stored(value, float(number))
    if word in ("complex64", "complex128"):
        pack = "<ff" if word == "complex64" else "<dd"
        return Stored(word, None, struct.pack(pack, number.real, number.imag))
    if word in ("float64", "bool") or word.startswith(("str", "bytes")):
        return encode(number)
    # float128, float8 and int4, and whatever comes: no word of ours says what they are.
    raise ValueRefused(f"a value of dtype {word} cannot be kept exactly")


def _brain_stored(value: Any, wide: float) -> Stored:
    raw = None if wide == wide else _little(value, "bfloat16")
    if raw is None or _brain_nan(raw) == struct.pack("<d", wide):
        return Stored("bfloat16", wide, None)
    return Stored("bfloat16", wide, raw)


def _brain_nan(raw: bytes) -> bytes:
    """Return a bfloat16 NaN as a float64 with the same payload, little-endian."""
    (bits,) = struct.unpack("<H", raw)
    return struct.pack("<Q", bits >> 15 << 63 | 0x7FF << 52 | (bits & 0x7F) << 45)


def _narrow_stored(value: Any, wide: float, word: str) -> Stored:
    if wide == wide:
        return Stored(word, wide, None)
    raw = _little(value, word)  # a NaN: keep the bits if widening loses them
    if raw is None:
        return Stored(word, wide, None)
    return Stored(word, wide, None if _narrow_bits(wide, word) == raw else raw)


def _little(value: Any, word: str) -> bytes | None:
    """Return the bits of a narrow number, little-endian; None if they cannot be seen."""
    import numpy as np

    try:
        for step in ("detach", "cpu"):
            value = getattr(value, step)() if hasattr(value, step) else value
        array = np.asarray(value)
        if array.dtype.name != word or array.size != 1:
            return None
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    except Exception:  # a value that is like an array, but not enough
        return None


def _narrow_bits(wide: float, word: str) -> bytes:
    import numpy as np

    return bytes(np.float64(wide).astype(np.dtype(word).newbyteorder("<")).tobytes())


def _from_many(value: Any) -> Stored:
    import numpy as np

    for step in ("detach", "cpu"):  # torch, without importing it
        value = getattr(value, step)() if hasattr(value, step) else value
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise ValueRefused("an array of objects cannot be kept")
    return Stored("ndarray", None, _npy(array))


def _npy(array: Any) -> bytes:
    import numpy as np

    lib = np.lib.format
    try:
        told = lib.descr_to_dtype(lib.dtype_to_descr(array.dtype))
    except (ValueError, TypeError):
        told = None
    if told != array.dtype:  # another package's, which the file would call bytes
        raise ValueRefused(
            f"an array of dtype {array.dtype.name} cannot be kept exactly",
            hint="log it as float32 or another of numpy's own",
        )
    out = io.BytesIO()
    lib.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def _from_item(value: object, item: Any) -> Stored:
    try:
        inner = item()
    except Exception as error:
        raise ValueRefused(
            f"item() of a value of type {type(value).__qualname__} failed: {error}"
        ) from error
    if hasattr(inner, "item"):
        raise ValueRefused(f"a value of type {type(value).__qualname__} cannot be kept")
    return encode(inner)


# ------------------------------------------------------------------------------ decoding


def _need(data: bytes | None) -> bytes:
    return b"" if data is None else bytes(data)


def _numpy_scalar(word: str, number: int) -> Any:
    import numpy as np

    limits = np.iinfo(word)
    if not limits.min <= number <= limits.max:  # numpy before 2 would wrap around
        raise OverflowError(f"{number} is out of bounds for {word}")
    return np.dtype(word).type(number)


def _narrow(word: str, num: float | None, data: bytes | None) -> Any:
    import numpy as np

    dtype = np.dtype(word)
    if data is not None:
        return np.frombuffer(data, dtype.newbyteorder("<"))[0].astype(dtype)
    with np.errstate(all="ignore"):  # a journal of a stranger may say more than fits
        return np.float64(0.0 if num is None else num).astype(dtype)


def _read_npy(_num: float | None, data: bytes | None) -> Any:
    import numpy as np

    file = io.BytesIO(_need(data))
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _order, dtype = read(file)
    # numpy makes the array before it sees that the bytes are not there.
    if math.prod(shape) * max(dtype.itemsize, 1) > max(len(_need(data)) - file.tell(), _EMPTY):
        raise ValueError(f"no array of shape {shape} is in {len(_need(data))} bytes")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array if array.ndim else array[()]


_READERS: dict[str, Any] = {
    "bfloat16": lambda num, data: num if data is None else struct.unpack("<d", _brain_nan(data))[0],
    "bytes": lambda num, data: _need(data),
    "complex128": lambda num, data: complex(*struct.unpack("<dd", _need(data))),
    "complex64": lambda num, data: complex(*struct.unpack("<ff", _need(data))),
    "datetime": lambda num, data: _read_date(_need(data).decode()),
    "decimal": lambda num, data: _decimal.Decimal(_need(data).decode()),
    "json": lambda num, data: loads(_need(data)),
    "table": lambda num, data: loads(_need(data)),
    "blob": lambda num, data: loads(_need(data)),
    "ndarray": _read_npy,
}


def _read_date(text: str) -> _dt.datetime | _dt.date | Stored:
    try:
        if "T" in text:
            return _dt.datetime.fromisoformat(text)
        return _dt.date.fromisoformat(text)
    except ValueError:  # pandas' NaT, or nanoseconds in an older Python
        return Stored("datetime", None, text.encode())


# ------------------------------------------------------------------------------ typed JSON


def _to_json(value: Any, depth: int, above: set[int]) -> Any:
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is str and _is_text(value):
        return value
    if kind is int and -(2**63) <= value < 2**64:
        return value
    if kind is float and value - value == 0.0:
        return value
    if (own := _own_kind(kind)) is not None:
        value = own(value)
    if isinstance(value, (list, tuple, dict)):
        if id(value) in above:
            raise ValueRefused("a value that contains itself cannot be kept")
        if depth >= _DEPTH:
            raise ValueRefused(f"a value nested deeper than {_DEPTH} cannot be kept")
        above.add(id(value))
        try:
            return _container(value, depth + 1, above)
        finally:
            above.discard(id(value))
    return _tagged(encode(value))


def _container(value: Any, depth: int, above: set[int]) -> Any:
    if isinstance(value, dict):
        if all(type(k) is str and _is_text(k) for k in value) and "$type" not in value:
            return {k: _to_json(v, depth, above) for k, v in value.items()}
        items = [[_to_json(k, depth, above), _to_json(v, depth, above)] for k, v in value.items()]
        return {"$type": "dict", "value": items}
    items = [_to_json(v, depth, above) for v in value]
    return items if isinstance(value, list) else {"$type": "tuple", "value": items}


def _is_text(value: str) -> bool:
    """Return whether JSON keeps a text: it has no lone surrogate."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _tagged(stored: Stored) -> Any:
    word, num, data = stored
    if word in ("null", "bool"):
        return decode(word, num, data)
    if word == "str" and _is_text(text := decode(word, num, data)):
        return text
    if word in _INTS:
        if word == "int" and num is not None and abs(num) < 2.0**63:
            return int(num)
        return {"$type": word, "value": _need(data).decode() if num is None else int(num)}
    if num is not None:
        if num - num == 0.0:
            return num if word == "float64" else {"$type": word, "value": num}
        if data is None:
            return {"$type": word, "bits": struct.pack(">d", num).hex()}
    if word in ("datetime", "decimal"):
        return {"$type": word, "value": _need(data).decode()}
    return {"$type": word, "base64": base64.b64encode(_need(data)).decode("ascii")}


def _from_json(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_from_json(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    word = tree.get("$type")
    if word is None:
        return {key: _from_json(item) for key, item in tree.items()}
    if word == "tuple":
        return tuple(_from_json(item) for item in tree["value"])
    if word == "dict":
        return {_hashable(_from_json(k)): _from_json(v) for k, v in tree["value"]}
    return _untagged(word, tree)


def _untagged(word: str, tree: dict[str, Any]) -> Any:
    if "base64" in tree:
        num = float("nan") if word in _NARROW else None
        return decode(word, num, base64.b64decode(tree["base64"]))
    if "bits" in tree:
        return decode(word, struct.unpack(">d", bytes.fromhex(tree["bits"]))[0], None)
    value = tree.get("value")
    if isinstance(value, str):
        return decode(word, None, value.encode())
    if word in _INTS:
        return value if word == "int" else _numpy_scalar(word, int(value or 0))
    return decode(word, value, None)


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
