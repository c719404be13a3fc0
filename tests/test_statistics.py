"""Statistics and ratios against hand arithmetic."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwatch import moments, statistics
from gradwatch.records import Site

NAN, INF = float("nan"), float("inf")


def rows(*columns):
    """Rows in which the columns that are not named were not measured."""
    table = np.full((len(columns), len(moments.COLUMNS)), NAN, np.float32)
    for row, values in zip(table, columns, strict=True):
        for name, value in values.items():
            row[moments.COLUMNS.index(name)] = value
    return table


# [1, -1, 3, 0, 0, 3]: sum 6, squares 20
SMALL = {"count": 6, "calls": 2, "mean": 1.0, "rms": (20 / 6) ** 0.5, "min": -1, "max": 3, "zeros": 2, "nonfinite": 0}


def test_a_row_by_hand():
    derived = statistics.derive([Site("fc", "activation")], rows(SMALL))

    assert {name: derived[name][0] for name in ("count", "calls", "mean", "min", "max", "zeros", "nonfinite")} == {
        "count": 6,
        "calls": 2,
        "mean": 1,
        "min": -1,
        "max": 3,
        "zeros": 2,
        "nonfinite": 0,
    }
    assert derived["rms"][0] == pytest.approx((20 / 6) ** 0.5)
    assert derived["norm"][0] == pytest.approx(20**0.5)
    assert derived["std"][0] == pytest.approx((20 / 6 - 1) ** 0.5)
    assert derived["zero_share"][0] == pytest.approx(1 / 3)


def test_the_spread_is_that_of_numpy():
    values = np.random.default_rng(0).normal(5, 0.1, 1000)
    row = {"count": 1000, "mean": values.mean(), "rms": np.sqrt(np.mean(values**2))}
    assert statistics.derive([Site("fc", "activation")], rows(row))["std"][0] == pytest.approx(values.std(), rel=1e-3)


def test_a_constant_tensor_has_no_spread_even_where_its_mean_was_rounded_up():
    row = {"count": 3, "mean": np.nextafter(np.float32(0.1), np.float32(1)), "rms": np.float32(0.1)}
    assert statistics.derive([Site("fc", "activation")], rows(row))["std"][0] == 0


def test_huge_and_tiny_values_do_not_overflow():
    huge, tiny = ({"count": 4, "mean": 0.0, "rms": rms} for rms in (3e38, 1e-44))
    derived = statistics.derive([Site("a", "activation"), Site("b", "activation")], rows(huge, tiny))
    np.testing.assert_allclose(derived["norm"], [6e38, 2e-44], rtol=0.05)
    np.testing.assert_allclose(derived["std"], [3e38, 1e-44], rtol=0.05)


def test_what_was_not_measured_is_nan():
    derived = statistics.derive([Site("fc.weight", "parameter_grad")], rows({"count": 4, "calls": 1, "rms": 0.5}))
    assert derived["norm"][0] == 1.0
    assert all(np.isnan(derived[name][0]) for name in ("mean", "std", "min", "max", "zeros", "zero_share"))


def test_what_is_not_finite_stays_visible():
    row = {"count": 3, "mean": INF, "rms": INF, "nonfinite": 1}
    derived = statistics.derive([Site("fc", "activation")], rows(row))
    assert derived["rms"][0] == INF
    assert derived["norm"][0] == INF
    assert np.isnan(derived["std"][0])
    assert derived["nonfinite"][0] == 1


def test_a_site_that_was_not_seen_has_no_statistics():
    derived = statistics.derive([Site("fc", "activation")], moments.EMPTY[None])
    assert derived["count"][0] == 0
    assert all(np.isnan(values[0]) for name, values in derived.items() if name not in ("count", "calls"))


def test_ratios_stand_at_their_numerator_and_belong_to_one_layer():
    # The rms of a is 1, 2, 3 ... so that a ratio tells which two rows it came from.
    sites = [
        Site("act1", "activation_grad"),
        Site("act2", "input_grad"),
        Site("fc.weight", "update"),
        Site("act1", "input_grad"),
        Site("fc.weight", "parameter"),
        Site("fc.bias", "parameter"),
        Site("act2", "activation_grad"),
        Site("fc.bias", "parameter_grad"),
        Site("alone", "input_grad"),
    ]
    table = rows(*({"count": 1, "rms": index + 1} for index in range(len(sites))))
    derived = statistics.derive(sites, table)

    np.testing.assert_allclose(derived["attenuation"], [NAN, 2 / 7, NAN, 4 / 1, NAN, NAN, NAN, NAN, NAN])
    np.testing.assert_allclose(derived["update_ratio"], [NAN, NAN, 3 / 5, NAN, NAN, NAN, NAN, NAN, NAN])


@pytest.mark.parametrize(("over", "under", "ratio"), [(1.0, 0.0, INF), (0.0, 0.0, NAN), (0.0, 2.0, 0.0), (NAN, 2.0, NAN)])
def test_a_ratio_over_nothing(over, under, ratio):
    sites = [Site("w", "update"), Site("w", "parameter")]
    derived = statistics.derive(sites, rows({"count": 1, "rms": over}, {"count": 1, "rms": under}))
    np.testing.assert_equal(derived["update_ratio"][0], ratio)


def test_no_sites():
    derived = statistics.derive([], np.empty((0, len(moments.COLUMNS)), np.float32))
    assert derived.keys() == statistics.STATISTICS.keys() | statistics.RATIOS.keys()
    assert all(values.shape == (0,) for values in derived.values())


def test_every_entry_says_what_it_is():
    for name, entry in statistics.STATISTICS.items():
        assert entry.name == name
        assert entry.compute.__doc__
        assert entry.unit in {"1", "elements", "tensors", "tensor"}
    for name, ratio in statistics.RATIOS.items():
        assert ratio.name == name
        assert ratio.meaning.endswith(".")
    assert statistics.STATISTICS.keys().isdisjoint(statistics.RATIOS)


def test_every_column_of_a_row_is_a_statistic():
    assert set(moments.COLUMNS) <= statistics.STATISTICS.keys()


measured = st.tuples(st.integers(1, 2**40), *[st.floats(width=32)] * (len(moments.COLUMNS) - 1))


@given(st.lists(measured | st.just(list(moments.EMPTY)), min_size=1, max_size=4))
@settings(deadline=None)
def test_the_table_is_pure_and_works_row_by_row(values):
    table = np.array(values, np.float32)
    before = table.copy()
    sites = [Site(str(index), "activation") for index in range(len(table))]

    whole = statistics.derive(sites, table)
    again = statistics.derive(sites, table)
    np.testing.assert_array_equal(table, before)
    for name, column in whole.items():
        assert column.dtype == np.float64
        np.testing.assert_array_equal(column, again[name])
        alone = [statistics.derive([site], row[None])[name][0] for site, row in zip(sites, table, strict=True)]
        np.testing.assert_allclose(column, alone, rtol=1e-12)
        column[:] = 0  # the caller's own: the row behind it stays
    np.testing.assert_array_equal(table, before)


def test_a_row_has_its_columns_by_name():
    table = statistics.Moments(rows(SMALL))
    assert table.max[0] == 3
    with pytest.raises(AttributeError, match=r"no column 'median'; its columns are count, calls, mean"):
        _ = table.median


def test_a_table_of_rows_can_be_copied_and_pickled():
    table = statistics.Moments(rows(SMALL))
    for twin in (copy.copy(table), copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        np.testing.assert_array_equal(twin.rows, table.rows)
