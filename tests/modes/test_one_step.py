"""What makes one step: micro-batches, closures, several optimizers, none at all."""

import torch
from registry import Mode
from torch import nn

import gradwatch

ACCUMULATION = Mode(
    "One step",
    "accumulate gradients over micro-batches",
    recorded="one record a step: activations and their gradients merge over the micro-batches, `parameter_grad` is what `.grad` "
    "holds in the end, `Record.backwards` counts the passes",
    units="sums over micro-batches, as `.grad` holds them; nothing is averaged",
)


@ACCUMULATION
def test_micro_batches_make_one_record():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        for x in (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])):
            model(x).sum().backward()  # dL/dW is x
        optimizer.step()
    [record] = watch.history
    frame = watch.history.to_pandas().set_index(["layer", "tensor"])
    assert record.backwards == 2
    assert frame.loc["0.weight", "parameter_grad"]["min"] == 1 + 3
    assert frame.loc["0.weight", "parameter_grad"]["max"] == 2 + 4
    assert frame.loc["0", "activation"]["calls"] == 2
    assert frame.loc["0", "activation"]["mean"] == (3 + 7) / 2
