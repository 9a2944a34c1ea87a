"""A small model in the form in which Google publishes RecurrentGemma: made by DeepMind's JAX code, with a tokenizer.

Layout: DeepMind's ``colabs/sampling_tutorial_jax.ipynb`` and ``sampling_tutorial_pytorch.ipynb``. A release for JAX
holds ``2b-it/``, an Orbax directory, one for PyTorch ``2b-it.pt``; both hold ``tokenizer.model``.
"""

from pathlib import Path
from typing import Any

import torch

from tests.support import require
from tests.tokenization.sentencepiece_models import train

VARIANT = "2b-it"
# What no shape says, as options of the converter, in place of a preset.
OPEN_OPTIONS = ("--attention-window-size", "8", "--embeddings-scale-by-sqrt-dim", "--logits-soft-cap", "30")
OPEN_FIELDS: dict[str, Any] = {
    "attention_window_size": 8,
    "embeddings_scale_by_sqrt_dim": True,
    "logits_soft_cap": 30.0,
}


def jax_release(directory: Path) -> Path:
    """Make ``directory`` a release for JAX."""
    from recurrentgemma.jax.utils import save_parameters

    directory.mkdir()
    vocab_size = _tokenizer(directory)
    # Bare, as they come out of the model: save_parameters puts them below "params".
    save_parameters(str(directory / VARIANT), _parameters(vocab_size))
    return directory


def torch_release(directory: Path) -> Path:
    """Make ``directory`` a release for PyTorch."""
    from recurrentgemma.conversion import flax_params_to_pytorch_state_dict

    directory.mkdir()
    vocab_size = _tokenizer(directory)
    torch.save(dict(flax_params_to_pytorch_state_dict(_parameters(vocab_size))), directory / f"{VARIANT}.pt")
    return directory


def _tokenizer(directory: Path) -> int:
    path = train(directory / "tokenizer.model", vocab_size=700)
    return require("sentencepiece").SentencePieceProcessor(model_file=str(path)).vocab_size()


def _parameters(vocab_size: int) -> Any:
    jax = require("jax")
    require("recurrentgemma")
    from recurrentgemma.common import GriffinConfig, TemporalBlockType
    from recurrentgemma.jax.griffin import Griffin

    config = GriffinConfig(
        vocab_size=vocab_size,
        width=32,
        mlp_expanded_width=96,
        num_heads=2,
        lru_width=32,
        # Like the published models, it ends on another block than attention, off which DeepMind's from_torch_params
        # reads a wrong number of heads.
        block_types=tuple(
            getattr(TemporalBlockType, name) for name in ("RECURRENT", "RECURRENT", "ATTENTION", "RECURRENT")
        ),
        **OPEN_FIELDS,
    )
    positions = jax.numpy.arange(2)[None]
    variables = Griffin(config).init(jax.random.PRNGKey(0), positions, positions)
    return jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), variables["params"])
