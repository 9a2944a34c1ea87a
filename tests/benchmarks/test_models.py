"""The two implementations that are timed: the same parameters and the same function, or no result."""

from dataclasses import replace

import pytest
import torch
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM

from benchmarks.agreement import CHECK_WINDOW, LOGITS_TOLERANCE, check_agreement
from benchmarks.models import FIRST_ORDINARY_ID, SIZES, Pair, build_ours, build_pair, random_ids
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

SIZE = SIZES["tiny"]


@pytest.fixture
def pair() -> Pair:
    return build_pair(SIZE)


def test_one_is_ours_and_one_is_transformers_own(pair: Pair):
    assert type(pair.ours) is RecurrentGemmaForCausalLM
    assert type(pair.in_tree) is InTreeForCausalLM
    assert not issubclass(InTreeForCausalLM, RecurrentGemmaForCausalLM)


def test_both_hold_the_same_parameter_objects(pair: Pair):
    ours, in_tree = (dict(model.named_parameters()) for model in (pair.ours, pair.in_tree))
    assert ours.keys() == in_tree.keys()
    assert all(ours[name] is in_tree[name] for name in ours)
    assert pair.in_tree.lm_head.weight is pair.ours.model.embed_tokens.weight


def test_in_tree_gets_one_more_key_in_its_window(pair: Pair):
    assert pair.in_tree.config.attention_window_size == pair.ours.config.attention_window_size + 1
    other = build_pair(SIZE, window=5, share_with=pair)
    assert (other.ours.config.attention_window_size, other.in_tree.config.attention_window_size) == (5, 6)
    assert other.in_tree.lm_head.weight is pair.ours.lm_head.weight


def test_every_size_is_a_config_of_both():
    for size in SIZES.values():
        # On meta, where weights take no memory.
        with torch.device("meta"):
            pair = build_pair(size)
        assert pair.ours.config.block_types == pair.in_tree.config.block_types
        assert 2 * pair.ours.config.mlp_width == size.intermediate_ratio * size.hidden_size


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build_pair(SIZE)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_and_ids_follow_their_seeds():
    same, other = (build_ours(SIZE, seed=seed).lm_head.weight for seed in (0, 1))
    assert torch.equal(build_ours(SIZE).lm_head.weight, same)
    assert not torch.equal(same, other)
    ids = random_ids(SIZE, 1000)
    assert torch.equal(ids, random_ids(SIZE, 1000))
    assert not torch.equal(ids, random_ids(SIZE, 1000, seed=2))
    assert (ids.min(), ids.max()) == (FIRST_ORDINARY_ID, SIZE.vocab_size - 1)


@pytest.mark.usefixtures("in_tree_is_exact")
def test_equal_weights_agree(pair: Pair):
    found = check_agreement(pair)
    assert 0 < found.prefill <= LOGITS_TOLERANCE
    assert 0 < found.decode <= LOGITS_TOLERANCE
    assert 0 < found.gradients <= 1e-3


@pytest.mark.usefixtures("in_tree_is_exact")
def test_other_weights_disagree(pair: Pair):
    others = build_pair(SIZE)
    with torch.no_grad():
        others.in_tree.model.layers[0].temporal_block.rg_lru.recurrent_param.add_(0.1)
    with pytest.raises(ValueError, match=r"^prefill: expected ours and in-tree to differ by at most 0.0001"):
        check_agreement(replace(pair, in_tree=others.in_tree))


@pytest.mark.usefixtures("in_tree_is_exact")
def test_a_window_that_is_one_key_off_disagrees(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    def one_off(size, *, window, share_with):
        same = build_pair(size, window=window, share_with=share_with)
        return replace(same, in_tree=build_pair(size, window=window - 1, share_with=share_with).in_tree)

    monkeypatch.setattr("benchmarks.agreement.build_pair", one_off)
    assert SIZE.attention_window_size == CHECK_WINDOW
    with pytest.raises(ValueError, match=r"^prefill: "):
        check_agreement(pair)
