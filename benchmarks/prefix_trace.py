"""A workload for the prefix cache at the sizes of a large model, without the model: only the shapes of states count.

Tensors live on the meta device and hold nothing, so that gigabytes of states cost no memory; the cache that is measured
is the one that applications use.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import PrefixCache, RecurrentGemmaCache
from recurrent_gemma.modeling.cache import AttentionState, RecurrentState


class StatesOnly:
    """Stands for a model: reads ids into a cache as far as shapes and dtypes go, and counts them.

    Args:
        config: The config of the model it stands for.
        dtype: Dtype of that model.
        device: Of the states.
    """

    training = False

    def __init__(self, config: RecurrentGemmaConfig, dtype: torch.dtype, device: torch.device | str = "meta") -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device("cpu")
        self.tokens_read = 0
        self._options = {"dtype": dtype, "device": device}

    def __call__(self, input_ids: torch.Tensor, past_key_values: RecurrentGemmaCache, **_: object) -> None:
        """Extend the cache by (1, L) ids."""
        config, cache = self.config, past_key_values
        length = cache.columns + input_ids.shape[1]
        kept = (1, config.num_key_value_heads, min(config.attention_window_size, length), config.head_dim)
        for layer, layer_type in zip(cache.layers, config.layers_block_type, strict=True):
            if layer_type == "linear_attention":
                conv = torch.empty(1, config.conv1d_width - 1, config.lru_width, **self._options)
                rg_lru = torch.empty(1, config.lru_width, dtype=torch.float32, device=conv.device)
                layer.store(RecurrentState(conv, rg_lru))
            else:
                key, value = torch.empty(kept, **self._options), torch.empty(kept, **self._options)
                layer.store(AttentionState(key, value))
        cache.advance(input_ids.shape[1], torch.tensor([length]))
        self.tokens_read += input_ids.shape[1]


@dataclass(frozen=True)
class Request:
    """A prompt and the answer it will get."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def branching_trace(requests: int, *, vocab_size: int, seed: int = 0) -> Iterator[Request]:
    """Requests of an application, the same for the same seed.

    Eight system prompts of 300 to 4,000 tokens, one popular, most rare; conversations below them whose turns repeat all
    that was said; some about one of sixteen documents of 2,000 to 8,000 tokens; and one request in eight by itself.
    """
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocab_size) for _ in range(draw.randint(low, high)))

    systems = [tokens(300, 4000) for _ in range(8)]
    documents = [(draw.randrange(8), tokens(2000, 8000)) for _ in range(16)]
    open_conversations: list[tuple[int, ...]] = []
    for _ in range(requests):
        kind = draw.random()
        if kind < 0.5 and open_conversations:
            # Most often one of those that went on lately.
            place = len(open_conversations) - 1 - min(int(draw.expovariate(0.2)), len(open_conversations) - 1)
            past = open_conversations.pop(place)
        elif kind < 0.62:
            past = ()
        elif kind < 0.75:
            system, document = documents[min(int(draw.expovariate(0.2)), 15)]
            past = systems[system] + document
        else:
            past = systems[min(int(draw.expovariate(0.6)), 7)]
        request = Request(past + tokens(20, 400), tokens(30, 400))
        if kind >= 0.62 or kind < 0.5:
            open_conversations.append(request.prompt + request.answer)
        yield request


def whole_caches_hit_rate(config: RecurrentGemmaConfig, requests: Iterator[Request], *, max_bytes: int) -> float:
    """Token hit rate of the plain way: a whole cache for every end of a prompt and of an answer, the oldest goes."""
    kept: OrderedDict[tuple[int, ...], int] = OrderedDict()
    asked = reused = total = 0

    def keep(ids: tuple[int, ...]) -> None:
        nonlocal total
        total += 0 if ids in kept else state_bytes(config, length=len(ids)).total
        kept[ids] = state_bytes(config, length=len(ids)).total
        kept.move_to_end(ids)
        while total > max_bytes:
            total -= kept.popitem(last=False)[1]

    for request in requests:
        ids = request.prompt[:-1]
        asked += len(ids)
        found = max((known for known in kept if ids[: len(known)] == known), key=len, default=())
        reused += len(found)
        if found:
            kept.move_to_end(found)
        keep(ids)
        keep(request.prompt + request.answer[:-1])
    return reused / asked


def replay(cache: PrefixCache, model: StatesOnly, requests: Iterator[Request]) -> None:
    """Answer the requests as ``PrefixCache.generate`` does."""
    for request in requests:
        state = cache.prefill(model, request.prompt[:-1])
        # The last token of an answer is never read.
        ids = request.prompt + request.answer[:-1]
        model(torch.empty(1, len(ids) - state.columns, device="meta"), state)
        cache.insert(ids, state)
