"""lm-eval's model ``recurrent_gemma``: right scores, one BOS, left padding, in order, whatever the batch."""

import random
from typing import Any

import pytest
import torch

from recurrent_gemma.evaluation.language_model import NAME, language_model
from tests.evaluation.by_hand import TOLERANCE, demo, held_out, lm, log_likelihood, recorded_rows, requests
from tests.support import require

require("lm_eval")

SHOTS = held_out(1200)


def multiple_choice() -> list[tuple[str, str]]:
    """Questions below shots of more than a window, each with choices; empty contexts; a context that is a window."""
    calls = [("", " In the beginning"), ("", "a"), ("And he said", " unto"), ("A line\n", "  with spaces ")]
    for begin in (20_000, 30_000, 40_000):
        calls += [(f"{SHOTS}\n{held_out(150, begin)}\nAnswer:", f" {letter}") for letter in "ABCD"]
        calls += [(f"{SHOTS}\n{held_out(90, begin)}", f" {held_out(50, begin + 400 * i)}") for i in range(3)]
    random.Random(1).shuffle(calls)
    return calls


def pair_of(call: tuple[str, str]) -> tuple[list[int], list[int]]:
    """What a call is in tokens, by the tokenizer alone."""
    _, tokenizer = demo()
    context, continuation = call
    context = context.rstrip()
    before = tokenizer(context).input_ids
    return before, tokenizer(call[0] + continuation).input_ids[len(before) :]


@pytest.fixture(scope="module")
def by_hand() -> list[tuple[float, bool]]:
    return [log_likelihood(*pair_of(call)) for call in multiple_choice()]


def assert_equal(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=TOLERANCE, rel=0)


def test_it_is_registered_under_its_name():
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    made = language_model()
    assert get_model(NAME) is made and issubclass(made, HFLM)


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared contexts", "plain"])
def test_log_likelihoods_are_those_by_hand(shared: bool, batch_size: int | str, by_hand: list[tuple[float, bool]]):
    model = lm(batch_size=batch_size, shared_contexts=shared)
    assert_equal(model.loglikelihood(requests("loglikelihood", multiple_choice()), disable_tqdm=True), by_hand)


def test_shared_contexts_are_read_once():
    read = {}
    for shared in (True, False):
        model = lm(shared_contexts=shared)
        model.loglikelihood(requests("loglikelihood", multiple_choice()), disable_tqdm=True)
        read[shared] = model.tokens_read
    assert read[True] < read[False] / 5


def test_every_answer_goes_to_the_cache_of_requests_once():
    model, kept = lm(), []
    model.cache_hook.add_partial = lambda kind, call, answer: kept.append((kind, call, answer))
    calls = multiple_choice()
    answers = model.loglikelihood(requests("loglikelihood", calls), disable_tqdm=True)
    expected = [("loglikelihood", call, answer) for call, answer in zip(calls, answers, strict=True)]
    assert sorted(kept) == sorted(expected)


@pytest.mark.parametrize("shared", [True, False], ids=["shared contexts", "plain"])
def test_rolling_text_past_the_window_is_one_long_pass(shared: bool):
    _, tokenizer = demo()
    texts = [held_out(2500), held_out(300, 9000), "a", ""]
    found = lm(shared_contexts=shared, batch_size=2).loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    tokens = [tokenizer(text).input_ids for text in texts]
    assert len(tokens[0]) > 3 * 128
    expected = [log_likelihood(ids[:1], ids[1:])[0] if text else 0.0 for ids, text in zip(tokens, texts, strict=True)]
    # Sums over hundreds of tokens.
    assert found == pytest.approx(expected, abs=10 * TOLERANCE, rel=0)


def test_a_longest_input_cuts_rolling_text_into_windows():
    _, tokenizer = demo()
    bos, *ids = tokenizer(held_out(500)).input_ids
    windows = [([bos], ids[:50]), ([ids[49]], ids[50:100]), (ids[len(ids) - 51 : 100], ids[100:])]
    assert 100 < len(ids) < 150
    found = lm(max_length=50).loglikelihood_rolling(requests("loglikelihood_rolling", [(held_out(500),)]))
    assert found == [pytest.approx(sum(log_likelihood(*window)[0] for window in windows), abs=TOLERANCE)]


