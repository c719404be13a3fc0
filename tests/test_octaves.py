"""How many elements of each tensor lie in each octave, as users ask for it, and against numbers that were counted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gradwatch
from gradwatch import octaves
from gradwatch.capture.transfer import Tape
from gradwatch.moments import COUNT, NONFINITE
from gradwatch.records import Site


def told(counts):
    """Exponents of the octaves that hold something → how many."""
    return {exponent: count for exponent, count in zip(octaves.EXPONENTS, counts, strict=True) if count}


def counted(numbers, factor=1.0):
    return octaves.narrowed(octaves.count(torch.as_tensor(numbers)).numpy()[None], factor)[0]


def by_hand(numbers):
    return told(counted(numbers))


def test_an_octave_begins_at_a_power_of_two_and_a_sign_does_not_matter():
    assert by_hand([1.0, -1.5, 1.99, 2.0, 3.9, 0.5, 0.49]) == {0: 3, 1: 2, -1: 1, -2: 1}


def test_what_is_zero_or_not_finite_lies_in_none_and_the_ends_hold_what_is_beyond_them():
    assert by_hand([0.0, -0.0, float("nan"), float("inf"), float("-inf")]) == {}
    assert by_hand([1e-30, 2.0**-48, 1e-42]) == {-48: 3}  # the last one is subnormal
    assert by_hand([2.0**15, 3e38]) == {15: 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_counted(dtype):
    assert by_hand(torch.tensor([2.0**-14, 2.0**-10, 3.0], dtype=dtype)) == {-14: 1, -10: 1, 1: 1}


def test_a_float64_beyond_float32_lies_at_an_end():
    assert by_hand(torch.tensor([1e300, 1e-300, 0.0, torch.inf, torch.nan], dtype=torch.float64)) == {-48: 1, 15: 1}


def test_a_fake_tensor_is_counted_without_being_read():
    with FakeTensorMode():
        assert octaves.count(torch.ones(5)).shape == (len(octaves.COUNTED),)


@given(st.lists(st.floats(2.0**-47, 2.0**15, width=32), min_size=1, max_size=50))
def test_the_octave_is_the_floor_of_the_logarithm(numbers):
    expected = {}
    for number in numbers:
        exponent = int(np.frexp(number)[1]) - 1
        expected[exponent] = expected.get(exponent, 0) + 1
    assert by_hand(numbers) == expected


def test_another_device_counts_the_same_without_being_asked_for_a_value():
    meta = octaves.count(torch.ones(5, device="meta"))  # it has no values, so nobody can have read one
    assert (meta.device.type, meta.shape) == ("meta", (len(octaves.COUNTED),))


def test_the_factor_of_a_loss_scaler_moves_the_octaves():
    numbers = torch.tensor([1e-3, 0.5, 3.0, 1e-14, 7e4])
    for factor in (1024.0, 65536.0, 2.0**40):
        assert told(counted(numbers * factor, factor)) == by_hand(numbers)
    assert counted(numbers, 2.0**200).sum() == 5
    assert np.isnan(counted(numbers, float("nan"))).all()


def train(model, batches=2, *, micro=1, scaler=None, **settings):
    """Two steps of plain training, on the same numbers always."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, scaler=scaler, every=2, **settings) as watch:
        for x in torch.randn(batches, 8, 6):
            for part in x.chunk(micro):
                loss = model(part).square().mean() / micro
                (loss if scaler is None else scaler.scale(loss)).backward()
            optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            optimizer.zero_grad()
    return watch


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5000), nn.ReLU(), nn.Linear(5000, 3))


def rows_of(record):
    together = zip(record.sites, record.rows, record.histograms, strict=True)
    return {(site.layer, site.tensor): (row, counts) for site, row, counts in together}


def test_full_records_hold_them_where_they_were_asked_for():
    model = network()
    before = counted(model[0].weight.detach())
    full, light = train(model, histograms=True).history
    assert light.histograms is None
    assert full.histograms.shape == (len(full.sites), len(octaves.EXPONENTS))
    assert all(record.histograms is None for record in train(network()).history)
    assert np.array_equal(rows_of(full)["0.weight", "parameter"][1], before)
    for row, counts in rows_of(full).values():
        assert row[NONFINITE] == 0
        assert 0 < counts.sum() <= row[COUNT]


