"""A row against float64 arithmetic, on every dtype and layout; and the law that merging equals concatenating."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradwatch import moments
from gradwatch.moments import CALLS, COUNT, EMPTY, MAX, MEAN, MIN, NONFINITE, RMS, SHARES, ZEROS

NAN, INF = float("nan"), float("inf")
LARGEST = float(np.finfo(np.float32).max)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
MEASURED = NONFINITE + 1
"""Columns that ``measure`` fills; the shares behind them come from elsewhere."""


@pytest.fixture(params=["read", "unread", "fused"])
def _reading(request, monkeypatch):
    """As on a CPU; as on a device whose values cannot be looked at; and by the kernel for a GPU, in Triton's interpreter."""
    if request.param != "read":
        monkeypatch.setattr(moments, "readable", lambda tensor: False)
    if request.param == "fused":
        pytest.importorskip("triton", reason="the kernel for a GPU is written in Triton, which is not installed")
        monkeypatch.setattr(
            moments.fused, "applies", lambda x: x.numel() > 0 and x.dtype in moments.fused.DTYPES and x.is_contiguous()
        )
    with np.errstate(all="ignore"):  # the interpreter computes in numpy, and a device says nothing of infinity less infinity
        yield


both_ways = pytest.mark.usefixtures("_reading")


def row_of(tensor, *, zeros=True):
    """The way that a tensor takes in a watch: measured where it is, joined, moved, turned into a row."""
    if moments.is_plain(tensor) and 0 < tensor.numel() <= moments.SMALL:
        return moments.rows([tensor.numel()], moments.of_rows(tensor.detach().reshape(1, -1), zeros=zeros).numpy())[0]
    count, pieces = moments.measure(tensor, zeros=zeros, later=True)
    return moments.rows([count], moments.table([pieces]).numpy())[0]


def by_hand(values):
    """The first eight columns, from the values that a tensor stands for."""
    x = np.asarray(values, np.float64).ravel()
    with np.errstate(all="ignore"):
        mean, rms = x.mean(), np.sqrt(np.mean(x**2))
    return np.array([x.size, 1, mean, rms, x.min(), x.max(), (x == 0).sum(), (~np.isfinite(x)).sum()])


def assert_same(row, expected, rel=1e-6):
    """The sum of a tensor loses digits where positive and negative elements cancel: a mean is exact as a part of the rms."""
    row, expected = np.asarray(row, np.float64)[..., :MEASURED], np.asarray(expected, np.float64)[..., :MEASURED]
    exact = [COUNT, CALLS, MIN, MAX, ZEROS, NONFINITE]
    np.testing.assert_allclose(row[..., exact], expected[..., exact], rtol=rel, atol=SMALLEST)
    np.testing.assert_allclose(row[..., RMS], expected[..., RMS], rtol=rel, atol=2 * SMALLEST)
    size = np.where(np.isfinite(expected[..., RMS]), expected[..., RMS], 0)
    agree = np.isclose(row[..., MEAN], expected[..., MEAN], rtol=rel, atol=0, equal_nan=True)
    with np.errstate(invalid="ignore"):
        near = np.abs(row[..., MEAN] - expected[..., MEAN]) <= rel * size + 2 * SMALLEST
    assert (agree | near).all(), (row[..., MEAN], expected[..., MEAN])


@both_ways
def test_the_columns_of_a_small_tensor_by_hand():
    row = row_of(torch.tensor([[3.0, -4.0], [0.0, 1.0]]))

    # sum 0, squares 9 + 16 + 0 + 1 = 26
    assert_same(row, [4, 1, 0.0, (26 / 4) ** 0.5, -4, 3, 1, 0])
    assert np.isnan(row[SHARES]).all()
    assert (row.dtype, row.shape) == (np.float32, (len(moments.COLUMNS),))


@both_ways
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn], ids=str)
def test_every_floating_dtype(dtype):
    tensor = torch.linspace(-3, 5, 1001).to(dtype)
    assert_same(row_of(tensor), by_hand(tensor.double().numpy()))


@both_ways
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_every_integer_dtype(dtype):
    tensor = torch.arange(0, 127, 3).to(dtype)
    assert_same(row_of(tensor), by_hand(tensor.numpy()))


