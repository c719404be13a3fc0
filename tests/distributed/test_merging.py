"""What processes hold of a tensor, in whatever way it is shared out, merges into the row of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwatch import moments
from gradwatch.distributed.merging import ABSENT, add_samples, distinct, extremes, first_difference, merge
from gradwatch.moments import CALLS, COLUMNS, COUNT, DEAD, EMPTY, MAX, MEAN, MIN, NONFINITE, RMS

NAN = float("nan")


def row(values, **shares):
    """By hand, from the elements."""
    x = np.asarray(values, np.float64)
    out = EMPTY.copy()
    if x.size:
        out[: NONFINITE + 1] = [x.size, 1, x.mean(), np.sqrt(np.mean(x**2)), x.min(), x.max(), (x == 0).sum(), 0]
    for name, share in shares.items():
        out[COLUMNS.index(name)] = share
    return out


def one_site(tables, *, copied=False, sharded=False, groups=None):
    """Merges (processes, columns) of one site."""
    groups = [[rank] for rank in range(len(tables))] if groups is None else groups
    return merge(np.stack(tables)[:, None], np.array([copied]), np.array([sharded]), groups)[0]


def assert_row(merged, expected):
    np.testing.assert_allclose(merged[: NONFINITE + 1], expected[: NONFINITE + 1], rtol=1e-5, atol=1e-6)


elements = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)


@given(elements, st.lists(st.integers(0, 30), max_size=5))
def test_shards_of_any_size_make_the_whole(values, cuts):
    pieces = np.split(np.array(values), sorted(min(cut, len(values)) for cut in cuts))
    assert_row(one_site([row(piece) for piece in pieces], sharded=True), row(values))  # also in its calls


@given(st.lists(elements, min_size=1, max_size=5))
def test_samples_make_one_batch(batches):
    expected = row(np.concatenate(batches))
    expected[CALLS] = len(batches)
    assert_row(one_site([row(batch) for batch in batches]), expected)


@given(elements, st.integers(1, 5))
def test_of_copies_one_is_taken(values, copies):
    assert np.array_equal(one_site([row(values)] * copies, copied=True), row(values), equal_nan=True)


def test_a_process_that_has_not_seen_a_site_does_not_count():
    unseen, absent = EMPTY.copy(), EMPTY.copy()
    absent[COUNT] = ABSENT
    for how in ({}, {"copied": True}, {"sharded": True}):
        merged = one_site([absent, unseen, row([1, 3]), absent], **how)
        assert np.array_equal(merged, row([1, 3]), equal_nan=True)
        assert one_site([absent, unseen], **how)[COUNT] == 0


def test_tensor_parallel_pairs():
    # Ranks 0 and 1 hold the halves of a batch's output, ranks 2 and 3 those of another batch.
    tables = [row([1, 2]), row([3, 4]), row([5, 6]), row([7, 8])]
    expected = row(range(1, 9))
    expected[CALLS] = 2  # one a batch
    assert_row(one_site(tables, groups=[(0, 1), (2, 3)]), expected)
    # Where both of a pair hold all of it, it counts once.
    copies = [row([1, 2]), row([1, 2]), row([5, 6]), row([5, 6])]
    expected = row([1, 2, 5, 6])
    expected[CALLS] = 2
    assert_row(one_site(copies, groups=[(0, 1), (2, 3)]), expected)


def test_rows_that_differ_in_a_bit_are_no_copies():
    first, second = row([1, 2]), row([1, 2])
    second[MEAN] = np.nextafter(second[MEAN], np.float32(2))
    assert (distinct(np.stack([first, first, second])[:, None])[:, 0, COUNT] > 0).tolist() == [True, False, True]


def test_a_unit_is_dead_only_where_no_process_opens_it():
    shares = [row([1], dead=0.5), row([1], dead=0.25), row([1], dead=NAN)]
    assert add_samples(np.stack(shares)[:, None])[0, DEAD] == 0.25
    # Under tensor parallelism each process has units of its own.
    pieces = [row([1, 2], dead=0.5), row([3, 4], dead=0.0)]
    assert one_site(pieces, groups=[(0, 1)])[DEAD] == 0.25


def test_the_rank_of_the_extreme():
    broken = row([1, 1])
    broken[[RMS, NONFINITE]] = NAN, 1
    tables = np.stack(
        [
            [row([1, -9]), row([1]), row([0]), EMPTY],
            [row([8, 0]), broken, row([0]), EMPTY],
            [row([2, 3]), broken, EMPTY, EMPTY],
        ]
    )
    assert extremes(tables).tolist() == [0, 1, 0, -1]
    norms = moments.norm_rows([4, 4], np.array([1.0, 2.0]))  # all that a light record has
    assert extremes(norms[:, None]).tolist() == [1]


@pytest.mark.parametrize(
    ("second", "differs"),
    [
        (lambda x: x, False),
        (lambda x: x * (1 + 1e-6), False),  # another device rounds differently
        (lambda x: np.random.default_rng(1).uniform(-1, 1, x.size), True),  # another initialisation, of the same range
        (lambda x: x[:-1], True),
    ],
)
def test_whether_processes_train_one_model(second, differs):
    x = np.random.default_rng(0).uniform(-1, 1, 10_000)
    tables = np.stack([[row([1.0]), row(x)], [row([1.0]), row(second(x))]])
    assert first_difference(tables, np.array([True, True])) == ((1, 0, 1) if differs else None)
    assert first_difference(tables, np.array([True, False])) is None


def test_extremes_of_a_merged_row_are_those_of_all():
    merged = one_site([row([-3, 1]), row([2, 7])])
    assert merged[[MIN, MAX]].tolist() == [-3, 7]
