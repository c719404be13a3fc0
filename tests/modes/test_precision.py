"""Half, double and mixed precision, and loss scaling: what is recorded is unscaled, and a step that is skipped is a record."""

import copy
import io
import logging
import pickle

import numpy as np
import pytest
import torch
from both_ways import both_ways, rows, state
from registry import Mode
from torch import nn

import gradwatch

AUTOCAST = Mode(
    "Precision",
    "`autocast` to bfloat16 or float16",
    recorded="activations and their gradients in the type that they have, gradients of parameters in that of the weights; each is "
    "reduced in float32, so that what float16 cannot square is measured right",
)
NARROW = Mode(
    "Precision", "weights in bfloat16 or float16, or of several types", recorded="each tensor as it is, reduced in float32"
)
WIDE = Mode(
    "Precision", "float64", recorded="reduced in float64", units="rows are stored as float32, also what float32 rounds to zero"
)
SCALER = Mode(
    "Precision",
    "`GradScaler`, with `scaler=`",
    recorded="all gradients without the factor, which is `Record.scale`: also where the optimizer is fused and divides by itself, "
    "where gradients are accumulated, and for parameters that no optimizer holds",
    units="as without the scaler",
    unsupported="with `scaler=` and no optimizer, `parameter_grad` is what `.grad` holds at `watch.step()`",
)
CLIPPED = Mode(
    "Precision",
    "`scaler.unscale_`, then clipping",
    recorded="as without the scaler; `watch.before_clip()` may stand before or after `unscale_`",
    units="unscaled; `Record.clip` is what clipping left, not what unscaling did",
)
OVERFLOW = Mode(
    "Precision",
    "steps that a `GradScaler` skips, with `scaler=`",
    recorded="a record each, `Record.skipped`, with the gradients that overflowed, whether the optimizer is fused or not. "
    "`non_finite` is found where no factor helps, and not while the scaler looks for one",
    units="unscaled; NaN and infinities are counted",
)
TWO_OPTIMIZERS = Mode(
    "Precision",
    "several optimizers with one `GradScaler`",
    recorded="each step is skipped or not by itself, as the scaler decides",
    units="unscaled",
)
NO_SCALER = Mode(
    "Precision",
    "`GradScaler`, without `scaler=`",
    recorded="gradients of parameters as the optimizer gets them, those of activations with the factor; this is said once, in the "
    "log and by `watch.report()`",
    units="gradients of activations: times the factor",
    unsupported="steps that are skipped leave no record; loss scaling by anything but torch's own scaler is not noticed",
)


def net(dtype=torch.float32):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)


def plain_autograd(model, x, loss_of, autocast=None):
    """Outputs of layers, their gradients, and the gradients of parameters, of one pass that nobody watches."""
    model, outputs = copy.deepcopy(model), {}
    h = x
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        for name, layer in model.named_children():
            h = outputs[name] = layer(h)
            h.retain_grad()
    loss_of(h).backward()
    tensors = {(name, "activation"): out for name, out in outputs.items()}
    tensors |= {(name, "activation_grad"): out.grad for name, out in outputs.items()}
    return tensors | {(name, "parameter_grad"): p.grad for name, p in model.named_parameters()}


def assert_rows_are(found, tensors, rel=1e-5):
    for site, tensor in tensors.items():
        values = tensor.detach().double().numpy()
        row = found[site]
        assert (row.count, row.nonfinite) == (values.size, 0), site
        expected = [values.mean(), np.sqrt(np.square(values).mean()), values.min(), values.max()]
        np.testing.assert_allclose([row.mean, row.rms, row.min, row.max], expected, rtol=rel, atol=1e-30, err_msg=str(site))


def loss_of(out):
    return out.float().square().sum()


@AUTOCAST
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, models = torch.randn(5, 4), []

    def program(attach):
        model = net()
        models.append(copy.deepcopy(model))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attach(model, optimizer)
        for _ in range(3):
            with torch.autocast("cpu", dtype):
                out = model(x)
            assert out.dtype == dtype
            loss_of(out).backward()
            optimizer.step()
            optimizer.zero_grad()
        return state(model, optimizer)

    watch = both_ways(program)
    assert_rows_are(rows(watch), plain_autograd(models[0], x, loss_of, dtype))


