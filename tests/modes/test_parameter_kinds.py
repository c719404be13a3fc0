"""What parameters may be: tied, sparse, complex, computed from others, of odd shapes, leaves of functional code."""

import pytest
import torch
from both_ways import rows as figures
from programs import X, assert_row, same_with_and_without, step
from registry import Mode
from torch import nn
from torch.nn.utils import parametrizations, parametrize

TIED = Mode(
    "Parameters",
    "tie parameters, or one module under several names",
    recorded="once, under the first name; the gradient is that of all uses",
    unsupported="the uses apart",
)


@TIED
def test_a_tied_weight_gets_the_gradient_of_both_uses():
    def program(watched):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
        model[2].weight = model[0].weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(3):
                step(model, optimizer)
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    one, two = (model[0].weight.detach().clone().requires_grad_() for _ in range(2))
    (torch.tanh(X @ one.T) @ two.T).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["0.weight", "parameter_grad"], one.grad + two.grad)
    assert not any(layer == "2.weight" for layer, _ in rows)


ADAPTERS = Mode(
    "Parameters",
    "train LoRA adapters beside frozen weights, by hand or with peft",
    recorded="rows of the adapters only; activations of all layers. The adapter that starts at zero gets a gradient, the other one "
    "none in the first step, which is no finding",
)


class Adapted(nn.Module):
    """y = W x + B A x, where B starts at zero (Hu et al. 2021)."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@ADAPTERS
def test_adapters_are_recorded_and_what_they_stand_beside_is_not():
    def program(watched):
        model = nn.Sequential(Adapted(nn.Linear(4, 6), 2), nn.Tanh(), Adapted(nn.Linear(6, 5), 2))
        target = torch.randn(5, 5)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with watched(model, optimizer):
            for _ in range(40):
                (model(X) - target).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    assert watch.findings == []
    trained = {layer for layer, tensor in figures(watch) if tensor == "parameter_grad"}
    assert trained == {"0.down.weight", "0.up.weight", "2.down.weight", "2.up.weight"}

    torch.manual_seed(0)
    model = nn.Sequential(Adapted(nn.Linear(4, 6), 2), nn.Tanh(), Adapted(nn.Linear(6, 5), 2))
    (model(X) - torch.randn(5, 5)).square().mean().backward()
    rows = figures(watch)
    assert_row(rows["0.up.weight", "parameter_grad"], model[0].up.weight.grad)
    assert rows["0.down.weight", "parameter_grad"].norm == 0
    assert figures(watch, 1)["0.down.weight", "parameter_grad"].norm > 0


@ADAPTERS
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_adapters_of_peft():
    peft = pytest.importorskip("peft", reason="peft is not installed")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    def program(watched):
        model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["first"], modules_to_save=["last"]))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer)
        return list(model.parameters())

    watch = same_with_and_without(program)
    trained = {layer for layer, tensor in figures(watch) if tensor == "parameter_grad"}
    assert {name.split("base_model.model.")[1] for name in trained} == {
        "first.lora_A.default.weight",
        "first.lora_B.default.weight",
        "last.modules_to_save.default.weight",
        "last.modules_to_save.default.bias",
    }


SPARSE = Mode(
    "Parameters",
    "embeddings with sparse gradients, SparseAdam",
    recorded="as the dense gradient that they stand for: rows that were not looked up count as zeros",
    unsupported="which share of units is dead",
)


@SPARSE
def test_sparse_gradients_stand_for_dense_ones():
    def program(watched):
        model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1))
        optimizers = [torch.optim.SparseAdam(model[0].parameters(), lr=0.1), torch.optim.SGD(model[1].parameters(), lr=0.1)]
        with watched(model, optimizers):
            for _ in range(4):
                model(torch.tensor([[1, 2, 2]])).square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 1))
    model(torch.tensor([[1, 2, 2]])).square().mean().backward()
    assert_row(figures(watch)["0.weight", "parameter_grad"], model[0].weight.grad)
    moved = figures(watch)["0.weight", "update"]
    assert moved.count == 40
    assert moved.norm == pytest.approx(0.1 * 8**0.5, rel=1e-4)  # Adam's first step is the learning rate, for each of 8 elements


COMPLEX = Mode(
    "Parameters",
    "complex parameters and activations",
    recorded="a complex number counts as its two parts; the gradient is PyTorch's, that of the conjugate",
    unsupported="which share of units is dead, or closed",
)


@COMPLEX
def test_complex_numbers_count_as_their_parts():
    def program(watched):
        model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(3, 1, dtype=torch.complex64))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                model(torch.complex(X, -X)).abs().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return list(model.parameters())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(3, 1, dtype=torch.complex64))
    hidden = model[0](torch.complex(X, -X))
    hidden.retain_grad()
    model[1](hidden).abs().square().mean().backward()
    rows = figures(watch)
    assert_row(rows["0", "activation"], hidden)
    assert_row(rows["0", "activation_grad"], hidden.grad)
    assert_row(rows["0.weight", "parameter_grad"], model[0].weight.grad)
    assert rows["0.weight", "parameter_grad"].count == 2 * 12


COMPUTED = Mode(
    "Parameters",
    "weights that are computed: weight norm, spectral norm, orthogonal, a parametrization of your own",
    recorded="the parameters that they are computed from, with the layer that uses them",
    unsupported="the computed weight itself: [tap it](api.md#watch)",
)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


class Scaled(nn.Module):
    """Shares one scale among several weights."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, weight):
        return self.scale * weight


