"""Programs of several processes that share a model: FSDP2, FSDP1, tensor parallel; of four processes, several of them at once."""

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import gradwatch
from processes.models import Block, data, mine, net, tokens
from processes.tools import Heard, backward, brought, sgd, train, twice


def sharded(mesh=None, each=fully_shard, **settings):
    """FSDP2: every linear layer by itself, and the rest."""

    def make():
        model = net()
        for layer in model:
            if isinstance(layer, nn.Linear):
                each(layer, mesh=mesh, **settings)
        return fully_shard(model, mesh=mesh, **settings)

    return make


def fsdp2(rank, size):
    return twice(sharded(), *mine(size, rank))


def fsdp2_in_bfloat16(rank, size):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    return twice(sharded(mp_policy=policy), *mine(size, rank))


def fsdp2_without_resharding(rank, size):
    return twice(sharded(reshard_after_forward=False), *mine(size, rank))


def fsdp2_with_checkpoints(rank, size):
    def make():
        model = net()
        model = nn.Sequential(*(fully_shard(checkpoint_wrapper(layer)) for layer in model[:4]), model[4])
        return fully_shard(model)

    return twice(make, *mine(size, rank))


def fsdp2_accumulating(rank, size):
    def each(model, x, y, watch):
        model.set_requires_gradient_sync(False)
        backward(model, x[:2], y[:2], watch)
        model.set_requires_gradient_sync(True)
        backward(model, x[2:], y[2:], watch)

    return twice(sharded(), *mine(size, rank), each=each)


def fsdp2_clipped(rank, size):
    def each(model, x, y, watch):
        backward(model, x, y, watch)
        if watch is not None:
            watch.before_clip()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    return twice(sharded(), *mine(size, rank), each=each)


def fsdp2_before(rank, size):
    """The model is watched first, and sharded then."""
    model = net()
    with Heard() as heard:
        watch = gradwatch.watch(model, every=1)
        for layer in (model[0], model[2], model):
            fully_shard(layer)
        optimizer = sgd(model)
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
            watch.step()
        watch.close()
        return brought(watch, heard)


def flat(use_orig_params, **settings):
    """FSDP1: every linear layer by itself, but for the last, which stays with the rest."""

    def make():
        model = net()
        model[4] = nn.Sequential(model[4])
        keep = {"device_id": torch.device("cpu"), "use_orig_params": use_orig_params} | settings
        policy = ModuleWrapPolicy({nn.Linear})
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, **keep)

    return make


def fsdp1(rank, size):
    return twice(flat(True), *mine(size, rank))


def fsdp1_with_flat_parameters(rank, size):
    return twice(flat(False), *mine(size, rank))


def fsdp1_in_one_piece(rank, size):
    """All parameters in one flat one."""

    def make():
        return FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=False)

    return twice(make, *mine(size, rank))


def fsdp1_not_sharded(rank, size):
    return twice(flat(False, sharding_strategy=ShardingStrategy.NO_SHARD), *mine(size, rank))


PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}


def tensor_parallel(rank, size):
    mesh = init_device_mesh("cpu", (size,))
    return twice(lambda: parallelize_module(net(), mesh, PLAN), *data(size))


def tensor_parallel_before(rank, size):
    """The model is watched first, and made parallel then."""
    model = net()
    with Heard() as heard:
        watch = gradwatch.watch(model, every=2)
        parallelize_module(model, init_device_mesh("cpu", (size,)), PLAN)
        optimizer = sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, *data(size), watch)
            optimizer.step()
            watch.step()
        watch.close()
        return brought(watch, heard)


def sequence_parallel(rank, size):
    mesh = init_device_mesh("cpu", (size,))
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    x = tokens().chunk(size, 1)[rank]

    def each(model, x, _, watch):
        loss = model(x).square().sum()
        if watch is not None:
            watch.loss(loss)
        loss.backward()

    return twice(lambda: parallelize_module(Block(), mesh, plan), x, None, each=each)


class Collectives(TorchDispatchMode):
    """Counts the collectives that are started, those inside of operations on distributed tensors too."""

    started = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does with local tensors comes by here again
        self.started += function.namespace in ("c10d", "_c10d_functional") and "wait" not in str(function)
        return function(*args, **kwargs or {})


def communication(make, x, y):
    """How many collectives a training starts, with a watch and without one."""
    counts = {}
    for watched in (True, False):
        with Collectives() as collectives:
            train(make, x, y, watched=watched)
        counts["watched" if watched else "unwatched"] = collectives.started
    return counts


OUTPUTS_STAY = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel(input_layouts=Shard(-1))}


def distributed_activations(rank, size):
    """What a layer returns is a distributed tensor."""
    mesh = init_device_mesh("cpu", (size,))
    return twice(lambda: parallelize_module(net(), mesh, OUTPUTS_STAY), *data(size))


def communication_of_tensor_parallelism(rank, size):
    mesh = init_device_mesh("cpu", (size,))
    return communication(lambda: parallelize_module(net(), mesh, OUTPUTS_STAY), *data(size))


def communication_of_shards(rank, size):
    return communication(sharded(), *mine(size, rank))
