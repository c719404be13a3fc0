"""An error inside gradwatch is said once and never reaches the training, which goes on as without. A finding does on request."""

import errno
import logging

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import moments
from gradwatch.capture.transfer import Tape, Transfer
from gradwatch.errors import GradWatchWarning, UnhealthyTraining
from gradwatch.records import Finding

STEPS = 4


class Writer:
    """Keeps what it gets; raises in one of its verbs where it is told to."""

    def __init__(self, breaks=None, error=None):
        self.breaks, self.error, self.got = breaks, error, []

    def _take(self, verb, *things):
        if verb == self.breaks:
            raise self.error
        self.got.append((verb, *things))

    def write(self, record):
        self._take("write", record)

    def report(self, finding):
        self._take("report", finding)

    def close(self):
        self._take("close")

    def steps(self):
        return [thing.step for verb, *things in self.got for thing in things if verb == "write"]


def always(history):
    """A detector that finds something in every record."""
    step = history[-1].step
    yield Finding("update_ratio", "0", step, step, "warning", message="it moved")


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model, optimizer, steps=STEPS):
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(5, 3, generator=random)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def untouched():
    """The weights that training alone arrives at."""
    model, optimizer = build()
    train(model, optimizer)
    return weights(model)


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("breaks", ["write", "report", "close"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("a bug")], ids=["full disk", "bug"])
def test_a_broken_writer_is_dropped_and_the_others_go_on(breaks, error, untouched, caplog):
    model, optimizer = build()
    broken, sound = Writer(breaks, error), Writer()
    with gradwatch.watch(
        model, optimizer, every=1, detectors=[always], writers=[broken, sound], on_finding=lambda _: None
    ) as watch:
        train(model, optimizer)
    assert torch.equal(weights(model), untouched)
    (message,) = errors(caplog)
    assert message.startswith(f"the writer Writer failed and is not used any more: {type(error).__name__}: ")
    assert sound.steps() == [record.step for record in watch.history] == list(range(STEPS))
    assert [verb for verb, *_ in sound.got] == ["report", "write", "write", "write", "write", "report", "close"]


def broken_detector(history):
    if history[-1].step == 1:
        raise ZeroDivisionError("a bug")
    yield from ()


def test_a_broken_detector_is_dropped_and_the_others_go_on(untouched, caplog):
    model, optimizer = build()
    with gradwatch.watch(model, optimizer, detectors=[broken_detector, always], on_finding=lambda _: None) as watch:
        train(model, optimizer)
    assert torch.equal(weights(model), untouched)
    (message,) = errors(caplog)
    assert message == "the detector broken_detector failed and is not used any more: ZeroDivisionError: a bug"
    (finding,) = watch.findings
    assert (finding.first_step, finding.last_step) == (0, STEPS - 1)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (moments, "of_rows"),
        (moments, "rows"),
        (moments, "merge_all"),
        (Tape, "add"),
        (Tape, "add_norms"),
        (Tape, "take"),
        (Transfer, "rows"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bug_inside_does_not_reach_the_training(place, name, untouched, monkeypatch, caplog):
    def broken(*_, **__):
        raise LookupError("a bug")

    monkeypatch.setattr(place, name, broken)
    model, optimizer = build()
    writer = Writer()
    with gradwatch.watch(model, optimizer, every=2, writers=[writer]) as watch:
        train(model, optimizer)
        watch.before_clip()
        watch.step()
        watch.loss(1.0)
        watch.tap("x", torch.ones(2))
    assert torch.equal(weights(model), untouched)
    assert errors(caplog)[0] == "gradwatch failed inside, and training goes on without this observation: LookupError: a bug"
    assert len(errors(caplog)) == 1
    assert writer.got[-1] == ("close",)
    assert not any(module._forward_hooks for module in model.modules())


def test_steps_keep_their_numbers_where_a_measurement_fails(monkeypatch, caplog):
    model, optimizer = build()
    with gradwatch.watch(model, optimizer, every=1, detectors=()) as watch:
        train(model, optimizer, 1)
        with monkeypatch.context() as broken:
            broken.setattr(Tape, "add", lambda *_, **__: 1 / 0)
            train(model, optimizer, 2)
        train(model, optimizer, 1)
    assert [record.step for record in watch.history] == [0, 1, 2, 3]
    seen = [int((record.rows[:, moments.COUNT] > 0).sum()) for record in watch.history]
    assert seen == [19, 0, 0, 19]
    assert watch.history[3].backwards == 1
    assert len(errors(caplog)) == 1


def test_a_finding_is_logged(caplog):
    model, optimizer = build()
    with gradwatch.watch(model, optimizer, detectors=[always]):
        train(model, optimizer)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gradwatch", "WARNING")
    assert record.getMessage() == "gradwatch: warning: update_ratio at 0, step 0: it moved"


def test_a_finding_is_a_warning_on_request(untouched):
    model, optimizer = build()
    with (
        gradwatch.watch(model, optimizer, detectors=[always], on_finding="warn"),
        pytest.warns(GradWatchWarning, match="gradwatch: warning: update_ratio at 0, step 0: it moved"),
    ):
        train(model, optimizer)
    assert torch.equal(weights(model), untouched)


def test_a_finding_ends_the_training_on_request_and_nothing_recorded_is_lost():
    model, optimizer = build()
    writer = Writer()
    watch = gradwatch.watch(model, optimizer, detectors=[always], writers=[writer], on_finding="raise")
    with pytest.raises(UnhealthyTraining, match="update_ratio at '0', step 0: it moved") as error, watch:
        train(model, optimizer)
    assert error.value.finding.kind == "update_ratio"
    assert isinstance(error.value, RuntimeError)
    # The verdict on step 0 comes as step 1 ends.
    assert writer.steps() == [record.step for record in watch.history] == [0, 1]
    (finding,) = watch.findings
    assert (finding.first_step, finding.last_step) == (0, 1)
    assert writer.got[-2:] == [("report", finding), ("close",)]


def test_a_finding_of_the_last_record_is_raised_at_the_end():
    model, optimizer = build()
    watch = gradwatch.watch(model, optimizer, detectors=[always], on_finding="raise")
    train(model, optimizer, 1)
    with pytest.raises(UnhealthyTraining):
        watch.close()
    watch.close()
    assert len(watch.history) == 1


@pytest.mark.parametrize("on_finding", ["raise", lambda finding: 1 / 0], ids=["raise", "a function that fails"])
def test_an_error_of_the_training_is_not_hidden_by_a_finding(on_finding, caplog):
    model, optimizer = build()
    watch = gradwatch.watch(model, optimizer, detectors=[always], on_finding=on_finding)
    train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), watch:
        model(torch.ones(5, 7))
    assert [finding.kind for finding in watch.findings] == ["update_ratio"]
    assert len(caplog.records) == 1
    assert not any(module._forward_hooks for module in model.modules())


def test_an_error_of_the_users_own_function_reaches_the_user():
    def stop(finding):
        raise KeyboardInterrupt(finding.message)

    model, optimizer = build()
    with (
        gradwatch.watch(model, optimizer, detectors=[always], on_finding=stop) as watch,
        pytest.raises(KeyboardInterrupt, match="moved"),
    ):
        train(model, optimizer)
    assert len(watch.history) == 2


def test_a_function_is_told_each_finding_once():
    told = []
    model, optimizer = build()
    with gradwatch.watch(model, optimizer, detectors=[always], on_finding=told.append) as watch:
        train(model, optimizer)
    assert [(finding.kind, finding.first_step) for finding in told] == [("update_ratio", 0)]
    assert watch.incidents[0].cause == watch.findings[0]
