"""The two models that a verification compares, DeepMind's JAX code and this package's, each run a part at a time.

Both have the same methods, take weights by the names of their own code, and compute on the CPU in the dtype of these,
fp32 or fp64. Neither keeps weights: what a method is given is free when it returns.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.checkpoints.orbax import array_of, tensor_of
from recurrent_gemma.conversion_scripts.parameter_map import BlockType
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.inputs import derive_sequence_inputs
from recurrent_gemma.modeling.layer_interface import LayerContext, Sealed
from recurrent_gemma.modeling.layers import rotary_angles

Weights = dict[str, Tensor]


class DeepMindModel:
    """DeepMind's JAX Griffin. Weights go by their paths in its parameters, inside a block by those below the block's.

    Parts are methods of DeepMind's own modules. Each is compiled once for all blocks of a type and a length.

    Args:
        config: The model; one that DeepMind's code can express.

    Raises:
        ImportError: DeepMind's code or JAX is not installed.
    """

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        import_deepmind()
        import jax

        self._config, self._jax = config, jax
        self._device = jax.local_devices(backend="cpu")[0]
        self._run = jax.jit(_apply, static_argnums=(0, 1))

    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """Embeddings (1, L, D) of ids (1, L) in a table (rows, D)."""
        return self._call(_embed, {"embedder/input_embedding": table}, ids.int(), vocab_size=len(table))

    def block(self, block_type: BlockType, weights: Weights, x: Tensor) -> Tensor:
        """x (1, L, D) after a residual block."""
        weights = {f"blocks.0/{name}": weight for name, weight in weights.items()}
        positions = torch.arange(x.shape[1], dtype=torch.int32)[None]
        return self._call(_block, weights, x, positions, block_types=(block_type,))

    def final_norm(self, norm: Tensor, x: Tensor) -> Tensor:
        """x (1, L, D) after the final norm."""
        return self._call(_final_norm, {"final_norm/scale": norm}, x)

    def logits(self, norm: Tensor, table: Tensor, x: Tensor) -> Tensor:
        """Logits (1, L, rows) of x (1, L, D), which is not normalized yet, for the rows (rows, D) of the table."""
        weights = {"final_norm/scale": norm, "embedder/input_embedding": table}
        return self._call(_logits, weights, x, vocab_size=len(table))

    def _call(
        self,
        method: Callable,
        weights: Weights,
        *inputs: Tensor,
        vocab_size: int = 1,
        block_types: tuple[BlockType, ...] = (),
    ) -> Tensor:
        params: dict[str, Any] = {}
        for path, weight in weights.items():
            *parents, last = path.split("/")
            branch = params
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = array_of(weight)
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        model = _griffin(self._config, vocab_size, block_types, dtype)
        with self._jax.default_device(self._device), _precision(self._jax, dtype):
            result = self._run(model, method, params, *(tensor.numpy() for tensor in inputs))
            return tensor_of(self._jax.device_get(result))


class OurModel:
    """This package's model. Weights go by their names in a Transformers checkpoint, inside a block by those in it.

    Args:
        config: The model.
    """

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        self._config = config
        with torch.device("meta"):
            self._model = RecurrentGemmaForCausalLM(config).eval()
        self._blocks = {"recurrent" if layer.is_recurrent else "attention": layer for layer in self._model.model.layers}
        # What is left are embeddings, final norm and head; each part is given weights when it is run.
        self._model.model.layers = nn.ModuleList()

    @torch.no_grad()
    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """Embeddings (1, L, D) of ids (1, L) in a table (rows, D)."""
        embed_tokens = self._model.model.embed_tokens
        return functional_call(embed_tokens, {"weight": table}, (ids,))

    @torch.no_grad()
    def block(self, block_type: BlockType, weights: Weights, x: Tensor) -> Tensor:
        """x (1, L, D) after a residual block."""
        sequence = derive_sequence_inputs(batch=1, length=x.shape[1], device=x.device)
        angles = rotary_angles(sequence.positions, self._config, x.dtype)
        context = LayerContext(sequence.starts, sequence.valid, sequence.past_length, *angles)
        block = self._blocks[block_type]
        return functional_call(block, weights, (x, Sealed(None), Sealed(context)), strict=True)[0]

    @torch.no_grad()
    def final_norm(self, norm: Tensor, x: Tensor) -> Tensor:
        """x (1, L, D) after the final norm."""
        inputs = {"inputs_embeds": x, "use_cache": False}
        return functional_call(self._model.model, {"final_norm.weight": norm}, kwargs=inputs).last_hidden_state

    @torch.no_grad()
    def logits(self, norm: Tensor, table: Tensor, x: Tensor) -> Tensor:
        """Logits (1, L, rows) of x (1, L, D), which is not normalized yet, for the rows (rows, D) of the table."""
        weights = {"model.final_norm.weight": norm, "lm_head.weight": table}
        return functional_call(self._model, weights, kwargs={"inputs_embeds": x, "use_cache": False}).logits


def import_deepmind() -> None:
    """Import DeepMind's JAX model.

    Raises:
        ImportError: It, or JAX, is not installed.
    """
    try:
        importlib.import_module("recurrentgemma.jax.griffin")
    except ImportError as error:
        raise ImportError(
            f"verify: DeepMind's JAX model, which the comparison runs, cannot be imported ({error}): pip install "
            '"recurrent-gemma[convert]"'
        ) from error


def griffin_config(config: RecurrentGemmaConfig, vocab_size: int, block_types: tuple[BlockType, ...]) -> Any:
    """DeepMind's config of a model, of which it has other numbers of embeddings and other blocks."""
    common = importlib.import_module("recurrentgemma.common")
    return common.GriffinConfig(
        vocab_size=vocab_size,
        width=config.hidden_size,
        mlp_expanded_width=config.mlp_width,
        num_heads=config.num_attention_heads,
        block_types=tuple(common.TemporalBlockType[block_type.upper()] for block_type in block_types),
        embeddings_scale_by_sqrt_dim=config.embeddings_scale_by_sqrt_dim,
        attention_window_size=config.attention_window_size,
        logits_soft_cap=config.logits_soft_cap or 0.0,
        lru_width=config.lru_width,
        # Of DeepMind's scans the one that compiles fast at every length; the default one is unrolled 128 times.
        scan_type=common.ScanType.ASSOCIATIVE_NATIVE,
    )


