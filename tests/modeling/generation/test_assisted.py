"""Assisted generation, whichever way drafts come about: token for token what greedy generation gives."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import recurrent_gemma
from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.generation.shapes import NEW, PROMPT, SHAPES, WINDOW, build, continuation, every_shape, prompts
from tests.modeling.models import tiny_config, tiny_model

DRAFTS = 5


def drafting(model):
    """``model`` as an assistant that always drafts as many tokens, sure of them or not."""
    config = model.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = DRAFTS, "constant"
    config.assistant_confidence_threshold = 0.0
    return model


def repeating_prompt():
    """A prompt in which lookup finds the last tokens again."""
    return {"input_ids": torch.randint(3, 97, (1, 4)).repeat(1, PROMPT // 4)}


@pytest.mark.parametrize(
    ("shape", "draft_seed"), [*((shape, 8) for shape in SHAPES), *((shape, 3) for shape in list(SHAPES)[:3])]
)
def test_a_draft_model(shape, draft_seed, count_columns):
    model, inputs = build(shape), prompts(PROMPT)
    expected = continuation(model, inputs)
    assistant, fed = drafting(build(shape, seed=draft_seed)), count_columns(model)
    assert torch.equal(continuation(model, inputs, assistant_model=assistant), expected)
    assert draft_seed != 8 or len(fed) < NEW / 2
    # Every round reads its drafts and one token more, at most.
    assert sum(fed) <= PROMPT + len(fed) * (DRAFTS + 1)


def test_a_draft_of_another_architecture():
    model, inputs = build(), prompts(PROMPT)
    expected = continuation(model, inputs)
    for pattern in ("recurrent", "attention"):
        assistant = build(seed=3, block_types=[pattern], num_hidden_layers=1, hidden_size=16, lru_width=16)
        assert torch.equal(continuation(model, inputs, assistant_model=drafting(assistant)), expected)


def test_the_default_schedule_of_drafts():
    model, inputs = build(), prompts(PROMPT)
    options = {"max_new_tokens": 4 * WINDOW}
    expected = continuation(model, inputs, **options)
    for seed in (8, 3):
        assert torch.equal(continuation(model, inputs, assistant_model=build(seed=seed), **options), expected)


@every_shape
def test_prompt_lookup(shape):
    model, inputs = build(shape), repeating_prompt()
    expected = continuation(model, inputs)
    for drafts in (2, 10):
        assert torch.equal(continuation(model, inputs, prompt_lookup_num_tokens=drafts), expected)


def test_prompt_lookup_saves_passes_where_the_text_repeats_itself(count_columns):
    # Tied to its embeddings, this model says its last token again and again.
    model, inputs = tiny_model(), repeating_prompt()
    expected, fed = continuation(model, inputs), count_columns(model)
    assert torch.equal(continuation(model, inputs, prompt_lookup_num_tokens=DRAFTS), expected)
    assert len(fed) < NEW / 2


@pytest.mark.parametrize("how", ["assistant", "lookup"])
def test_the_end_of_a_text_is_the_same(how):
    model, inputs = build(), repeating_prompt()
    ends = {"eos_token_id": continuation(model, inputs)[0, NEW // 2].item()}
    expected = continuation(model, inputs, **ends)
    assert expected.shape[1] <= NEW // 2 + 1
    drafts = {"assistant_model": drafting(build())} if how == "assistant" else {"prompt_lookup_num_tokens": DRAFTS}
    assert torch.equal(continuation(model, inputs, **ends, **drafts), expected)


@pytest.mark.parametrize("how", ["assistant", "lookup"])
def test_outputs_and_the_cache_that_is_handed_back(how):
    model, inputs = build(), repeating_prompt()
    options = {
        "do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "return_dict_in_generate": True,
        "output_scores": True, "output_logits": True, "output_hidden_states": True,
    }  # fmt: skip
    greedy = model.generate(**inputs, **options)
    drafts = {"assistant_model": drafting(build())} if how == "assistant" else {"prompt_lookup_num_tokens": DRAFTS}
    assisted = model.generate(**inputs, **options, **drafts)
    assert torch.equal(assisted.sequences, greedy.sequences)
    for name in ("scores", "logits"):
        ours, theirs = (torch.stack(getattr(outputs, name), dim=1) for outputs in (assisted, greedy))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    # The cache goes on as that of greedy generation does.
    caches = [getattr(outputs, CACHE_NAME) for outputs in (assisted, greedy)]
    assert isinstance(caches[0], RecurrentGemmaCache)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == PROMPT + NEW - 1
    with torch.no_grad():
        logits = [model(greedy.sequences[:, -1:], past_key_values=cache).logits for cache in caches]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=2e-5)


def test_sampling_with_drafts_draws_from_the_model():
    """Speculative sampling keeps the distribution: here that of the first token, drafted every time."""
    model, assistant = (build("one attention layer", seed, vocab_size=8) for seed in (8, 3))
    inputs = prompts(WINDOW, vocabulary=8)
    with torch.no_grad():
        probabilities = (model(**inputs).logits[0, -1] / 4).softmax(-1)
    drafting(assistant).generation_config.num_assistant_tokens = 1
    options = {"do_sample": True, "temperature": 4.0, "max_new_tokens": 2, "eos_token_id": None, "top_k": 0}
    draws, counts = 200, torch.zeros(8)
    for _ in range(draws):
        counts[model.generate(**inputs, assistant_model=assistant, **options)[0, WINDOW]] += 1
    # Five standard deviations of a count.
    deviation = (draws * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - draws * probabilities).abs() <= 5 * deviation + 1).all()
    assert (counts > 0).sum() > 2


def character_tokenizer():
    """One token for each printable ASCII character."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\n", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_draft_with_another_tokenizer():
    path = recurrent_gemma.demo_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer, characters = AutoTokenizer.from_pretrained(path), character_tokenizer()
    inputs = tokenizer("In the beginning", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
    expected = model.generate(**inputs, **options)
    assistant = drafting(tiny_model(tiny_config(vocab_size=len(characters), tie_word_embeddings=False)))
    both = {"tokenizer": tokenizer, "assistant_tokenizer": characters}
    assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant, **both), expected)


def test_a_batch_is_refused_by_transformers():
    with pytest.raises(ValueError, match="batch_size = 1"):
        continuation(build(), prompts(PROMPT, 3), assistant_model=build())
