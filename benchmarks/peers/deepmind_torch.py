"""DeepMind's PyTorch model (PyPI ``recurrentgemma``) with our weights."""

import copy
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant, Decoding, UnavailableError, Work
from benchmarks.peers.deepmind_weights import deepmind_config, deepmind_weights, mean_cross_entropy
from benchmarks.peers.transformers_model import TransformersModel, tensor_bytes
from benchmarks.timing import synchronize


def build_deepmind_torch(size: Size, ours: TransformersModel) -> Contestant:
    """``recurrentgemma.torch.Griffin`` with a copy of our weights, without gradient checkpointing.

    Raises:
        UnavailableError: It is not installed.
    """
    config = deepmind_config(ours.model.config)
    try:
        from recurrentgemma.torch.griffin import Griffin
    except ImportError as error:
        raise UnavailableError(f"DeepMind's PyTorch model cannot be imported ({error})") from error
    with torch.device("meta"):
        griffin = Griffin(config, gradient_checkpointing=False)
    weights = {name: weight.clone() for name, weight in deepmind_weights(ours.model, "torch")}
    griffin.load_state_dict(weights, assign=True)
    return DeepMindTorch(griffin)


class DeepMindTorch(Contestant):
    """Reads prompts and decodes as ``recurrentgemma.torch.Sampler`` does, greedily."""

    def __init__(self, griffin: Any) -> None:
        self._griffin = griffin
        self.parameters = sum(parameter.numel() for parameter in griffin.parameters())

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        return self._run(ids, 0, None)[0][0].float().cpu()

    @torch.inference_mode()
    def decoded_logits(self, ids: Tensor, prompt: int) -> Tensor:
        logits, cache = self._run(ids[:, :prompt], 0, None)
        parts = [logits]
        for position in range(prompt, ids.shape[1]):
            logits, cache = self._run(ids[:, position : position + 1], position, cache)
            parts.append(logits)
        return torch.cat(parts, dim=1)[0].float().cpu()

    def loss(self, ids: Tensor) -> float:
        with torch.no_grad():
            return self._loss(ids).item()

    def prefill(self, ids: Tensor) -> Work:
        return lambda: self._read(ids)

    def training_step(self, ids: Tensor) -> Work:
        optimizer = torch.optim.AdamW(self._griffin.requires_grad_().parameters(), lr=1e-5)

        def step() -> None:
            optimizer.zero_grad()
            self._loss(ids).backward()
            optimizer.step()

        return step

    def decoding(self, prompt: Tensor, tokens: int) -> Decoding:
        return _Decoding(self, prompt, tokens)

    def to(self, dtype: str) -> None:
        self._griffin.to(getattr(torch, dtype))

    def _loss(self, ids: Tensor) -> Tensor:
        return mean_cross_entropy(self._run(ids, 0, None, return_cache=False)[0], ids)

    @torch.inference_mode()
    def _read(self, ids: Tensor) -> tuple[Tensor, Any]:
        # Their sampler reads all but the last token without logits.
        _, cache = self._run(ids[:, :-1], 0, None, return_logits=False)
        return self._run(ids[:, -1:], ids.shape[1] - 1, cache)

    @torch.inference_mode()
    def _step(self, token: Tensor, position: int, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = self._run(token, position, cache)
        return logits[:, -1].argmax(dim=-1, keepdim=True), cache

    def _run(self, ids: Tensor, first: int, cache: Any, **options: bool) -> tuple[Tensor, Any]:
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
        return self._griffin(ids, positions, cache, **options)


class _Decoding(Decoding):
    def __init__(self, model: DeepMindTorch, prompt: Tensor, tokens: int) -> None:
        self._model, self._tokens, self._length = model, tokens, prompt.shape[1]
        logits, self._cache = model._read(prompt)
        self._token = logits[:, -1].argmax(dim=-1, keepdim=True)
        self.state_bytes = tensor_bytes(self._cache)

    def seconds_per_token(self) -> float:
        # A copy: its attention writes into the cache.
        token, cache = self._token, copy.deepcopy(self._cache)
        token, cache = self._model._step(token, self._length, cache)
        synchronize()
        begin = time.perf_counter()
        for position in range(self._length + 1, self._length + 1 + self._tokens):
            token, cache = self._model._step(token, position, cache)
        synchronize()
        return (time.perf_counter() - begin) / self._tokens
