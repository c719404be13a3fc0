"""The kernel that measures a tensor on a GPU, in Triton's interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import fused, moments, octaves

triton = pytest.importorskip("triton", reason="the kernel is written in Triton, which is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_torch(x):
    wide = x.double()
    return [wide.sum(), wide.norm(), wide.min(), wide.max(), (x == 0).sum(), (~x.isfinite()).sum()]


@pytest.mark.parametrize("dtype", sorted(fused.DTYPES, key=str), ids=str)
@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 4097, 70_001])
def test_a_tensor_of_one_part_and_of_many(size, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).relu().to(DEVICE, dtype) * 3
    parts = fused.partial(x)
    assert (len(parts) == 1) == (size <= fused.BLOCK * fused.BLOCKS_A_PART)
    torch.testing.assert_close(fused.joined(parts[None])[0], torch.stack([v.double() for v in by_torch(x)]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", sorted(fused.DTYPES, key=str), ids=str)
@pytest.mark.parametrize("size", [1, 1025, 70_001])
def test_octaves_are_counted_in_the_same_pass(size, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)) * torch.logspace(-20, 4, size)
    x[size // 2 :: 7] = 0
    x[size // 3 :: 11] = torch.inf
    x = x.to(DEVICE, dtype)
    whole = fused.joined(fused.partial(x, histogram=True)[None])[0]
    assert torch.equal(whole[6:], octaves.count(x))
    torch.testing.assert_close(whole[:6], fused.joined(fused.partial(x)[None])[0], rtol=0, atol=0, equal_nan=True)


def test_the_extremes_of_float32_neither_overflow_nor_vanish():
    for value in (1e30, -3e38, 1e-42):
        x = torch.full((5000,), value, device=DEVICE)
        total, norm, low, high, *_ = fused.joined(fused.partial(x)[None])[0].tolist()
        assert (total, norm) == pytest.approx((5000 * x[0].item(), 5000**0.5 * abs(x[0].item())), rel=1e-6)
        assert low == high == x[0].item()


def test_tensors_of_many_sizes_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr(fused, "applies", lambda x: x.numel() > 10)
    tensors = [torch.arange(float(n), device=DEVICE) for n in (3, 5000, 20, 9000, 4, 30, 5001)]
    pieces = [moments.measure(x, zeros=n % 2 == 0, later=True)[1] for n, x in enumerate(tensors)]
    table = moments.table(pieces)
    for n, (row, x) in enumerate(zip(table.tolist(), tensors, strict=True)):
        assert row[0] == x.sum().item()
        assert row[3] == len(x) - 1
        assert np.isnan(row[4]) == (n % 2 == 1)


def test_a_device_whose_compiler_fails_is_measured_by_plain_operations(monkeypatch):
    def fails(tensor):
        raise RuntimeError("no C compiler")

    fused.usable.cache_clear()
    monkeypatch.setattr(fused, "partial", fails)
    assert not fused.usable(torch.device(DEVICE))
    fused.usable.cache_clear()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 1)).cuda()


@on_a_gpu
def test_no_step_waits_for_the_device():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    x = torch.randn(32, 64, device="cuda")
    with gradwatch.watch(model, optimizer, every=2) as watch:
        for step in range(8):
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the kernel is compiled in the first step
            try:
                optimizer.zero_grad()
                watch.loss(model(x).square().mean()).backward()
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert len(watch.history) >= 6, "a record closes one step later at most"


@on_a_gpu
def test_rows_are_those_of_plain_operations(monkeypatch):
    def rows():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradwatch.watch(model, optimizer, every=1) as watch:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.linspace(-1, 1, 64, device="cuda").expand(16, 64)).square().mean().backward()
                optimizer.step()
        return np.stack([record.rows for record in watch.history])

    with_kernel = rows()
    monkeypatch.setattr(fused, "applies", lambda tensor: False)
    np.testing.assert_allclose(with_kernel, rows(), rtol=1e-6, atol=1e-9)


@on_a_gpu
def test_weights_are_the_same_with_and_without_a_watch():
    def train(watched):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters())
        watch = gradwatch.watch(model, optimizer, every=2) if watched else None
        for step in range(10):
            optimizer.zero_grad()
            model(torch.full((8, 64), step / 10.0, device="cuda")).square().mean().backward()
            optimizer.step()
        if watch:
            watch.close()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(train(watched=True), train(watched=False))