@AUTOCAST
def test_a_float16_gradient_whose_norm_overflows_float16():
    weight = torch.zeros(512, dtype=torch.float16, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    with gradwatch.watch({"weight": weight}, optimizer, every=1, detectors=()) as watch:
        weight.grad = torch.full((512,), 60000.0, dtype=torch.float16)
        optimizer.step()
    row = rows(watch)["weight", "parameter_grad"]
    assert row.rms == pytest.approx(float(torch.tensor(60000.0).half()), rel=1e-6)
    assert row.nonfinite == 0


@NARROW
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype):
    x, models = torch.randn(5, 4).to(dtype), []

    def program(attach):
        model = net(dtype)
        models.append(copy.deepcopy(model))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        attach(model, optimizer)
        for _ in range(3):
            loss_of(model(x)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return state(model)

    watch = both_ways(program)
    assert_rows_are(rows(watch), plain_autograd(models[0], x, loss_of))


class Mixed(nn.Module):
    """Three layers in three types."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16(), nn.Linear(2, 1)

    def forward(self, x):
        return self.last(self.middle(self.first(x.double()).bfloat16()).float())


@NARROW
def test_layers_of_several_types():
    x = torch.tensor([[1.0, 2.0]])

    def program(attach):
        model = Mixed()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        attach(model, optimizer)
        model(x).sum().backward()
        optimizer.step()
        return state(model)

    found = rows(both_ways(program))
    # first: (1 + 2) / 2 + 0.5 = 2 twice; middle: (2 + 2) / 2 + 0.5 = 2.5 twice; last: (2.5 + 2.5) / 2 + 0.5 = 3.
    assert [found[layer, "activation"].max for layer in ("first", "middle", "last")] == [2, 2.5, 3]
    # dL/d last = 1; dL/d middle = 0.5 each; dL/d first = 0.5 * (0.5 + 0.5) = 0.5 each.
    assert [found[layer, "activation_grad"].max for layer in ("first", "middle", "last")] == [0.5, 0.5, 1]
    assert found["first.weight", "parameter_grad"].max == 0.5 * 2
    assert found["middle.weight", "parameter_grad"].max == 0.5 * 2
    assert found["last.weight", "parameter_grad"].max == 2.5


@WIDE
def test_double_precision():
    x, models = torch.randn(5, 4, dtype=torch.float64), []

    def program(attach):
        model = net(torch.float64)
        models.append(copy.deepcopy(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        attach(model, optimizer)
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return state(model, optimizer)

    watch = both_ways(program)
    assert_rows_are(rows(watch), plain_autograd(models[0], x, lambda out: out.square().sum()), rel=2e-7)


@WIDE
def test_what_float32_would_round_to_zero_is_not_zero():
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    with gradwatch.watch({"weight": weight}, optimizer, every=2, detectors=()) as watch:
        for _ in range(2):
            weight.grad = torch.full((4,), 1e-60, dtype=torch.float64)
            optimizer.step()
    assert all(0 < rows(watch, step)["weight", "parameter_grad"].rms < 1e-40 for step in (0, 1))


def two_layers():
    """A product of two numbers, 3 and 2, with a gradient that stays in powers of two and small integers."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[1].weight.fill_(2.0)
    return model


FUSED = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


@SCALER
@FUSED
@pytest.mark.parametrize("every", [1, 100])
def test_gradients_are_recorded_without_the_factor(fused, every):
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        watch = attach(model, optimizer, scaler=scaler, every=every)
        for _ in range(2):
            scaler.scale(watch.loss(model(torch.ones(1, 1)).sum())).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return [*state(model), scaler._scale]

    watch = both_ways(program)
    assert [record.scale for record in watch.history] == [1024, 1024]
    assert not any(record.skipped for record in watch.history)
    for step in (0, 1):
        found = rows(watch, step)
        assert found["0.weight", "parameter_grad"].rms == 2  # y = 2 * (3 * x) at x = 1
        assert found["1.weight", "parameter_grad"].rms == 3
        if every == 1:
            assert found["1", "activation_grad"].rms == 1
            assert found["0", "activation_grad"].max == 2
    assert watch.history[0].loss == 6


@SCALER
@FUSED
def test_accumulation_with_a_scaler(fused):
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        attach(model, optimizer, scaler=scaler)
        for x in (1.0, 4.0):
            scaler.scale(model(torch.full((1, 1), x)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return state(model)

    watch = both_ways(program)
    [record] = watch.history
    found = rows(watch)
    assert record.backwards == 2
    assert found["0.weight", "parameter_grad"].rms == 2 * 1 + 2 * 4
    assert found["0", "activation_grad"].mean == 2
    assert found["0", "activation_grad"].calls == 2
    assert found["0.weight", "parameter_grad"].stale == 0


@SCALER
def test_gradients_that_nobody_cleared_are_no_more_stale_than_they_are():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        attach(model, optimizer, scaler=scaler)
        for _ in range(2):  # the second pass adds 4 * 2 to the 2 that the first one left, unscaled, and (2 + 8) / 4 = 2.5
            scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return state(model)

    found = rows(both_ways(program), 1)
    assert found["0.weight", "parameter_grad"].rms == 2.5
    assert found["0.weight", "parameter_grad"].stale == pytest.approx(2 / 4 / 2.5)


@SCALER
def test_a_parameter_that_no_optimizer_holds_is_never_unscaled_but_in_the_record():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
        attach(model, optimizer, scaler=scaler)
        scaler.scale(model(torch.ones(1, 1)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert model[0].weight.grad == 1024
        return state(model)

    assert rows(both_ways(program))["0.weight", "parameter_grad"].rms == 2


@SCALER
def test_a_scaler_that_is_switched_off_and_one_that_another_optimizer_uses():
    def program(attach):
        model = nn.ModuleDict({"scaled": nn.Linear(1, 1, bias=False), "plain": nn.Linear(1, 1, bias=False)})
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.0) for part in model.values()]
        scaler, off = torch.amp.GradScaler("cpu", init_scale=512.0), torch.amp.GradScaler("cpu", enabled=False)
        attach(model, optimizers, scaler=scaler)
        other = two_layers()
        third = torch.optim.SGD(other.parameters(), lr=0.0)
        attach(other, third, scaler=off)
        scaler.scale(model["scaled"](torch.ones(1, 1)).sum()).backward()
        scaler.step(optimizers[0])
        scaler.update()
        model["plain"](torch.ones(1, 1)).sum().backward()
        optimizers[1].step()
        off.scale(other(torch.ones(1, 1)).sum()).backward()
        off.step(third)
        off.update()
        return state(model, other)

    watch, switched_off = both_ways(program)
    assert np.array_equal([record.scale for record in watch.history], [512, np.nan], equal_nan=True)
    for step, part in enumerate(("scaled", "plain")):
        assert rows(watch, step)[part, "activation_grad"].rms == 1
        assert rows(watch, step)[f"{part}.weight", "parameter_grad"].rms == 1
    assert rows(switched_off)["0.weight", "parameter_grad"].rms == 2


@CLIPPED
@FUSED
@pytest.mark.parametrize("early", [False, True], ids=["read after unscale_", "read before unscale_"])
def test_clipping_after_unscaling(fused, early):
    def program(attach):
        model = two_layers()
        with torch.no_grad():
            model[1].weight.fill_(4.0)  # gradients 4 and 3, of norm 5
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        watch = attach(model, optimizer, scaler=scaler)
        for x in (1.0, 1.0):
            scaler.scale(model(torch.full((1, 1), x)).sum()).backward()
            if early:
                watch.before_clip()
            scaler.unscale_(optimizer)
            if not early:
                watch.before_clip()
            nn.utils.clip_grad_norm_(model.parameters(), 2.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return state(model)

    watch = both_ways(program)
    assert watch.history[0].clip == pytest.approx(0.5, rel=1e-5)
    found = rows(watch)
    assert found["0.weight", "parameter_grad"].rms == 4
    assert found["1.weight", "parameter_grad"].rms == 3
    assert found["1", "activation_grad"].rms == 1
    assert found["0.weight", "update"].max == pytest.approx(-0.5 * 4 / 2, rel=1e-5)


@CLIPPED
@FUSED
def test_unscaling_without_clipping_is_no_clipping(fused):
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        watch = attach(model, optimizer, scaler=scaler)
        scaler.scale(model(torch.ones(1, 1)).sum()).backward()
        watch.before_clip()
        scaler.step(optimizer)
        scaler.update()
        return state(model)

    watch = both_ways(program)
    assert watch.history[0].clip == 1
    assert rows(watch)["0.weight", "parameter_grad"].rms == 2


def overflowing(attach, fused=False, every=1, steps=6, scale=2.0**127):
    """Trains from a factor that is far too large on: float32 ends at 2**128."""
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    watch = attach(model, optimizer, scaler=scaler, every=every)
    for _ in range(steps):
        scaler.scale(watch.loss(model(torch.full((1, 1), 4.0)).sum())).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [*state(model), scaler._scale, scaler._growth_tracker]


@OVERFLOW
@FUSED
@pytest.mark.parametrize("every", [1, 100])
def test_a_step_that_is_skipped_is_a_record_of_its_own(fused, every):
    watch = both_ways(lambda attach: overflowing(attach, fused, every))
    # Gradients of 8 and 12: 12 * 2**125 is 1.5 * 2**128, which is infinite, and half of it is not.
    assert [record.skipped for record in watch.history] == [True, True, True, False, False, False]
    assert [record.step for record in watch.history] == [0, 1, 2, 3, 4, 5]
    assert [record.scale for record in watch.history] == [2.0**exponent for exponent in (127, 126, 125, 124, 124, 124)]
    assert all(record.loss == 24 for record in watch.history)
    first = rows(watch)
    assert first["0.weight", "parameter_grad"].rms == np.inf
    if every == 1:
        assert first["0.weight", "parameter_grad"].nonfinite == 1
        assert first["0.weight", "update"].rms == 0
        assert first["0", "activation"].rms == 12
        assert watch.history[0].backwards == 1
    assert rows(watch, 5)["0.weight", "parameter_grad"].rms == 8
    assert "non_finite" not in {finding.kind for finding in watch.findings}


@OVERFLOW
def test_gradients_that_were_read_before_clipping_in_a_step_that_is_skipped():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        watch = attach(model, optimizer, scaler=scaler)
        for scale in (None, 2.0):
            if scale:
                scaler.update(scale)
            scaler.scale(model(torch.full((1, 1), 4.0)).sum()).backward()
            scaler.unscale_(optimizer)
            watch.before_clip()
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        return state(model)

    watch = both_ways(program)
    assert [record.skipped for record in watch.history] == [True, False]
    assert [record.clip == 1 for record in watch.history] == [False, True]
    assert rows(watch, 1)["1.weight", "parameter_grad"].rms == 12


@OVERFLOW
def test_overflows_that_no_factor_cures_are_found():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        scaler = torch.amp.GradScaler("cpu")
        watch = attach(model, optimizer, scaler=scaler)
        for _ in range(25):
            y = model(torch.zeros(1, 1))
            scaler.scale(watch.loss(1 + y.sqrt().sum())).backward()  # 1 / (2 * sqrt(0)) times 0
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return state(model)

    [finding] = both_ways(program).findings
    assert (finding.kind, finding.layer, finding.severity) == ("non_finite", "1", "critical")
    assert (finding.first_step, finding.last_step) == (21, 24)  # 2**16, halved until it is under 2**-4
    assert finding.evidence["scale"] == 2.0**-5
    assert "skips these steps" in finding.advice


@OVERFLOW
def test_a_loss_that_is_nan_at_every_step_is_found_sooner():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        scaler = torch.amp.GradScaler("cpu")
        watch = attach(model, optimizer, scaler=scaler, every=100)
        for _ in range(8):
            scaler.scale(watch.loss((model(torch.ones(1, 1)) - 7).sqrt().sum())).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return state(model)

    [finding] = both_ways(program).findings
    assert (finding.kind, finding.layer, finding.first_step) == ("non_finite", "loss", 4)


@OVERFLOW
def test_a_scaler_that_tries_a_larger_factor_now_and_then_is_healthy():
    watch = both_ways(lambda attach: overflowing(attach, steps=40))
    assert [record.step for record in watch.history if record.skipped] == [0, 1, 2, *range(6, 40, 4)]
    assert "non_finite" not in {finding.kind for finding in watch.findings}


@TWO_OPTIMIZERS
@FUSED
def test_one_of_two_optimizers_is_skipped(fused):
    def program(attach):
        model = nn.ModuleDict({"calm": nn.Linear(1, 1, bias=False), "wild": nn.Linear(1, 1, bias=False)})
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.5, fused=fused) for part in model.values()]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
        watch = attach(model, optimizers, scaler=scaler)
        for _ in range(2):
            loss = model["calm"](torch.ones(1, 1)).sum() + model["wild"](torch.full((1, 1), 2.0**28)).sum()
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            watch.before_clip()
            nn.utils.clip_grad_value_(model["calm"].parameters(), 0.5)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
        return [*state(model), scaler._scale]

    watch = both_ways(program)
    assert [record.skipped for record in watch.history] == [False, True, False, False]
    assert [record.scale for record in watch.history] == [2.0**100, 2.0**100, 2.0**99, 2.0**99]
    assert [watch.history[step].clip for step in (0, 2, 3)] == [0.5, 0.5, 1]
    assert rows(watch, 0)["calm.weight", "parameter_grad"].rms == 1
    assert rows(watch, 1)["wild.weight", "parameter_grad"].rms == np.inf
    assert rows(watch, 3)["wild.weight", "parameter_grad"].rms == 2.0**28


@TWO_OPTIMIZERS
def test_two_watches_share_a_scaler_and_leave_nothing_behind():
    models = [two_layers(), two_layers()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.0) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = set(vars(scaler))
    watches = [gradwatch.watch(*pair, scaler=scaler) for pair in zip(models, optimizers, strict=True)]
    for x in (4.0, 0.0):
        for model in models:
            scaler.scale(model(torch.full((1, 1), x)).sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        watches[0].close()  # the one that came first goes first
    watches[1].close()
    assert [[record.skipped for record in watch.history] for watch in watches] == [[True], [True, False]]
    assert set(vars(scaler)) - {"_scale", "_growth_tracker"} == before - {"_scale", "_growth_tracker"}
    assert "step" not in vars(scaler)


@OVERFLOW
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scaler: pickle.loads(pickle.dumps(scaler))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_scaler_that_is_observed_is_free_of_the_observer(copied):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with gradwatch.watch(model, optimizer, scaler=scaler) as watch:
        twin = copied(scaler)
        assert b"gradwatch" not in pickle.dumps(scaler)
        torch.save(scaler.state_dict(), io.BytesIO())
        twin.scale(model(torch.full((1, 1), 4.0)).sum()).backward()
        twin.step(optimizer)
        twin.update()
        assert twin.get_scale() == 2.0**126
        assert scaler.get_scale() == 2.0**127
        assert twin.step.__self__ is twin
    assert all(record.skipped for record in watch.history)  # of a loop in which nothing known has stepped


@OVERFLOW
def test_an_error_in_a_step_under_a_scaler_is_the_users_and_leaves_nothing_behind():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with gradwatch.watch(model, optimizer, scaler=scaler, every=1) as watch:
        hooks = len(optimizer._optimizer_step_post_hooks)
        scaler.scale(model(torch.ones(1, 1)).sum()).backward()
        optimizer.zero_grad()
        with pytest.raises(AssertionError, match="No inf checks"):
            scaler.step(optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == hooks
        assert len(watch.history) == 0


@NO_SCALER
@FUSED
def test_a_scaler_that_the_watch_does_not_know_is_noticed_once(fused, caplog):
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        attach(model, optimizer)
        for _ in range(3):
            scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
        return state(model)

    watch = both_ways(program)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "scaler=scaler" in said[0]
    assert "GradScaler that the watch does not know" in watch.report()
    assert rows(watch)["0", "activation_grad"].rms == 2 * 1024
    assert np.isnan(watch.history[0].scale)


@NO_SCALER
def test_nothing_is_said_of_a_loss_that_is_large_by_itself(caplog):
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        attach(model, optimizer)
        (1024 * model(torch.ones(1, 1)).sum()).backward()
        optimizer.step()
        return state(model)

    watch = both_ways(program)
    assert not caplog.records
    assert rows(watch)["0.weight", "parameter_grad"].rms == 2 * 1024


@OVERFLOW
def test_a_loop_whose_every_step_overflows_and_whose_scaler_is_not_known_is_found_at_its_end():
    def program(attach):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        scaler = torch.amp.GradScaler("cpu")
        attach(model, optimizer)
        for _ in range(40):
            scaler.scale((model(torch.ones(1, 1)) - 7).sqrt().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return state(model)

    watch = both_ways(program)
    assert [finding.kind for finding in watch.findings] == ["non_finite"]
