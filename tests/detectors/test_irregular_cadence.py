"""Full records at whatever steps: the verdicts stay right, and come as soon as two of them can tell."""

import itertools

import pytest
import torch
from torch import nn

import gradwatch
from benchmarks import faults
from benchmarks.faults import calibrate, score
from gradwatch.capture.cadence import Cadence
from gradwatch.detectors import VanishingGradient
from gradwatch.history import History
from gradwatch.records import Record, Site


@pytest.fixture(params=[(40, 3, 70, 1, 10, 2), (2, 1, 70, 40, 3)], ids=str)
def irregular(request, monkeypatch):
    """Makes watches take full records at step 0 and then at these distances, over and over."""
    steps = {0, *itertools.takewhile(lambda step: step < 5000, itertools.accumulate(itertools.cycle(request.param)))}
    monkeypatch.setattr(Cadence, "prepare", lambda self, step: setattr(self, "full", step in steps))


@pytest.mark.parametrize(
    "name",
    ["sigmoid_stack", "negative_bias", "tanh_unit_normal", "adam_recommender_never_cleared", "optimizer_partial", "constant_init"],
)
def test_a_fault_is_found_in_its_place(irregular, name):
    case = faults.get(name)
    found = calibrate.monitor(case, seed=0)
    scored = score.score_case(case, found)
    assert scored.false_kinds == set()
    assert {kind for need in case.must for kind in need.kinds} & {finding.kind for finding in found}


@pytest.mark.parametrize(
    "name",
    ["alternating_heads", "svm_hinge", "lora_zero_b", "sngan_hinge", "sigmoid_stack~fixed", "tanh_unit_normal~fixed"],
)
def test_nothing_is_said_about_a_healthy_run(irregular, name):
    assert calibrate.monitor(faults.get(name), seed=0) == []


@pytest.mark.parametrize("every", range(1, 13))
def test_a_saturated_start_is_found_at_any_cadence(every):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        model[0].weight.mul_(100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(64, 8)
    with gradwatch.watch(model, optimizer, every=every, on_finding=lambda _finding: None) as watch:
        for _ in range(40):
            optimizer.zero_grad()
            watch.loss((model(x) - x[:, :1]).square().mean()).backward()
            optimizer.step()
    assert [(finding.kind, finding.layer) for finding in watch.findings][:1] == [("saturated", "1")]


def starved_outputs(step, *, full):
    """A record in which the weights' gradients are noise, and the first of three outputs gets next to none, as a full one shows."""
    shown = [("0", "activation_grad", 1e-9), ("1", "activation_grad", 1.0)] if full else []
    values = [*shown, ("0.weight", "parameter_grad", 1e-3), ("1.weight", "parameter_grad", 1e-3)]
    sites = tuple(Site(layer, tensor, "Linear", (8, 8)) for layer, tensor, _ in values)
    rows = gradwatch.moments.norm_rows([64] * len(values), [8 * value for *_, value in values])
    return Record(step, sites, rows, loss=1.0, full=full)


@pytest.mark.parametrize(("every", "seen"), [(10, range(1, 100)), (60, [*range(1, 11), *range(60, 100)])])
def test_one_full_record_far_back_is_one_batch_and_says_nothing_about_now(every, seen):
    history, said = History(), []
    for step in range(100):
        history.append(starved_outputs(step, full=step % every == 0))
        if list(VanishingGradient()(history)):
            said.append(step)
    assert said == list(seen)
