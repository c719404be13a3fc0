"""Gradients, weights and updates at the optimizer boundary, against the tensors themselves."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.errors import GradWatchWarning


def rows_of(watch, step):
    """(parameter, tensor) → row of the frame."""
    frame = watch.history.to_pandas()
    frame = frame[(frame.step == step) & frame.tensor.isin(["parameter", "parameter_grad", "update"])]
    return {(row.layer, row.tensor): row for row in frame.itertuples()}


def assert_measures(row, tensor):
    values = tensor.detach().double().numpy()
    assert (row.count, row.nonfinite) == (values.size, 0)
    figures = [values.mean(), np.sqrt(np.square(values).mean()), values.min(), values.max(), np.linalg.norm(values)]
    np.testing.assert_allclose([row.mean, row.rms, row.min, row.max, row.norm], figures, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_a_full_record_holds_the_weights_before_the_step_the_gradients_and_the_step(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = make(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for _ in range(2):
            model(torch.randn(5, 3)).square().sum().backward()
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            grads = {name: p.grad for name, p in model.named_parameters()}
            optimizer.zero_grad()
    rows = rows_of(watch, 1)
    assert len(rows) == 12
    for name, parameter in model.named_parameters():
        assert_measures(rows[name, "parameter"], before[name])
        assert_measures(rows[name, "parameter_grad"], grads[name])
        assert_measures(rows[name, "update"], parameter - before[name])
        ratio = (parameter - before[name]).norm() / before[name].norm()
        assert rows[name, "update"].update_ratio == pytest.approx(ratio.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1.0),
        (torch.float32, 1e-25),  # whose squares float32 rounds to zero
        (torch.float32, 1e25),  # whose squares overflow float32
        (torch.float64, 1e-200),
        (torch.float16, 300.0),  # whose norm overflows float16
        (torch.bfloat16, 1e-3),
    ],
)
def test_other_steps_hold_the_norms_of_the_gradients(dtype, scale):
    weight = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    vector = torch.zeros(7, dtype=dtype, requires_grad=True)
    values = torch.linspace(1, 2, 12).view(3, 4).to(dtype)
    optimizer = torch.optim.SGD([weight, vector], lr=0.0)
    with gradwatch.watch({"weight": weight, "vector": vector}, optimizer, every=100, detectors=()) as watch:
        for _ in range(2):
            weight.grad, vector.grad = values * scale, None
            optimizer.step()
    first, second = watch.history
    assert (first.full, second.full) == (True, False)
    (site, silent) = second.sites
    assert (site.layer, site.tensor, site.shape) == ("weight", "parameter_grad", (3, 4))
    expected = float(np.sqrt(np.square(weight.grad.double().numpy() / scale).sum())) * scale
    expected = max(expected, 2.0**-149 * 3.5) if expected else 0.0
    row = rows_of(watch, 1)["weight", "parameter_grad"]
    if dtype == torch.float64:
        assert 0 < row.norm < 1e-44  # float32 has no smaller number that is not zero
    else:
        assert row.norm == pytest.approx(expected, rel=1e-5)
    assert (row.count, row.nonfinite) == (12, 0)
    assert second.rows[1, 0] == 0, "no gradient is a row of nothing"
    assert silent.layer == "vector"


@pytest.mark.parametrize("every", [1, 3])
def test_parameters_of_any_shape_are_measured_also_where_many_have_the_same(every):
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (4, 2), (2, 3, 4), (2, 3, 2, 2)]
    leaves = {f"{shape} {n}": torch.randn(shape, generator=generator).requires_grad_() for shape in shapes for n in range(5)}
    leaves |= {"alone": torch.randn(7, generator=generator).requires_grad_()}
    images = {f"image {n}": torch.randn(2, 3, 4, 5, generator=generator) for n in range(4)}
    leaves |= {name: image.to(memory_format=torch.channels_last).requires_grad_() for name, image in images.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1)
    with gradwatch.watch(leaves, optimizer, every=every) as watch:
        for _ in range(2):
            before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
            optimizer.zero_grad()
            sum((leaf**3).sum() for leaf in leaves.values()).backward()
            optimizer.step()
    rows = rows_of(watch, 1)
    for name, leaf in leaves.items():
        if every == 1:
            assert_measures(rows[name, "parameter"], before[name])
            assert_measures(rows[name, "parameter_grad"], leaf.grad)
            assert_measures(rows[name, "update"], leaf - before[name])
        else:
            assert rows[name, "parameter_grad"].norm == pytest.approx(leaf.grad.norm().item(), rel=1e-5)


def test_the_data_of_parameters_may_be_exchanged_for_others():
    leaves = {name: torch.ones(2, 3, requires_grad=True) for name in "abc"}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1)
    with gradwatch.watch(leaves, optimizer, every=4) as watch:
        for step in range(8):
            if step == 2:
                leaves["a"].data, leaves["a"].grad = torch.ones(5), None
            if step == 6:
                leaves["b"].data, leaves["b"].grad = torch.ones(2, 3, dtype=torch.float64), None
            optimizer.zero_grad()
            sum(leaf.sum() for leaf in leaves.values()).backward()
            optimizer.step()
    for step in range(8):
        rows = rows_of(watch, step)
        assert rows["a", "parameter_grad"].norm == pytest.approx((6 if step < 2 else 5) ** 0.5)
        assert rows["b", "parameter_grad"].norm == rows["c", "parameter_grad"].norm == pytest.approx(6**0.5)


def test_sparse_gradients_stand_for_the_dense_ones():
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    factors = torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.5, 0.0]])
    with gradwatch.watch(table, optimizer, every=2) as watch:
        for _ in range(2):
            (table(torch.tensor([1, 4, 1])) * factors).sum().backward()
            optimizer.step()
            dense = table.weight.grad.to_dense()
            optimizer.zero_grad()
    assert_measures(rows_of(watch, 0)["weight", "parameter_grad"], dense)
    assert rows_of(watch, 1)["weight", "parameter_grad"].norm == pytest.approx(dense.norm().item())


def test_nobody_knows_what_is_left_of_a_sparse_gradient_that_is_never_cleared():
    table = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with gradwatch.watch(table, optimizer, every=1) as watch:
        for _ in range(2):
            table(torch.tensor([1, 4])).sum().backward()
            optimizer.step()
    assert math.isnan(rows_of(watch, 1)["weight", "parameter_grad"].stale)


def test_a_parameter_that_is_exchanged_before_the_step_takes_no_other_along():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    with gradwatch.watch(model, every=1) as watch:
        model[1].weight = nn.Parameter(torch.ones(3, 3))
        model(torch.ones(2, 3)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.5)
        watch.step()
    rows = rows_of(watch, 0)
    for layer in "023":
        assert rows[f"{layer}.weight", "update"].norm == pytest.approx(1.5)
        assert rows[f"{layer}.weight", "parameter"].count == 9


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_gradient_counts_as_its_two_parts(dtype):
    weight = torch.tensor([3 + 4j, 0.5 - 1j], dtype=dtype, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    gradients = []
    with gradwatch.watch({"weight": weight}, optimizer, every=2) as watch:
        for _ in range(3):
            watch.tap("conjugate", weight.conj()).abs().square().sum().backward()
            watch.before_clip()
            weight.grad = weight.grad.conj() / 2
            gradients.append(weight.grad.clone())
            optimizer.step()
            optimizer.zero_grad()
    for step, gradient in enumerate(gradients):
        row = rows_of(watch, step)["weight", "parameter_grad"]
        assert row.norm == pytest.approx(2 * gradient.norm().item(), rel=1e-5)
        assert watch.history[step].clip == pytest.approx(0.5, rel=1e-6)
        assert row.count == 4


def test_frozen_parameters_get_no_row_and_may_thaw():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for thawed in (False, True):
            model[0].requires_grad_(thawed)
            model(torch.ones(5, 3)).sum().backward()
            optimizer.step()
    trained = [{site.layer for site in record.sites if site.tensor == "parameter_grad"} for record in watch.history]
    assert trained[0] == {"1.weight", "1.bias"}
    assert trained[1] == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_closure_that_is_evaluated_again_and_again_makes_one_record():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4, line_search_fn="strong_wolfe")
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    gradients, losses = [], []

    def closure():
        optimizer.zero_grad()
        loss = watch.loss((model(x) - y).square().mean())
        loss.backward()
        gradients.append(model.weight.grad.clone())
        losses.append(loss.item())
        return loss

    start = model.weight.detach().clone()
    with gradwatch.watch(model, optimizer, every=1) as watch:
        optimizer.step(closure)
        middle, calls = model.weight.detach().clone(), len(gradients)
        optimizer.step(closure=closure)
    assert len(watch.history) == 2
    assert calls > 1
    row = rows_of(watch, 0)["weight", "parameter_grad"]
    assert_measures(row, torch.stack(gradients[:calls]))
    assert row.calls == watch.history[0].backwards == calls
    assert watch.history[0].loss == pytest.approx(np.mean(losses[:calls]), rel=1e-6)
    assert_measures(rows_of(watch, 0)["weight", "parameter"], start)
    assert_measures(rows_of(watch, 0)["weight", "update"], middle - start)
    assert_measures(rows_of(watch, 1)["weight", "parameter"], middle)


def test_a_record_is_about_the_parameters_of_the_optimizer_that_stepped():
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1), "free": nn.Linear(2, 1)})
    first = torch.optim.SGD(model["generator"].parameters(), lr=0.1)
    second = torch.optim.Adam(model["critic"].parameters(), lr=0.1)
    clips = []
    with gradwatch.watch(model, [first, second], every=4) as watch:
        for _ in range(6):
            for optimizer, sign in ((first, 1.0), (second, -1.0)):
                optimizer.zero_grad()  # what the pass leaves in the other one's parameters is stale
                (sign * model["critic"](model["generator"](torch.randn(4, 2)))).sum().backward()
                watch.before_clip()
                own = optimizer.param_groups[0]["params"]
                before = torch.nn.utils.clip_grad_norm_(own, 0.5)
                clips.append(min(1.0, 0.5 / before.item()))
                optimizer.step()
    assert [record.full for record in watch.history] == [True, True, False, False] * 3
    for record in watch.history:
        own = {"generator": 0, "critic": 1}
        owners = {site.layer.split(".")[0] for site in record.sites if site.tensor == "parameter_grad"}
        assert owners == {next(name for name, turn in own.items() if turn == record.step % 2), "free"}
    assert [record.clip for record in watch.history] == pytest.approx(clips, rel=1e-4)


def test_gradients_are_recorded_as_they_were_before_clipping():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with gradwatch.watch(model, optimizer, every=2) as watch:
        for bound in (0.01, 0.01, 1e6):
            model(torch.ones(4, 3)).square().sum().backward()
            unclipped = {name: p.grad.clone() for name, p in model.named_parameters()}
            watch.before_clip()
            total = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
            optimizer.step()
            optimizer.zero_grad()
            expected.append((unclipped["weight"].norm().item(), unclipped["bias"].norm().item(), min(1.0, bound / total.item())))
    for step, (weight, bias, clip) in enumerate(expected):
        rows = rows_of(watch, step)
        assert rows["weight", "parameter_grad"].norm == pytest.approx(weight, rel=1e-5)
        assert rows["bias", "parameter_grad"].norm == pytest.approx(bias, rel=1e-5)
        assert watch.history[step].clip == pytest.approx(clip, rel=1e-4)


def test_a_step_that_was_not_taken_is_marked_skipped():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for step in range(3):
            model(torch.ones(1, 2)).sum().backward()
            if step == 1:
                watch.step()
            else:
                optimizer.step()
            optimizer.zero_grad()
    assert [record.skipped for record in watch.history] == [False, True, False]
    assert [record.step for record in watch.history] == [0, 1, 2]
    assert rows_of(watch, 1)["weight", "parameter_grad"].norm == pytest.approx(2**0.5)


def test_an_optimizer_of_another_model_is_named():
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.warns(GradWatchWarning, match="SGD holds none of the parameters of 'Linear'.*build it from") as caught:
        watch = gradwatch.watch(model, optimizer)
    assert caught[0].filename == __file__
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    watch.close()
    assert len(watch.history) == 1
