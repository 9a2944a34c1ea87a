"""What ``generate(return_dict_in_generate=True)`` hands back is what one forward pass over the whole sequence gives."""

import itertools

import pytest
import torch
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.generation.shapes import NEW, PROMPT, SHAPES, build, prompts
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close, logits_tolerance

EVERYTHING = {
    "max_new_tokens": NEW,
    "eos_token_id": None,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
}


@torch.inference_mode()
def one_pass(model, outputs, inputs, **options):
    """A forward pass without a cache over all but the last token of the generated sequences."""
    ids = outputs.sequences[:, :-1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW - 1), value=1)
    return model(ids, attention_mask=mask, use_cache=False, **options)


def by_column(steps, index, axis=1):
    """The tensors ``index`` of all steps, which follow each other in time, as one."""
    return torch.cat([step[index] for step in steps], dim=axis)


SHIPPED = "shipped pattern"


@pytest.mark.parametrize(
    ("shape", "use_cache", "do_sample"),
    [*((shape, True, False) for shape in SHAPES), (SHIPPED, True, True), (SHIPPED, False, False)],
)
def test_logits_and_hidden_states(shape, use_cache, do_sample):
    model, inputs = build(shape), prompts(PROMPT, 3)
    outputs = model.generate(**inputs, **EVERYTHING, do_sample=do_sample, use_cache=use_cache)
    assert isinstance(outputs, GenerateDecoderOnlyOutput)
    expected = one_pass(model, outputs, inputs, output_hidden_states=True)
    logits = expected.logits[:, PROMPT - 1 :]
    tolerance = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, logits)
    assert len(outputs.logits) == len(outputs.scores) == NEW
    assert_close(torch.stack(outputs.logits, dim=1), logits, tolerance, "logits")
    if not do_sample:
        assert all(torch.equal(*pair) for pair in zip(outputs.logits, outputs.scores, strict=True))
        assert torch.equal(torch.stack(outputs.scores, dim=1).argmax(-1), outputs.sequences[:, PROMPT:])
    steps = [tuple(h[:, -1:] for h in step) for step in outputs.hidden_states]
    columns = [step[0].shape[1] for step in outputs.hidden_states]
    assert columns == ([PROMPT] + [1] * (NEW - 1) if use_cache else list(range(PROMPT, PROMPT + NEW)))
    for index, hidden in enumerate(expected.hidden_states):
        difference = (by_column(steps, index) - hidden[:, PROMPT - 1 :]).abs().max()
        assert difference <= 1e-5 * hidden.abs().max(), index


@pytest.mark.parametrize("shape", ["shipped pattern", "one attention layer", "window longer than the sequence"])
def test_attention_weights(shape):
    model, inputs = build(shape), prompts(PROMPT, 3)
    model.set_attn_implementation("eager")
    outputs = model.generate(**inputs, **EVERYTHING, do_sample=False, output_attentions=True)
    expected = one_pass(model, outputs, inputs, output_attentions=True).attentions
    assert len(outputs.attentions) == NEW
    for step, layers in enumerate(outputs.attentions):
        end = PROMPT + step
        assert len(layers) == len(expected)
        for weights, whole in zip(layers, expected, strict=True):
            whole = whole[:, :, :end, :end] if step == 0 else whole[:, :, end - 1 : end, :end]
            # A cache holds the keys of the last window only.
            kept = weights.shape[-1]
            assert kept == (end if step == 0 else min(end, model.config.sliding_window))
            assert_close(weights, whole[..., -kept:], 1e-5, f"weights of step {step}")
            assert not whole[..., :-kept].any()


def test_attention_weights_of_a_fast_backend_raise():
    with pytest.raises(ValueError, match=r"output_attentions.*eager"):
        build().generate(**prompts(PROMPT), **EVERYTHING, output_attentions=True)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [False, True])
def test_beams(use_cache, do_sample):
    model, inputs = build(), prompts(PROMPT, 3)
    options = {**EVERYTHING, "num_beams": 3, "num_return_sequences": 2, "do_sample": do_sample, "use_cache": use_cache}
    torch.manual_seed(1)
    outputs = model.generate(**inputs, **options, length_penalty=0.0)
    assert isinstance(outputs, GenerateBeamDecoderOnlyOutput)
    assert outputs.sequences.shape == (4, PROMPT + NEW)
    transitions = model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    assert_close(transitions.sum(dim=1), outputs.sequences_scores, 1e-4, "scores")
    if not do_sample:
        repeated = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
        log_probabilities = one_pass(model, outputs, repeated).logits[:, PROMPT - 1 :].log_softmax(-1)
        expected = log_probabilities.gather(2, outputs.sequences[:, PROMPT:, None])[..., 0]
        assert_close(transitions, expected, 1e-4, "transition scores")
    # Logits of every beam, the beams of a row beside each other.
    assert [step.shape for step in outputs.logits] == [(6, 97)] * NEW


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_that_is_handed_back_has_seen_all_but_the_last_token(beams):
    model, inputs = build(), prompts(PROMPT, 3)
    outputs = model.generate(**inputs, **EVERYTHING, do_sample=False, num_beams=beams)
    cache = getattr(outputs, CACHE_NAME)
    assert isinstance(cache, RecurrentGemmaCache)
    assert cache.get_seq_length() == PROMPT + NEW - 1
    if beams == 1:
        expected = RecurrentGemmaCache(model.config)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW - 1), value=1)
        with torch.no_grad():
            model(outputs.sequences[:, :-1], attention_mask=mask, past_key_values=expected)
        for ours, theirs in zip(cache.layers, expected.layers, strict=True):
            for name, state, other in zip(itertools.count(), ours.load(), theirs.load(), strict=False):
                assert_close(state, other, 1e-5 * max(1.0, other.abs().max().item()), f"state {name}")
        assert torch.equal(cache.next_position, expected.next_position)
    without = model.generate(**inputs, **EVERYTHING, do_sample=False, num_beams=beams, use_cache=False)
    assert getattr(without, CACHE_NAME) is None
