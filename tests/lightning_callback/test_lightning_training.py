"""The training goes as it would without the callback, and ends when it was asked to."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import pytest
import torch
from lightning_programs import hooks, mixed_precision, part

from gradwatch.errors import AlreadyWatched, InvalidSetting, LogdirError, NothingToWatch, UnhealthyTraining, WatchClosed
from gradwatch.records import Finding

GradWatchCallback = pytest.importorskip(
    "gradwatch.lightning", reason="neither lightning nor pytorch-lightning is installed", exc_type=ImportError
).GradWatchCallback


def manual(self, batch, index):
    optimizer = self.optimizers()
    loss = self.loss(batch)
    optimizer.zero_grad()
    self.manual_backward(loss)
    optimizer.step()


MODES = {
    "automatic": {},
    "accumulation": {"accumulate_grad_batches": 4},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "scaler": {},
    "manual": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_the_same_bits_with_and_without(pl, fit, network, mode):
    weights = []
    for callbacks in ([], [GradWatchCallback(every=2)]):
        net = network(**({"training_step": manual, "automatic_optimization": False} if mode == "manual" else {}))
        plugins = {"plugins": mixed_precision(pl)} if mode == "scaler" else {}
        fit(net, *callbacks, max_epochs=2, **MODES[mode], **plugins)
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(callbacks[0].watch.history) == (4 if mode == "accumulation" else 12)
    assert not torch.equal(weights[0]["first.weight"], network().first.weight)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_fit_ends_the_watch_too(fit, network, error):
    def training_step(self, batch, index):
        if index == 3:
            raise error
        return self.loss(batch)

    net, callback = network(training_step=training_step), GradWatchCallback()
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((error, SystemExit)):
            fit(net, callback)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it after the first one
    assert hooks(net) == 0
    assert [record.step for record in callback.watch.history] == [0, 1, 2]
    fit(network(), callback)
    assert len(callback.watch.history) == 6


def test_checkpoints_load_where_gradwatch_is_missing(pl, fit, network, tmp_path):
    checkpoint = part(pl, "callbacks").ModelCheckpoint
    saving = checkpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(network(), GradWatchCallback(every=1), saving, enable_checkpointing=True, limit_train_batches=2)
    program = (
        "import sys; sys.modules['gradwatch'] = sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import torch\n"
        "for path in sys.argv[1:]: print(sorted(torch.load(path, weights_only=False)['state_dict']))"
    )
    paths = sorted(map(str, tmp_path.glob("*.ckpt")))
    assert len(paths) == 2
    answer = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["['first.bias', 'first.weight', 'last.bias', 'last.weight']"] * 2


def third_step(history):
    if history[-1].step == 3:
        yield Finding("dead_units", "first", 3, 3, "critical", {}, "half of them are dead")


@pytest.mark.parametrize("stop_on", ["critical", ("warning", "dead_units")])
def test_stop_on_ends_the_training_and_says_why(fit, network, caplog, stop_on):
    callback = GradWatchCallback(detectors=[third_step], on_finding=lambda finding: None, stop_on=stop_on)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        trainer = fit(network(), callback, max_epochs=5)
    assert trainer.global_step == 5  # the record of step 3 is final when step 4 has closed
    (message,) = caplog.messages
    assert "dead_units at 'first' since step 3: half of them are dead" in message
    assert len(callback.watch.history) == 5


def test_findings_do_not_stop_a_training_that_was_not_asked_to(fit, network):
    found = []
    callback = GradWatchCallback(detectors=[third_step], on_finding=found.append, stop_on=("warning", "non_finite"))
    assert fit(network(), callback).global_step == 6
    assert found == callback.watch.findings
    assert [finding.first_step for finding in found] == [3]


def test_on_finding_raise_comes_out_of_fit(fit, network):
    net, callback = network(), GradWatchCallback(detectors=[third_step], on_finding="raise")
    with pytest.raises(UnhealthyTraining, match="dead_units at 'first', step 3"):
        fit(net, callback)
    assert hooks(net) == 0


def test_an_exception_of_the_training_is_not_hidden_by_a_finding(fit, network, caplog):
    def training_step(self, batch, index):
        if index == 4:
            raise ZeroDivisionError
        return self.loss(batch)

    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.WARNING, "gradwatch"):
        fit(network(training_step=training_step), GradWatchCallback(detectors=[third_step], on_finding="raise"))
    assert caplog.messages == ["dead_units at 'first', step 3: half of them are dead"]


def test_a_broken_writer_is_dropped_and_the_training_goes_on(fit, network, caplog):
    class Broken:
        def write(self, record):
            raise OSError("no space left")

        def close(self):
            pass

    callback = GradWatchCallback(writers=[Broken()])
    with caplog.at_level(logging.ERROR, "gradwatch"):
        assert fit(network(), callback).global_step == 6
    assert [record.message.count("no space left") for record in caplog.records] == [1]
    assert len(callback.watch.history) == 6


def test_a_precision_of_an_unknown_kind_costs_the_loss_only(pl, fit, network, caplog):
    class Odd(part(pl, "plugins.precision").Precision):
        scaler = "odd"

    callback = GradWatchCallback()
    with caplog.at_level(logging.ERROR, "gradwatch"):
        assert fit(network(), callback, plugins=Odd()).global_step == 6
    assert len(caplog.messages) == 1
    assert [record.loss for record in callback.watch.history] == [None] * 6


def test_a_watch_closed_by_hand_lets_the_training_go_on(fit, network):
    def training_step(self, batch, index):
        if index == 3:
            callback.watch.close()
        return self.loss(batch)

    callback = GradWatchCallback()
    assert fit(network(training_step=training_step), callback).global_step == 6
    assert len(callback.watch.history) == 3


def test_what_cannot_be_watched_is_said_before_the_first_batch(fit, network, tmp_path):
    def training_step(self, batch, index):
        pytest.fail("the training has begun")

    (tmp_path / "file").touch()
    for callback, error, message in [
        (GradWatchCallback(include=("frist*",)), NothingToWatch, "did you mean 'first'"),
        (GradWatchCallback(tmp_path / "file" / "logs"), LogdirError, "cannot be written"),
    ]:
        with pytest.raises(error, match=message):
            fit(network(training_step=training_step), callback)
        with pytest.raises(WatchClosed, match="before the first fit"):
            _ = callback.watch
    net = network(training_step=training_step)
    with pytest.raises(AlreadyWatched, match="is already watched"):
        fit(net, GradWatchCallback(), GradWatchCallback())
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"budget": 2.0}, "budget=2.0"),
        ({"on_finding": "shout"}, "on_finding='shout'"),
        ({"stop_on": ("critical", "fatal")}, "stop_on='fatal'"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(InvalidSetting, match=message):
        GradWatchCallback(**settings)
