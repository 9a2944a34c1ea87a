"""Contestants that are causal language models of Transformers: ours among them."""

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, CompileConfig, DynamicCache
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.contestant import Contestant, Decoding, Work
from benchmarks.timing import synchronize
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.compat import CACHE_NAME

Place = tuple[nn.Module, str]

# No token ends a generation before its length.
NO_SPECIAL_IDS = {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None}


class TransformersModel(Contestant):
    """A causal language model of Transformers, decoding through ``generate``.

    Args:
        model: The model, ready for inference.
        trained_with: A contestant on the very same parameters, whose optimizer updates them for both.
    """

    def __init__(self, model: Any, *, trained_with: "TransformersModel | None" = None) -> None:
        self.model = model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._trained_with = trained_with
        self._optimizer: torch.optim.Optimizer | None = None

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits[0].float().cpu()

    @torch.inference_mode()
    def decoded_logits(self, ids: Tensor, prompt: int) -> Tensor:
        cache = self._new_cache()
        columns = (ids[:, :prompt], *ids[:, prompt:].split(1, dim=1))
        parts = [self.model(input_ids=ids, use_cache=True, **{CACHE_NAME: cache}).logits for ids in columns]
        return torch.cat(parts, dim=1)[0].float().cpu()

    def loss(self, ids: Tensor) -> float:
        with torch.no_grad():
            return loss_of(self.model, ids).item()

    def prefill(self, ids: Tensor) -> Work:
        return lambda: self._read(ids)

    def training_step(self, ids: Tensor) -> Work:
        self.model.train()
        optimizer = self.optimizer

        def step() -> None:
            optimizer.zero_grad()
            loss_of(self.model, ids).backward()
            optimizer.step()

        return step

    def decoding(self, prompt: Tensor, tokens: int) -> Decoding:
        cache, before = self._new_cache(), _loose_tensors(self.model)
        self._read(prompt[:, :-1], **{CACHE_NAME: cache})
        after = _loose_tensors(self.model)
        kept = {place: tensor for place, tensor in after.items() if before.get(place) is not tensor}
        return _FromCache(self.model, prompt, tokens, cache, kept)

    def to(self, dtype: str) -> None:
        self.model.to(getattr(torch, dtype))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of this contestant's parameters, made when it is first asked for."""
        if self._trained_with is not None:
            return self._trained_with.optimizer
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        return self._optimizer

    @torch.inference_mode()
    def _read(self, ids: Tensor, **cache: Cache) -> None:
        self.model.eval()(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)

    def _new_cache(self) -> Cache:
        # Passed in rather than taken from the output, which in-tree's does not hold.
        config = self.model.config
        ours = isinstance(self.model, RecurrentGemmaForCausalLM)
        return RecurrentGemmaCache(config) if ours else DynamicCache(config=config)


class CompiledDecoding(TransformersModel):
    """The same model, decoding with the static cache, by which ``generate`` compiles its step. Decodes only."""

    note = "static cache, compiled step; its state is not counted, since generate() keeps it to itself"

    def decoding(self, prompt: Tensor, tokens: int) -> Decoding:
        return _Compiled(self.model, prompt, tokens)


def with_random_weights(kind: Any, config: Any) -> TransformersModel:
    """A model of another architecture, in fp32. The caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransformersModel(kind(config).eval())


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """The mean loss of ids (1, L), asked for as Trainer does in training. In-tree takes no ``num_items_in_batch``."""
    count = {"num_items_in_batch": ids.shape[1] - 1} if isinstance(model, RecurrentGemmaForCausalLM) else {}
    return model(input_ids=ids, labels=ids, use_cache=False, **count).loss


class _FromCache(Decoding):
    """Goes on from a cache, and from what the modules themselves keep: in-tree's recurrent states are there."""

    def __init__(self, model: Any, prompt: Tensor, tokens: int, cache: Cache, kept: dict[Place, Tensor]) -> None:
        self._model, self._prompt, self._tokens, self._cache, self._kept = model, prompt, tokens, cache, kept
        self.state_bytes = tensor_bytes([cache, kept])

    def seconds_per_token(self) -> float:
        # Copies: generate() extends what it is given.
        for (module, name), tensor in self._kept.items():
            setattr(module, name, tensor.clone())
        return _stopped(self._model, self._prompt, self._tokens, **{CACHE_NAME: copy.deepcopy(self._cache)})


class _Compiled(Decoding):
    def __init__(self, model: Any, prompt: Tensor, tokens: int) -> None:
        self._model, self._prompt, self._tokens = model, prompt, tokens
        self.state_bytes = 0
        # Compiles, before anything is timed.
        self.seconds_per_token()

    def seconds_per_token(self) -> float:
        compiling = CompileConfig(fullgraph=True, mode="default")
        return _stopped(
            self._model, self._prompt, self._tokens, cache_implementation="static", compile_config=compiling
        )


def _stopped(model: Any, prompt: Tensor, tokens: int, **options: Any) -> float:
    stopwatch = _Stopwatch()
    model.eval().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens + 1,
        do_sample=False,
        streamer=stopwatch,
        **options,
    )
    # The prompt, the first token, then one stamp for each token that counts.
    _, first, *decoded = stopwatch.stamps
    return (decoded[-1] - first) / len(decoded)


class _Stopwatch(BaseStreamer):
    """Notes when generate() hands over the prompt and each token."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Tensor) -> None:
        synchronize()
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def _loose_tensors(model: nn.Module) -> dict[Place, Tensor]:
    """Tensors that modules hold as plain attributes, neither parameters nor buffers."""
    return {(m, name): value for m in model.modules() for name, value in vars(m).items() if isinstance(value, Tensor)}


def tensor_bytes(holder: object) -> int:
    """Bytes of all tensors that an object holds, in attributes, lists and dicts of any depth, whole storages once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def visit(value: object) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return
        if id(value) in seen or callable(value):
            return
        seen.add(id(value))
        if isinstance(value, dict):
            inner: Any = value.values()
        elif isinstance(value, (list, tuple, set)):
            inner = value
        else:
            inner = getattr(value, "__dict__", {}).values()
        for part in inner:
            visit(part)

    visit(holder)
    return sum(storages.values())
