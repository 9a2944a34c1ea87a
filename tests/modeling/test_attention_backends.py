"""Every attention implementation gives the same numbers, on each way to choose it."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.ops.local_attention import api
from tests.modeling.models import WINDOW, tiny_config, tiny_model
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, SPLIT_EQUALS_WHOLE_LOGITS, assert_close

COLUMNS = 4 * WINDOW


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(path)
    return path


def load(directory, name="flex_attention"):
    return RecurrentGemmaForCausalLM.from_pretrained(directory, attn_implementation=name).eval()


@torch.no_grad()
def test_flex_attention_equals_sdpa_in_prefill_packed_rows_and_any_split(directory):
    ids, mask = torch.randint(0, 97, (3, COLUMNS)), torch.ones(3, COLUMNS, dtype=torch.long)
    mask[0, :5], mask[1, -4:], mask[2, [3, 9, 10, 17]] = 0, 0, 0
    lengths = (4, 1, WINDOW + 1, COLUMNS - WINDOW - 6)
    packed = torch.cat([torch.arange(n) for n in lengths])[None].expand(3, -1)
    models = [load(directory, name) for name in ("flex_attention", "sdpa")]
    for options in ({}, {"attention_mask": mask}, {"position_ids": packed}):
        actual, expected = (model(ids, use_cache=False, **options).logits for model in models)
        tokens = options.get("attention_mask", torch.ones_like(ids)).bool()
        assert_close(actual[tokens], expected[tokens], ROWS_EQUAL_SOLO_LOGITS, f"{list(options)}")
    whole = models[1](ids, attention_mask=mask, use_cache=False).logits
    for static in (False, True):
        cache, pieces = RecurrentGemmaCache(models[0].config, static=static), []
        cuts = (0, WINDOW + 2, WINDOW + 3, WINDOW + 4, 3 * WINDOW, COLUMNS)
        for begin, end in itertools.pairwise(cuts):
            piece = models[0](ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
            pieces.append(piece.logits)
        logits = torch.cat(pieces, dim=1)
        assert_close(logits[mask.bool()], whole[mask.bool()], SPLIT_EQUALS_WHOLE_LOGITS, f"static: {static}")


def test_every_way_to_choose_flex_attention(directory):
    routes = (
        load(directory),
        RecurrentGemmaForCausalLM(tiny_config(attn_implementation="flex_attention")),
        tiny_model(),
    )
    routes[2].set_attn_implementation("flex_attention")
    calls = []
    ids = torch.randint(0, 97, (2, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "local_attention_flex", lambda query, *_, **__: calls.append(query.shape[2]) or query)
        for model in routes:
            assert model.config._attn_implementation == "flex_attention"
            with torch.no_grad():
                model.eval()(ids)
    attention_layers = tiny_config().layers_block_type.count("sliding_attention")
    assert calls == [5] * (3 * attention_layers)


def test_flex_attention_generates_what_sdpa_does(directory):
    ids, options = torch.randint(3, 97, (2, 9)), {"do_sample": False, "max_new_tokens": 2 * WINDOW}
    actual, expected = (load(directory, name).generate(ids, **options) for name in ("flex_attention", "sdpa"))
    assert torch.equal(actual, expected)


def test_flex_attention_refuses_dropout_and_weights(directory):
    ids = torch.randint(0, 97, (2, 5))
    with pytest.raises(ValueError, match='output_attentions: expected attn_implementation="eager"'):
        load(directory)(ids, output_attentions=True)
    model = RecurrentGemmaForCausalLM(tiny_config(attn_implementation="flex_attention", attention_dropout=0.1))
    with pytest.raises(ValueError, match=r'dropout: expected 0 .*attn_implementation="sdpa"'):
        model.train()(ids)
