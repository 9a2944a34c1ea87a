"""From the names of published checkpoints to those of the model in vLLM, where some matrices are stacked."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from vllm.model_executor.models.utils import WeightsMapper

# vLLM multiplies once by what is stacked. Each rank has its part of each of the matrices.
STACKED = WeightsMapper(
    orig_to_new_stacked={
        ".q_proj": (".qkv_proj", "q"),
        ".k_proj": (".qkv_proj", "k"),
        ".v_proj": (".qkv_proj", "v"),
        ".gate_proj": (".gate_up_proj", 0),
        ".up_proj": (".gate_up_proj", 1),
        ".linear_y": (".linear_in", 0),
        ".linear_x": (".linear_in", 1),
    }
)

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def without_tied_head(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint whose head is its embedding table, without the copy that some files have.

    Args:
        weights: Names and values.

    Raises:
        ValueError: The copy is another matrix, which the model would not use.
    """
    pair: dict[str, Tensor] = {}
    for name, weight in weights:
        if name in (_EMBEDDINGS, _HEAD):
            pair[name] = weight
        if len(pair) == 2 and not torch.equal(pair[_EMBEDDINGS], pair[_HEAD]):
            raise ValueError(
                f"{_HEAD}: expected the values of {_EMBEDDINGS}, since config.json says tie_word_embeddings=true, got "
                "others; set tie_word_embeddings=false to use both."
            )
        if len(pair) == 2:
            pair = {}
        if name != _HEAD:
            yield name, weight


__all__ = ["STACKED", "without_tied_head"]
