"""A watch that keeps to a budget. A clock that only the test turns tells the time, so that every figure is known."""

import logging

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch.capture import budget as budgets
from gradwatch.detectors import Judgement

STEP, LIGHT, FULL = 0.1, 0.001, 0.1


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budgets, "perf_counter", clock)
    return clock


class Costly(nn.Module):
    """A layer that takes its time, which is the training's."""

    def __init__(self, clock):
        super().__init__()
        self.linear, self.clock = nn.Linear(2, 1), clock

    def forward(self, x):
        self.clock.now += STEP
        return self.linear(x)


def judge(clock):
    """A detector that sees nothing and takes its time, which is the watch's."""

    def detector(history):
        clock.now += FULL if history[-1].full else LIGHT
        return iter(())

    return detector


def train(clock, steps, **settings):
    torch.manual_seed(0)
    model = Costly(clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings.setdefault("detectors", [judge(clock)])
    with gradwatch.watch(model, optimizer, on_finding=lambda _finding: None, **settings) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            watch.loss(model(torch.ones(4, 2)).square().mean()).backward()
            optimizer.step()
        report = watch.report()
    return watch, model, report


def test_full_records_come_as_often_as_the_budget_allows_and_no_oftener_than_every_says(clock, caplog):
    with caplog.at_level(logging.INFO, "gradwatch"):
        watch, _, report = train(clock, 200, budget=0.05)
    # 5 ms a step may be spent, and 1 of them is, so that 100 ms more are saved up in 25 steps; the first three are at hand at once.
    assert watch.history.full_steps == [0, 10, 20, *range(45, 200, 25)]
    assert len(watch.history) == 200  # parameter gradients are recorded at every step all the same
    [said] = [message for message in caplog.messages if "budget" in message]
    assert said == report.splitlines()[-1]
    assert said.startswith("budget=0.05: a full record every 25 steps; a full one costs 99 ms more than a light one (1 ms)")


def test_hooks_count_as_the_watchs_own_time_and_not_as_the_trainings(clock, monkeypatch):
    arrived = gradwatch.capture.gradients.Gradients._arrived

    def slow(self, *arguments):
        clock.now += 0.05
        return arrived(self, *arguments)

    monkeypatch.setattr(gradwatch.capture.gradients.Gradients, "_arrived", slow)
    _, _, report = train(clock, 60, budget=0.05, detectors=[])
    assert "a full one costs 50 ms more than a light one (0 ms), of steps of 100 ms" in report


def test_without_a_budget_every_holds_to_the_step(clock):
    watch, _, report = train(clock, 50, every=7)
    assert watch.history.full_steps == list(range(0, 50, 7))
    assert "budget" not in report


def test_a_budget_does_not_change_the_training(clock):
    plain, frugal = (train(clock, 60, budget=budget)[1] for budget in (None, 0.03))
    assert all(map(torch.equal, plain.parameters(), frugal.parameters()))


class Wary(Judgement):
    """Sees something odd in every step from the 200th on, and wants to see it for long before it says so."""

    def __call__(self, history):
        if (step := history[-1].step) >= 200:
            yield gradwatch.Finding("bad_scale", "linear", step, step, "warning")


def test_half_convinced_detectors_get_detail_sooner(clock):
    wary = Wary(confirm=60)
    watch, *_ = train(clock, 300, budget=0.05, detectors=[judge(clock), wary])
    full = watch.history.full_steps
    assert [step for step in full if step < 230] == [0, 10, 20, *range(45, 230, 25)]
    # The 30th record in a row that shows it is final one step late, and its verdict counts for the step after that; the 60th
    # convinces, and what came early is paid back.
    assert [step for step in full if step >= 230] == [231, 241, 251]
    assert [finding.first_step for finding in watch.findings] == [200]


def test_a_closed_or_broken_watch_still_tells_what_it_chose(clock):
    def broken(_history):
        raise ValueError("a detector with a mistake")

    watch, *_ = train(clock, 30, budget=0.05, detectors=[broken])
    assert watch.report().splitlines()[-1].startswith("budget=0.05: a full record every 10 steps")


def test_a_budget_goes_together_with_a_scaler():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    with gradwatch.watch(model, optimizer, scaler=scaler, budget=0.5) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 2), 1e3)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [record.skipped for record in watch.history] == [True, True]
    assert "step" not in vars(scaler)
