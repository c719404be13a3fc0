"""A layer keeps its name whatever wraps the model."""

import warnings

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gradwatch import names


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(self.fc(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(2, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.scale * self.head(x)


MODULES = [
    "model",
    "blocks",
    "blocks.0",
    "blocks.0.fc",
    "blocks.0.act",
    "blocks.1",
    "blocks.1.fc",
    "blocks.1.act",
    "head",
]
PARAMETERS = [
    "scale",
    "blocks.0.fc.weight",
    "blocks.0.fc.bias",
    "blocks.1.fc.weight",
    "blocks.1.fc.bias",
    "head.weight",
]


def modules_of(model):
    return [name for name, _ in names.named_modules(model)]


def parameters_of(model):
    return [name for name, _ in names.named_parameters(model)]


def compiled(model):
    """Wrapped as it is before its first call; the eager backend needs no compiler."""
    return torch.compile(model, backend="eager")


@pytest.fixture(scope="module")
def _one_process():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_plain_model_has_the_names_that_torch_gives():
    net = Net()
    assert modules_of(net) == MODULES
    assert [name or "model" for name, _ in net.named_modules()] == MODULES
    assert parameters_of(net) == PARAMETERS
    assert sorted(name for name, _ in net.named_parameters()) == sorted(PARAMETERS)
    assert all(module is net.get_submodule(name) for name, module in names.named_modules(net) if name != "model")
    assert all(parameter is net.get_parameter(name) for name, parameter in names.named_parameters(net))


class Fsdp(nn.Module):
    """Holds its module as torch's FullyShardedDataParallel does, which wants an accelerator."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


Fsdp.__name__ = "FullyShardedDataParallel"


class Fabric(nn.Module):
    """Holds its module as Lightning's Fabric does, and the one that was wrapped beside it."""

    def __init__(self, module, original=None):
        super().__init__()
        self._forward_module = module
        self._original_module = original or module


class HousePartition(DataParallel):
    """A user's own kind of data parallelism."""


WRAPPERS = {
    "compile": compiled,
    "checkpoint": checkpoint_wrapper,
    "offload": offload_wrapper,
    "data parallel": DataParallel,
    "heir of data parallel": HousePartition,
    "fsdp": Fsdp,
    "fabric": Fabric,
    "fabric of distributed": lambda model: Fabric(DistributedDataParallel(model), model),
    "distributed": DistributedDataParallel,
    "compiled distributed": lambda model: compiled(DistributedDataParallel(model)),
    "distributed compiled": lambda model: DistributedDataParallel(compiled(model)),
    "data parallel of fsdp of checkpoint of compile": lambda m: DataParallel(Fsdp(checkpoint_wrapper(compiled(m)))),
    "twice": lambda model: DataParallel(HousePartition(model)),
}


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_has_the_names_of_the_model(wrap):
    net = Net()
    wrapped = wrap(net)
    assert wrapped is not net
    assert modules_of(wrapped) == MODULES
    assert parameters_of(wrapped) == PARAMETERS
    assert dict(names.named_modules(wrapped))["model"] is net


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper, Fsdp], ids=["compile", "checkpoint", "fsdp"])
def test_wrapped_parts_have_the_names_of_the_parts(wrap):
    net = Net()
    net.blocks[0] = wrap(net.blocks[0])
    net.blocks[1].fc = checkpoint_wrapper(wrap(net.blocks[1].fc))
    net.head = wrap(net.head)
    for model in (net, wrap(net)):
        assert modules_of(model) == MODULES
        assert parameters_of(model) == PARAMETERS


def test_a_model_compiled_in_place_keeps_its_names():
    net = Net()
    net.compile(backend="eager")
    assert modules_of(net) == MODULES


def test_a_users_own_module_called_module_stays():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(1, 1), nn.ReLU())

    assert modules_of(Holder()) == ["model", "module", "module.0", "module.1"]
    assert parameters_of(Holder()) == ["module.0.weight", "module.0.bias"]
    assert modules_of(DataParallel(Holder())) == ["model", "module", "module.0", "module.1"]
    assert modules_of(compiled(DataParallel(Holder()))) == ["model", "module", "module.0", "module.1"]


def test_a_layer_that_is_used_twice_has_its_first_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[2] = net[0]
    assert modules_of(net) == ["model", "0", "1"]
    assert parameters_of(net) == ["0.weight", "0.bias"]

    net = Net()
    net.blocks[1].fc = net.blocks[0].fc
    for model in (net, DataParallel(net)):
        assert modules_of(model) == [name for name in MODULES if name != "blocks.1.fc"]
        assert parameters_of(model) == [name for name in PARAMETERS if not name.startswith("blocks.1.fc.")]


def test_tied_weights_have_their_first_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 3)
            self.head = nn.Linear(3, 4)
            self.head.weight = self.embed.weight

    for model in (Tied(), DataParallel(Tied())):
        assert parameters_of(model) == ["embed.weight", "head.bias"]
        assert modules_of(model) == ["model", "embed", "head"]


def test_a_model_that_is_one_layer():
    assert modules_of(nn.Linear(1, 1)) == ["model"]
    assert parameters_of(nn.Linear(1, 1)) == ["weight", "bias"]
    assert modules_of(compiled(nn.Linear(1, 1))) == ["model"]
    assert parameters_of(nn.Tanh()) == []


def test_the_owner_of_a_parameter():
    assert names.owner("blocks.0.fc.weight") == "blocks.0.fc"
    assert names.owner("weight") == "model"


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (["*"], [], ["fc1", "fc1.weight", "fc2", "fc2.weight", "act"]),
        (["fc1"], [], ["fc1", "fc1.weight"]),
        (["fc*"], [], ["fc1", "fc1.weight", "fc2", "fc2.weight"]),
        (["fc?"], ["fc2"], ["fc1", "fc1.weight"]),
        (["*.weight"], [], ["fc1.weight", "fc2.weight"]),
        (["*"], ["*.weight"], ["fc1", "fc2", "act"]),
        (["fc[12]", "act"], ["fc1"], ["fc2", "fc2.weight", "act"]),
        (["FC1"], [], []),
        ([], [], []),
    ],
    ids=str,
)
def test_globs(include, exclude, chosen):
    known = ["fc1", "fc1.weight", "fc2", "fc2.weight", "act"]
    assert [name for name in known if names.selects(name, include, exclude)] == chosen


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_is_printable_and_otherwise_unchanged(text):
    shown = names.printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


def test_what_acts_on_a_terminal_is_escaped_and_letters_of_every_script_stay():
    assert names.printable("fc\x1b[2J\r\n\u202e\ud800") == r"fc\x1b[2J\r\n\u202e\ud800"
    assert names.printable("слой 层 ñ |<b>") == "слой 层 ñ |<b>"


def test_a_path_without_its_wrappers():
    assert names.canonical("._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.fc.weight") == "blocks.0.fc.weight"
    assert names.canonical("weight") == "weight"


def test_the_type_of_a_module_that_sharding_has_exchanged_the_class_of():
    before = type("FSDPModule", (), {})
    assert names.type_of(type("FSDPLinear", (before, nn.Linear), {})(2, 2)) == "Linear"
    assert names.type_of(nn.Linear(2, 2)) == "Linear"
    assert names.type_of(Block()) == "Block"
