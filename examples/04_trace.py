"""Explain one backward pass: a neuron that learns, one that is wrong and cannot learn, and ten layers in a row."""

from __future__ import annotations

import torch
from torch import nn

import gradwatch


def neuron(weight: tuple[float, float]) -> nn.Sequential:
    """A sigmoid neuron with two inputs and no bias to begin with."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weight]))
        model[0].bias.zero_()
    return model


def main() -> None:
    """Prints three traces."""
    x, yes, no = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0]]), torch.tensor([[0.0]])

    print("An undecided neuron, and everything that flows through it:\n")
    model = neuron((0.5, -1.0))
    with gradwatch.trace(model) as trace:
        nn.BCELoss()(model(x), yes).backward()
    print(trace)

    print("\nA neuron that is sure, and wrong. Its valve is closed:\n")
    model = neuron((10.0, 0.0))
    with gradwatch.trace(model) as trace:
        nn.BCELoss()(model(x), no).backward()
    sigmoid = trace["1"]
    print(f"a = {sigmoid.output.item():g}   dL/da = {sigmoid.grad_output.item():g}   dL/dz = {sigmoid.grad_input.item():g}")
    print("closed:", ", ".join(f"layer {call.layer} ({call.type})" for call in trace.closed))

    print("\nTen sigmoid layers in a row, from the loss down. What is left of the error:\n")
    torch.manual_seed(0)
    deep = nn.Sequential(*[layer for _ in range(10) for layer in (nn.Linear(16, 16), nn.Sigmoid())])
    with gradwatch.trace(deep) as trace:
        deep(torch.randn(32, 16)).sum().backward()
    for call in reversed(trace.calls):
        if call.valve is not None:
            print(f"layer {call.layer:>2}  {call.type}  |da/dz| {call.valve.derivative:.2f}  left {call.product:.0e}")


if __name__ == "__main__":
    main()
