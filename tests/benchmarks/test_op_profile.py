"""The profile by kind of op: ops of every kind are found where they belong, the backward's included."""

import pytest
import torch

from benchmarks import op_profile
from benchmarks.models import SIZES, build_ours, random_ids
from benchmarks.op_profile import ATTENTION, CONVOLUTION, HEAD, KINDS, OPTIMIZER, PRODUCTS, RECURRENCE, profile


def test_every_kind_is_seen():
    parts = profile(SIZES["tiny"], length=40, tokens=3).parts
    for name, part in parts.items():
        assert set(part.by_kind) == set(KINDS)
        unused = {OPTIMIZER} if "training" not in name else set()
        assert {kind for kind, seconds in part.by_kind.items() if seconds == 0} == unused
        assert sum(part.by_kind.values()) >= part.seconds * 0.999


def test_a_models_hooks_are_gone_afterwards():
    model = build_ours(SIZES["tiny"])
    with op_profile.profiler_scopes(model):
        assert model.lm_head._forward_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("train", [False, True])
def test_ops_are_of_the_kind_of_their_module(train: bool):
    model = build_ours(SIZES["tiny"]).train(train)
    ids = random_ids(SIZES["tiny"], 40)
    with op_profile.profiler_scopes(model), torch.profiler.profile() as profiler:
        if train:
            model(input_ids=ids, labels=ids, num_items_in_batch=39, use_cache=False).loss.backward()
        else:
            with torch.no_grad():
                model(input_ids=ids, use_cache=True)
    events = profiler.events()
    forward = {e.sequence_nr: e for e in events if e.sequence_nr >= 0 and op_profile.backward_root(e) is None}
    kinds: dict[str, set[str]] = {}
    for event in events:
        kinds.setdefault(event.name, set()).add(op_profile.kind_of(event, forward))
    assert kinds["aten::embedding"] == {HEAD}
    assert any("scaled_dot_product" in name and found == {ATTENTION} for name, found in kinds.items())
    # The gates' products inside the recurrence, and those of the linear layers, attention's included.
    assert PRODUCTS in kinds["aten::baddbmm"] and kinds["aten::addmm"] == {PRODUCTS}
    if train:
        assert kinds["recurrent_gemma::rg_lru"] == kinds["recurrent_gemma::rg_lru_backward"] == {RECURRENCE}
        assert kinds["recurrent_gemma::causal_conv1d"] == {CONVOLUTION}
        assert kinds["recurrent_gemma::linear_cross_entropy"] == {HEAD}
        assert kinds["aten::embedding_dense_backward"] == {HEAD}