@contextlib.contextmanager
def _precision(jax: Any, dtype: str) -> Iterator[None]:
    """JAX makes fp32 of fp64 unless it is told not to."""
    if dtype != "float64":
        yield
        return
    # Where it was up to JAX 0.7.
    place = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with place.enable_x64(True):
        yield


def _griffin(config: RecurrentGemmaConfig, vocab_size: int, block_types: tuple[BlockType, ...], dtype: str) -> Any:
    griffin = importlib.import_module("recurrentgemma.jax.griffin")
    return griffin.Griffin(
        griffin_config(config, vocab_size, block_types),
        gradient_checkpointing=False,
        dtype=np.dtype(dtype),
        param_dtype=np.dtype(dtype),
    )


# Compiled by JAX, which finds what it has compiled by these very functions: they are made once, not in each call.
def _apply(model: Any, method: Callable, params: dict[str, Any], *inputs: Any) -> Any:
    return model.apply({"params": params}, *inputs, method=method)


def _embed(griffin: Any, ids: Any) -> Any:
    return griffin.embedder.encode(ids)


def _block(griffin: Any, x: Any, positions: Any) -> Any:
    return griffin.blocks[0](x, positions, None, False)[0]


def _final_norm(griffin: Any, x: Any) -> Any:
    return griffin.final_norm(x)


def _logits(griffin: Any, x: Any) -> Any:
    """The last lines of ``Griffin.__call__``."""
    import jax.numpy as jnp

    logits, cap = griffin.embedder.decode(griffin.final_norm(x)), griffin.config.logits_soft_cap
    return jnp.tanh(logits / cap) * cap if cap else logits
