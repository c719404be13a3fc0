"""Watching never changes training: weights, buffers, optimizer state, losses and random numbers are the same to the last bit."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradwatch

STEPS = 50


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Mlp(nn.Module):
    """With an activation that reads its input twice beside skip connections that read it too: three gradients to add up."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.swish, self.drop, self.last = Swish(), nn.Dropout(0.2), nn.Linear(16, 4)

    def forward(self, x):
        for layer in self.layers:
            h = layer(x)
            x = h.tanh() + self.drop(self.swish(h)) + h
        return self.last(x)


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 4),
    )  # fmt: skip


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rnn, self.last = nn.Embedding(11, 8), nn.LSTM(8, 8, 2, dropout=0.2, batch_first=True), nn.Linear(8, 4)

    def forward(self, words):
        out, _ = self.rnn(self.table(words))
        return self.last(out[:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.table, self.last = nn.Embedding(11, 8), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, words):
        return self.last(self.encoder(self.table(words)).mean(1))


class Checkpointed(Mlp):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def images(random):
    return torch.randn(8, 1, 8, 8, generator=random)


def vectors(random):
    return torch.randn(8, 16, generator=random)


def words(random):
    return torch.randint(11, (8, 6), generator=random)


MODELS = {
    "mlp": (Mlp, vectors),
    "cnn": (cnn, images),
    "lstm": (Lstm, words),
    "transformer": (Transformer, words),
    "checkpointed": (Checkpointed, vectors),
}
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-2),
}


def train(model_name, optimizer_name, autocast, **settings):
    """Everything that training leaves behind: losses, weights and buffers, optimizer state, state of the random numbers."""
    make, batch = MODELS[model_name]
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    model, loss_fn = make(), nn.CrossEntropyLoss()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    watch = gradwatch.watch(model, optimizer, loss_fn=loss_fn, **settings) if settings else None
    losses = []
    for _ in range(STEPS):
        x, y = batch(random), torch.randint(4, (8,), generator=random)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_fn(model(x), y)
        loss.backward()
        if watch:
            watch.before_clip()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    if watch:
        watch.close()
        assert len(watch.history) == STEPS
        assert watch.history[0].backwards == 1
    state = [tensor for _, tensor in model.state_dict(keep_vars=True).items()]
    moments = [torch.as_tensor(value) for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return [*losses, *state, *moments, torch.get_rng_state()]


@functools.cache
def unwatched(*arguments):
    return train(*arguments)


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_the_same_to_the_last_bit(model, optimizer, autocast, every, caplog):
    expected = unwatched(model, optimizer, autocast)
    got = train(model, optimizer, autocast, every=every)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_training_is_the_same_while_event_files_are_written(tmp_path):
    got = train("mlp", "sgd", autocast=False, every=3, logdir=tmp_path / "run")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, unwatched("mlp", "sgd", False), strict=True))
    assert len(gradwatch.load(tmp_path / "run")) == STEPS
