"""A vocabulary of another size: the embedding keeps its scale, old ids their logits, and the checkpoint loads."""

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close

IDS = torch.arange(1, 25)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [104, 60])
def test_resized_vocabulary(tied, size, tmp_path):
    model = tiny_model(tiny_config(tie_word_embeddings=tied))
    scale, before = model.model.embed_tokens.embed_scale, logits(model)
    model.resize_token_embeddings(size)
    kept = min(size, 97)
    assert (model.config.vocab_size, model.model.embed_tokens.embed_scale) == (size, scale)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert logits(model).shape[-1] == size
    assert_close(logits(model)[..., :kept], before[..., :kept], SPLIT_EQUALS_WHOLE_LOGITS, "logits of old ids")
    with pytest.raises(ValueError, match=f"input_ids: expected ids from 0 to {size - 1}"):
        model(torch.tensor([[size]]))
    assert torch.isfinite(model(torch.tensor([[size - 1]])).logits).all()

    model.save_pretrained(tmp_path)
    loaded = RecurrentGemmaForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert torch.equal(logits(loaded), logits(model))


def test_resized_to_a_multiple():
    model = tiny_model()
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert (model.config.vocab_size, logits(model).shape[-1]) == (128, 128)


def test_the_resized_head_still_gives_the_loss_without_logits(monkeypatch):
    model = tiny_model().train()
    model.resize_token_embeddings(104)
    expected = model(IDS, labels=IDS).loss
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", None)  # what takes logits
    assert_close(model(IDS, labels=IDS, skip_logits=True).loss, expected, SPLIT_EQUALS_WHOLE_LOGITS, "loss")