def test_a_longest_input_cuts_contexts_behind_their_bos():
    context, continuation = pair_of((SHOTS, " And he said"))
    expected = log_likelihood([context[0], *context[-(60 - len(continuation)) :]], continuation)
    for shared in (True, False):
        found = lm(max_length=60, shared_contexts=shared).loglikelihood(
            requests("loglikelihood", [(SHOTS, " And he said")]), disable_tqdm=True
        )
        assert_equal(found, [expected])
    with pytest.raises(ValueError, match="expected room for a continuation"):
        lm(max_length=2).loglikelihood(requests("loglikelihood", [(SHOTS, " And he said")]), disable_tqdm=True)


def test_one_bos_before_every_sequence():
    _, tokenizer = demo()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    texts = ["In the beginning", "<bos>In the beginning", "<bos><bos>In the beginning", chat, ""]
    for options in ({}, {"add_bos_token": True}, {"prefix_token_id": tokenizer.bos_token_id}):
        for shared in (True, False):
            model = lm(shared_contexts=shared, **options)
            with recorded_rows() as rows:
                model.loglikelihood(requests("loglikelihood", [(text, " was") for text in texts]), disable_tqdm=True)
                model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts[:4]]))
                until = {"until": ["\n"], "max_gen_toks": 1, "do_sample": False}
                model.generate_until(requests("generate_until", [(text, until) for text in texts]))
            begin = [row for row in rows if tokenizer.bos_token_id in row]
            assert len(begin) >= 5 and all(row[0] == tokenizer.bos_token_id for row in begin)
            assert all(row.count(tokenizer.bos_token_id) == 1 for row in begin)
    first = [lm().loglikelihood(requests("loglikelihood", [(text, " was")]), disable_tqdm=True) for text in texts[:3]]
    assert first[0] == first[1] == first[2]


def test_a_text_without_special_tokens_keeps_the_bos_it_has():
    bos = demo()[1].bos_token_id
    encode = lm().tok_encode
    assert encode("a", add_special_tokens=False).count(bos) == 0
    assert encode("<bos><bos>a", add_special_tokens=False).count(bos) == 1
    assert encode("") == [bos]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_bos_token": False}, "add_bos_token: expected None or True, got False"),
        ({"prefix_token_id": 5}, "prefix_token_id: expected None or the tokenizer's BOS, 2, got 5"),
        ({"mixed_precision_dtype": "bfloat16"}, "mixed_precision_dtype: expected None with shared contexts"),
        ({"truncation": True}, "truncation: expected False, got True"),
    ],
)
def test_options_that_ask_for_something_else_raise(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        lm(**options)


def test_the_chat_template_is_read_as_the_tokenizer_writes_it():
    _, tokenizer = demo()
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "He."},
        {"role": "user", "content": "?"},
    ]
    model = lm()
    text = model.apply_chat_template(turns)
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert model.tok_encode(text) == expected and expected.count(tokenizer.bos_token_id) == 1
    with recorded_rows() as rows:
        model.loglikelihood(requests("loglikelihood", [(text, "It was")]), disable_tqdm=True)
    assert rows[0][: len(expected)] == expected


def generation_calls() -> list[tuple[str, dict[str, Any]]]:
    greedy = {"until": ["\n", ", and"], "max_gen_toks": 12, "do_sample": False}
    longer = {"until": [], "max_gen_toks": 20, "do_sample": False}
    prompts = [held_out(length, 700 * length) for length in (900, 40, 333, 7, 120)]
    return [(prompt, greedy) for prompt in prompts] + [(prompt, longer) for prompt in prompts[:3]]


