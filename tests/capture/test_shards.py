"""What a process holds of a tensor, without asking anybody else. Real processes train in ``tests/modes``."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gradwatch.capture import shards

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed over gloo")


@pytest.fixture
def mesh():
    """One process alone, which counts as a group."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distributed(tensor, mesh, placement):
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor, mesh, [placement])


def test_a_plain_tensor_is_held_as_it_is():
    tensor = torch.ones(3)
    assert shards.local(tensor) is tensor
    assert not shards.is_distributed(tensor)


def test_of_a_distributed_tensor_the_local_part(mesh):
    from torch.distributed.tensor import Partial, Replicate, Shard

    tensor = torch.arange(6.0).reshape(3, 2)
    for placement in (Shard(0), Replicate()):
        held = shards.local(distributed(tensor, mesh, placement))
        assert type(held) is torch.Tensor
        assert torch.equal(held, tensor)
    assert shards.local(distributed(tensor, mesh, Partial())) is None  # a part of a sum is none of its values


def test_what_a_collective_has_not_brought_yet_is_awaited(mesh):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce

    summed = all_reduce(torch.ones(3), "sum", mesh.get_group())
    assert isinstance(summed, AsyncCollectiveTensor)
    assert type(shards.local(summed)) is torch.Tensor


def test_parameters_that_are_not_shared_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    held = shards.holdings(model)
    assert list(held) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert held["0.weight"] == shards.Holding(model[0].weight, (2, 3))
    assert held["0.weight"].grad() is None
    model(torch.ones(4, 3)).sum().backward()
    assert held["0.weight"].grad() is model[0].weight.grad
    assert torch.equal(held["0.weight"].weight(), model[0].weight)
    assert not held["0.weight"].weight().requires_grad
    assert shards.same_samples(model) == ()
    assert not shards.swaps_parameters(model)


def test_a_parameter_that_is_shared_out(mesh):
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    def held(*placements):
        module = nn.Module()
        module.p = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, placements))
        return module, shards.holdings(module)["p"]

    _, rows = held(Shard(0))
    _, columns = held(Shard(1))
    _, copy = held(Replicate())
    assert [(item.sharded, item.has_rows, item.speaks) for item in (rows, columns, copy)] == [
        (True, True, True),
        (True, False, True),
        (False, True, True),
    ]
    module, copy = held(Replicate())
    module.p.grad = distributed(torch.ones(4, 3), mesh, Replicate())
    assert torch.equal(copy.grad(), torch.ones(4, 3))
    module.p.grad = distributed(torch.ones(4, 3), mesh, Partial())
    assert copy.is_partial
    assert copy.grad() is None


def test_a_stretch_of_a_flat_parameter():
    flat = nn.Parameter(torch.arange(6.0))
    part = shards.Holding(flat, (2, 1), sharded=True, stretch=slice(1, 3))
    assert part.numel == 2
    assert part.weight().tolist() == [1, 2]
    assert part.grad() is None
    flat.grad = torch.arange(6.0) * 10
    assert part.grad().tolist() == [10, 20]
