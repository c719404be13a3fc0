"""Every gradient of a trace is what autograd itself says, to the last bit, and the pass is what it is without a trace."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradwatch.trace import trace

X = torch.linspace(-2, 2, 48).view(8, 6).sin()
SEQUENCE = torch.linspace(-2, 2, 240).view(8, 5, 6).cos()
IMAGES = torch.linspace(0, 9, 512).view(8, 1, 8, 8).sin()
TOKENS = torch.arange(20).view(2, 10) % 11


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))


def sequence_mlp(inplace):
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=inplace), nn.Linear(5, 3), nn.Sigmoid())


def cnn(inplace):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )


class Residual(nn.Module):
    """Reads its hidden state in five places, twice within one module, and calls one layer twice."""

    def __init__(self, inplace):
        super().__init__()
        self.norm, self.shared, self.relu = nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(inplace=inplace)
        self.drop, self.softsign = nn.Dropout(0.5), nn.Softsign()

    def forward(self, x):
        h = self.shared(x)
        h = h + self.drop(self.relu(self.shared(self.norm(h))))
        return h + self.softsign(h) + h * 2


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(11, 6), nn.LSTM(6, 5, num_layers=2, batch_first=True), nn.Linear(5, 2)

    def forward(self, tokens):
        outputs, (hidden, cell) = self.lstm(self.embed(tokens))
        return self.out(outputs[:, -1]) + self.out(hidden[-1]) + self.out(cell[0])


class Unrolled(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.tanh = nn.GRUCell(6, 5), nn.Tanh()

    def forward(self, x):
        h = x.new_zeros(8, 5)
        for step in range(4):
            h = self.tanh(self.cell(x[:, step], hx=h))
        return h


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.attention, self.out = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        x = self.inner(x)
        mixed, weights = self.attention(x, x, x)
        return {"logits": self.out(x + mixed), "weights": weights}


class Gate(nn.Module):
    """Leaves an auxiliary loss in an attribute."""

    def forward(self, x):
        self.auxiliary = x.square().mean()
        return x * torch.sigmoid(x)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(6, 6), Gate(), nn.Linear(6, 1)

    def forward(self, x):
        return {"y": self.last(self.gate(self.first(x))), "auxiliary": self.gate.auxiliary}


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 2), reentrant
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x):
        h = self.first(x)
        return self.last(self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant))


def gpt2():
    transformers = pytest.importorskip("transformers", reason="the GPT-2 test needs transformers")
    transformers.logging.set_verbosity_error()
    size = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 11, "n_positions": 12, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size))


def squares(output):
    tensors = output.values() if isinstance(output, dict) else [output]
    return sum(tensor.square().sum() for tensor in tensors)


# name: (the model, one that computes the same without writing in place or recomputing, its loss)
ARCHITECTURES = {
    "mlp": (mlp, mlp, lambda model: squares(model(X))),
    "mlp on a sequence, in place": (
        lambda: sequence_mlp(inplace=True),
        lambda: sequence_mlp(inplace=False),
        lambda model: squares(model(SEQUENCE)),
    ),
    "cnn, in place": (lambda: cnn(inplace=True), lambda: cnn(inplace=False), lambda model: squares(model(IMAGES))),
    "residual": (lambda: Residual(inplace=True), lambda: Residual(inplace=False), lambda model: squares(model(X))),
    "residual on a sequence": (
        lambda: Residual(inplace=True),
        lambda: Residual(inplace=False),
        lambda model: squares(model(SEQUENCE)),
    ),
    "lstm": (Recurrent, Recurrent, lambda model: squares(model(TOKENS))),
    "gru cell, unrolled": (Unrolled, Unrolled, lambda model: squares(model(SEQUENCE))),
    "attention with a dict": (Attention, Attention, lambda model: squares(model(SEQUENCE))),
    "transformer encoder": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
        lambda model: squares(model(SEQUENCE)),
    ),
    "auxiliary loss": (Gated, Gated, lambda model: squares(model(X))),
    "checkpoint": (lambda: Checkpointed(reentrant=False), lambda: Checkpointed(None), lambda model: squares(model(X))),
    "reentrant checkpoint": (lambda: Checkpointed(reentrant=True), lambda: Checkpointed(None), lambda model: squares(model(X))),
    "gpt-2": (gpt2, gpt2, lambda model: model(input_ids=TOKENS, labels=TOKENS).loss),
}


@pytest.fixture(params=ARCHITECTURES, ids=lambda name: name.replace(" ", "-"))
def architecture(request):
    build, plain, loss = ARCHITECTURES[request.param]
    return lambda: seeded(build), lambda: seeded(plain), lambda model: (torch.manual_seed(1), loss(model))[1]


def seeded(build):
    torch.manual_seed(0)
    return build()


def test_the_pass_is_the_same_with_and_without_a_trace(architecture):
    build, _, loss = architecture
    free, traced = build(), build()
    plain = loss(free)
    plain.backward()
    with trace(traced):
        seen = loss(traced)
        seen.backward()
    assert torch.equal(plain, seen)
    for name, parameter in free.named_parameters():
        assert_same(parameter.grad, traced.get_parameter(name).grad, name)
    assert nothing_left(free, traced)


def nothing_left(free, traced):
    return all(
        vars(left).keys() == vars(right).keys()
        and not any(value for name, value in vars(right).items() if name.endswith("_hooks"))
        and all(parameter._backward_hooks is None for parameter in right.parameters())
        for left, right in zip(free.modules(), traced.modules(), strict=True)
    )


def test_gradients_of_outputs_and_parameters(architecture):
    build, plain, loss = architecture
    model = build()
    with trace(model) as shown:
        loss(model).backward()

    model = plain()
    returned = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: returned.setdefault(name, []).append(output))
    value = loss(model)
    compared = 0
    for layer in shown:
        for call in layer.calls:
            expected = tensors(returned["" if layer.name == "model" else layer.name][call.index])
            for ours, gradient, theirs in zip(
                tensors(call.output), gradients(call.output, call.grad_output), expected, strict=True
            ):
                if theirs.requires_grad:
                    assert torch.equal(ours, theirs), layer.name
                    assert_same(gradient, autograd(value, theirs), layer.name)
                    compared += 1
    assert compared >= 3
    for name, parameter in model.named_parameters():
        assert_same(shown.params[name].grad, autograd(value, parameter), name)


def test_gradients_of_inputs_through_this_call_only(architecture):
    build, plain, loss = architecture
    model = build()
    with trace(model) as shown:
        loss(model).backward()

    compared = 0
    for layer in shown:
        if not layer.calls:
            continue
        model = plain()
        taken = []
        module = model if layer.name == "model" else model.get_submodule(layer.name)
        module.register_forward_pre_hook(
            lambda module, args, kwargs, taken=taken: branch_off(args, kwargs, taken), with_kwargs=True
        )
        value = loss(model)
        for call, views in zip(layer.calls, taken, strict=True):
            given = gradients(call.input, call.grad_input)
            for gradient, view in zip(given, views, strict=True):
                if view.requires_grad:
                    assert_same(gradient, autograd(value, view), layer.name)
                    compared += 1
                else:
                    assert gradient is None
    assert compared >= 2


def branch_off(args, kwargs, taken):
    """Hands a module views of its inputs, one for each tensor, so that autograd can be asked about this call alone."""
    views = {}

    def view(value):
        if isinstance(value, tuple):
            return tuple(map(view, value))
        if not isinstance(value, Tensor):
            return value
        return views.setdefault(id(value), value.view_as(value)) if value.requires_grad else value

    substituted = tuple(map(view, args)), {name: view(value) for name, value in kwargs.items()}
    taken.append([*tensors(substituted[0]), *tensors(substituted[1])])
    return substituted


def tensors(structure):
    """The tensors of nested tuples, lists and dicts."""
    if isinstance(structure, Tensor):
        return [structure]
    parts = structure.values() if isinstance(structure, dict) else structure if isinstance(structure, tuple | list) else []
    return [tensor for part in parts for tensor in tensors(part)]


def gradients(values, structure):
    """One gradient, or None, for each tensor of a structure."""
    if isinstance(values, Tensor):
        return [structure]
    if isinstance(values, dict):
        return [gradient for key, value in values.items() for gradient in gradients(value, structure[key])]
    if isinstance(values, tuple | list):
        return [gradient for value, part in zip(values, structure, strict=True) for gradient in gradients(value, part)]
    return []


def autograd(loss, tensor):
    return torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)[0]


def assert_same(ours, theirs, name):
    assert (ours is None) == (theirs is None), name
    assert ours is None or torch.equal(ours, theirs), (name, (ours - theirs).abs().max())