def by_itself(prompt: str, options: dict[str, Any]) -> str:
    """The greedy answer by generate() alone, cut at the first stop string."""
    model, tokenizer = demo()
    ids = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=options["max_gen_toks"], do_sample=False)
    text = tokenizer.decode(answer[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    for stop in options["until"]:
        text = text.split(stop)[0]
    return text


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_answers_in_a_batch_are_those_one_by_one(batch_size: int | str):
    calls = generation_calls()
    found = lm(batch_size=batch_size).generate_until(requests("generate_until", calls), disable_tqdm=True)
    assert found == [by_itself(*call) for call in calls]
    assert len(set(found)) > 4


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_answers_below_shared_examples_are_those_one_by_one(batch_size: int | str):
    options = {"until": ["\n"], "max_gen_toks": 10, "do_sample": False}
    # Examples of more than two windows, and others; questions of different lengths, one of which is part of another.
    questions = [held_out(length, 5000 + 300 * length) for length in (60, 9, 31, 120)]
    prompts = [f"{held_out(1200)}\n{question}" for question in [*questions, questions[3][:40]]]
    prompts += [f"{held_out(700, 60_000)}\n{question}" for question in questions] + questions[:2] + [""]
    random.Random(2).shuffle(prompts)
    model = lm(batch_size=batch_size)
    with recorded_rows() as rows:
        found = model.generate_until(
            requests("generate_until", [(prompt, options) for prompt in prompts]), disable_tqdm=True
        )
    assert found == [by_itself(prompt, options) for prompt in prompts]
    read = sum(map(len, rows))
    new = 10 * len(prompts)
    if batch_size != "auto":  # whose one batch all prompts fit into
        assert read < 400 + 250 + 13 * 45 + new < sum(len(model.tok_encode(prompt)) for prompt in prompts)


def test_a_known_answer_changes_nothing_of_what_is_answered_with_it():
    """Otherwise the answers of a run that goes on would depend, by rounding, on where the first one was killed."""
    options = {"until": [], "max_gen_toks": 5, "do_sample": False}
    # Three batches of two rows, the longest first.
    calls = [(held_out(length, 500 * length), options) for length in (200, 180, 100, 90, 30, 20)]
    model = lm(batch_size=2)
    model.cache_hook.dbdict = kept = {}
    with recorded_rows() as whole:
        answers = model.generate_until(requests("generate_until", calls), disable_tqdm=True)
    assert len(kept) == len(calls) and len(whole) % 3 == 0
    batch = len(whole) // 3
    missing = next(key for key, answer in kept.items() if answer == answers[3])
    del kept[missing]
    with recorded_rows() as again:
        assert model.generate_until(requests("generate_until", calls), disable_tqdm=True) == answers
    assert again == whole[batch : 2 * batch]


def test_prompts_are_padded_on_the_left():
    model, (_, tokenizer) = lm(), demo()
    ids, mask = model.tok_batch_encode(["a", held_out(100)])
    assert mask[1].all() and mask[0].tolist() == sorted(mask[0].tolist()) and 0 < mask[0].sum() < mask.shape[1]
    assert ids[0][mask[0].bool()].tolist() == tokenizer("a").input_ids
    assert (ids[0][mask[0] == 0] == tokenizer.pad_token_id).all()


def test_sampled_answers_depend_on_the_seed_alone():
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    calls = [(held_out(60), options), (held_out(80, 500), options)]
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(random.randrange(1000))
        answers.append(lm(seed=seed).generate_until(requests("generate_until", calls), disable_tqdm=True))
    assert answers[0] == answers[1] != answers[2]


def test_an_answer_ends_at_the_end_of_its_turn(monkeypatch: pytest.MonkeyPatch):
    model, tokenizer = demo()
    (end,) = tokenizer.convert_tokens_to_ids(["<end_of_turn>"])
    forward = type(model).forward

    def ending(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits[..., end] = 100.0
        return output

    monkeypatch.setattr(type(model), "forward", ending)
    options = {"until": [], "max_gen_toks": 30, "do_sample": False}
    with recorded_rows() as rows:
        assert lm().generate_until(requests("generate_until", [("Hello", options)]), disable_tqdm=True) == [""]
    assert len(rows) == 1