@both_ways
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_a_complex_number_is_two_real_ones(dtype):
    # parts 3, 4, 0, -1: sum 6, squares 26
    assert_same(row_of(torch.tensor([3 + 4j, -1j], dtype=dtype)), [4, 1, 1.5, 6.5**0.5, -1, 4, 1, 0])
    assert_same(row_of(torch.tensor([3 - 4j, 1j], dtype=dtype).conj()), [4, 1, 1.5, 6.5**0.5, -1, 4, 1, 0])
    assert_same(row_of(torch.tensor([3 - 4j, 1j], dtype=dtype).conj().imag), [2, 1, 1.5, 8.5**0.5, -1, 4, 0, 0])


SMALL = {
    "one number": (torch.tensor(-2.5), [1, 1, -2.5, 2.5, -2.5, -2.5, 0, 0]),
    "all zeros": (torch.zeros(5, 2), [10, 1, 0, 0, 0, 0, 10, 0]),
    "a mask": (torch.tensor([True, False, True, True]), [4, 1, 0.75, 0.75**0.5, 0, 1, 1, 0]),
    "digits beyond float32": (torch.tensor([2**63 - 1, -(2**63)]), [2, 1, 0, 2.0**63, -(2.0**63), 2.0**63, 0, 0]),
    "sizes apart": (torch.tensor([1e-30, 1e30, 1.0, 0.0]), [4, 1, 2.5e29, 5e29, 0, 1e30, 1, 0]),
    "a sum that overflows": (torch.tensor([INF, -LARGEST, -LARGEST]), [3, 1, INF, INF, -LARGEST, INF, 0, 1]),
    "a sparse nan": (torch.tensor([0.0, NAN, 0.0]).to_sparse(), [3, 1, NAN, NAN, NAN, NAN, 2, 1]),
}


@both_ways
@pytest.mark.parametrize(("values", "row"), SMALL.values(), ids=SMALL)
def test_rows_by_hand(values, row):
    assert_same(row_of(values), row)


@both_ways
def test_half_precision_is_reduced_in_float32():
    # Squares of 300 leave float16, 70,000 ones leave it as a sum, and the square of 6e-8 is a float16 zero.
    assert_same(row_of(torch.full((64,), 300.0, dtype=torch.float16)), [64, 1, 300, 300, 300, 300, 0, 0])
    assert_same(row_of(torch.ones(70_000, dtype=torch.float16)), [70_000, 1, 1, 1, 1, 1, 0, 0])
    tiny = float(torch.tensor(6e-8, dtype=torch.float16))
    assert_same(row_of(torch.full((64,), tiny, dtype=torch.float16)), [64, 1, tiny, tiny, tiny, tiny, 0, 0])
    # 257 ones are 256 in bfloat16, and the square of 1e38 leaves both bfloat16 and float32.
    assert_same(row_of(torch.ones(257, dtype=torch.bfloat16)), [257, 1, 1, 1, 1, 1, 0, 0])
    huge = float(torch.tensor(1e38, dtype=torch.bfloat16))
    assert_same(row_of(torch.full((9,), huge, dtype=torch.bfloat16)), [9, 1, huge, huge, huge, huge, 0, 0])


@both_ways
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-20, 1e-15, 1e15, 1e20, 1e30, 3e38])
def test_float32_whose_squares_or_sums_leave_float32(size):
    values = (torch.tensor([1.0, 1.0, 1.0, -1.0, 0.5, 0.0]).double() * size).float()
    assert_same(row_of(values), by_hand(values.double().numpy()))


@both_ways
def test_float64_beyond_float32_is_its_nearest_value():
    assert_same(row_of(torch.tensor([1e200, -2e200], dtype=torch.float64)), [2, 1, -LARGEST, LARGEST, -LARGEST, LARGEST, 0, 0])
    row = row_of(torch.tensor([1e-200, 1e-200], dtype=torch.float64))
    assert row[RMS] == SMALLEST  # not zero: a gradient arrived
    assert row[ZEROS] == 0


@both_ways
def test_float64_keeps_its_digits_until_the_row():
    # In float32 the ones vanish beside 1e8, and so would the sum.
    values = torch.tensor([1e8, 1.0, -1e8, 1.0], dtype=torch.float64)
    assert row_of(values)[MEAN] == 0.5


@both_ways
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "values",
    [[1, NAN, 0], [1, INF, 0], [-INF, 1, 0], [INF, -INF, 0], [NAN, INF, 2], [NAN, NAN, NAN], [INF, INF, INF]],
    ids=str,
)
def test_what_is_not_finite_is_counted_and_shows_in_everything_else(dtype, values):
    assert_same(row_of(torch.tensor(values, dtype=dtype)), by_hand(values))


