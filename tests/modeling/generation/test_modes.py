"""Every way to choose tokens: with the cache what a full forward pass at every step gives, each token read once."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from tests.modeling.generation.shapes import NEW, PROMPT, SHAPES, build, continuation, every_shape, prompts
from tests.tolerances import assert_routes_agree

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2, "length_penalty": 2.0},
    "several beams returned": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "prompt in chunks": {"prefill_chunk_size": 5},
}
# Every way with the shipped pattern, three of them with every shape.
CASES = [(mode, "shipped pattern") for mode in MODES]
CASES += [(mode, shape) for mode in ("greedy", "beams", "prompt in chunks") for shape in list(SHAPES)[1:]]
PROCESSORS = {
    "penalty": {"repetition_penalty": 1.2, "remove_invalid_values": True},
    "no n-gram twice": {"no_repeat_ngram_size": 2},
    "forbidden tokens": {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8]},
    "preferred tokens": {"sequence_bias": [[[5], 2.0], [[6, 7], 3.0]]},
    "forced end": {"forced_eos_token_id": 9},
    "least length": {"eos_token_id": list(range(50)), "min_new_tokens": 9},
    "guidance": {"guidance_scale": 1.5},
    "min_p": {"do_sample": True, "min_p": 0.05},
    "typical": {"do_sample": True, "typical_p": 0.9},
    "epsilon and eta": {"do_sample": True, "epsilon_cutoff": 3e-3, "eta_cutoff": 3e-3},
    "top_h": {"do_sample": True, "top_h": 0.6},
}


@every_shape
def test_small_models_say_something(shape):
    # Else the comparisons below would compare nothing.
    assert all(len(set(row.tolist())) >= 5 for row in continuation(build(shape), prompts(PROMPT, 3)))


@pytest.mark.parametrize(("mode", "shape"), CASES)
def test_cached_equals_uncached_and_every_token_is_read_once(mode, shape, count_columns):
    model, inputs = build(shape), prompts(PROMPT, 3)
    fed = count_columns(model)
    cached = continuation(model, inputs, **MODES[mode])
    assert sum(fed) < PROMPT + NEW
    assert mode != "prompt in chunks" or max(fed) == 5
    fed.clear()
    options = {name: value for name, value in MODES[mode].items() if name != "prefill_chunk_size"}
    assert torch.equal(cached, continuation(model, inputs, use_cache=False, **options))
    assert fed[-1] == PROMPT + NEW - 1


@pytest.mark.parametrize("processor", list(PROCESSORS))
def test_what_changes_logits_or_ends_a_sequence_sees_the_same_with_and_without_the_cache(processor, count_columns):
    model, inputs = build(), prompts(PROMPT, 5)
    fed = count_columns(model)
    cached = continuation(model, inputs, **PROCESSORS[processor])
    # Guidance runs the model a second time, on the last token of the prompt and what follows.
    assert sum(fed) < (PROMPT + NEW) * (2 if processor == "guidance" else 1)
    assert torch.equal(cached, continuation(model, inputs, use_cache=False, **PROCESSORS[processor]))


@every_shape
def test_rows_of_a_padded_batch_equal_their_solo_runs(shape):
    model, lengths = build(shape), (PROMPT, 1, 7)
    inputs = prompts(*lengths)
    batch = continuation(model, inputs)
    for row, length in enumerate(lengths):
        solo = {"input_ids": inputs["input_ids"][row : row + 1, PROMPT - length :]}
        assert torch.equal(batch[row], continuation(model, solo)[0])


def test_rows_that_end_early_leave_the_others_as_they_are():
    model, lengths = build(), (PROMPT, 4, 9, 6)
    inputs = prompts(*lengths)
    # Ids that end a sequence, few enough for the rows to end at different times.
    ends = {"eos_token_id": list(range(10, 30)), "pad_token_id": 0}
    batch, lengths_found = continuation(model, inputs, **ends), set()
    for row, length in enumerate(lengths):
        solo = continuation(model, {"input_ids": inputs["input_ids"][row : row + 1, PROMPT - length :]}, **ends)[0]
        assert torch.equal(batch[row, : len(solo)], solo)
        assert not batch[row, len(solo) :].any()
        lengths_found.add(len(solo))
    assert len(lengths_found) > 1


def test_beams_of_a_padded_batch_equal_their_solo_runs():
    model, inputs = build(), prompts(PROMPT, 5)
    batch = continuation(model, inputs, num_beams=3)
    solo = continuation(model, {"input_ids": inputs["input_ids"][1:, PROMPT - 5 :]}, num_beams=3)
    assert torch.equal(batch[1:], solo)


def test_one_beam_is_greedy_and_the_best_of_many_is_no_less_likely():
    model, inputs = build(), prompts(PROMPT)
    options = {"num_beams": 4, "return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}

    def log_probability(new):
        ids = torch.cat((inputs["input_ids"], new), dim=1)
        scores = model(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        return scores.gather(2, new[..., None]).sum().item()

    greedy = continuation(model, inputs)
    beams = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, eos_token_id=None, **options)
    best = beams.sequences[:, PROMPT:]
    assert beams.sequences_scores.item() == pytest.approx(log_probability(best), abs=1e-3)
    assert log_probability(best) >= log_probability(greedy) - 1e-3


def test_stopping_criteria_of_the_caller_end_generation():
    class Sum(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, PROMPT:].sum(dim=1) > 300

    model, inputs = build(), prompts(PROMPT)
    stopped = continuation(model, inputs, stopping_criteria=StoppingCriteriaList([Sum()]))
    assert torch.equal(stopped, continuation(model, inputs)[:, : stopped.shape[1]])
    assert stopped[:, :-1].sum() <= 300 < stopped.sum()


@every_shape
def test_eager_attention_generates_what_sdpa_does(shape):
    model, inputs = build(shape), prompts(PROMPT, 3)
    expected = continuation(model, inputs)
    model.set_attn_implementation("eager")
    assert torch.equal(continuation(model, inputs), expected)


def scattered(rows, columns, side):
    """Rows of ids in one batch, with pads on the given side, or at random places; pads hold an ordinary token."""
    ids, mask = torch.full((len(rows), columns), 5), torch.zeros(len(rows), columns, dtype=torch.long)
    for index, row in enumerate(rows):
        n = row.shape[1]
        places = {"left": range(columns - n, columns), "right": range(n)}
        chosen = torch.tensor(places[side]) if side in places else torch.randperm(columns)[:n].sort().values
        ids[index, chosen], mask[index, chosen] = row[0], 1
    return {"input_ids": ids, "attention_mask": mask}


# Pads anywhere are on either side and between tokens: with every shape. Those on one side with the shipped pattern; on
# the left, test_rows_of_a_padded_batch_equal_their_solo_runs has the others.
@pytest.mark.parametrize(
    ("shape", "side"), [(shape, "anywhere") for shape in SHAPES] + [("shipped pattern", s) for s in ("left", "right")]
)
def test_pads_on_any_side_leave_each_row_as_it_is_alone(shape, side):
    model, rows = build(shape), [torch.randint(3, 97, (1, n)) for n in (PROMPT, 1, 5)]
    batch = scattered(rows, PROMPT + 2, side)
    new = continuation(model, batch, max_new_tokens=50)
    for index, row in enumerate(rows):
        alone = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        assert torch.equal(new[index : index + 1], continuation(model, alone, max_new_tokens=50))
    for options in ({"cache_implementation": "static"}, {"use_cache": False}):
        assert torch.equal(continuation(model, batch, max_new_tokens=50, **options), new)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_pads_on_the_right_are_those_on_the_left_in_every_mode(options):
    model, rows = build(), [torch.randint(3, 97, (1, n)) for n in (PROMPT, 3, 7)]
    left, right = (continuation(model, scattered(rows, PROMPT, side), **options) for side in ("left", "right"))
    assert torch.equal(left, right)


def test_a_pad_repeats_the_logits_of_the_token_before_it():
    model, rows = build(), [torch.randint(3, 97, (1, n)) for n in (PROMPT, 4)]
    batch = scattered(rows, PROMPT + 1, "right")
    with torch.no_grad():
        logits = model(**batch).logits
        for index, row in enumerate(rows):
            last = model(row).logits[0, -1]
            for column in range(row.shape[1] - 1, PROMPT + 1):
                torch.testing.assert_close(logits[index, column], last, atol=2e-5, rtol=0)
        kept = model(**batch, logits_to_keep=1).logits
    torch.testing.assert_close(kept, logits[:, -1:], atol=2e-5, rtol=0)


def test_a_row_without_a_token_where_the_first_new_one_comes_from_is_refused():
    model, rows = build(), [torch.randint(3, 97, (1, n)) for n in (PROMPT, 4)]
    batch = scattered(rows, PROMPT, "right")
    with pytest.raises(ValueError, match=r"token of each row in the last 2 columns.* in row 1; pad on the left"):
        continuation(model, batch, prefill_chunk_size=5)
    with pytest.raises(ValueError, match="got pads only in row 0"):
        continuation(model, {"input_ids": batch["input_ids"], "attention_mask": torch.zeros(2, PROMPT).long()})
    continuation(model, batch, prefill_chunk_size=20)


IN_BF16 = {
    "default": {},
    "static": {"cache_implementation": "static"},
    "in chunks": {"prefill_chunk_size": 5},
    "drafts": {"prompt_lookup_num_tokens": 3},
}


# Whether the ways are right is seen in fp32; here the rounding of each, with a window that moves and one that does not.
@pytest.mark.parametrize(
    ("way", "shape"),
    [("default", shape) for shape in SHAPES]
    + [(way, shape) for way in list(IN_BF16)[1:] for shape in ("shipped pattern", "window as long as the sequence")],
)
def test_in_bf16_the_logits_are_those_of_an_uncached_pass(way, shape):
    """Near ties fall either way in bf16, so logits are compared along the tokens that were chosen."""
    options = IN_BF16[way]
    model = build(shape).to(torch.bfloat16)
    inputs = prompts(PROMPT) if "prompt_lookup_num_tokens" in options else prompts(PROMPT, 3)
    wanted = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False, "eos_token_id": None}
    outputs = model.generate(**inputs, **wanted, **options, max_new_tokens=NEW)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW), value=1)
    with torch.no_grad():
        logits = model(outputs.sequences, attention_mask=mask, use_cache=False).logits
    expected, actual = logits[:, PROMPT - 1 : -1], torch.stack(outputs.logits, dim=1)
    assert_routes_agree(actual, expected, model.config.num_hidden_layers, shape)
