"""Offline as live: the same findings from a recorded run."""

import torch
from torch import nn

import gradwatch
from gradwatch.detectors import VanishingGradient


def sigmoid_stack():
    torch.manual_seed(0)
    layers = [module for _ in range(8) for module in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def train(logdir):
    torch.manual_seed(1)
    model, loss_fn = sigmoid_stack(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradwatch.watch(model, optimizer, logdir=logdir, loss_fn=loss_fn, on_finding=lambda finding: None) as watch:
        for _ in range(60):
            optimizer.zero_grad()
            loss_fn(model(torch.randn(32, 16)), torch.randint(4, (32,))).backward()
            optimizer.step()
    return watch


def test_a_recorded_run_gives_the_findings_that_were_found_live(tmp_path):
    watch = train(tmp_path)
    assert [finding.kind for finding in watch.findings] == ["vanishing_gradient"]
    assert gradwatch.check(tmp_path) == watch.findings
    assert gradwatch.check(gradwatch.load(tmp_path)) == watch.findings
    assert gradwatch.load(tmp_path).findings == watch.findings


def test_a_recorded_run_can_be_judged_by_other_thresholds(tmp_path):
    watch = train(tmp_path)
    assert gradwatch.check(watch.history, [VanishingGradient(share=1e-20, outputs=1e-20)]) == []


def test_a_detector_that_fails_is_reported_and_the_others_go_on(tmp_path, caplog):
    def broken(history):
        raise ZeroDivisionError("a bug")

    findings = gradwatch.check(train(tmp_path).history, [broken, VanishingGradient()])
    assert [finding.kind for finding in findings] == ["vanishing_gradient"]
    assert caplog.text.count("the detector broken failed") == 1