@both_ways
def test_zeros_are_counted_only_where_asked():
    tensor = torch.tensor([0.0, -0.0, 1.0])
    assert row_of(tensor)[ZEROS] == 2
    assert np.isnan(row_of(tensor, zeros=False)[ZEROS])


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64], ids=str)
def test_an_empty_tensor_leaves_no_trace(dtype):
    np.testing.assert_array_equal(row_of(torch.empty(0, 7, dtype=dtype)), EMPTY)


@both_ways
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_strides_do_not_matter(dtype):
    grid = torch.arange(24.0).view(4, 6).to(dtype)
    for tensor in (
        grid.t(),
        grid[::2, 1::3],
        grid[:, 2],
        grid[1:3, :1].expand(2, 5),
        grid.flip(0),
        grid.view(2, 2, 6).permute(2, 0, 1),
    ):
        assert_same(row_of(tensor), by_hand(tensor.numpy()))


@both_ways
def test_small_images_that_are_stored_channels_last_share_a_table():
    images = [torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last) for _ in range(2)]
    pieces = [moments.measure(image, zeros=True, later=True) for image in images]
    table = moments.rows([count for count, _ in pieces], moments.table([piece for _, piece in pieces]).numpy())
    assert_same(table, np.stack([by_hand(image) for image in images]))


@pytest.mark.parametrize("layout", ["in a row", "transposed"])
@pytest.mark.parametrize("shape", [(3 * moments.SAMPLE + 5,), (32, 16, 32, 32), (1000, 1001), (4096, 64)])
def test_zeros_of_large_tensors_are_estimated(shape, layout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[..., : shape[-1] // 4] = 0.0  # whole columns
    x = x if layout == "in a row" else x.mT if x.dim() > 1 else x[::2]
    for kind, tensor in (("a ReLU's", x.relu()), ("all", x * 0), ("none", x.abs() + 1)):
        _, (*_, zeros, _) = moments.measure(tensor, zeros=True)
        truth = (tensor.numpy() == 0).mean()
        assert zeros / tensor.numel() == pytest.approx(truth, abs=0.02 if kind == "a ReLU's" else 0), kind


def test_a_sample_of_several_tensors_is_of_the_same_elements():
    x = torch.arange(600_000.0).reshape(600, 1000)
    for first, second in ((x, x + 0.5), (x, x.t().contiguous().t()), (x.t(), x.t())):
        one, other = moments.sample(first, second)
        assert moments.SAMPLE / 2 < one.numel() < 2 * moments.SAMPLE
        assert set((other - one).unique().tolist()) <= {0.0, 0.5}


def test_parameters_and_tensors_of_a_graph_are_measured_outside_of_it():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    for tensor in (weight, weight * 3):
        _, pieces = moments.measure(tensor, zeros=True)
        assert not any(isinstance(piece, torch.Tensor) and piece.requires_grad for piece in pieces)
        assert_same(row_of(tensor), by_hand(tensor.detach().numpy()))


def sparse(dense, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls compressed layouts a beta feature
        return dense.to_sparse(layout=layout, blocksize=(1, 2) if layout is torch.sparse_bsr else None)


@both_ways
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_sparse_tensor_is_the_dense_one_that_it_stands_for(layout, dtype):
    for values in ([[0, 2, 0, -1], [0, 0, 0, 4]], [[0, -2, 0, -1], [0, 0, 0, -4]], [[3, 1, 2, 1], [1, 1, 5, 4]]):
        dense = torch.tensor(values).to(dtype)
        parts = torch.view_as_real(dense) if dtype.is_complex else dense
        assert_same(row_of(sparse(dense, layout)), by_hand(parts.double().numpy()))


@both_ways
def test_a_sparse_gradient_with_repeated_rows():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()

    # Row 1 was looked up twice: its gradient is [2, 2], that of row 3 is [1, 1], and 6 of 10 elements are zero.
    assert not embedding.weight.grad.is_coalesced()
    assert_same(row_of(embedding.weight.grad), [10, 1, 0.6, 1.0, 0, 2, 6, 0])


@both_ways
def test_a_sparse_tensor_that_stores_nothing_is_all_zeros():
    assert_same(row_of(torch.zeros(2, 3).to_sparse()), [6, 1, 0, 0, 0, 0, 6, 0])
    assert_same(row_of(torch.zeros(2, 3, dtype=torch.complex64).to_sparse()), [12, 1, 0, 0, 0, 0, 12, 0])
    np.testing.assert_array_equal(row_of(torch.zeros(0, 3).to_sparse()), EMPTY)


@both_ways
def test_a_ragged_batch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls nested tensors a prototype
        ragged = torch.nested.nested_tensor([torch.ones(2), torch.tensor([0.0, 4.0, 5.0])], layout=torch.jagged)
    assert_same(row_of(ragged), by_hand([1, 1, 0, 4, 5]))


float32s = st.floats(width=32)
finite32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(float32s, min_size=1, max_size=30), st.sampled_from(FLOATS))
@settings(deadline=None)
def test_measuring_without_reading_measures_the_same(values, dtype):
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    read = row_of(tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "readable", lambda _: False)
        unread = row_of(tensor)
    assert_same(unread, read)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool, torch.complex64], ids=str)
