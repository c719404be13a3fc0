"""What a watch observes of a model: layers and parameters, by canonical name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradwatch import names
from gradwatch.capture import shards
from gradwatch.capture.shards import Holding
from gradwatch.errors import InvalidSetting, NothingToWatch

CARRIED = ("torch.nn.modules.loss", "torchmetrics.", "torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize")
"""Where modules come from that a model carries along and that are none of its layers: criteria, metrics, observers of ranges."""


@dataclass(frozen=True)
class Selection:
    """Layers and parameters to observe.

    Attributes:
        layers: Canonical name → module whose output is observed.
        holdings: Canonical full name → what this process holds of the parameter.
        types: The same names → class name of the module that owns it.
        owners: The layers that have parameters, selected or not.
        root: The model itself; None where it is a mapping.
        owned: All of the model's parameters, selected or not.
    """

    layers: Mapping[str, nn.Module]
    holdings: Mapping[str, Holding]
    types: Mapping[str, str]
    owners: frozenset[str]
    root: nn.Module | None
    owned: tuple[Tensor, ...]

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Canonical full name → leaf tensor; of several names that share a flat parameter each has all of it."""
        return {name: holding.leaf for name, holding in self.holdings.items()}

    @property
    def ids(self) -> set[int]:
        """``id`` of every module and parameter that is observed."""
        return {id(thing) for thing in (*self.layers.values(), *self.parameters.values())}


