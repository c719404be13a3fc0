"""What this process holds of a parameter, where several processes share one model.

Under plain data parallelism that is all of it; under FSDP and tensor parallelism a shard, in one of three forms: a ``DTensor``
(FSDP2, tensor parallel), a flattened piece that the module calls its parameter (FSDP1, ``use_orig_params=True``), or a stretch
of one flat parameter (FSDP1 else). An operation on a ``DTensor`` may start a collective, in which a process that is not
watched, or that reads at another time, would not take part; so nothing here works on more than a local shard.

FSDP1 keeps the layout of its flat parameters private. Where a release has it elsewhere, its parameters are observed as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import names

SWAPPING = frozenset({"FSDPModule", "FullyShardedDataParallel"})
"""Classes of modules that exchange their parameters for other ones while forward runs."""


@dataclass(frozen=True)
class Holding:
    """A parameter, as this process holds it.

    Attributes:
        leaf: The tensor that the module owns and that gets a gradient.
        shape: The shape of the whole parameter.
        sharded: Whether other processes hold other elements of it.
        speaks: Whether the rows of this shard count; of processes that hold the same shard only the first one's do.
        has_rows: Whether what is here are whole rows of it, such as all weights of a unit.
        stretch: Which elements of the flattened leaf are the parameter's; None: all.
    """

    leaf: Tensor
    shape: tuple[int, ...]
    sharded: bool = False
    speaks: bool = True
    has_rows: bool = True
    stretch: slice | None = None

    @property
    def numel(self) -> int:
        """Elements of the parameter that this process holds."""
        if self.stretch is not None:
            return int(self.stretch.stop - self.stretch.start)
        values = local(self.leaf)
        return 0 if values is None else values.numel()

    def weight(self) -> Tensor:
        """The elements that this process holds, detached."""
        values = local(self.leaf)
        assert values is not None, "a parameter is no sum of parts"
        return values.detach() if self.stretch is None else values.detach()[self.stretch]

    def grad(self) -> Tensor | None:
        """Their gradient; None where there is none."""
        grad = self.leaf.grad
        if grad is None or (type(grad) is Tensor and self.stretch is None):  # nearly every parameter of nearly every run
            return grad
        if self.is_partial:
            return None
        values = local(grad)
        return values if values is None or self.stretch is None else values[self.stretch]

    @property
    def is_partial(self) -> bool:
        """Whether the gradient lies otherwise than the parameter: as parts of a sum, which nobody has added up yet."""
        grad = self.leaf.grad
        return grad is not None and is_distributed(grad) and grad.placements != self.leaf.placements  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor | None:
    """What this process holds of a tensor; None where that is but a part of a sum. A plain tensor is returned as it is."""
    if type(tensor) is Tensor:
        return tensor
    if is_distributed(tensor):
        if any(placement.is_partial() for placement in tensor.placements):  # type: ignore[attr-defined]
            return None
        tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    if hasattr(tensor, "trigger_wait"):  # the result of a collective that is still on its way
        tensor = tensor.trigger_wait()
    return tensor


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    for home in ("torch.distributed.tensor", "torch.distributed._tensor"):  # the latter up to torch 2.4
        kind = getattr(sys.modules.get(home), "DTensor", None)  # unless somebody has imported it, there is none
        if kind is not None:
            return isinstance(tensor, kind)
    return False


def holdings(model: nn.Module) -> dict[str, Holding]:
    """Every parameter once, by its canonical full name, in the order of the modules."""
    near = same_samples(model)
    flat = {id(handle.flat_param): (state, handle) for state, handle in _flat_handles(model)}
    pieces = {id(tensor): held for state, handle in flat.values() for tensor, held in _pieces(state, handle)}
    found: dict[str, Holding] = {}
    for name, parameter in names.named_parameters(model):
        if id(parameter) in flat:
            for inner, held in _stretches(*flat[id(parameter)]):
                found[names.canonical(f"{name.rpartition('.')[0]}.{inner}")] = held
        else:
            found[name] = pieces.get(id(parameter)) or holding(parameter, near)
    return found


def swaps_parameters(model: nn.Module) -> bool:
    """Whether parameters in the graph of the model's output are not those that it owns between its calls."""
    return any(kind.__name__ in SWAPPING for module in model.modules() for kind in type(module).__mro__)


