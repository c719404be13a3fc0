"""A plain training loop, watched: the numbers of one neuron, which record a step is, which loss belongs to it, what it costs."""

import math

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.capture import gradients
from gradwatch.errors import WatchClosed

# One neuron by hand: z = Wx + b, a = σ(z), L = (a − y)², and one step of gradient descent.
W, B, X, Y, RATE = (0.5, -0.3), 0.1, (1.0, 2.0), 1.0, 0.1
Z = W[0] * X[0] + W[1] * X[1] + B
A = 1 / (1 + math.exp(-Z))
LOSS = (A - Y) ** 2
DL_DA = 2 * (A - Y)
DL_DZ = DL_DA * A * (1 - A)
DL_DW = (DL_DZ * X[0], DL_DZ * X[1])
NEURON = {
    ("z", "activation"): (Z,),
    ("z", "activation_grad"): (DL_DZ,),
    ("a", "activation"): (A,),
    ("a", "activation_grad"): (DL_DA,),
    ("W", "parameter"): W,
    ("W", "parameter_grad"): DL_DW,
    ("W", "update"): tuple(-RATE * grad for grad in DL_DW),
    ("b", "parameter"): (B,),
    ("b", "parameter_grad"): (DL_DZ,),
    ("b", "update"): (-RATE * DL_DZ,),
}


def assert_the_neuron(watch, also=(), **renamed):
    """The newest record is that of the neuron, to 1e-6; ``also`` holds what more there is, ``renamed`` what is called otherwise."""
    expected = {(renamed.get(layer, layer), tensor): values for (layer, tensor), values in NEURON.items()} | dict(also)
    frame = watch.history.to_pandas()
    assert frame.step.tolist() == [0] * len(expected)
    rows = {(row.layer, row.tensor): row for row in frame.itertuples()}
    assert set(rows) == set(expected)
    for site, values in expected.items():
        row, squares = rows[site], sum(value**2 for value in values)
        figures = (
            len(values),
            sum(values) / len(values),
            min(values),
            max(values),
            math.sqrt(squares),
            math.sqrt(squares / len(values)),
        )
        assert (row.count, row.mean, row.min, row.max, row.norm, row.rms) == pytest.approx(figures, abs=1e-6)
    assert watch.history[0].loss == pytest.approx(LOSS, abs=1e-6)
    assert watch.history[0].backwards == 1


def test_the_neuron_as_modules():
    model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([W]))
        model[0].bias.fill_(B)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with gradwatch.watch(model, optimizer, loss_fn=(loss_fn := nn.MSELoss())) as watch:
        loss_fn(model(torch.tensor([X])), torch.tensor([[Y]])).backward()
        optimizer.step()
    assert_the_neuron(watch, also={("1", "input_grad"): (DL_DZ,)}, z="0", a="1", W="0.weight", b="0.bias")


@pytest.mark.parametrize("by_hand", [False, True], ids=["with an optimizer", "updated by hand"])
def test_the_neuron_as_raw_tensors(by_hand):
    weight, bias = torch.tensor(W, requires_grad=True), torch.tensor(B, requires_grad=True)
    optimizer = None if by_hand else torch.optim.SGD([weight, bias], lr=RATE)
    with gradwatch.watch({"W": weight, "b": bias}, optimizer) as watch:
        z = watch.tap("z", weight @ torch.tensor(X) + bias)
        a = watch.tap("a", torch.sigmoid(z))
        loss = watch.loss((a - Y) ** 2)
        loss.backward()
        if optimizer is None:
            with torch.no_grad():
                weight -= RATE * weight.grad
                bias -= RATE * bias.grad
            watch.step()
        else:
            optimizer.step()
    assert_the_neuron(watch)


def linear():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def losses_of(watch):
    return [record.loss for record in watch.history]


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("after", [False, True], ids=["before the step", "after the step"])
def test_a_loss_belongs_to_its_step(after, as_tensor):
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        for step in range(4):
            value = (model(torch.ones(1, 2)) * 0 + step).sum()
            value.backward()
            told = value if as_tensor else step
            if not after:
                assert watch.loss(told) is told
            optimizer.step()
            if after:
                watch.loss(told)
    assert losses_of(watch) == [0, 1, 2, 3]


def test_the_losses_of_micro_batches_are_averaged():
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        for step in range(3):
            for batch in (1.0, 2.0, 6.0):
                watch.loss(model(torch.ones(1, 2)).sum() * 0 + step + batch).backward()
            optimizer.step()
    assert losses_of(watch) == [3, 4, 5]


def test_a_criterion_tells_the_loss_of_what_is_trained_and_nothing_else():
    model, optimizer = linear()
    loss_fn = nn.L1Loss(reduction="none")
    with gradwatch.watch(model, optimizer, loss_fn=loss_fn) as watch:
        for step in range(3):
            x = torch.zeros(2, 2)
            loss_fn(model(x) * 0, torch.full((2, 1), float(step))).mean().backward()
            with torch.no_grad():
                loss_fn(model(x), torch.full((2, 1), 1e6))  # validation
            optimizer.step()
            with torch.inference_mode():
                loss_fn(model(x), torch.full((2, 1), 1e6))
    assert losses_of(watch) == [0, 1, 2]
    assert not loss_fn._forward_hooks


