"""Our weights and config as DeepMind's code has them, in memory."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.peers.contestant import UnavailableError
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.parameter_map import BlockType, parameters
from recurrent_gemma.conversion_scripts.sides import griffin_config, import_deepmind
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM


def deepmind_config(config: RecurrentGemmaConfig) -> Any:
    """DeepMind's config of the same model, with the associative one of its scans in JAX.

    The scan that its JAX code takes by default on CPU, a loop unrolled 128 times, takes minutes to compile at every
    length, and is no faster at these lengths.

    Raises:
        UnavailableError: DeepMind's code is not installed.
    """
    try:
        import_deepmind()
    except ImportError as error:
        raise UnavailableError(f"DeepMind's package cannot be imported ({error})") from error
    return griffin_config(config, config.vocab_size, _block_types(config))


def deepmind_weights(model: RecurrentGemmaForCausalLM, kind: Literal["flax", "torch"]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter of DeepMind's model, by the table that converts checkpoints."""
    weights = model.state_dict()
    for parameter in parameters(_block_types(model.config)):
        tensors = [weights[name] for name in parameter.names("hf")]
        (value,) = parameter.rule.from_hf(kind, tensors)
        yield parameter.names(kind)[0], value.contiguous()


def mean_cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Of logits (1, L, V), in fp32, against the next ids (1, L)."""
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])


def _block_types(config: RecurrentGemmaConfig) -> tuple[BlockType, ...]:
    pattern = config.block_types
    return tuple(pattern[i % len(pattern)] for i in range(config.num_hidden_layers))