def is_flat(parameter: Tensor) -> bool:
    """Whether a parameter is several ones in a row, which belong to other modules than the one that has it."""
    return hasattr(parameter, "_param_infos")


def holding(parameter: Tensor, near: tuple[int, ...] = ()) -> Holding:
    """What this process holds of a parameter.

    Args:
        parameter: Not flat.
        near: The ranks that compute the same samples.
    """
    shape = () if is_lazy(parameter) else tuple(parameter.shape)
    if not is_distributed(parameter):
        return Holding(parameter, shape)
    placements, place = parameter.placements, parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    sharded = any(not placement.is_replicate() for placement in placements)
    first = place is not None and all(not index for index, where in zip(place, placements, strict=True) if where.is_replicate())
    if len(set(near).intersection(parameter.device_mesh.mesh.flatten().tolist())) == 1:  # type: ignore[attr-defined]
        first &= dist.get_rank() == near[0]  # its neighbours in tensor parallelism hold the same shard, in a mesh of their own
    return Holding(parameter, shape, sharded, first, all(not where.is_shard() or where.dim == 0 for where in placements))


# -------------------------------------------------------------- FSDP1


def _flat_handles(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Every wrapped module with a flat parameter of its own, and what manages that."""
    for module in model.modules():
        handle = getattr(module, "_handle", None)
        if handle is not None and is_flat(getattr(handle, "flat_param", None)):  # type: ignore[arg-type]
            yield module, handle


def _pieces(state: Any, handle: Any) -> Iterator[tuple[Tensor, Holding]]:
    """The parameters that stand for pieces of a flat one."""
    flat = handle.flat_param
    for parameter, shape in zip(flat._params or (), flat._shapes, strict=False):
        sharded = handle.uses_sharded_strategy
        yield parameter, Holding(parameter, tuple(shape), sharded, _is_first_copy(state), has_rows=not sharded)


def _stretches(state: Any, handle: Any) -> Iterator[tuple[str, Holding]]:
    """The parameters that only a flat one holds, by their names inside the wrapped module."""
    flat, sharded = handle.flat_param, handle.uses_sharded_strategy
    start = 0
    for index, (name, shape) in enumerate(zip(flat._fqns, flat._shapes, strict=True)):
        size = math.prod(shape)
        stretch = slice(start, start + size)
        start += size
        if sharded:
            shard = flat._shard_param_infos[index]
            stretch = slice(shard.offset_in_shard, shard.offset_in_shard + shard.numel_in_shard) if shard.in_shard else slice(0, 0)
        yield name, Holding(flat, tuple(shape), sharded, _is_first_copy(state), has_rows=False, stretch=stretch)


def _is_first_copy(state: Any) -> bool:
    """Whether this process is the first of those that hold the same shard: hybrid sharding keeps a copy on every node."""
    copies = getattr(state, "_inter_node_pg", None)
    return copies is None or dist.get_rank() == min(dist.get_process_group_ranks(copies))


# -------------------------------------------------------------- who computes the same samples


def same_samples(model: nn.Module) -> tuple[int, ...]:
    """The ranks that compute this process's samples together with it: those of tensor parallelism; empty: it does so alone.

    They are its neighbours in the dimensions of a parameter's mesh that are none of FSDP's, which shards parameters, not work.
    """
    data = _data_parallel_ranks(model)
    meshes = {parameter.device_mesh for parameter in model.parameters() if is_distributed(parameter)}  # type: ignore[attr-defined]
    found: set[int] = set()
    for mesh in meshes:
        place, near = mesh.get_coordinate(), mesh.mesh
        for dimension, index in enumerate(place or ()):
            line = mesh.mesh[tuple(slice(None) if d == dimension else at for d, at in enumerate(place))]
            if set(line.tolist()) <= data:
                near = near.narrow(dimension, index, 1)
        found.update(near.flatten().tolist() if place is not None else ())
    return tuple(sorted(found)) if len(found) > 1 else ()


def _data_parallel_ranks(model: nn.Module) -> set[int]:
    ranks: set[int] = set()
    for module in model.modules():
        state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for info in (group.mesh_info for group in groups if group is not None):
            for name in ("shard_process_group", "replicate_process_group"):
                if (members := getattr(info, name, None)) is not None:
                    ranks.update(dist.get_process_group_ranks(members))
    return ranks
