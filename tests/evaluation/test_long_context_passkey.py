"""The passkey task: prompts are what they say, and models of known behaviour score what they must."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast

from recurrent_gemma import demo_path
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.evaluation.long_context import passkey
from recurrent_gemma.evaluation.long_context.haystack import Haystack
from recurrent_gemma.evaluation.long_context.passkey import begins_with, wilson
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_config, tiny_model

NAMES = ["Moses", "Elinor", "Egypt", "Willoughby", "Aaron", "Mary", "Jerusalem", "a man of Bath"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_path())


@pytest.fixture(scope="module")
def config(tokenizer: Any) -> RecurrentGemmaConfig:
    return tiny_config(vocab_size=len(tokenizer), attention_window_size=30)


class Fake(RecurrentGemmaForCausalLM):
    """A language model of planted behaviour that keeps all it has read beside the state."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: Any, logits_to_keep: int = 0
    ) -> CausalLMOutputWithPast:
        history = vars(past_key_values).get("history", input_ids[:, :0])
        # A forked cache has more rows.
        history = history.repeat_interleave(len(input_ids) // len(history), dim=0)
        past_key_values.history = torch.cat((history, input_ids), dim=1)
        rows = past_key_values.history.tolist()
        columns = range(history.shape[1], len(rows[0]))[-logits_to_keep:]
        logits = torch.stack([torch.stack([self.next(row[: end + 1]) for end in columns]) for row in rows])
        return CausalLMOutputWithPast(logits=logits)

    def next(self, read: list[int]) -> Tensor:
        raise NotImplementedError


class Copier(Fake):
    """Expects what followed the longest earlier run of tokens, among the last ``horizon``, like the latest ones."""

    horizon = 10**6

    def next(self, read: list[int]) -> Tensor:
        read = read[-self.horizon :]
        logits = torch.zeros(self.vocab_size)
        best = max(range(1, len(read)), key=lambda i: (_common_suffix(read[:i], read), i), default=None)
        if best is not None and _common_suffix(read[:best], read) > 1:
            logits[read[best]] = 20.0
        return logits


class Unigram(Fake):
    """Has preferences, and reads nothing."""

    def next(self, read: list[int]) -> Tensor:
        return torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(0))


class Indifferent(Fake):
    """Takes every token for as likely as any other."""

    def next(self, read: list[int]) -> Tensor:
        return torch.zeros(self.vocab_size)


def _common_suffix(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b), 12) and a[-1 - length] == b[-1 - length]:
        length += 1
    return length


@pytest.mark.parametrize("length", [80, 131, 700])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("keys", [None, NAMES])
def test_a_prompt_is_filler_with_a_needle_and_a_question(
    tokenizer: Any, length: int, depth: float, keys: list[str] | None
):
    made = Haystack(tokenizer, keys=keys)
    prompt = made.prompt(length, depth, candidates=4, answer=2, seed=5)
    assert len(prompt.ids) == length and prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.decode(prompt.ids[1:])
    needle = f"Remember this well: the pass key is {prompt.key}. Once more, the pass key is {prompt.key}."
    assert text.count(needle) == 1 and text.endswith("What is the pass key? The pass key is")
    assert tokenizer.decode(prompt.ids[: prompt.needle_end]).endswith(needle)
    # The needle stands between sentences, of which only the first of the text may be cut.
    before, after = (part.strip() for part in text.split(needle))
    assert (before == "") == (depth == 0) and (after == made.question) == (depth == 1)
    assert after.removesuffix(made.question).strip()[-1:] in (".", "")
    if depth:
        assert before[-1] == "." and after[0].isupper()
    if length == 700 and depth == 0.3:
        assert prompt.needle_end / length == pytest.approx(0.3, abs=0.06)
    candidates = [tokenizer.decode(ids).strip() for ids in prompt.candidates]
    assert candidates[prompt.answer] == prompt.key and prompt.answer == 2 and len(set(candidates)) == 4
    assert all(
        candidate.isdigit() and len(candidate) == 5 if keys is None else candidate in NAMES for candidate in candidates
    )
    again, other = (made.prompt(length, depth, candidates=4, answer=2, seed=seed) for seed in (5, 6))
    assert again == prompt and other.candidates != prompt.candidates


def test_keys_are_the_same_at_every_length_and_depth(tokenizer: Any):
    made = Haystack(tokenizer)
    cells = [(90, 0.0), (90, 1.0), (300, 0.5)]
    prompts = [made.prompt(*cell, candidates=6, answer=i, seed=0) for i, cell in enumerate(cells)]
    assert len({tuple(map(tuple, prompt.candidates)) for prompt in prompts}) == 1


def test_prompts_that_cannot_be_made(tokenizer: Any):
    made = Haystack(tokenizer, keys=NAMES)
    with pytest.raises(ValueError, match=r"length: expected at least \d\d tokens"):
        made.prompt(12, 0.5, candidates=2, answer=0, seed=0)
    with pytest.raises(ValueError, match="depth: expected 0 to 1"):
        made.prompt(100, 1.5, candidates=2, answer=0, seed=0)
    with pytest.raises(ValueError, match=r"keys: expected .*, 9, got 8"):
        made.prompt(100, 0.5, candidates=9, answer=0, seed=0)
    with pytest.raises(ValueError, match=r"needle: expected a text with \{key\}"):
        Haystack(tokenizer, needle="nothing here")
    with pytest.raises(ValueError, match="filler: expected sentences"):
        Haystack(tokenizer, filler=" ")

    class Joining:
        """Makes one token of a text that ends with a key."""

        bos_token_id = None

        def __call__(self, text: str, add_special_tokens: bool) -> Any:
            ids = [1, 2] if text.endswith(" is") else [3]
            return type("Encoding", (), {"input_ids": ids})

    with pytest.raises(ValueError, match="question: expected one whose tokens stay"):
        Haystack(Joining()).prompt(20, 0.5, candidates=2, answer=0, seed=0)