def test_nothing_is_read_from_a_device(dtype):
    with FakeTensorMode():  # its tensors have no values, so that an attempt to read one is an error
        counts, pieces = zip(
            *[
                moments.measure(torch.ones(shape, device="cuda", dtype=dtype), zeros=zeros)
                for shape in [(3, 4), (), (0, 2)]
                for zeros in (False, True)
            ],
            strict=True,
        )
        table = moments.table(pieces)
    parts = 2 if dtype.is_complex else 1
    assert counts == (12 * parts, 12 * parts, parts, parts, 0, 0)
    assert table.shape == (6, 6)
    assert table.device.type == "cuda"


def test_no_fake_value_is_left_behind_for_a_real_tensor():
    with FakeTensorMode():
        moments.measure(torch.ones(3))
    assert_same(row_of(torch.ones(3), zeros=False), [3, 1, 1, 1, 1, 1, NAN, 0])


def test_many_tensors_share_one_table():
    tensors = [torch.tensor([1.0, 2.0], dtype=torch.float16), torch.tensor([3.0], dtype=torch.float64), torch.tensor([4])]
    counts, pieces = zip(*[moments.measure(tensor, zeros=True) for tensor in tensors], strict=True)
    rows = moments.rows(counts, moments.table(pieces).numpy())
    assert_same(rows, np.stack([by_hand([1, 2]), by_hand([3]), by_hand([4])]))
    assert moments.rows([], moments.table([]).numpy()).shape == (0, len(moments.COLUMNS))


def test_rows_of_which_only_the_norm_is_known():
    rows = moments.norm_rows([4, 9, 0, 2], np.array([6.0, INF, 0.0, NAN]))

    np.testing.assert_array_equal(rows[:, COUNT], [4, 9, 0, 2])
    np.testing.assert_array_equal(rows[:, CALLS], [1, 1, 0, 1])
    np.testing.assert_array_equal(rows[:, RMS], [3.0, INF, NAN, NAN])  # norm over the root of the count
    np.testing.assert_array_equal(rows[:, NONFINITE], [0, NAN, NAN, NAN])
    assert np.isnan(rows[:, [MEAN, MIN, MAX, ZEROS]]).all()


# ------------------------------------------------------------------------------------------------- the law of merging


def merged(rows):
    whole = EMPTY
    for row in rows:
        whole = moments.merge(whole, row)
    return whole


parts = st.lists(st.lists(float32s, max_size=8), min_size=1, max_size=6)
finite_parts = st.lists(st.lists(finite32s, max_size=8), min_size=1, max_size=6)
related_parts = st.lists(st.lists(st.floats(-10, 10, width=32), max_size=8), min_size=1, max_size=6)


@given(parts | finite_parts | related_parts)
@settings(deadline=None)
def test_merging_equals_concatenating(parts):
    tensors = [torch.tensor(part) for part in parts]
    whole = merged([row_of(tensor) for tensor in tensors])

    expected = row_of(torch.cat(tensors))
    expected[CALLS] = sum(len(part) > 0 for part in parts)
    assert_same(whole, expected, rel=3e-6)


@given(related_parts, st.data())
@settings(deadline=None)
def test_merging_in_any_order_and_grouping_is_the_same(parts, data):
    rows = [row_of(torch.tensor(part)) for part in parts]
    shares = data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(rows), max_size=len(rows)))
    for row, share in zip(rows, shares, strict=True):
        row[SHARES] = share if row[COUNT] else NAN
    whole = merged(rows)

    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    other = moments.merge(merged([rows[index] for index in order[:cut]]), merged([rows[index] for index in order[cut:]]))
    assert_same(other, whole, rel=3e-6)
    np.testing.assert_allclose(other[SHARES], whole[SHARES], rtol=3e-6, atol=1e-6)


