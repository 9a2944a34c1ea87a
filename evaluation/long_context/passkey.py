"""The passkey task: is a key that stands far back in a text still known at its end?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma.evaluation.long_context.bootstrap import BlockBootstrap, Interval
from recurrent_gemma.evaluation.long_context.haystack import Haystack, Prompt
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.heads.loss import IGNORED

# Standard deviations of a normal distribution that hold 95 % of it.
_Z = 1.959964


@dataclass(frozen=True)
class PasskeyCell:
    """What a model made of the prompts of one length and depth.

    Attributes:
        length: Tokens of each prompt.
        depth: Share of the filler before the needle.
        distance: Mean number of tokens between the needle and the answer.
        window: The model's attention window. Beyond it, no attention block sees the needle itself.
        trials: Prompts.
        candidates: Keys to compare, the right one among them.
        first: Share of prompts after which no other candidate is likelier than the key (a tie counts its share), with a
            Wilson interval; without reading, 1 in ``candidates``.
        mean_rank: Of the key among the candidates, from 1; without reading, half their number plus 0.5.
        gain: Log-likelihood of the key less the mean of the others', in nats, with an interval over rounds; without
            reading, 0.
        exact: Share of prompts that greedy decoding continues with the key, with a Wilson interval.
    """

    length: int
    depth: float
    distance: float
    window: int
    trials: int
    candidates: int
    first: Interval
    mean_rank: float
    gain: Interval
    exact: Interval

    @property
    def chance(self) -> float:
        """What ``first`` is without reading."""
        return 1 / self.candidates

    @property
    def inside_window(self) -> bool:
        """Whether attention can see the needle from where the answer is due, on average over the prompts."""
        return self.distance <= self.window


def passkey(
    model: RecurrentGemmaForCausalLM,
    tokenizer: Any,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    rounds: int = 8,
    candidates: int = 5,
    seed: int = 0,
    chunk_size: int = 512,
    batch_size: int = 4,
    **haystack: Any,
) -> list[PasskeyCell]:
    """Hide a key in texts of each length and at each depth, and ask for it at their end.

    The key's log-likelihood is compared with those of keys that stand nowhere in the text. In each round every
    candidate is hidden once, in the same filler. So whatever the model prefers, and whatever the tokenizer makes of the
    keys, cancels out: without reading, the scores are those of chance, and not only on average. A text is read once, in
    chunks; every candidate goes on from a copy of the state.

    Args:
        model: In eval mode.
        tokenizer: The model's.
        lengths: Tokens of the prompts.
        depths: 0: the needle begins the text; 1: it stands right before the question.
        rounds: Sets of candidates for each length and depth, the same for all of them; at least 2.
        candidates: Keys of a round, and so its prompts; at least 2.
        seed: Of keys and filler.
        chunk_size: As in :func:`token_losses`.
        batch_size: As there. As many copies of the state as there are prompts times candidates in a batch are in memory
            at once.
        **haystack: ``filler``, ``needle``, ``question``, ``keys`` of :class:`Haystack`.

    Returns:
        One cell for each length and depth.

    Raises:
        ValueError: As in :class:`Haystack`; a number that is too small, or a model in training mode.
    """
    if model.training:
        raise ValueError("model: expected one in eval mode, got one in training mode; call model.eval().")
    for name, value, least in (
        ("rounds", rounds, 2),
        ("candidates", candidates, 2),
        ("chunk_size", chunk_size, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}.")
    made = Haystack(tokenizer, **haystack)
    # All prompts before the first is read, so that what is wrong with one of them shows at once.
    grid = {
        (length, depth): [
            made.prompt(length, depth, candidates=candidates, answer=answer, seed=seed * 1_000_003 + number)
            for number in range(rounds)
            for answer in range(candidates)
        ]
        for length in lengths
        for depth in depths
    }
    cells = []
    for (length, depth), prompts in grid.items():
        scores, exact = [], 0
        for begin in range(0, len(prompts), batch_size):
            batch = prompts[begin : begin + batch_size]
            found, continuations = _answer(model, batch, chunk_size)
            scores.append(found)
            exact += sum(
                begins_with(tokenizer.decode(ids), prompt.key)
                for ids, prompt in zip(continuations.tolist(), batch, strict=True)
            )
        distance = sum(length - prompt.needle_end for prompt in prompts) / len(prompts)
        answers = torch.tensor([prompt.answer for prompt in prompts])
        cells.append(_cell(model, length, depth, distance, torch.cat(scores), answers, exact))
    return cells


@torch.inference_mode()
def _answer(model: RecurrentGemmaForCausalLM, prompts: list[Prompt], chunk_size: int) -> tuple[Tensor, Tensor]:
    """Log-likelihoods (B, C) of the candidates, fp64, and (B, n) tokens of greedy decoding."""
    cache = RecurrentGemmaCache(model.config)
    ids = torch.tensor([prompt.ids for prompt in prompts]).to(model.device)
    for part in ids.split(chunk_size, dim=1):
        logits = model(input_ids=part, past_key_values=cache, logits_to_keep=1).logits
    candidates = [candidate for prompt in prompts for candidate in prompt.candidates]
    count, longest = len(prompts[0].candidates), max(map(len, candidates))
    labels = torch.full((len(candidates), longest), IGNORED)
    for row, candidate in zip(labels, candidates, strict=True):
        row[: len(candidate)] = torch.tensor(candidate)
    labels = labels.to(model.device)
    predicted = logits.repeat_interleave(count, dim=0)
    if longest > 1:
        # Shorter candidates are filled up with some token: what comes after a token does not change what it scores.
        following = model(input_ids=labels[:, :-1].clamp(min=0), past_key_values=cache.fork(count)).logits
        predicted = torch.cat((predicted, following), dim=1)
    losses = F.cross_entropy(predicted.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    likelihoods = -losses.view(len(prompts), count, longest).double().sum(dim=-1).cpu()

    # One token more than the longest key, which shows whether the key ends where it should.
    token = logits[:, -1].argmax(dim=-1, keepdim=True)
    tokens = [token]
    for _ in range(longest):
        token = model(input_ids=token, past_key_values=cache).logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens.append(token)
    return likelihoods, torch.cat(tokens, dim=1).cpu()


def begins_with(text: str, key: str) -> bool:
    text = text.strip()
    return text.startswith(key) and not text[len(key) :][:1].isalnum()


def _cell(
    model: RecurrentGemmaForCausalLM,
    length: int,
    depth: float,
    distance: float,
    scores: Tensor,
    answers: Tensor,
    exact: int,
) -> PasskeyCell:
    """The cell of ``scores`` (trials, candidates), of which ``answers`` (trials,) are the keys'."""
    trials, candidates = scores.shape
    key = scores.gather(1, answers[:, None])
    better, equal = (scores > key).sum(dim=1), (scores == key).sum(dim=1) - 1
    first = torch.where(better == 0, 1 / (1 + equal), 0.0).sum().item()
    rank = (1 + better + equal / 2).double().mean().item()
    others = (scores.sum(dim=1) - key[:, 0]) / (candidates - 1)
    gain = BlockBootstrap(torch.arange(trials) // candidates).mean(key[:, 0] - others)
    return PasskeyCell(
        length=length,
        depth=depth,
        distance=distance,
        window=model.config.attention_window_size,
        trials=trials,
        candidates=candidates,
        first=wilson(first, trials),
        mean_rank=rank,
        gain=gain,
        exact=wilson(exact, trials),
    )


def wilson(successes: float, trials: int) -> Interval:
    """The share of successes with its 95 % interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    share, spread = successes / trials, _Z**2 / trials
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(share, max(0.0, center - half), min(1.0, center + half))


__all__ = ["PasskeyCell", "passkey", "wilson"]
