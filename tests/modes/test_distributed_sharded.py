"""Several processes that share the parameters of a model: the record is that of the whole."""

import pytest
import torch
from processes import models
from processes.reference import assert_shows, assert_trained_as_one, reference
from processes.start import over_gloo, ran, together
from registry import Mode

pytestmark = over_gloo


FSDP2 = Mode(
    "Several processes",
    "`fully_shard` (FSDP2), also with `reshard_after_forward=False`, activation checkpointing, hybrid sharding; sharded before it "
    "is watched or, without an optimizer, after",
    recorded="as under DDP: a parameter's row is that of the whole, merged from the shards; in hybrid sharding each shard once",
    units="`parameter_grad` as FSDP averages it",
    unsupported="`alike` compares the rows of a shard among themselves; `dead` of a parameter is the share over all shards",
)


@FSDP2
@pytest.mark.parametrize("program", ["fsdp2", "fsdp2_without_resharding", "fsdp2_with_checkpoints"])
def test_shards_are_recorded_as_the_whole(program):
    assert_trained_as_one(together(program), reference(2), calls=2)


@FSDP2
def test_hybrid_sharding_counts_every_shard_once():
    assert_trained_as_one(together("hybrid", "of_four", 4), reference(4), calls=4)


@FSDP2
def test_a_model_that_is_sharded_after_it_was_watched():
    result = together("fsdp2_before")
    (first, *_), (second, *_) = reference(2, steps=2)
    # The weights that were remembered when the first step began were other tensors.
    assert_shows(result["frame"], 0, {key: tensor for key, tensor in first.items() if key[1] not in ("parameter", "update")})
    assert_shows(result["frame"], 1, second)


@FSDP2
def test_the_types_of_layers_are_those_of_the_user():
    kinds = {site.type for site in together("fsdp2")["history"][0].sites}
    assert kinds == {"Linear", "ReLU", "Tanh"}  # and not FSDPLinear


@Mode(
    "Several processes",
    "FSDP2 with `MixedPrecisionPolicy`",
    recorded="as without; weights and their gradients as the optimizer has them",
    units="activations and their gradients as computed, in bfloat16; what the reduction makes of gradients, in float32",
)
def test_mixed_precision_of_shards():
    result = together("fsdp2_in_bfloat16")
    [(expected, *_)] = reference(2, steps=1, low=torch.bfloat16)
    # The criterion sees a float32 output, rounded to bfloat16 before.
    assert_shows(result["frame"], 0, expected, tolerance=1e-2)


@Mode(
    "Several processes",
    "clip under FSDP2, with `watch.before_clip()`",
    recorded="`Record.clip` is what clipping left of the norm over all ranks, where it shrinks all gradients alike",
    unsupported="where each element is clipped by itself: the smallest share of any rank",
)
def test_how_hard_clipping_clips():
    result = together("fsdp2_clipped")
    seen = reference(2, clip=0.1)
    for record, (expected, _, share) in zip(result["history"], seen, strict=True):
        assert record.clip == pytest.approx(share, rel=1e-4)
        assert record.clip < 1
        if record.full:
            assert_shows(result["frame"], record.step, expected, tolerance=1e-4)


FSDP1 = Mode(
    "Several processes",
    "`FullyShardedDataParallel` (FSDP1) with `use_orig_params=True` or `False`, also `NO_SHARD` and `HYBRID_SHARD`",
    recorded="as FSDP2. A flat parameter is recorded as the parameters that it consists of, under their own names",
    units="`parameter_grad` as FSDP averages it",
    unsupported="`dead` and `alike` of parameters: a flat shard has no rows",
)


@FSDP1
@pytest.mark.parametrize("program", ["fsdp1", "fsdp1_with_flat_parameters"])
def test_flat_shards_are_recorded_as_the_parameters_in_them(program):
    seen = [({_nested(key): tensor for key, tensor in step.items()}, *rest) for step, *rest in reference(2)]
    assert_trained_as_one(together(program), seen, calls=2)


def _nested(key):
    layer, tensor = key
    return layer.replace("4", "4.0", 1) if layer.startswith("4") else layer, tensor


@FSDP1
@pytest.mark.parametrize(("program", "size"), [("fsdp1_not_sharded", 2), ("hybrid_flat", 4)])
def test_flat_parameters_of_which_there_are_copies(program, size):
    seen = [({_nested(key): tensor for key, tensor in step.items()}, *rest) for step, *rest in reference(size)]
    assert_trained_as_one(together(program, "of_four", 4) if size == 4 else together(program), seen, calls=size)


@FSDP1
def test_a_model_in_one_flat_parameter():
    result = together("fsdp1_in_one_piece")
    assert_trained_as_one(result, reference(2), calls=2)
    shapes = {site.layer: site.shape for site in result["history"][0].sites if site.tensor == "parameter"}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in models.net().named_parameters()}


TENSOR_PARALLEL = Mode(
    "Several processes",
    "tensor parallelism (`parallelize_module`), also with FSDP2 over it; watched before (without an optimizer) or after",
    recorded="parameters as the whole; activations as the whole tensor, pieced together from the ranks that compute the same "
    "samples. What all of them hold is counted once",
    unsupported="sequence parallelism without FSDP2 leaves the gradients of norms in each process as a part of a sum, of which "
    "nothing is recorded; `watch.report()` lists them",
)


@TENSOR_PARALLEL
@pytest.mark.parametrize("program", ["tensor_parallel", "distributed_activations"])
def test_pieces_of_activations_are_recorded_as_the_whole(program):
    # All ranks compute the same samples, so that there is one batch with one loss.
    assert_trained_as_one(together(program), reference(2, batches=1), calls=1)


@pytest.mark.parametrize("program", ["communication_of_tensor_parallelism", "communication_of_shards"])
def test_measuring_starts_no_collective_of_the_users(program):
    for result in ran(program):
        assert result["watched"] == result["unwatched"]
        assert result["watched"] > 0


@TENSOR_PARALLEL
def test_a_model_that_is_made_parallel_after_it_was_watched():
    result = together("tensor_parallel_before")
    first, _, third = reference(2, batches=1)
    exchanged = {("0.weight", "parameter"), ("0.bias", "parameter"), ("2.weight", "parameter"), ("2.bias", "parameter")}
    exchanged |= {(name, "update") for name, _ in exchanged}
    assert_shows(result["frame"], 0, {key: tensor for key, tensor in first[0].items() if key not in exchanged})
    assert_shows(result["frame"], 2, third[0])


@TENSOR_PARALLEL
def test_tensor_parallel_pairs_that_share_the_work():
    assert_trained_as_one(together("tensor_and_data_parallel", "of_four", 4), reference(2), calls=2)


@TENSOR_PARALLEL
def test_sequence_parallel():
    result = together("sequence_parallel")
    block, x = models.Block(), models.tokens()
    normed = block.norm(x)
    up = block.up(normed)
    act = block.act(up)
    down = block.down(act)
    outputs = {"norm": normed, "up": up, "act": act, "down": down}
    for output in outputs.values():
        output.retain_grad()
    (x + down).square().sum().backward()
    expected = {}
    for name, output in outputs.items():
        expected[name, "activation"], expected[name, "activation_grad"] = output.detach(), output.grad
    for name, parameter in block.named_parameters():
        expected[name, "parameter"], expected[name, "update"] = parameter.detach(), -models.RATE * parameter.grad
        if not name.startswith("norm"):
            expected[name, "parameter_grad"] = parameter.grad
    assert_shows(result["frame"], 0, expected)
    assert "not observed (each process holds a part of its sum): gradient of norm.bias, gradient of norm.weight" in result["report"]
