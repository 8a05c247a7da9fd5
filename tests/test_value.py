"""Values come out as they went in: type and bits."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import importlib.util
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.errors import ValueRefused
from eventlog.value import EXACT, NUMERIC, TYPES, Stored, decode, dumps, encode, loads
from tests.helpers import bits, examples

NANS = [0x7FF8000000000000, 0x7FF0000000000001, 0xFFF0000000000001, 0x7FF8DEAD0000BEEF]
LONE = ["\ud800", "a\udfffb", "\ud83d\ude00"]


def there_and_back(value):
    return decode(*encode(value))


def equal(a, b):
    """Return whether two values have the same type and the same bits, at any depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bits(a) == bits(b)
    if isinstance(a, np.generic):
        return a.tobytes() == b.tobytes() and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(equal(list(x), list(y)) for x, y in pairs)
    return a == b


@pytest.mark.parametrize("pattern", [*NANS, 1 << 63, 0x7FF0000000000000, 0xFFF0000000000000])
def test_float64_keeps_every_bit(pattern):
    value = struct.unpack("<d", struct.pack("<Q", pattern))[0]
    for found in (there_and_back(value), loads(dumps([value]))[0]):
        assert struct.unpack("<Q", bits(found))[0] == pattern
    assert encode(value).type == "float64"


@given(st.lists(st.floats()))
def test_a_list_of_floats_is_the_json_that_anybody_makes_of_it(items):
    text = dumps(items)
    assert equal(loads(text), items)
    if all(map(math.isfinite, items)):
        assert text == json.dumps(items, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("word", "unsigned", "patterns"),
    [
        ("float32", np.uint32, [0x7FC00001, 0x7FA00001, 0x7F800001, 0xFFC12345, 0x80000000, 1]),
        ("float16", np.uint16, [0x7E01, 0x7C01, 0xFE00, 0xFC01, 0x8000, 0x7C00, 1]),
    ],
)
def test_narrow_floats_keep_every_bit_nan_payloads_too(word, unsigned, patterns):
    for pattern in patterns:
        value = unsigned(pattern).view(word)
        swapped = np.array(value).astype(np.dtype(word).newbyteorder(">"))
        for form in (value, np.array(value), np.array([value]), swapped):
            stored = encode(form)
            assert stored.type == word
            for found in (decode(*stored), loads(dumps([form]))[0]):
                assert int(found.view(unsigned)) == pattern, hex(pattern)


@pytest.mark.parametrize(
    "number",
    [
        0,
        -1,
        EXACT,
        EXACT + 1,
        -EXACT - 1,
        2**63 - 1,
        -(2**63),
        2**64,
        2**64 + 1,
        2**1023,
        2**1024,
        10**400,
        -(10**400),
        10**5000,
        -(10**5000),
    ],
    ids=lambda n: f"{n.bit_length()}bits",
)
def test_integers_of_any_size_are_exact(number):
    assert equal(there_and_back(number), number)
    assert equal(loads(dumps([number])), [number])


@pytest.mark.parametrize("word", sorted(w for w in NUMERIC if w not in ("int", "bool", "bfloat16")))
def test_every_numpy_scalar_keeps_its_dtype_at_its_limits(word):
    dtype = np.dtype(word)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    for value in (limits.max, limits.min, 0, 1):
        scalar = dtype.type(value)
        expected = float(scalar) if word == "float64" else scalar
        for form in (scalar, np.array(scalar), np.array([scalar]), np.array([[scalar]])):
            assert encode(form).type == word
            assert equal(there_and_back(form), expected)
        assert equal(loads(dumps({"a": [scalar]}))["a"][0], expected)


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        None,
        "",
        "é\x00\n",
        *LONE,
        b"",
        b"\xff\x00",
        1 + 2j,
        complex(-0.0, math.inf),
        dt.datetime(2026, 1, 2, 3, 4, 5, 6),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
        dt.date(2026, 1, 2),
        decimal.Decimal("1.10"),
        decimal.Decimal("-0E-7"),
        np.arange(6).reshape(2, 3),
        np.array([]),
        np.array(["a", "b"]),
        np.zeros((0, 3), "f4"),
        np.datetime64("2026-01-01T00:00:00.123456789"),
        np.timedelta64(3, "ns"),
        np.datetime64("NaT", "s"),
        [],
        (),
        {},
        [[]],
        ({},),
        {"$type": 1},
        {1: 2, None: 3.0},
    ],
    ids=repr,
)
def test_every_other_type_comes_back(value):
    assert equal(there_and_back(value), value)
    assert equal(loads(dumps([value])), [value])


def test_subclasses_come_back_as_their_base():
    class Colour(enum.IntEnum):
        RED = 3

    class Text(str):
        __slots__ = ()

    assert equal(there_and_back(Colour.RED), 3)
    assert equal(there_and_back(Text("a")), "a")
    assert equal(there_and_back(np.bool_(True)), True)
    assert equal(there_and_back(np.complex64(1 + 2j)), 1 + 2j)
    assert encode(np.complex64(1 + 2j)).type == "complex64"


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.floats(width=32, allow_nan=False).map(np.float32),
    st.integers(0, 255).map(np.uint8),
    st.complex_numbers(allow_nan=False),
    st.sampled_from([struct.unpack("<d", struct.pack("<Q", p))[0] for p in NANS]),
    st.decimals(allow_nan=False),
)
KEYS = st.one_of(st.text(st.characters(exclude_categories=())), st.integers(), st.none())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=examples(50, 150), deadline=None)
def test_any_tree_comes_back_type_and_bits(tree):
    assert equal(loads(dumps(tree)), tree)
    assert equal(there_and_back(tree), tree)
    assert encode(tree).type in TYPES


