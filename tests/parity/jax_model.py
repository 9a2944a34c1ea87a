"""DeepMind's Griffin (PyPI ``recurrentgemma``, JAX) built from this package's configs and weights. The judge of parity.

Import only where JAX is installed. Arrays cross the border as numpy; bf16 results come back as fp32 (exactly).
"""

from collections.abc import Callable
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from recurrentgemma.common import GriffinConfig, TemporalBlockType
from recurrentgemma.jax.griffin import Griffin

from recurrent_gemma.configuration import RecurrentGemmaConfig

_BLOCK_TYPES = {"linear_attention": TemporalBlockType.RECURRENT, "sliding_attention": TemporalBlockType.ATTENTION}
# One entry per parameter: our name inside a block, the path in a flax block, and how the axes go over. The two halves
# of ffw_up are handled apart, since one flax array holds both.
_IN_BLOCK: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("temporal_pre_norm.weight", ("temporal_pre_norm", "scale"), "same"),
    ("channel_pre_norm.weight", ("channel_pre_norm", "scale"), "same"),
    ("mlp_block.down_proj.weight", ("mlp_block", "ffw_down", "kernel"), "transposed"),
    ("mlp_block.down_proj.bias", ("mlp_block", "ffw_down", "bias"), "same"),
    ("temporal_block.linear_x.weight", ("recurrent_block", "linear_x", "kernel"), "transposed"),
    ("temporal_block.linear_x.bias", ("recurrent_block", "linear_x", "bias"), "same"),
    ("temporal_block.linear_y.weight", ("recurrent_block", "linear_y", "kernel"), "transposed"),
    ("temporal_block.linear_y.bias", ("recurrent_block", "linear_y", "bias"), "same"),
    ("temporal_block.linear_out.weight", ("recurrent_block", "linear_out", "kernel"), "transposed"),
    ("temporal_block.linear_out.bias", ("recurrent_block", "linear_out", "bias"), "same"),
    ("temporal_block.conv_1d.weight", ("recurrent_block", "conv_1d", "w"), "taps"),
    ("temporal_block.conv_1d.bias", ("recurrent_block", "conv_1d", "b"), "same"),
    ("temporal_block.rg_lru.recurrent_param", ("recurrent_block", "rg_lru", "a_param"), "same"),
    ("temporal_block.rg_lru.input_gate_weight", ("recurrent_block", "rg_lru", "input_gate", "w"), "same"),
    ("temporal_block.rg_lru.input_gate_bias", ("recurrent_block", "rg_lru", "input_gate", "b"), "same"),
    ("temporal_block.rg_lru.recurrent_gate_weight", ("recurrent_block", "rg_lru", "a_gate", "w"), "same"),
    ("temporal_block.rg_lru.recurrent_gate_bias", ("recurrent_block", "rg_lru", "a_gate", "b"), "same"),
    ("temporal_block.q_proj.weight", ("attention_block", "proj_q", "kernel"), "transposed"),
    ("temporal_block.k_proj.weight", ("attention_block", "proj_k", "kernel"), "transposed"),
    ("temporal_block.v_proj.weight", ("attention_block", "proj_v", "kernel"), "transposed"),
    ("temporal_block.o_proj.weight", ("attention_block", "proj_final", "kernel"), "transposed"),
    ("temporal_block.o_proj.bias", ("attention_block", "proj_final", "bias"), "same"),
)
# Compiling DeepMind's unrolled scan takes most of the time of a live comparison.
_COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_OUTSIDE = (
    ("model.embed_tokens.weight", ("embedder", "input_embedding"), "same"),
    ("model.final_norm.weight", ("final_norm", "scale"), "same"),
)
_TO_FLAX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda w: w, "transposed": lambda w: w.T, "taps": lambda w: w[:, 0].T,
}  # fmt: skip
_FROM_FLAX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda w: w, "transposed": lambda w: w.T, "taps": lambda w: w.T[:, None],
}  # fmt: skip


def griffin_config(config: RecurrentGemmaConfig) -> GriffinConfig:
    """DeepMind's config of the same model."""
    return GriffinConfig(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        mlp_expanded_width=config.mlp_width,
        num_heads=config.num_attention_heads,
        block_types=tuple(_BLOCK_TYPES[kind] for kind in config.layers_block_type),
        embeddings_scale_by_sqrt_dim=config.embeddings_scale_by_sqrt_dim,
        attention_window_size=config.attention_window_size,
        logits_soft_cap=config.logits_soft_cap or 0.0,
        lru_width=config.lru_width,
    )


def flax_params(weights: dict[str, np.ndarray]) -> dict:
    """Weights by checkpoint name -> flax's nested dict. Raises KeyError if a weight is left over."""
    left, params = dict(weights), {}
    for name, path, axes in _OUTSIDE:
        _put(params, path, _TO_FLAX[axes](left.pop(name)))
    layer = 0
    while any(name.startswith(f"model.layers.{layer}.") for name in left):
        prefix, block = f"model.layers.{layer}.", params.setdefault(f"blocks.{layer}", {})
        for name, path, axes in _IN_BLOCK:
            if prefix + name in left:
                _put(block, path, _TO_FLAX[axes](left.pop(prefix + name)))
        gate_up = [[left.pop(f"{prefix}mlp_block.{part}_proj.{kind}") for part in ("gate", "up")]
                   for kind in ("weight", "bias")]  # fmt: skip
        _put(block, ("mlp_block", "ffw_up", "w"), np.stack([w.T for w in gate_up[0]]))
        _put(block, ("mlp_block", "ffw_up", "b"), np.stack(gate_up[1])[:, None, None])
        layer += 1
    if left:
        raise KeyError(f"weights without a place in DeepMind's model: {sorted(left)}")
    return params


