"""The models and prompts of the generation tests."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_config, tiny_model

# Columns of a prompt, and tokens after it: together they are more than four windows of the usual model.
PROMPT, NEW = 12, 20
WINDOW = 7

SHAPES: dict[str, dict[str, Any]] = {
    "shipped pattern": {},
    "all recurrent": {"block_types": ["recurrent"], "num_hidden_layers": 2},
    "all attention": {"block_types": ["attention"], "num_hidden_layers": 2, "num_key_value_heads": 4},
    "recurrence as wide as the model": {"lru_width": 32},
    "one recurrent layer": {"num_hidden_layers": 1},
    "one attention layer": {"num_hidden_layers": 1, "block_types": ["attention"]},
    "window as long as the prompt": {"attention_window_size": PROMPT},
    "window as long as the sequence": {"attention_window_size": PROMPT + NEW},
    "window longer than the sequence": {"attention_window_size": 3 * (PROMPT + NEW)},
}
every_shape = pytest.mark.parametrize("shape", list(SHAPES))


def build(shape: str = "shipped pattern", seed: int = 8, **fields: Any) -> RecurrentGemmaForCausalLM:
    """The fp32 model of ``shape`` with the seed's weights; ``fields`` are config fields that differ.

    The head is not tied to the embeddings: small tied models repeat the last token for ever, which says nothing of what
    they remember.
    """
    return tiny_model(tiny_config(**{"tie_word_embeddings": False, **SHAPES[shape], **fields}), seed)


def prompts(*lengths: int, vocabulary: int = 97) -> dict[str, Tensor]:
    """Random prompts, padded on the left to the longest: ``input_ids`` and ``attention_mask``."""
    columns = torch.arange(max(lengths))
    mask = (columns >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, vocabulary, (len(lengths), max(lengths)))
    return {"input_ids": ids * mask, "attention_mask": mask}


def continuation(model: RecurrentGemmaForCausalLM, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The ids after the prompt, NEW of them unless ``options`` say otherwise, under a seed of their own."""
    torch.manual_seed(1)
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
