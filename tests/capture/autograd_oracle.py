"""What plain autograd says about every tensor that a module takes or returns, in one forward and backward pass.

A leaf of zeros is added to the tensor: the gradient of the leaf is, by the sum rule, the gradient of the tensor at that place. It
is done to a copy of the model that nobody watches.
"""

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

import gradwatch


def loss_of(output):
    """A loss in which every element of every tensor that is used has its own gradient."""
    return sum((part.float() * torch.linspace(1, 2, part.numel()).view_as(part)).square().sum() for part in used(output))


def used(output):
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in used(part)]


def changed(value, change):
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: changed(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(changed(item, change) for item in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{f.name: changed(getattr(value, f.name), change) for f in dataclasses.fields(value)})
    return value


def expected(model, batch, valves, loss=loss_of):
    """(layer, tensor) → the tensors of one forward and backward pass, one for each call.

    ``valves`` are the layers whose input's gradient is asked for too.
    """
    model, oracle = copy.deepcopy(model), Oracle()
    for name, module in model.named_modules():
        if next(module.children(), None) is None or next(module.parameters(recurse=False), None) is not None:
            oracle.attach(name, module, valve=name in valves)
    torch.manual_seed(0)
    loss(model(*batch)).backward()
    return oracle.answer()


class Oracle:
    def __init__(self):
        self.values, self.zeros = defaultdict(list), defaultdict(list)

    def attach(self, name, module, *, valve):
        def after(_module, _args, output):
            changed(output, lambda tensor: self.values[name, "activation"].append(tensor.detach().clone()))
            return changed(output, self.plus_zero((name, "activation_grad")))

        def before(_module, args, kwargs):
            change, once = self.plus_zero((name, "input_grad")), {}
            return changed((args, kwargs), lambda tensor: once.setdefault(id(tensor), change(tensor)))

        module.register_forward_hook(after)
        if valve:
            module.register_forward_pre_hook(before, with_kwargs=True)

    def plus_zero(self, site):
        def change(tensor):
            if not tensor.requires_grad:
                return tensor
            self.zeros[site].append(torch.zeros_like(tensor, requires_grad=True))
            return tensor + self.zeros[site][-1]

        return change

    def answer(self):
        arrived = {site: [zero.grad for zero in zeros if zero.grad is not None] for site, zeros in self.zeros.items()}
        return dict(self.values) | {site: grads for site, grads in arrived.items() if grads}


def watched(model, batch):
    """(layer, tensor) → row of the frame, of one training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradwatch.watch(model, optimizer, every=1) as watch:
        torch.manual_seed(0)
        loss_of(model(*batch)).backward()
        optimizer.step()
    return rows_of(watch)


def rows_of(watch, step=0):
    frame = watch.history.to_pandas()
    frame = frame[(frame.step == step) & frame.tensor.isin(["activation", "activation_grad", "input_grad"])]
    return {(row.layer, row.tensor): row for row in frame.itertuples()}


def assert_same(rows, reference):
    assert set(rows) == set(reference)
    for site, tensors in reference.items():
        row, all_of_it = rows[site], np.concatenate([tensor.double().flatten().numpy() for tensor in tensors])
        assert (row.count, row.calls) == (all_of_it.size, len(tensors)), site
        figures = [all_of_it.mean(), np.sqrt(np.square(all_of_it).mean()), all_of_it.min(), all_of_it.max()]
        np.testing.assert_allclose([row.mean, row.rms, row.min, row.max], figures, rtol=2e-5, atol=1e-7, err_msg=str(site))
        assert row.nonfinite == 0, site