def test_a_loss_that_is_told_goes_before_what_the_criterion_computes():
    model, optimizer = linear()
    loss_fn = nn.MSELoss()
    with gradwatch.watch(model, optimizer, loss_fn=loss_fn) as watch:
        loss = loss_fn(model(torch.ones(1, 2)), torch.ones(1, 1))
        watch.loss(7.0)
        loss.backward()
        optimizer.step()
    assert losses_of(watch) == [7]


@pytest.mark.parametrize("after", [False, True], ids=["before the step", "after the step"])
def test_a_step_whose_loss_is_not_told_has_none(after):
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        for step in range(6):
            loss = model(torch.ones(1, 2)).sum() * 0 + step
            loss.backward()
            if step % 3 == 1 and not after:
                watch.loss(loss)
            optimizer.step()
            if step % 3 == 1 and after:
                watch.loss(loss)
    assert losses_of(watch) == [None, 1, None, None, 4, None]


def test_the_losses_of_micro_batches_may_be_told_after_the_step():
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        for batch in range(6):
            loss = model(torch.ones(1, 2)).sum() * 0 + batch
            loss.backward()
            if batch % 2:
                optimizer.step()
                optimizer.zero_grad()
            watch.loss(loss)
    assert losses_of(watch) == [0.5, 2.5, 4.5]


def test_a_loss_may_be_a_tensor_of_whole_numbers():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watch:
        model(torch.ones(1, 2)).sum().backward()
        watch.loss(torch.tensor([1, 2]))  # errors counted in a batch, say
        optimizer.step()
    assert watch.history[0].loss == 1.5


def test_a_loss_that_is_no_number_is_recorded_as_it_is():
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        model(torch.ones(1, 2)).sum().backward()
        watch.loss(float("nan"))
        optimizer.step()
    assert math.isnan(watch.history[0].loss)
    assert [finding.kind for finding in watch.findings] == ["non_finite"]


def test_every_so_many_steps_a_record_is_a_full_one():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=3) as watch:
        for _ in range(7):
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
    assert [record.step for record in watch.history] == list(range(7))
    assert [record.full for record in watch.history] == [step % 3 == 0 for step in range(7)]
    assert [record.backwards for record in watch.history] == [1, 0, 0] * 2 + [1]
    full, other = watch.history[3], watch.history[4]
    assert [site.layer for site in full.sites if site.tensor == "activation"] == ["0", "1", "2"]
    assert [(site.layer, site.tensor) for site in other.sites] == [
        (name, "parameter_grad") for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]


def test_a_record_is_final_when_the_next_one_begins_or_at_the_end():
    model, optimizer = linear()
    watch = gradwatch.watch(model, optimizer)
    for step in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert len(watch.history) == step
    watch.close()
    assert len(watch.history) == 3


def test_records_are_in_the_order_of_forward_whatever_order_modules_were_made_in():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(3, 1), nn.Tanh(), nn.Linear(2, 3)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    model = Backwards()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watch:
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()
    assert list(dict.fromkeys(site.layer for site in watch.history[0].sites)) == [
        "first", "first.weight", "first.bias", "middle", "last", "last.weight", "last.bias",
    ]  # fmt: skip


def test_no_python_runs_in_the_model_while_a_step_is_not_sampled(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=100, detectors=()) as watch:
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()
        measured, kernels = [], []
        monkeypatch.setattr(gradients.Gradients, "_arrived", lambda *_: measured.append(1))
        foreach = torch._foreach_norm
        monkeypatch.setattr(torch, "_foreach_norm", lambda tensors, *_: kernels.append(len(tensors)) or foreach(tensors))
        for _ in range(5):
            model(torch.ones(4, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not measured
    assert kernels == [4] * 5, "one kernel for all gradients, and one call a step"
    assert len(watch.history) == 6


def test_a_watch_that_is_closed_is_of_no_more_use_and_does_no_harm():
    model, optimizer = linear()
    watch = gradwatch.watch(model, optimizer, every=1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    watch.close()
    watch.close()
    for method, arguments in (("step", ()), ("loss", (1.0,)), ("tap", ("x", torch.ones(1))), ("before_clip", ())):
        with pytest.raises(
            WatchClosed, match=rf"watch\.{method}\(\) after watch\.close\(\): make a new watch with gradwatch\.watch"
        ):
            getattr(watch, method)(*arguments)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(watch.history) == 1
    assert "History(1 records, steps 0 to 0)" in watch.report()
    with gradwatch.watch(model, optimizer) as again:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert len(again.history) == 1


def test_a_loop_that_never_steps_has_one_record_all_the_same():
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
    (record,) = watch.history
    assert (record.skipped, record.backwards) == (True, 3)


def test_nothing_happens_in_a_watch_that_sees_nothing():
    model, optimizer = linear()
    with gradwatch.watch(model, optimizer) as watch:
        pass
    assert (len(watch.history), watch.findings, watch.incidents) == (0, [], [])
    assert watch.report().startswith("nothing recorded yet")
