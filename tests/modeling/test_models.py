"""The tests' own small model: nothing in it is too small to be noticed."""

import pytest
import torch

from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_shows_in_the_logits(tied):
    model = tiny_model(tiny_config(tie_word_embeddings=tied))
    ids = torch.randint(model.config.vocab_size, (1, 20))
    before = model(ids).logits
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.zero_()
        assert (model(ids).logits - before).abs().max() > 100 * SPLIT_EQUALS_WHOLE_LOGITS, name
        parameter.copy_(kept)


def test_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, second = tiny_model(seed=3).state_dict(), tiny_model(seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], tiny_model(seed=4).state_dict()["lm_head.weight"])
