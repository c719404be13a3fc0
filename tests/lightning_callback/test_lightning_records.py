"""What the callback records, against hand arithmetic and plain torch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from lightning_programs import hooks, mixed_precision, points, rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

GradWatchCallback = pytest.importorskip(
    "gradwatch.lightning", reason="neither lightning nor pytorch-lightning is installed", exc_type=ImportError
).GradWatchCallback


def test_single_neuron_by_hand(pl, fit):
    class Neuron(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.z, self.a = nn.Linear(2, 1), nn.Sigmoid()
            self.z.weight.data = torch.tensor([[0.5, -1.0]])
            self.z.bias.data = torch.zeros(1)
            self.batches = DataLoader(TensorDataset(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0]])))

        def training_step(self, batch, index):
            x, y = batch
            return nn.functional.binary_cross_entropy(self.a(self.z(x)), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = GradWatchCallback()
    fit(Neuron(), callback)

    (record,) = callback.watch.history
    assert record.step == 0
    assert record.loss == pytest.approx(math.log(2), abs=1e-6)
    for layer, tensor, low, high in [
        ("z", "activation", 0, 0),
        ("a", "activation", 0.5, 0.5),
        ("a", "activation_grad", -2, -2),  # dL/da = -y/a
        ("a", "input_grad", -0.5, -0.5),  # dL/dz = a - y
        ("z", "activation_grad", -0.5, -0.5),
        ("z.weight", "parameter_grad", -1, -0.5),  # dL/dW = (a - y) x
        ("z.bias", "parameter_grad", -0.5, -0.5),
        ("z.weight", "update", 0.05, 0.1),
    ]:
        (row,) = rows(callback.watch, layer, tensor).itertuples()
        assert (row.min, row.max, row.mean) == pytest.approx((low, high, (low + high) / 2), abs=1e-6), (layer, tensor)


def test_a_budget_is_the_watchs(fit, network):
    callback = GradWatchCallback(every=2, budget=0.05)
    fit(network(), callback)
    assert callback.watch.history.full_steps[:3] == [0, 2, 4]
    assert callback.watch.report().splitlines()[-1].startswith("budget=0.05: a full record every ")


def test_loss_is_the_mean_over_micro_batches(fit, network):
    net = network()
    net.rate, net.drop.p, net.batches = 0, 0, points(count=5)
    with torch.no_grad():
        losses = [float(net.loss(batch)) for batch in net.batches]
    callback = GradWatchCallback()
    fit(net, callback, accumulate_grad_batches=2)

    assert [record.loss for record in callback.watch.history] == pytest.approx(
        [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]], rel=1e-6
    )
    assert [record.step for record in callback.watch.history] == [0, 1, 2]
    assert callback.watch.history[0].backwards == 2


def test_gradients_are_those_before_clipping(fit, network):
    net = network()
    net.drop.p, net.batches = 0, points(count=1)
    reference = copy.deepcopy(net)
    reference.loss(next(iter(net.batches))).backward()
    callback = GradWatchCallback()
    fit(net, callback, gradient_clip_val=1e-3)

    (row,) = rows(callback.watch, "first.weight", "parameter_grad").itertuples()
    assert row.norm == pytest.approx(float(reference.first.weight.grad.norm()), rel=1e-6)
    assert row.norm > 1e-2


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_leaves_no_factor_in_the_record(pl, fit, network, fused):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0, fused=fused)

    plain, scaled = GradWatchCallback(every=1), GradWatchCallback(every=1)
    for callback, settings in ((plain, {"precision": "32"}), (scaled, {"plugins": mixed_precision(pl)})):
        net = network(configure_optimizers=configure_optimizers)
        net.drop.p = 0
        fit(net, callback, **settings)

    for clean, record in zip(plain.watch.history, scaled.watch.history, strict=True):
        assert record.loss == pytest.approx(clean.loss, rel=2e-2)
    for layer, tensor in (("last", "activation_grad"), ("last.weight", "parameter_grad")):
        norms = [rows(callback.watch, layer, tensor).norm.tolist() for callback in (plain, scaled)]
        assert norms[1] == pytest.approx(norms[0], rel=2e-2), tensor


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_is_recorded_as_skipped(pl, fit, network, fused):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), fused=fused)

    def on_before_backward(self, loss):
        if self.trainer.global_step == 2 and self.trainer.precision_plugin.precision == "16-mixed":
            self.last.bias.register_hook(lambda grad: grad * math.inf)

    plain, scaled = GradWatchCallback(every=1), GradWatchCallback(every=1)
    for callback, settings in ((plain, {"limit_train_batches": 3}), (scaled, {"plugins": mixed_precision(pl)})):
        net = network(configure_optimizers=configure_optimizers, on_before_backward=on_before_backward)
        net.drop.p = 0
        trainer = fit(net, callback, **settings)
    history = scaled.watch.history
    assert [record.step for record in history] == [0, 1, 2, 3, 4, 5]
    assert [record.skipped for record in history] == [False, False, True, True, True, True]
    assert trainer.global_step == 6
    assert {record.backwards for record in history} == {1}
    assert not scaled.watch.findings
    norms = [rows(callback.watch, "last", "activation_grad").norm[:3] for callback in (plain, scaled)]
    assert norms[1].tolist() == pytest.approx(norms[0].tolist(), rel=2e-2)


def test_a_training_step_that_returns_none_leaves_an_empty_record(fit, network):
    def training_step(self, batch, index):
        return None if index == 2 else self.loss(batch)

    net, callback = network(training_step=training_step), GradWatchCallback(every=1)
    net.rate = 0.01
    fit(net, callback)
    history = callback.watch.history
    assert [record.loss is None for record in history] == [False, False, True, False, False, False]
    assert rows(callback.watch, "first.weight", "parameter_grad").step.tolist() == [0, 1, 3, 4, 5]
    assert not callback.watch.findings


def test_two_optimizers_have_a_record_each(fit, network):
    def training_step(self, batch, index):
        for optimizer, weight in zip(self.optimizers(), (1, 3), strict=True):
            optimizer.zero_grad()
            self.manual_backward(weight * self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0) for layer in (self.first, self.last)]

    net = network(training_step=training_step, configure_optimizers=configure_optimizers, automatic_optimization=False)
    net.drop.p = 0
    callback = GradWatchCallback()
    trainer = fit(net, callback)
    history = callback.watch.history
    assert [record.step for record in history] == list(range(12))
    assert trainer.global_step == 12
    assert rows(callback.watch, "first.weight", "parameter_grad").step.tolist() == [0, 2, 4, 6, 8, 10]
    assert rows(callback.watch, "last.weight", "parameter_grad").step.tolist() == [1, 3, 5, 7, 9, 11]
    assert [history[1].loss, history[3].loss] == pytest.approx([3 * history[0].loss, 3 * history[2].loss])


def test_closures_of_a_step_merge(fit, network):
    evaluations = []

    def training_step(self, batch, index):
        loss = self.loss(batch)
        evaluations.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    net = network(training_step=training_step, configure_optimizers=configure_optimizers)
    net.drop.p, net.batches = 0, points(count=1)
    callback = GradWatchCallback()
    trainer = fit(net, callback)
    (record,) = callback.watch.history
    assert trainer.global_step == 1
    assert record.backwards == len(evaluations) > 1
    assert record.loss == pytest.approx(sum(evaluations) / len(evaluations), rel=1e-6)


def test_validation_is_not_observed(fit, network):
    attached = []

    @torch.enable_grad()
    def validation_step(self, batch, index):
        attached.append(hooks(self))
        self.loss(batch).backward(inputs=[batch[0].requires_grad_()])

    net = network(validation_step=validation_step, val_dataloader=lambda self: self.batches)
    callback = GradWatchCallback(every=1)
    fit(net, callback, val_check_interval=1, accumulate_grad_batches=2, inference_mode=False)
    assert len(attached) == 2 + 6 * 6
    assert not any(attached)
    assert {record.backwards for record in callback.watch.history} == {2}
    assert set(rows(callback.watch, "first", "activation").calls) == {2}


def test_steps_go_on_where_a_second_fit_or_a_checkpoint_goes_on(fit, network, tmp_path):
    net, callback = network(), GradWatchCallback(every=5)
    trainer = fit(net, callback, max_epochs=1)
    first = callback.watch
    assert [record.step for record in first.history] == list(range(6))
    trainer.fit_loop.max_epochs = 2
    fit(net, trainer=trainer)
    assert callback.watch is not first
    assert [record.step for record in callback.watch.history] == list(range(6, 12))
    assert [record.step for record in callback.watch.history if record.full] == [10]
    assert hooks(net) == 0

    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = GradWatchCallback(every=5)
    fit(network(), resumed, max_epochs=3, ckpt_path=tmp_path / "run.ckpt")
    assert [record.step for record in resumed.watch.history] == list(range(12, 18))
    assert [record.backwards for record in resumed.watch.history] == [0, 0, 0, 1, 0, 0]  # only step 15 was sampled
    assert rows(resumed.watch, "first", "activation").step.tolist() == [15]
