"""A quick part of the labelled corpus; ``make calibrate`` runs all of it, with three seeds."""

import pytest

from benchmarks import faults
from benchmarks.faults import calibrate, score

SICK = (
    "sigmoid_stack",
    "relu_rnn_gain",
    "sqrt_at_zero",
    "negative_bias",
    "tanh_unit_normal",
    "detached_branch",
    "adam_recommender_never_cleared",
    "optimizer_partial",
    "never_steps",
    "constant_init",
    "head_lr_wrong",
    "labels_reshuffled_every_batch",
    "momentum_oscillation",
    "gan_forger_detached",
    "embedding_group_lr_1e_9",
    "margin_of_the_wrong_sign",
    "transformer_adam_rate_03",
)
"""At least one of each kind."""

HEALTHY = (
    "alternating_heads",
    "frozen_backbone",
    "momentum_large_lr",
    "noise_floor",
    "svm_hinge",
    "tied_lm",
    "finetune_adamw_2e5",
    "lora_zero_b",
    "ppo_clipped",
    "resumed_at_noise_floor",
    "sngan_hinge",
    "switch_moe",
    "targets_100_to_300_bias_init",
    "curriculum_of_longer_sums",
    "microvolt_targets",
    "prices_of_1e5",
    "tasks_of_unequal_scale_weighted",
    "convnext_layer_scale",
    "counts_with_exposures",
)
"""Those about which an earlier version, or a simpler one, cried wolf."""


@pytest.mark.parametrize("name", SICK)
def test_a_fault_is_found_in_time_and_in_its_place(name):
    case = faults.get(name)
    scored = score.score_case(case, calibrate.monitor(case, seed=0))
    assert scored.met == len(case.must)
    assert scored.false_kinds == set()


@pytest.mark.parametrize("name", [*HEALTHY, "sigmoid_stack~fixed", "tanh_unit_normal~fixed", "head_lr_wrong~fixed"])
def test_nothing_is_said_about_a_healthy_run(name):
    assert calibrate.monitor(faults.get(name), seed=0) == []


def test_the_quick_part_holds_every_kind():
    assert {faults.get(name).kind for name in SICK} == set(faults.KINDS)
