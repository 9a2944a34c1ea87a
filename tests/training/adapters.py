"""Adapters for tests: on a small model, with weights that tell."""

from typing import Any

import torch
from torch import Tensor, nn

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_model


def adapted(adapter: Any, model: nn.Module | None = None) -> Any:
    """``model`` (default: ``tiny_model()``) under ``adapter``, whose trained weights are drawn anew, in eval mode."""
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the half that PEFT draws
        wrapped = peft.get_peft_model(tiny_model() if model is None else model, adapter)
    draw(wrapped)
    return wrapped.eval()


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Draw everything that is trained anew: most adapters start as no change at all."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def some_ids(model: RecurrentGemmaForCausalLM, rows: int = 2, length: int = 20) -> Tensor:
    """(rows, length) ids, beyond two windows of ``tiny_config()``."""
    return torch.randint(4, model.config.vocab_size, (rows, length))


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def generated(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """12 new greedy tokens."""
    mask = options.pop("attention_mask", torch.ones_like(ids))
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=mask, **settings, **options)
