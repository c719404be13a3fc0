"""What becomes of parameters in mid-run: frozen and thawed, pruned, made by the first forward, added, replaced, copied."""

import copy
import io

import pytest
import torch
from both_ways import rows as figures
from programs import X, assert_row, mlp, same_with_and_without, step
from registry import Mode
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradwatch
from gradwatch.errors import AlreadyWatched

FROZEN = Mode(
    "Parameters",
    "freeze and thaw parameters, also in mid-run",
    recorded="no row of a parameter while its `requires_grad` is False; the activations of its layer, and their gradients where "
    "one is needed",
)


@FROZEN
def test_frozen_parameters_have_no_row_and_may_thaw():
    def program(watched):
        model = mlp(4, 3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with watched(model, optimizer):
            for number in range(6):
                model[0].requires_grad_(number in (0, 1, 4, 5))
                step(model, optimizer)
        return list(model.parameters())

    watch = same_with_and_without(program)
    for number in range(6):
        rows = figures(watch, number)
        awake = number in (0, 1, 4, 5)
        assert (("0.weight", "parameter_grad") in rows) == (("0.weight", "update") in rows) == awake
        assert (("0", "activation_grad") in rows) == awake  # nothing before it needs a gradient
        assert ("0", "activation") in rows
        assert ("2.weight", "parameter_grad") in rows
    assert watch.findings == []


PRUNED = Mode(
    "Parameters",
    "prune with `torch.nn.utils.prune`, before or in mid-run",
    recorded="the weight under its new name, `weight_orig`; its gradient is zero where the mask is",
    unsupported="the masked weight itself, which is computed",
)


@PRUNED
@pytest.mark.parametrize("when", [0, 3])
def test_a_pruned_weight_goes_by_its_new_name(when):
    def program(watched):
        model = mlp(4, 8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for number in range(6):
                if number == when:
                    prune.l1_unstructured(model[0], "weight", amount=0.5)
                step(model, optimizer)
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    for number in range(6):
        name = "0.weight" if number < when else "0.weight_orig"
        rows = figures(watch, number)
        assert {layer for layer, tensor in rows if tensor == "parameter_grad"} == {name, "0.bias", "2.weight", "2.bias"}
        assert rows[name, "update"].norm == pytest.approx(0.1 * rows[name, "parameter_grad"].norm, rel=1e-4)
        assert rows["0", "activation"].count == 5 * 8
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(4):
        if number == when:
            prune.l1_unstructured(model[0], "weight", amount=0.5)
        if number < 3:
            step(model, optimizer)
    model(X).square().mean().backward()
    assert_row(figures(watch, 3)["0.weight_orig", "parameter_grad"], model[0].weight_orig.grad)
    assert (model[0].weight_orig.grad == 0).sum() >= 16


LAZY = Mode(
    "Parameters",
    "watch a model with lazy modules before their shapes are known",
    recorded="activations from the first step on, and parameters once the first forward has made them",
    unsupported="without an optimizer, the weights and the update of the first step",
)


@LAZY
@pytest.mark.parametrize("by_hand", [False, True])
def test_lazy_modules_are_waited_for(by_hand):
    def lazy():
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1))

    def program(watched):
        model = lazy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, *(() if by_hand else (optimizer,))) as watch:
            for _ in range(4):
                step(model, optimizer) if not by_hand else by_hand_step(model, watch)
        return list(model.parameters())

    def by_hand_step(model, watch):
        model(X).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
        if watch is not None:
            watch.step()
        model.zero_grad()

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = lazy()
    model(X).square().mean().backward()
    rows = figures(watch)
    for name, parameter in model.named_parameters():
        assert_row(rows[name, "parameter_grad"], parameter.grad)
        assert ((name, "update") in rows) == (not by_hand)
        assert figures(watch, 1)[name, "update"].count == parameter.numel()
    assert {site.type for record in watch.history for site in record.sites if site.layer == "0"} == {"Linear"}
    assert watch.findings == []