def test_a_model_that_copies_finds_every_key(tokenizer: Any, config: RecurrentGemmaConfig):
    cells = passkey(
        Copier(config).eval(), tokenizer, lengths=[80, 150], depths=[0, 1], rounds=2, candidates=5, batch_size=4
    )
    assert [(cell.length, cell.depth) for cell in cells] == [(80, 0), (80, 1), (150, 0), (150, 1)]
    for cell in cells:
        assert cell.first.mean == cell.exact.mean == cell.mean_rank == 1.0
        assert cell.chance == 0.2 and cell.trials == 10 and cell.gain.low > 20
    # Names of several tokens, against names of other numbers of tokens.
    (cell,) = passkey(Copier(config).eval(), tokenizer, lengths=[90], depths=[0.5], rounds=2, candidates=8, keys=NAMES)
    assert cell.first.mean == cell.exact.mean == 1.0


def test_a_model_that_forgets_finds_only_keys_within_its_reach(tokenizer: Any, config: RecurrentGemmaConfig):
    model = Copier(config).eval()
    model.horizon = 60
    options = {"depths": [0, 1], "rounds": 4, "candidates": 4, "keys": NAMES, "batch_size": 16}
    far, near = passkey(model, tokenizer, lengths=[160], **options)
    assert near.first.mean == near.exact.mean == 1.0 and near.inside_window and near.distance < 20
    assert far.exact.mean == 0.0 and not far.inside_window and far.distance > 100
    assert far.first.mean == pytest.approx(0.25) and far.mean_rank == pytest.approx(2.5)
    assert far.gain.mean == pytest.approx(0, abs=1e-4) and near.gain.low > 10


def test_a_model_that_does_not_read_scores_chance(tokenizer: Any, config: RecurrentGemmaConfig):
    # To the letter: what it prefers is the key once in a round. Ties are shared.
    for model in (Unigram(config).eval(), Indifferent(config).eval()):
        for keys in (None, NAMES):
            (cell,) = passkey(
                model, tokenizer, keys=keys, lengths=[80], depths=[0.5], rounds=3, candidates=4, batch_size=6
            )
            assert cell.first.mean == pytest.approx(0.25) and cell.mean_rank == pytest.approx(2.5)
            assert cell.gain == pytest.approx((0, 0, 0), abs=1e-4) and cell.exact.mean == 0.0


@torch.no_grad()
def test_scores_of_a_real_model_are_those_of_whole_texts(tokenizer: Any, config: RecurrentGemmaConfig):
    model = tiny_model(config)
    made = Haystack(tokenizer, keys=NAMES)
    prompts = [made.prompt(100, 0.5, candidates=4, answer=i, seed=seed) for seed in range(2) for i in range(4)]
    gains, ranks, exact = [], [], 0
    for prompt in prompts:
        scores = []
        for candidate in prompt.candidates:
            ids = torch.tensor([prompt.ids + candidate])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt.ids) - 1 : -1].double()
            scores.append(logits.log_softmax(-1)[range(len(candidate)), candidate].sum().item())
        key = scores.pop(prompt.answer)
        gains.append(key - sum(scores) / 3)
        ranks.append(1 + sum(score > key for score in scores))
        exact += begins_with(tokenizer.decode(greedy(model, prompt.ids, 8)), prompt.key)
    options = {"lengths": [100], "depths": [0.5], "rounds": 2, "candidates": 4, "keys": NAMES}
    for batch_size, chunk_size in ((1, 512), (3, 33), (8, 1)):
        (cell,) = passkey(model, tokenizer, **options, batch_size=batch_size, chunk_size=chunk_size)
        assert cell.gain.mean == pytest.approx(sum(gains) / 8, abs=2e-4)
        assert cell.mean_rank == pytest.approx(sum(ranks) / 8)
        assert (cell.first.mean, cell.exact.mean) == pytest.approx((ranks.count(1) / 8, exact / 8))


@torch.no_grad()
def greedy(model: RecurrentGemmaForCausalLM, ids: list[int], count: int) -> list[int]:
    """The continuation, every token from the whole text."""
    read = list(ids)
    for _ in range(count):
        read.append(int(model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1].argmax()))
    return read[len(ids) :]


def test_an_answer_is_the_key_and_no_more():
    assert begins_with(" 12345. And", "12345") and begins_with("Moses", "Moses") and begins_with("Moses, who", "Moses")
    assert not begins_with("123456", "12345") and not begins_with("the 12345", "12345")


def test_wilson_intervals():
    # By hand for 2 of 10: z = 1.96 gives 0.0567 and 0.5098.
    assert wilson(2, 10) == pytest.approx((0.2, 0.0567, 0.5098), abs=1e-4)
    assert wilson(0, 5).low == 0.0 and wilson(5, 5).high == pytest.approx(1.0)


def test_wrong_arguments(tokenizer: Any, config: RecurrentGemmaConfig):
    model = Indifferent(config).eval()
    for name, value in (("rounds", 1), ("candidates", 1), ("chunk_size", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected at least"):
            passkey(model, tokenizer, lengths=[80], **{name: value})
    with pytest.raises(ValueError, match="eval mode"):
        passkey(Indifferent(config).train(), tokenizer, lengths=[80])
