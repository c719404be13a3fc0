"""Watch a plain training loop: a deep sigmoid net that cannot learn, and the same depth with the advice taken.

Run as ``python 02_plain_loop.py [DIRECTORY]``; without a directory everything is written to a temporary one.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

import gradwatch

DEPTH, WIDTH, STEPS = 10, 64, 120


def build(activation: type[nn.Module], *, he: bool) -> nn.Sequential:
    """A multilayer perceptron of ``DEPTH`` layers."""
    sizes = [64, *[WIDTH] * (DEPTH - 1), 10]
    net = nn.Sequential()
    for number in range(1, DEPTH + 1):
        layer = nn.Linear(sizes[number - 1], sizes[number])
        if he:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        net.add_module(f"fc{number}", layer)
        if number < DEPTH:
            net.add_module(f"act{number}", activation())
    return net


def train(net: nn.Module, logdir: str) -> gradwatch.Watch:
    """A training loop as everybody writes it, inside of a ``with`` block."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 8 - 1, dtype=torch.float32), torch.tensor(digits)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    loss_fn = nn.CrossEntropyLoss()
    with gradwatch.watch(net, optimizer, loss_fn=loss_fn, logdir=logdir) as watch:
        for _ in range(STEPS):
            batch = torch.randint(len(images), (64,))
            optimizer.zero_grad()
            loss = loss_fn(net(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    return watch


def main(directory: str) -> None:
    """Trains both, and prints what was found."""
    for name, activation, he in (("sigmoid", nn.Sigmoid, False), ("relu", nn.ReLU, True)):
        torch.manual_seed(0)
        print(f"{name}\n")
        watch = train(build(activation, he=he), f"{directory}/{name}")
        print(watch.report())
        print(f"\nloss: {watch.history[0].loss:.3f} at first, {watch.history[-1].loss:.3f} at last\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
        print(f"tensorboard --logdir {sys.argv[1]}")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
