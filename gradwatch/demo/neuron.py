"""The smallest network there is, whose every gradient can be worked out by hand."""

from __future__ import annotations

import torch

from gradwatch import moments
from gradwatch.watch import watch

X = (2.0, 1.0)
W = (0.5, -1.0)
B = 0.0


def single_neuron() -> dict[str, float]:
    """One backward pass through z = W·x + b, a = σ(z), L = -log a (cross-entropy with target 1), watched.

    Returns:
        Quantity → what gradwatch recorded of it, in the order of the computation.
    """
    w1, w2, b = (torch.tensor(value, requires_grad=True) for value in (*W, B))
    with watch({"w1": w1, "w2": w2, "b": b}) as observer:
        z = observer.tap("z", w1 * X[0] + w2 * X[1] + b)
        a = observer.tap("a", torch.sigmoid(z))
        loss = observer.loss(-torch.log(a))
        loss.backward()  # type: ignore[no-untyped-call]
        observer.step()
    [record] = observer.history
    # Every tensor here holds one number, which is its own mean.
    means = record.rows[:, moments.MEAN].tolist()
    seen = {(site.layer, site.tensor): mean for site, mean in zip(record.sites, means, strict=True)}
    assert record.loss is not None
    return {
        "z": seen["z", "activation"],
        "a": seen["a", "activation"],
        "loss": record.loss,
        "dL/da": seen["a", "activation_grad"],
        "dL/dz": seen["z", "activation_grad"],
        "dL/dw1": seen["w1", "parameter_grad"],
        "dL/dw2": seen["w2", "parameter_grad"],
        "dL/db": seen["b", "parameter_grad"],
    }
