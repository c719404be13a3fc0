"""Programs of four processes."""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from processes.models import mine, net
from processes.sharded import PLAN, flat, sharded
from processes.tools import twice


def ddp_of_four(rank, size):
    return twice(lambda: DistributedDataParallel(net()), *mine(size, rank))


def hybrid(rank, size):
    """FSDP2 over a mesh of two by two: sharded over two, copied over two."""
    return twice(sharded(init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))), *mine(size, rank))


def hybrid_flat(rank, size):
    """FSDP1 over the same mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    return twice(flat(True, device_mesh=mesh, sharding_strategy=ShardingStrategy.HYBRID_SHARD), *mine(size, rank))


def tensor_and_data_parallel(rank, size):
    """Tensor parallel over pairs of neighbours, FSDP2 over the pairs: each pair has a batch."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def make():
        model = parallelize_module(net(), mesh["tensor"], PLAN)
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh["data"])
        return model

    return twice(make, *mine(2, rank // 2))
