"""Ablations change what they say and nothing else, and go away."""

import pytest
import torch

from recurrent_gemma.evaluation.long_context import attention_off, token_losses, with_window
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention
from tests.modeling.models import WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close

IDS = torch.randint(1, 97, (2, 5 * WINDOW), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> RecurrentGemmaForCausalLM:
    return tiny_model()


def test_attention_off_is_a_model_whose_attention_projects_to_zero(model: RecurrentGemmaForCausalLM):
    silent = tiny_model()
    with torch.no_grad():
        for module in silent.modules():
            if isinstance(module, RecurrentGemmaAttention):
                module.o_proj.weight.zero_()
                if module.o_proj.bias is not None:
                    module.o_proj.bias.zero_()
    whole = token_losses(model, IDS)
    with attention_off(model):
        off = token_losses(model, IDS, chunk_size=9)
    assert_close(off, token_losses(silent, IDS), 2 * SPLIT_EQUALS_WHOLE_LOGITS, "losses")
    assert (off - whole).abs().max() > 0.01
    assert torch.equal(token_losses(model, IDS), whole)


def test_attention_off_leaves_what_comes_before_it(model: RecurrentGemmaForCausalLM):
    seen: dict[str, list[torch.Tensor]] = {"on": [], "off": []}

    def outputs(name: str):
        hooks = [
            layer.temporal_block.register_forward_hook(lambda module, args, out: seen[name].append(out[0]))
            for layer in model.model.layers
        ]
        with torch.no_grad():
            model(input_ids=IDS)
        for hook in hooks:
            hook.remove()

    outputs("on")
    with attention_off(model):
        outputs("off")
    kinds = [isinstance(layer.temporal_block, RecurrentGemmaAttention) for layer in model.model.layers]
    first = kinds.index(True)
    for index, (on, off) in enumerate(zip(seen["on"], seen["off"], strict=True)):
        assert torch.equal(on, off) == (index < first)
        assert bool((off == 0).all()) == kinds[index]


def test_attention_is_on_again_after_an_error(model: RecurrentGemmaForCausalLM):
    with pytest.raises(KeyError), attention_off(model):
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_off_needs_attention():
    recurrent = tiny_model(tiny_config(block_types=["recurrent"], num_hidden_layers=2))
    with pytest.raises(ValueError, match="attention blocks"), attention_off(recurrent):
        pass


def test_a_narrower_window_is_that_of_a_model_made_with_it(model: RecurrentGemmaForCausalLM):
    narrow = with_window(model, WINDOW - 1)
    made = tiny_model(tiny_config(attention_window_size=WINDOW - 1))
    made.load_state_dict(model.state_dict())
    found = token_losses(narrow, IDS)
    assert_close(found, token_losses(made, IDS), 2 * SPLIT_EQUALS_WHOLE_LOGITS, "losses")
    # The last key falls away for the first time where a query has W keys before it.
    whole = token_losses(model, IDS)
    assert_close(found[:, :WINDOW], whole[:, :WINDOW], 2 * SPLIT_EQUALS_WHOLE_LOGITS, "within the narrow window")
    assert (found - whole)[:, WINDOW:].abs().max() > 1e-3


def test_a_narrower_window_shares_the_weights_and_leaves_the_model(model: RecurrentGemmaForCausalLM):
    narrow = with_window(model, 3)
    assert model.config.attention_window_size == WINDOW
    pairs = list(zip(model.parameters(), narrow.parameters(), strict=True))
    assert pairs and all(a is b for a, b in pairs)
    assert narrow.lm_head.weight is narrow.model.embed_tokens.weight
    blocks = [module for module in narrow.modules() if isinstance(module, RecurrentGemmaAttention)]
    assert all(block.config.attention_window_size == 3 for block in blocks)
    assert not any(module is twin for module, twin in zip(model.modules(), narrow.modules(), strict=True))
    with pytest.raises(ValueError, match="window: expected at least 1"):
        with_window(model, 0)