def select(model: nn.Module | Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str]) -> Selection:
    """Picks the layers that do the computing, and the parameters, as far as the globs select them.

    A layer is a module without children, one that owns parameters itself (``MultiheadAttention``), or one that is named without
    wildcards.

    Args:
        model: A module, or name → leaf tensor.
        include: Globs over layer and parameter names; each has to select something.
        exclude: Globs that take away from it.

    Raises:
        NothingToWatch: There are no parameters, or a glob selects nothing.
    """
    layers, parameters = _parts(model, include)
    if not parameters:
        raise NothingToWatch(f"{_title(model)} has no parameters: nothing in it can learn, so there is nothing to watch")
    for glob in chain(include, exclude):
        if not (_picks(layers, (glob,), ()) or any(names.selects(name, (glob,), ()) for name in parameters)):
            close = get_close_matches(glob, [*layers, *parameters], n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; layers: {', '.join(layers)}"
            raise NothingToWatch(f"the glob {glob!r} matches no layer and no parameter of {_title(model)}{hint}")
    selection = pick(model, include, exclude)
    if not selection.layers and not any(names.selects(name, include, exclude) for name in parameters):
        raise NothingToWatch(f"include={tuple(include)!r} and exclude={tuple(exclude)!r} leave nothing of {_title(model)} to watch")
    return selection


def pick(model: nn.Module | Mapping[str, Tensor], include: Sequence[str], exclude: Sequence[str]) -> Selection:
    """What ``select`` picks, of a model that may have changed since its globs were checked.

    A parameter of a lazy module is no part of it before its shape is known.

    Raises:
        NothingToWatch: A mapping holds something that is no leaf tensor.
    """
    layers, holdings = _parts(model, include)
    selected = {name: held for name, held in holdings.items() if names.selects(name, include, exclude) and not is_lazy(held.leaf)}
    owners = frozenset(map(names.owner, holdings))
    if isinstance(model, Mapping):
        return Selection({}, selected, dict.fromkeys(selected, "Tensor"), owners, None, tuple(model.values()))
    modules = dict(names.named_modules(model))
    types = {name: kind_of(modules[names.owner(name)]) if names.owner(name) in modules else "" for name in selected}
    return Selection(_picks(layers, include, exclude), selected, types, owners, model, tuple(model.parameters()))


def _parts(model: nn.Module | Mapping[str, Tensor], include: Sequence[str]) -> tuple[dict[str, nn.Module], dict[str, Holding]]:
    """Every layer and every parameter, by name."""
    if isinstance(model, Mapping):
        parameters = dict(model)
        _require_leaves(parameters)
        return {}, {name: shards.holding(leaf) for name, leaf in parameters.items()}
    inner = f".{names.PARAMETRIZED}."  # what computes a weight is no layer: its output is a weight, and no activation
    layers = {
        name: module
        for name, module in names.named_modules(model)
        if (_computes(module) and inner not in f".{name}.") or name in include
    }
    return layers, shards.holdings(model)


def kind_of(module: nn.Module) -> str:
    """The class name of a module; of a lazy one the name that it will have once its shapes are known."""
    become = getattr(module, "cls_to_become", None)
    return names.type_of(module) if become is None else str(become.__name__)


def listed(optimizer: Optimizer | Iterable[Optimizer] | Mapping[str, Optimizer] | None) -> list[Optimizer]:
    """The optimizers that are given as one, several, or by name; each once.

    Raises:
        InvalidSetting: One of them is something else.
    """
    given = optimizer.values() if isinstance(optimizer, Mapping) else optimizer
    optimizers = list(given or ()) if given is None or isinstance(given, Iterable) else [given]
    for index, item in enumerate(optimizers):
        if not isinstance(item, Optimizer):
            raise InvalidSetting(f"optimizer {index} is a {type(item).__name__}; give torch.optim.Optimizer objects")
    return list(dict.fromkeys(map(_bare, optimizers)))


def _bare(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps: that of accelerate is one by its class only, and hands everything to the one inside."""
    inner = getattr(optimizer, "optimizer", None)
    return _bare(inner) if isinstance(inner, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks") else optimizer


def strangers(optimizers: Iterable[Optimizer], model: nn.Module | Mapping[str, Tensor]) -> list[str]:
    """A sentence for each optimizer that holds none of the model's parameters, so that its steps move nothing of it."""
    tensors = model.values() if isinstance(model, Mapping) else model.parameters()
    known = {id(tensor) for tensor in tensors}
    return [
        f"{type(optimizer).__name__} holds none of the parameters of {_title(model)}, so that its steps do not train it: it was "
        f"built from another model, or from a copy; build it from the parameters of the model that is watched"
        for optimizer in optimizers
        if known.isdisjoint(map(id, held(optimizer)))
    ]


def held(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _computes(module: nn.Module) -> bool:
    if not _callable(module) or any(base.__module__.startswith(CARRIED) for base in type(module).__mro__):
        return False
    own = (parameter for parameter in module.parameters(recurse=False) if not shards.is_flat(parameter))
    if names.PARAMETRIZED in dict(module.named_children()) or next(own, None) is not None:
        return True  # it has weights, as they are or computed from others
    return not any(_callable(other) for other in module.modules() if other is not module)


def _callable(module: nn.Module) -> bool:
    """Whether a module has a forward; a list, and what merely keeps parameters, has none that anybody calls."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if type(module).__module__.startswith("torch.ao.nn.quantized.") and "PackedParam" in type(module).__name__:
        return False  # where a quantized layer keeps its weights
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _picks(layers: Mapping[str, nn.Module], include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that the globs select by their own names: a module that contains another one is not its owner."""

    def matches(name: str, globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    return {name: module for name, module in layers.items() if matches(name, include) and not matches(name, exclude)}


def _require_leaves(parameters: Mapping[str, Tensor]) -> None:
    for name, tensor in parameters.items():
        if not isinstance(tensor, Tensor) or not tensor.is_leaf:
            what = "is computed from other tensors" if isinstance(tensor, Tensor) else f"is a {type(tensor).__name__}"
            raise NothingToWatch(f"{name!r} {what}; a mapping holds leaf tensors, such as torch.randn(3, requires_grad=True)")


def _title(model: nn.Module | Mapping[str, Tensor]) -> str:
    return "the mapping" if isinstance(model, Mapping) else repr(type(model).__name__)