@given(st.lists(float32s, max_size=8))
@settings(deadline=None)
def test_no_tensor_is_neutral(values):
    row = row_of(torch.tensor(values))
    np.testing.assert_array_equal(moments.merge(EMPTY, row), row)
    np.testing.assert_array_equal(moments.merge(row, EMPTY), row)


def test_two_rows_by_hand():
    # [3, -1] and [0, 2, 2, 0]: mean 6/6, squares 10 + 8 = 18
    whole = moments.merge(row_of(torch.tensor([3.0, -1.0])), row_of(torch.tensor([0.0, 2.0, 2.0, 0.0])))
    assert_same(whole, [6, 2, 1.0, 3**0.5, -1, 3, 2, 0])


def test_rows_whose_squares_leave_float32_merge():
    huge, tiny = (row_of(torch.full((2,), size)) for size in (3e38, 1e-44))
    assert_same(moments.merge(huge, huge), [4, 2, 3e38, 3e38, 3e38, 3e38, 0, 0])
    assert_same(moments.merge(tiny, tiny), [4, 2, 1e-44, 1e-44, 1e-44, 1e-44, 0, 0])


def test_what_one_side_did_not_measure_is_not_known_of_the_whole():
    measured = row_of(torch.tensor([3.0, 0.0]))
    norm_only = moments.norm_rows([2], np.array([4.0]))[0]
    uncounted = row_of(torch.tensor([3.0, 0.0]), zeros=False)

    whole = moments.merge(measured, norm_only)
    assert whole[RMS] == 2.5  # squares 9 + 16 over 4
    assert np.isnan(whole[[MEAN, MIN, MAX, ZEROS]]).all()
    assert np.isnan(moments.merge(measured, uncounted)[ZEROS])
    assert moments.merge(measured, uncounted)[MAX] == 3


def test_shares_weigh_as_much_as_the_elements_behind_them():
    small, large = row_of(torch.ones(1)), row_of(torch.ones(3))
    small[SHARES], large[SHARES] = 1.0, 0.5
    assert (moments.merge(small, large)[SHARES] == 0.625).all()  # (1 · 1 + 3 · 0.5) / 4


def test_a_share_that_one_side_measured_stands_for_both():
    measured, other = row_of(torch.ones(1)), row_of(torch.ones(3))
    measured[SHARES] = 0.25
    assert (moments.merge(measured, other)[SHARES] == 0.25).all()
    assert (moments.merge(other, measured)[SHARES] == 0.25).all()


def test_tables_of_any_shape_merge_row_by_row():
    rows = np.stack([row_of(torch.tensor(values)) for values in ([1.0], [2.0, 4.0], [0.0], [5.0])])
    others = rows[::-1]
    expected = np.stack([moments.merge(*pair) for pair in zip(rows, others, strict=True)])

    np.testing.assert_array_equal(moments.merge(rows, others), expected)
    shape = (2, 2, len(moments.COLUMNS))
    np.testing.assert_array_equal(moments.merge(rows.reshape(shape), others.reshape(shape)), expected.reshape(shape))
    assert moments.merge(rows[:0], others[:0]).shape == (0, len(moments.COLUMNS))


@given(related_parts, st.data())
@settings(deadline=None)
def test_merging_groups_is_merging_their_rows_one_by_one(parts, data):
    rows = np.stack([row_of(torch.tensor(part)) for part in parts])
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))

    together = moments.merge_all(rows, groups, 4)
    for group in range(4):
        one_by_one = merged([row for row, its in zip(rows, groups, strict=True) if its == group])
        # Merged at once a group is rounded to float32 once, and row by row each time.
        others = np.arange(len(one_by_one)) != MEAN
        np.testing.assert_allclose(together[group][others], one_by_one[others], rtol=3e-7)
        # A mean near zero is what larger numbers left of each other.
        np.testing.assert_allclose(together[group][MEAN], one_by_one[MEAN], rtol=3e-7, atol=3e-7 * np.nan_to_num(one_by_one[RMS]))
    np.testing.assert_array_equal(moments.merge_all(rows[:0], [], 2), np.stack([EMPTY, EMPTY]))
