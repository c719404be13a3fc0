"""Canonical layer names, and selection by glob.

A layer keeps its name whatever wraps the model: data parallelism, sharding, checkpointing and compilation put an attribute
of their own into the path, and those segments are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

ROOT = "model"
"""The name of the outermost module, which has no attribute name of its own."""

UNREGISTERED = "unregistered"
"""What stands for the name of a parameter that takes part in forward and that the model does not own."""

WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Attributes that are wrappers wherever they stand."""

SWAPPED = frozenset({"FSDPModule", "ReplicateModule"})
"""Bases that ``fully_shard`` and ``replicate`` put before a module's own class, in an heir of both."""

PARAMETRIZED = "parametrizations"
"""The attribute of a module under which ``torch.nn.utils.parametrize`` keeps what its weights are computed from."""

MODULE_WRAPPERS = frozenset({"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"})
"""Classes whose attribute ``module`` is the wrapped model, as is their heirs'; elsewhere ``module`` is an ordinary name."""


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its canonical name, parents first; the outermost is called ``"model"``."""
    for path, module in _walk(model, (), set()):
        yield ".".join(path) or ROOT, module


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter once, with its canonical full name; tied parameters under their first name."""
    seen: set[int] = set()
    for path, module in _walk(model, (), set()):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield ".".join((*path, name)), parameter


def _walk(module: nn.Module, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    if not _is_wrapper(module):
        yield path, module
    for name, child in module.named_children():
        transparent = name in WRAPPER_SEGMENTS or (name == "module" and _is_wrapper(module))
        yield from _walk(child, path if transparent else (*path, name), seen)


def _is_wrapper(module: nn.Module) -> bool:
    if any(kind.__name__ in MODULE_WRAPPERS for kind in type(module).__mro__):
        return True
    return any(name in WRAPPER_SEGMENTS for name, _ in module.named_children())


def canonical(path: str) -> str:
    """A dotted path of attributes without the segments that are wrappers."""
    return ".".join(segment for segment in path.split(".") if segment and segment not in WRAPPER_SEGMENTS)


def type_of(module: nn.Module) -> str:
    """The name of a module's class; of one that sharding has exchanged for an heir (``FSDPLinear``), that of the class before."""
    kinds = type(module).__mro__
    swapped = next((index for index, kind in enumerate(kinds) if kind.__name__ in SWAPPED), -1)
    return kinds[swapped + 1].__name__


def owner(parameter: str) -> str:
    """The layer that a parameter belongs to: ``"fc1.weight"`` → ``"fc1"``, ``"weight"`` → ``"model"``.

    What a weight is computed from (a parametrization such as weight or spectral norm) belongs to the layer that uses the weight.
    """
    layer, _, _ = f".{parameter}".partition(f".{PARAMETRIZED}.")
    return (layer if layer != f".{parameter}" else f".{parameter}".rpartition(".")[0])[1:] or ROOT


def selects(name: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Whether the globs select a layer or parameter name; a glob that selects a layer selects its parameters too."""
    return _matches(name, include) and not _matches(name, exclude)


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) or fnmatchcase(owner(name), glob) for glob in globs)


def printable(text: str) -> str:
    """One line on which nothing acts: control, format and unpaired characters of a name appear as their Python escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