def checkpoint_weights(params: dict) -> dict[str, np.ndarray]:
    """The reverse of :func:`flax_params`, for parameters and for gradients."""
    weights = {name: _FROM_FLAX[axes](_get(params, path)) for name, path, axes in _OUTSIDE}
    for layer in range(sum(key.startswith("blocks.") for key in params)):
        prefix, block = f"model.layers.{layer}.", params[f"blocks.{layer}"]
        weights |= {prefix + name: _FROM_FLAX[axes](_get(block, path)) for name, path, axes in _IN_BLOCK
                    if path[0] in block}  # fmt: skip
        up_w, up_b = _get(block, ("mlp_block", "ffw_up", "w")), _get(block, ("mlp_block", "ffw_up", "b"))
        for half, part in enumerate(("gate", "up")):
            weights[f"{prefix}mlp_block.{part}_proj.weight"] = up_w[half].T
            weights[f"{prefix}mlp_block.{part}_proj.bias"] = up_b[half, 0, 0]
    return weights


def initial_weights(config: RecurrentGemmaConfig, seed: int) -> dict[str, np.ndarray]:
    """Weights by checkpoint name as DeepMind's code initializes them."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(Griffin(griffin_config(config)).init, compiler_options=_COMPILE_QUICKLY)
    params = init(jax.random.key(seed), tokens, jnp.arange(2)[None])["params"]
    return checkpoint_weights(jax.tree.map(_to_numpy, params))


class JaxModel:
    """DeepMind's Griffin with given weights. Arguments and results are numpy arrays.

    Args:
        bf16: Compute in bf16 instead of fp32.
        compile_quickly: Leave out the compiler's optimizations, for results of few steps.
    """

    def __init__(
        self,
        config: RecurrentGemmaConfig,
        weights: dict[str, np.ndarray],
        *,
        bf16: bool = False,
        compile_quickly: bool = False,
    ) -> None:
        dtype = jnp.bfloat16 if bf16 else jnp.float32
        # Checkpointing recomputes the blocks in the backward; it only costs time here.
        self.model = Griffin(griffin_config(config), gradient_checkpointing=False, dtype=dtype, param_dtype=dtype)
        self.params = jax.tree.map(lambda w: jnp.asarray(w, dtype), flax_params(weights))
        self._jit = partial(jax.jit, compiler_options=_COMPILE_QUICKLY if compile_quickly else None)

    def logits(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(B, L, V) logits of one pass."""
        logits, _ = self._forward(self.params, jnp.asarray(tokens), jnp.asarray(positions))
        return _to_numpy(logits)

    def hidden_states(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(layers + 1, B, L, D): the embeddings and the output of each block, before the final norm.

        Every block is compiled by itself, so that each output follows from the stored input and from nothing that the
        compiler kept at a higher precision between two blocks.
        """
        positions = jnp.asarray(positions)
        states = [self._embed(self.params, jnp.asarray(tokens))]
        for layer in range(self.model.config.num_layers):
            states.append(self._block(layer)(self.params, states[-1], positions))
        return _to_numpy(jnp.stack(states))

    def decode(self, tokens: np.ndarray, prompt_length: int) -> np.ndarray:
        """(B, L, V) logits of reading a prompt and going on token by token with the cache."""
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        logits, cache = self._forward(
            self.params, jnp.asarray(tokens[:, :prompt_length]), jnp.asarray(positions[:, :prompt_length])
        )
        parts = [logits]
        for t in range(prompt_length, tokens.shape[1]):
            token, position = (jnp.asarray(array[:, t : t + 1]) for array in (tokens, positions))
            logits, cache = self._step(self.params, token, position, cache)
            parts.append(logits)
        return _to_numpy(jnp.concatenate(parts, axis=1))

    def gradients(self, tokens: np.ndarray, positions: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """Mean next-token cross entropy within documents, and its gradient by checkpoint name."""
        loss, grads = self._loss_and_gradients(self.params, jnp.asarray(tokens), jnp.asarray(positions))
        return float(loss), checkpoint_weights(jax.tree.map(_to_numpy, grads))

    @cached_property
    def _forward(self):
        return self._jit(lambda params, tokens, positions: self.model.apply({"params": params}, tokens, positions))

    @cached_property
    def _step(self):
        return self._jit(
            lambda params, tokens, positions, cache: self.model.apply({"params": params}, tokens, positions, cache)
        )

    @cached_property
    def _embed(self):
        def run(module, tokens):
            return module.embedder.encode(tokens)

        return self._jit(lambda params, tokens: self.model.apply({"params": params}, tokens, method=run))

    def _block(self, layer: int):
        def run(module, x, positions):
            return module.blocks[layer](x, positions, None, False)[0]

        return self._jit(lambda params, *inputs: self.model.apply({"params": params}, *inputs, method=run))

    @cached_property
    def _loss_and_gradients(self):
        def loss(params, tokens, positions):
            logits, _ = self.model.apply({"params": params}, tokens, positions, return_cache=False)
            log_probs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
            # A document's first token is predicted by nothing.
            predicted = positions[:, 1:] != 0
            losses = -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
            return jnp.where(predicted, losses, 0.0).sum() / predicted.sum()

        return self._jit(jax.value_and_grad(loss))


def _to_numpy(array: jax.Array) -> np.ndarray:
    return np.asarray(array.astype(jnp.float32))


def _put(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree: dict, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return tree