def test_the_canonical_neuron():
    neuron = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    with torch.no_grad():
        neuron[0].weight.copy_(torch.tensor([[0.5, -1.0]]))
        neuron[0].bias.zero_()
    optimizer = torch.optim.SGD(neuron.parameters(), lr=0.1)
    with gradwatch.watch(neuron, optimizer, histograms=True) as watch:
        nn.BCELoss()(neuron(torch.tensor([[2.0, 1.0]])), torch.ones(1, 1)).backward()
        optimizer.step()
    found = {key: told(counts) for key, (_, counts) in rows_of(watch.history[0]).items()}
    assert found["0", "activation"] == {}  # z = 0
    assert found["1", "activation"] == {-1: 1}  # a = 0.5
    assert found["1", "activation_grad"] == {1: 1}  # dL/da = -2
    assert found["0", "activation_grad"] == {-1: 1}  # dL/dz = -0.5
    assert found["0.weight", "parameter_grad"] == {0: 1, -1: 1}  # dL/dW = (-1, -0.5)
    assert found["0.bias", "parameter_grad"] == {-1: 1}


def test_micro_batches_add_up():
    whole = rows_of(train(network(), histograms=True).history[0])
    parts = rows_of(train(network(), histograms=True, micro=4).history[0])
    for layer in ("0", "1", "2"):
        assert np.array_equal(whole[layer, "activation"][1], parts[layer, "activation"][1])


def test_gradients_are_counted_without_the_factor_of_a_loss_scaler():
    plain = rows_of(train(network(), histograms=True).history[0])
    for scale in (2.0**8, 2.0**16, 2.0**40):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        scaled = rows_of(train(network(), histograms=True, scaler=scaler).history[0])
        for key in (("0", "activation_grad"), ("1", "input_grad"), ("2.weight", "parameter_grad")):
            assert np.array_equal(plain[key][1], scaled[key][1])


def test_light_steps_count_nothing(monkeypatch):
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    counts, count = [], octaves.count
    monkeypatch.setattr(octaves, "count", lambda x: counts.append(x) or count(x))
    with gradwatch.watch(table, optimizer, every=10, histograms=True):
        for step in range(9):
            optimizer.zero_grad()
            table(torch.tensor([1, 1, 3])).sum().backward()
            optimizer.step()
            if step == 0:
                of_a_full_record = len(counts)
    assert len(counts) == of_a_full_record > 0


def test_a_large_tensor_is_counted_in_a_sample():
    model = nn.Sequential(nn.Linear(6, 50_000), nn.Linear(50_000, 1))
    exact = counted(model[0].weight.detach())
    row, counts = rows_of(train(model, histograms=True).history[0])["0.weight", "parameter"]
    assert counts.sum() == pytest.approx(row[COUNT], rel=1e-6)
    assert np.abs(counts - exact).max() < 0.02 * row[COUNT]


def test_sparse_gradients_are_counted_as_the_dense_ones_that_they_stand_for():
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    with gradwatch.watch(table, optimizer, histograms=True) as watch:
        table(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    counts = rows_of(watch.history[0])["weight", "parameter_grad"][1]
    assert told(counts) == {0: 4, 1: 4}


def test_a_loop_that_never_steps_folds_them(monkeypatch):
    monkeypatch.setattr("gradwatch.capture.transfer.MAX_ROWS", 20)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, histograms=True) as watch:
        for _ in range(30):
            model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    row, counts = rows_of(watch.history[0])["model", "activation"]
    assert row[COUNT] == counts.sum() == 30 * 8


def test_tensors_that_were_counted_beside_such_as_were_not():
    """Two optimizers whose gradients are clipped together: some are read in a light step and belong to a full one."""
    site, other = Site("a", "activation"), Site("b", "activation")
    tape, kept = Tape(histogram=True), Tape()
    tape.add(site, torch.full((20_000,), 2.0))
    kept.add(other, torch.full((20_000,), 2.0))
    tape.absorb(kept)
    measured = tape.take()
    sites, rows = measured.rows()
    counts = octaves.narrowed(measured.octaves())
    assert sites == [site, other]
    assert rows[:, COUNT].tolist() == [20_000, 20_000]
    assert told(counts[0]) == {1: 20_000}
    assert np.isnan(counts[1]).all()


def test_they_are_loaded_as_they_were_recorded(tmp_path):
    watch = train(network(), batches=5, histograms=True, logdir=tmp_path)
    assert gradwatch.load(tmp_path) == watch.history
    assert [record.histograms is None for record in gradwatch.load(tmp_path)] == [False, True, False, True, False]


def test_the_training_stays_the_same_to_the_last_bit():
    watched, alone = network(), network()
    train(watched, batches=6, histograms=True)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for x in torch.randn(6, 8, 6):
        alone(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(watched.parameters(), alone.parameters(), strict=True))
