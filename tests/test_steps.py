"""Sets of steps: equal to Python's sets, whatever is added in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eventlog.steps import Steps

numbers = st.integers(-(2**63), 2**63 - 1)
parts = st.lists(
    st.one_of(
        st.lists(numbers, max_size=20),
        st.builds(
            lambda start, count, stride: list(range(start, start + count * stride, stride)),
            st.integers(-(10**6), 10**6),
            st.integers(1, 50),
            st.sampled_from([1, 1, 10, 7]),
        ),
    ),
    max_size=40,
)


@given(parts, numbers, numbers)
def test_it_holds_what_was_added(parts, low, high):
    steps, wanted = Steps(), set()
    for part in parts:
        steps.add(np.array(part, np.int64))
        wanted |= set(part)
    assert bool(steps) == bool(wanted)
    near = {n + d for n in wanted for d in (-1, 0, 1) if -(2**63) <= n + d < 2**63}
    asked = np.array(sorted({low, high, *near}), np.int64)
    assert steps.contains(asked).tolist() == [n in wanted for n in asked.tolist()]
    assert steps.between(low, high).tolist() == sorted(n for n in wanted if low < n < high)
    if wanted:
        assert steps.span() == (min(wanted), max(wanted))


def test_a_million_even_steps_take_no_memory():
    steps = Steps()
    for start in range(0, 1_000_000, 1000):
        steps.add(np.arange(start, start + 1000, 10))
    steps.contains(np.array([5]))
    assert len(steps._starts) == 1
