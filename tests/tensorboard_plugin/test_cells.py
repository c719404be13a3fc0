"""What a pixel shows of many records: the reference is Python's own arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradwatch.tensorboard_plugin import cells

NOTHING = None
numbers = st.floats(0, 2.0**100, width=32) | st.sampled_from([0.0, math.inf, math.nan, NOTHING])


def encoded(values, **settings):
    known = np.array([value is not NOTHING for value in values])
    return cells.encode(np.array([0.0 if value is NOTHING else value for value in values]), known, **settings)


def told(code, **settings):
    values, flags = cells.decode(np.array([code], np.int32), **settings)
    return float(values[0]), int(flags[0])


def expected(values):
    """The rule in words: NaN, else infinity, else the largest number, else zero, else nothing."""
    known = [value for value in values if value is not NOTHING]
    if any(map(math.isnan, known)):
        return 0, cells.NAN
    if math.inf in known:
        return 0, cells.INF
    if not known:
        return 0, cells.ABSENT
    return (0, cells.ZERO) if max(known) == 0 else (max(known), cells.VALUE)


@given(st.lists(numbers, min_size=1, max_size=8))
def test_a_pixel_shows_the_worst_of_its_records(values):
    assert told(encoded(values).max()) == expected(values)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
def test_of_numbers_with_a_sign_it_shows_the_one_of_the_largest_size(values):
    value, flag = told(encoded(values, signed=True).max(), signed=True, zeros=False)
    largest = max(map(abs, values))
    assert flag == cells.VALUE
    assert abs(value) == pytest.approx(largest, rel=1e-6, abs=1e-44)
    assert any(value == pytest.approx(one, rel=1e-6, abs=1e-44) for one in values)


@pytest.mark.parametrize(
    ("value", "flag"), [(math.inf, cells.INF), (-math.inf, cells.MINUS_INF), (math.nan, cells.NAN), (NOTHING, cells.ABSENT)]
)
def test_what_is_no_number_is_told(value, flag):
    assert told(encoded([value], signed=True)[0], signed=True) == (0, flag)


def test_numbers_beyond_float32_stay_numbers():
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    assert told(encoded([1e300])[0]) == (largest, cells.VALUE)
    assert told(encoded([1e-300])[0]) == (pytest.approx(smallest), cells.VALUE)
    assert told(encoded([-0.0])[0]) == (0, cells.ZERO)


def test_zero_is_a_number_where_it_is_nothing_special():
    assert told(encoded([0.0])[0], zeros=False) == (0, cells.VALUE)
    assert told(encoded([-1e-45], signed=True)[0], signed=True) == (0, cells.ZERO)  # the last bit is taken by the sign


@given(arrays.arrays(np.float32, (7, 3), elements=st.floats(0, 10, width=32)), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_records_fall_into_their_columns(values, columns):
    column = np.sort(np.array(columns))
    into = cells.empty(4, 5)
    cells.pool(cells.encode(values.astype(np.float64), np.ones(values.shape, bool)), column, np.array([4, 0, 2]), into)
    for place in range(4):
        for index, row in enumerate([4, 0, 2]):
            assert told(into[place, row]) == expected(values[column == place, index].tolist())
    assert not cells.recorded(into[:, [1, 3]]).any()
