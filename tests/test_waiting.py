"""Records of uneventful steps are made later, and nobody can tell: not from what is found, nor when, nor from what is kept."""

import itertools
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import Finding, judging, waiting
from gradwatch.detectors import ExplodingGradient
from gradwatch.errors import RunError
from gradwatch.eventfiles import in_directory
from gradwatch.trends import MOST_CALM
from gradwatch.waiting import Waiting

STEPS = 90


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch):
    """No second passes, however slow the machine is."""
    for module in (judging, waiting):
        monkeypatch.setattr(module, "SECONDS", 1e9)


class Impatient:
    """A writer that takes one record after the other, for which nothing may wait."""

    def write(self, record):
        pass

    def report(self, finding):
        pass

    def close(self):
        pass


@pytest.fixture
def waited(monkeypatch):
    """How many steps waited, each time that records were made."""
    counts, take = [], Waiting.take
    monkeypatch.setattr(Waiting, "take", lambda waiting: counts.append(len(steps := take(waiting))) or steps)
    return counts


def healthy(_model, _step, loss):
    return loss


def not_a_number(_model, step, loss):
    return loss * float("nan") if step == 57 else loss


def growing_rate(model, step, loss):
    model.rate = 0.1 if step < 50 else 10.0
    return loss


def cut_off(_model, step, loss):
    return loss.detach().requires_grad_() * 1.0 if step >= 45 else loss


def worse_and_worse(_model, step, loss):
    return loss if step < 40 else loss + 100.0


def train(program, *, every, told=True, steps=STEPS, **settings):
    """The watch, and (step, kind, layer) of all that was said, in the step in which it was said."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model.rate = 0.1
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=model.rate)
    said, now = [], 0
    watch = gradwatch.watch(
        model, optimizer, every=every, on_finding=lambda finding: said.append((now, finding.kind, finding.layer)), **settings
    )
    with watch:
        for now in range(steps):  # read when something is said
            optimizer.zero_grad()
            loss = program(model, now, (model(x) - y).square().mean())
            if told:
                watch.loss(loss)
            loss.backward()
            optimizer.param_groups[0]["lr"] = model.rate
            optimizer.step()
    return watch, said


@pytest.mark.parametrize("told", [True, False], ids=["with losses", "without losses"])
@pytest.mark.parametrize("every", [7, 1000])
@pytest.mark.parametrize("program", [healthy, not_a_number, growing_rate, cut_off, worse_and_worse])
def test_nothing_is_found_later_or_otherwise(program, every, told, waited):
    one, said = train(program, every=every, told=told)
    assert max(waited) > 1, "nothing has waited, so that nothing is shown"
    waited.clear()
    other, said_at_once = train(program, every=every, told=told, writers=[Impatient()])
    assert max(waited) <= 1
    assert said == said_at_once
    assert one.findings == other.findings
    assert list(one.history) == list(other.history)


def test_whoever_asks_gets_all_records():
    seen = []

    def program(_model, step, loss):
        if step == 60:
            thread = threading.Thread(target=lambda: seen.extend(record.step for record in watching[0].history))
            thread.start()
            thread.join()
        return loss

    watching, make = [], gradwatch.Watch.__init__

    def kept(watch, *args, **kwargs):
        make(watch, *args, **kwargs)
        watching.append(watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradwatch.Watch, "__init__", kept)
        train(program, every=1000)
    assert seen == list(range(59))  # the last step becomes final when the next one is over


def recorded(directory):
    """The records and the findings that an event file holds."""
    try:
        history = gradwatch.load(directory)
    except RunError:
        return 0, []
    return len(history), history.findings


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_an_event_file_lags_by_a_dozen_records_and_is_complete_in_the_end(tmp_path, every):
    lags = []

    def program(_model, step, loss):
        lags.append(step - recorded(tmp_path)[0])
        return loss

    watch, _ = train(program, every=every, steps=60, logdir=tmp_path)
    assert 2 < max(lags) <= MOST_CALM + 2, "the step in progress and the one that is not final yet come on top"
    assert gradwatch.load(tmp_path) == watch.history
    assert len(in_directory(tmp_path)) == 1


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_a_finding_is_in_the_event_file_as_soon_as_it_is_raised(tmp_path, every):
    found = {}

    def program(model, step, loss):
        found[step] = [finding.kind for finding in recorded(tmp_path)[1]]
        return not_a_number(model, step, loss)

    _, said = train(program, every=every, logdir=tmp_path)
    (step,) = {step for step, kind, _ in said if kind == "non_finite"}
    assert "non_finite" not in found[step]
    assert "non_finite" in found[step + 1]


def test_nothing_waits_longer_than_a_second(monkeypatch, waited):
    now = itertools.count()
    monkeypatch.setattr(waiting, "SECONDS", 1.0)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(now))  # each look at the clock finds a second gone
    train(healthy, every=1000)
    assert max(waited) <= 2


def test_a_step_that_cannot_be_read_takes_no_other_along(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1000) as watch:
        for step in range(60):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            watch.loss(torch.empty((), device="meta") if step in (46, 47) else loss.detach())  # one has no value
    assert [record.step for record in watch.history] == [step for step in range(60) if step not in (46, 47)]
    (said,) = caplog.records
    assert "meta" in said.message


@pytest.mark.parametrize("every", [1, 1000])
def test_the_records_of_slow_steps_are_written_one_by_one(every, tmp_path, monkeypatch):
    now = [0.0]
    for module in (judging, waiting):
        monkeypatch.setattr(module, "SECONDS", 1.0)
    monkeypatch.setattr(judging.time, "monotonic", lambda: now[0])
    lags = []

    def program(_model, step, loss):
        now[0] += 1.5
        lags.append(step - recorded(tmp_path)[0])
        return loss

    train(program, every=every, steps=60, logdir=tmp_path)
    assert max(lags) == 1, "the step before is not final"


def test_a_detector_of_ones_own_that_believes_at_once_is_asked_at_once(waited):
    asked = []

    def every_record(history):
        asked.append(history[-1].step)
        return iter(())

    _, _ = train(healthy, every=1000, detectors=[every_record])
    assert asked == list(range(STEPS))
    assert max(waited) <= 1


@dataclass(frozen=True)
class Below(ExplodingGradient):
    """Takes over what a detector of gradwatch says of itself, and looks at something else."""

    confirm: int = 1

    def __call__(self, history):
        record = history[-1]
        if record.loss < 0.5:
            yield Finding("loss_unstable", "loss", record.step, record.step, "warning", {}, "it is low", "")


@pytest.mark.parametrize("step", [43, 46, 49])
def test_a_detector_that_inherits_from_one_of_gradwatch_is_asked_at_once(step):
    def program(_model, now, loss):
        return loss * 0 + (0.4 if now == step else 1.0 if now < 10 else 0.9) + (loss - loss.detach())

    _, said = train(program, every=1000, detectors=[Below()])
    assert said == [(step + 1, "loss_unstable", "loss")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_of_any_precision_wait(waited, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(16, 4, dtype=dtype)
    with gradwatch.watch(model, optimizer, every=1000) as watch:
        for _ in range(STEPS):
            optimizer.zero_grad()
            watch.loss(model(inputs).square().mean()).backward()
            optimizer.step()
    assert max(waited) > MOST_CALM / 2
