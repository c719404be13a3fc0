"""Watch one neuron whose gradients can be worked out by hand: as modules, and as raw tensors."""

from __future__ import annotations

import torch
from torch import nn

import gradwatch

X, TARGET = (2.0, 1.0), 1.0
W, B = (0.5, -1.0), 0.0


def as_modules() -> gradwatch.Watch:
    """The neuron as PyTorch's own layers; the watch sees what goes in and out of them."""
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([W]))
        linear.bias.fill_(B)
    model = nn.Sequential(linear, nn.Sigmoid())
    loss_fn = nn.BCELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, loss_fn=loss_fn) as watch:
        loss_fn(model(torch.tensor([X])), torch.tensor([[TARGET]])).backward()
        optimizer.step()
    return watch


def as_tensors() -> gradwatch.Watch:
    """The neuron in plain arithmetic; the watch is told which tensors to look at."""
    weight, bias = torch.tensor(W, requires_grad=True), torch.tensor(B, requires_grad=True)
    with gradwatch.watch({"W": weight, "b": bias}) as watch:
        z = watch.tap("z", weight @ torch.tensor(X) + bias)
        a = watch.tap("a", torch.sigmoid(z))
        loss = watch.loss(-torch.log(a))  # cross-entropy, where the target is 1
        loss.backward()
        watch.step()  # with no optimizer, this closes the record
    return watch


def show(watch: gradwatch.Watch, *, z: str, a: str, weight: str, bias: str) -> None:
    """Prints what the only record holds, under the names that the layers have in it."""
    frame = watch.history.to_pandas().set_index(["layer", "tensor"])
    seen = frame["mean"].map("{:.4g}".format)  # a tensor of one number is its own mean
    two = frame.loc[(weight, "parameter_grad")]  # of two numbers, the smallest and the largest are both
    print(f"  forward   z = {seen[z, 'activation']}   a = {seen[a, 'activation']}   loss = {watch.history[0].loss:.4f}")
    print(f"  backward  dL/da = {seen[a, 'activation_grad']}   dL/dz = {seen[z, 'activation_grad']}", end="   ")
    print(f"dL/dW = ({two['min']:.4g}, {two['max']:.4g})   dL/db = {seen[bias, 'parameter_grad']}")


def main() -> None:
    """Prints the same numbers twice."""
    print(f"x = {X}, W = {W}, b = {B}, target {TARGET:g}\n")
    print("as modules")
    show(as_modules(), z="0", a="1", weight="0.weight", bias="0.bias")
    print("as raw tensors")
    show(as_tensors(), z="z", a="a", weight="W", bias="b")


if __name__ == "__main__":
    main()