JOINED = Mode(
    "Parameters",
    "add, replace or remove layers and parameters in mid-run (a new head, progressive growing, `add_param_group`)",
    recorded="at the latest with the next full record, or after 10 steps, new parameters are observed and old ones are no more; "
    "activations from the first full record on that begins after the change",
    unsupported="activations of a new module in the very step in which it joins",
)


@JOINED
@pytest.mark.parametrize("every", [1, 10, 1000])
def test_a_head_that_is_replaced_is_observed_in_the_place_of_the_old_one(every):
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=every) as watch:
        for number in range(140):
            if number == 15:
                model[2] = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 2))
                optimizer.add_param_group({"params": list(model[2].parameters())})
            step(model, optimizer)
        with pytest.raises(AlreadyWatched, match="already watched"):
            gradwatch.watch(model[2])
    assert watch.findings == []  # the old head gets no gradient for 125 steps, and is none of the model's any more
    steps = {name: [] for name in ("2.weight", "2.0.weight")}
    for record in watch.history:
        for site in record.sites:
            if site.layer in steps and site.tensor == "parameter_grad":
                steps[site.layer].append(record.step)
    last_of_old, first_of_new = steps["2.weight"][-1], steps["2.0.weight"][0]
    assert first_of_new == last_of_old + 1
    assert 15 <= first_of_new <= 15 + min(every, 10)
    activations = [record.step for record in watch.history if any(site.layer == "2.1" for site in record.sites)]
    assert activations[:1] == {1: [16], 10: [20], 1000: []}[every]


@JOINED
def test_growing_and_shrinking_changes_no_bit():
    def program(watched):
        model = mlp(4, 8, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with watched(model, optimizer):
            for number in range(12):
                if number == 4:
                    model.insert(2, nn.Linear(8, 8))
                    model.insert(3, nn.ReLU())
                    optimizer.add_param_group({"params": list(model[2].parameters())})
                if number == 8:
                    del model[2:4]
                step(model, optimizer)
        return list(model.parameters())

    watch = same_with_and_without(program)
    assert {layer for layer, tensor in figures(watch, 3) if tensor == "activation"} == {"0", "1", "2"}
    assert {layer for layer, tensor in figures(watch, 6) if tensor == "activation"} == {"0", "1", "2", "3", "4"}
    assert {layer for layer, tensor in figures(watch, 9) if tensor == "activation"} == {"0", "1", "2"}
    assert figures(watch, 6)["2.weight", "update"].count == 64
    assert figures(watch, 9)["2.weight", "update"].count == 8


@JOINED
def test_a_new_layer_that_the_optimizer_was_not_told_of_never_moves():
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=5, on_finding=lambda finding: None) as watch:
        for number in range(40):
            if number == 12:
                model[2] = nn.Linear(8, 2)
            step(model, optimizer)
            model.zero_grad()
    assert [(finding.kind, finding.layer) for finding in watch.findings] == [("not_updated", "2")]


COPIES = Mode(
    "Parameters",
    "copy or save in mid-run: an average of the weights (EMA, SWA), `copy.deepcopy`, `torch.save`, `state_dict`",
    recorded="copies and files are free of gradwatch, and load where it is not installed; what copies do is not recorded",
)


@COPIES
def test_an_average_of_the_weights_is_not_recorded():
    def program(watched):
        model = mlp(4, 8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        saved = io.BytesIO()
        with watched(model, optimizer):
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            for _ in range(4):
                step(model, optimizer)
                average.update_parameters(model)
                average(X).sum().backward()  # as a teacher does, with a graph
                copy.deepcopy(model)(X).sum().backward()
                torch.save(model, saved)
        return [*model.parameters(), *average.parameters()]

    watch = same_with_and_without(program)
    for number in range(4):
        assert figures(watch, number)["0", "activation"].calls == 1
        assert figures(watch, number)["0", "activation_grad"].calls == 1
        assert watch.history[number].backwards == 1