def computed():
    shared = nn.Parameter(torch.tensor(2.0))
    layers = [
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.orthogonal(nn.Linear(4, 4)),
        *(nn.Linear(4, 4, bias=False) for _ in range(3)),
    ]
    parametrize.register_parametrization(layers[3], "weight", Symmetric())
    parametrize.register_parametrization(layers[4], "weight", Scaled(shared))
    parametrize.register_parametrization(layers[5], "weight", Scaled(shared))
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


@COMPUTED
def test_what_a_weight_is_computed_from_is_recorded_with_its_layer():
    def program(watched):
        model = computed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer)
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    torch.manual_seed(0)
    model = computed()
    model(X).square().mean().backward()
    rows = figures(watch)
    for name, parameter in model.named_parameters():
        assert_row(rows[name, "parameter_grad"], parameter.grad)
    assert sum(layer.endswith("scale") for layer, tensor in rows if tensor == "parameter_grad") == 1  # shared: under its first name
    assert {layer for layer, tensor in rows if tensor == "activation"} == {str(index) for index in range(12)}
    assert "not observed" not in watch.report()


LEAVES = Mode(
    "Parameters",
    "functional code: a mapping of names to leaf tensors, updated in place or replaced by new leaves",
    recorded="gradients, weights and updates of the leaves, and what `watch.tap` is shown between them; the mapping is read "
    "again at each step",
)


@LEAVES
@pytest.mark.parametrize("in_place", [True, False])
def test_leaves_may_be_replaced_by_their_successors(in_place):
    x = torch.tensor([3.0, -1.0])

    def program(watched):
        leaves = {"w": torch.tensor([1.0, 2.0], requires_grad=True)}
        with watched(leaves) as watch:
            for number in range(3):
                if number == 1:
                    leaves["late"] = torch.tensor([0.5], requires_grad=True)
                z = leaves["w"] * x
                if watch is not None:
                    watch.tap("z", z)
                (z.sum() + 2 * leaves.get("late", torch.zeros(1)).sum()).backward()
                with torch.no_grad():
                    for name, leaf in leaves.items():
                        if in_place:
                            leaf.sub_(0.1 * leaf.grad)
                        else:
                            leaves[name] = (leaf - 0.1 * leaf.grad).requires_grad_()
                if watch is not None:
                    watch.step()
                for leaf in leaves.values():
                    leaf.grad = None
        return list(leaves.values())

    watch = same_with_and_without(program)
    for number in range(3):
        rows = figures(watch, number)
        w = torch.tensor([1.0, 2.0]) - 0.1 * number * x
        assert_row(rows["w", "parameter"], w)
        assert_row(rows["w", "parameter_grad"], x)
        assert_row(rows["w", "update"], -0.1 * x)
        assert_row(rows["z", "activation"], w * x)
        assert_row(rows["z", "activation_grad"], torch.ones(2))
    assert_row(figures(watch, 2)["late", "parameter_grad"], torch.tensor([2.0]))


ODD = Mode(
    "Parameters",
    "parameters without elements or dimensions, in `ParameterList` and `ParameterDict`, buffers of integers",
    recorded="each under its own name; one without elements has no row, and buffers are not recorded",
)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.nothing = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0, 4))
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(2)])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.full((4,), 3.0))})
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return (x * self.parts[0] + self.parts[1]) * self.scale * self.named["gain"] + self.nothing.sum()


@ODD
def test_parameters_of_odd_shapes():
    def program(watched):
        model = Odd()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        with watched(model, optimizer):
            for _ in range(4):
                step(model, optimizer)
        return list(model.state_dict().values())

    watch = same_with_and_without(program)
    model = Odd()
    model(X).square().mean().backward()
    rows = figures(watch)
    for name, parameter in model.named_parameters():
        if parameter.numel():
            assert_row(rows[name, "parameter_grad"], parameter.grad)
    assert not any(layer in ("nothing", "calls") for layer, _ in rows)
    assert "not observed" not in watch.report()
    assert watch.findings == []
