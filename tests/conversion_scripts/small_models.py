"""Small models of ours as checkpoints, for tests of what is said of two of them."""

from pathlib import Path

import torch

from tests.modeling.models import WINDOW, tiny_config, tiny_model

NAMES = {"hf": "hf", "flax": "flax", "torch": "torch.pt"}
OPTIONS = {"attention_window_size": WINDOW, "embeddings_scale_by_sqrt_dim": True, "logits_soft_cap": 30.0}


def save(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **fields: object) -> Path:
    """A Transformers directory with a model of three blocks, or of other ``fields``."""
    model = tiny_model(tiny_config(**{"num_hidden_layers": 3, **fields}), seed=seed).to(dtype)
    model.save_pretrained(folder / "hf")
    return folder / "hf"
