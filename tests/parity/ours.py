"""This package's model, driven like the others in this folder: numpy-made weights in, tensors out."""

import torch
from torch import Tensor

from recurrent_gemma import RecurrentGemmaCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from tests.parity.cases import Case, to_torch


def build(case: Case, dtype: torch.dtype = torch.float32) -> RecurrentGemmaForCausalLM:
    """The case's model with the case's weights, in eval mode."""
    return build_from(case.config, to_torch(case.weights()), dtype)


def build_from(
    config: RecurrentGemmaConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> RecurrentGemmaForCausalLM:
    """A model with the given weights, which must be exactly the ones it has (lm_head is tied)."""
    model = RecurrentGemmaForCausalLM(config)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    return model.to(dtype).eval()


def tokens_of(case: Case) -> Tensor:
    """(B, L)."""
    return torch.from_numpy(case.tokens())


@torch.no_grad()
def run(model: RecurrentGemmaForCausalLM, tokens: Tensor, **inputs: Tensor) -> Tensor:
    """(B, L, V) logits of one pass without a cache."""
    return model(input_ids=tokens, use_cache=False, **inputs).logits


@torch.no_grad()
def run_in_pieces(
    model: RecurrentGemmaForCausalLM, tokens: Tensor, pieces: list[int], positions: Tensor | None = None
) -> Tensor:
    """(B, L, V) logits of reading ``tokens`` in consecutive calls of the given lengths with one cache."""
    assert sum(pieces) == tokens.shape[1]
    cache, parts, begin = RecurrentGemmaCache(model.config), [], 0
    for length in pieces:
        span = slice(begin, begin + length)
        inputs = {} if positions is None else {"position_ids": positions[:, span]}
        parts.append(model(input_ids=tokens[:, span], past_key_values=cache, **inputs).logits)
        begin += length
    return torch.cat(parts, dim=1)


@torch.no_grad()
def hidden_states(model: RecurrentGemmaForCausalLM, tokens: Tensor) -> list[Tensor]:
    """Embeddings and the output of each block, before the final norm."""
    states: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: states.append(call[-1][0])) for layer in model.model.layers]
    hooks.append(model.model.embed_tokens.register_forward_hook(lambda *call: states.append(call[-1])))
    run(model, tokens)
    for hook in hooks:
        hook.remove()
    return states


@torch.no_grad()
def run_block(case: Case, layer: int, x: Tensor) -> Tensor:
    """Output (B, L, D) of one of the case's blocks alone for the input x (B, L, D), in x's dtype."""
    config = case.config
    config.block_types, config.num_hidden_layers = [_block_type(case, layer)], 1
    prefix, weights = f"model.layers.{layer}.", to_torch(case.weights())
    own = {name.replace(prefix, "model.layers.0."): w for name, w in weights.items()
           if name.startswith(prefix) or not name.startswith("model.layers.")}  # fmt: skip
    model = build_from(config, own, x.dtype)
    outputs: list[Tensor] = []
    model.model.layers[0].register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    model.model(inputs_embeds=x, use_cache=False)
    return outputs[0]


def gradients(model: RecurrentGemmaForCausalLM, tokens: Tensor, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean next-token cross entropy and its gradient by checkpoint name."""
    loss = model(input_ids=tokens, labels=tokens, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def _block_type(case: Case, layer: int) -> str:
    pattern = case.config.block_types
    return pattern[layer % len(pattern)]