class Raises:
    @property
    def dtype(self):
        raise RuntimeError("no dtype today")


class Endless:
    def item(self):
        return Other()


class Other:
    def item(self):
        return Endless()


class Broken:
    dtype = "float32"

    def item(self):
        raise OSError("gone")


class Cycle(list):
    def __init__(self):
        super().__init__([1])
        self.append(self)


def deep(depth):
    tree = []
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    "value",
    [
        object(),
        print,
        {1, 2},
        Cycle(),
        deep(70),
        {"a": {"b": object()}},
        Endless(),
        np.array([None, 1]),
        np.array([None]),
        np.array(object()),
        np.longdouble(1),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_kept_is_refused(value):
    with pytest.raises(ValueRefused):
        encode(value)


@pytest.mark.parametrize("value", [Raises(), Broken()])
def test_a_hostile_value_costs_only_itself(value, tmp_path):
    from tests.helpers import read, writer

    one = writer(tmp_path)
    with pytest.raises(ValueRefused):
        one.append("metric", {"bad": value, "good": 1.0}, 0)
    one.close()
    assert [list(e.values()) for e in read(tmp_path)] == [["good"]]


class Tensor:
    """Like a torch scalar: no numpy dtype, no bytes."""

    def __init__(self, dtype, number):
        self.dtype, self._number = dtype, number

    def item(self):
        return self._number


@pytest.mark.parametrize(
    ("dtype", "number", "expected"),
    [
        ("torch.float32", 0.5, np.float32(0.5)),
        ("torch.bfloat16", 1.5, 1.5),
        ("torch.int64", EXACT + 1, np.int64(EXACT + 1)),
        ("torch.bool", True, True),
        ("torch.float64", -0.0, -0.0),
        ("torch.float32", math.inf, np.float32(math.inf)),
    ],
)
def test_scalars_of_torch_keep_their_dtype(dtype, number, expected):
    stored = encode(Tensor(dtype, number))
    assert stored.type == dtype.removeprefix("torch.")
    assert equal(decode(*stored), expected)
    assert math.isnan(there_and_back(Tensor("torch.float32", math.nan)))


def test_numbers_of_other_packages_are_kept_exactly_or_refused():
    """float8, int4 and the like: nothing becomes a float64 or an int in silence."""
    for word, number in (("float8_e4m3fn", 1.5), ("int4", 3), ("float128", 0.5)):
        with pytest.raises(ValueRefused, match=word):
            encode(Tensor(f"torch.{word}", number))
    if importlib.util.find_spec("ml_dtypes") is None:
        return
    import ml_dtypes

    for word in ("float8_e4m3fn", "float8_e5m2", "int4"):
        kind = getattr(ml_dtypes, word)
        for value in (kind(1), np.ones(3, kind)):
            with pytest.raises(ValueRefused, match=word):
                encode(value)
    with pytest.raises(ValueRefused, match="bfloat16"):
        encode(np.ones(3, ml_dtypes.bfloat16))
    for pattern in range(2**16):
        value = np.uint16(pattern).reshape(1).view(ml_dtypes.bfloat16)[0]
        (found,) = struct.unpack("<Q", bits(there_and_back(value)))
        if value == value:
            assert found == struct.unpack("<Q", bits(float(value)))[0]
        else:
            assert found == pattern >> 15 << 63 | 0x7FF << 52 | (pattern & 0x7F) << 45


def test_a_record_of_numpy_keeps_its_fields():
    value = np.array([(1, 2.5)], dtype=[("n", "<i4"), ("x", "<f8")])[0]
    found = there_and_back(value)
    assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())


class Mine(collections.UserDict):
    """A mapping that is no dict, as OmegaConf's; with what would make an array of it."""

    dtype = "float32"
    item = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (collections.UserList([1, np.float32(0.5)]), [1, np.float32(0.5)]),
        (Mine({"a": collections.UserList([None])}), {"a": [None]}),
        ([Mine({"dtype": "bf16"})], [{"dtype": "bf16"}]),
        (range(3), [0, 1, 2]),
        (collections.deque([1, 2]), [1, 2]),
    ],
)
def test_other_mappings_and_sequences_are_kept_as_dicts_and_lists(value, expected):
    assert decode(*encode(value)) == expected


def test_a_sequence_that_contains_itself_is_refused():
    value = collections.UserList()
    value.append(value)
    with pytest.raises(ValueRefused):
        encode(value)


def test_a_word_of_a_later_version_is_handed_on_untouched():
    assert decode("qubit", 1.0, b"x") == Stored("qubit", 1.0, b"x")
    assert decode("datetime", None, b"NaT") == Stored("datetime", None, b"NaT")
