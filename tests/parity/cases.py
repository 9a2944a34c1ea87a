"""The models that parity is tested on: configs, weights, tokens and positions, made from integers alone.

Everything comes from the raw stream of numpy's PCG64 by IEEE additions and multiplications, so it is the same to the
bit on every machine and with every numpy; only results are stored. This module knows neither JAX nor our models.
"""

from dataclasses import dataclass

import numpy as np
import torch

from recurrent_gemma.configuration import RecurrentGemmaConfig

# Tokens read at once before decoding goes on token by token.
PROMPT_LENGTH = 5
_SHORT = ((13, 1, 17, 9), (2, 3, 25, 10))
# Rows longer than one block of 64 queries of the blocked attention.
_LONG = ((40, 1, 70, 39), (2, 3, 100, 45))


@dataclass(frozen=True)
class Case:
    """One model, the seed of its weights and tokens, and the lengths of the documents in its packed rows."""

    name: str
    seed: int
    overrides: tuple[tuple[str, object], ...]
    documents: tuple[tuple[int, ...], ...] = _SHORT

    @property
    def config(self) -> RecurrentGemmaConfig:
        common = {"vocab_size": 97, "num_key_value_heads": 1, "attention_window_size": 8}
        return RecurrentGemmaConfig(**{**common, **dict(self.overrides)})

    @property
    def length(self) -> int:
        return sum(self.documents[0])

    def weights(self) -> dict[str, np.ndarray]:
        """fp32 weights by checkpoint name."""
        return make_weights(self.config, self.seed)

    def tokens(self) -> np.ndarray:
        """(B, L) int64 ids, the pad token among them: without a mask it is a token like any other."""
        tokens = _Stream(self.seed + 1000).integers(self.config.vocab_size, (len(self.documents), self.length))
        tokens[:, 7] = self.config.pad_token_id
        return tokens

    def positions(self) -> np.ndarray:
        """(B, L), every row one document."""
        return np.broadcast_to(np.arange(self.length), (len(self.documents), self.length)).copy()

    def packed_positions(self) -> np.ndarray:
        """(B, L), restarting with each of ``documents``."""
        return np.stack([np.concatenate([np.arange(n) for n in row]) for row in self.documents])

    def __str__(self) -> str:
        return self.name


def _case(name: str, seed: int, documents: tuple[tuple[int, ...], ...] = _SHORT, **overrides: object) -> Case:
    return Case(name, seed, tuple(overrides.items()), documents)


_GRIFFIN = ("recurrent", "recurrent", "attention")
CASES = (
    _case("shipped", 11, hidden_size=32, intermediate_size=192, num_attention_heads=2, num_hidden_layers=6,
          block_types=_GRIFFIN),
    _case("griffin_paper", 12, hidden_size=32, intermediate_size=192, num_attention_heads=4, num_hidden_layers=5,
          lru_width=48, block_types=_GRIFFIN, embeddings_scale_by_sqrt_dim=False, logits_soft_cap=None),
    _case("hawk_paper", 13, hidden_size=32, intermediate_size=160, num_attention_heads=4, num_hidden_layers=4,
          lru_width=48, block_types=("recurrent",), embeddings_scale_by_sqrt_dim=False, logits_soft_cap=None),
    _case("wide_lru", 14, hidden_size=48, intermediate_size=128, num_attention_heads=3, num_hidden_layers=4,
          lru_width=60, block_types=("attention", "recurrent")),
    _case("tiny_window", 15, _LONG, hidden_size=32, intermediate_size=128, num_attention_heads=2, num_hidden_layers=3,
          attention_window_size=4, block_types=("attention",), vocab_size=41),
)  # fmt: skip


def parameter_shapes(config: RecurrentGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of ``RecurrentGemmaForCausalLM`` by its checkpoint name, in sorted order; lm_head is tied."""
    width, lru, mlp, heads = config.hidden_size, config.lru_width, config.mlp_width, config.num_attention_heads
    keys = config.num_key_value_heads * config.head_dim
    recurrent = {
        "linear_x.weight": (lru, width), "linear_x.bias": (lru,),
        "linear_y.weight": (lru, width), "linear_y.bias": (lru,),
        "linear_out.weight": (width, lru), "linear_out.bias": (width,),
        "conv_1d.weight": (lru, 1, config.conv1d_width), "conv_1d.bias": (lru,),
        "rg_lru.recurrent_param": (lru,),
        "rg_lru.input_gate_weight": (heads, lru // heads, lru // heads),
        "rg_lru.input_gate_bias": (heads, lru // heads),
        "rg_lru.recurrent_gate_weight": (heads, lru // heads, lru // heads),
        "rg_lru.recurrent_gate_bias": (heads, lru // heads),
    }  # fmt: skip
    attention = {
        "q_proj.weight": (width, width), "k_proj.weight": (keys, width), "v_proj.weight": (keys, width),
        "o_proj.weight": (width, width), "o_proj.bias": (width,),
    }  # fmt: skip
    rest = {
        "temporal_pre_norm.weight": (width,), "channel_pre_norm.weight": (width,),
        "mlp_block.gate_proj.weight": (mlp, width), "mlp_block.gate_proj.bias": (mlp,),
        "mlp_block.up_proj.weight": (mlp, width), "mlp_block.up_proj.bias": (mlp,),
        "mlp_block.down_proj.weight": (width, mlp), "mlp_block.down_proj.bias": (width,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.final_norm.weight": (width,),
    }
    for layer, kind in enumerate(config.layers_block_type):
        temporal = recurrent if kind == "linear_attention" else attention
        block = {f"temporal_block.{name}": shape for name, shape in temporal.items()} | rest
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return dict(sorted(shapes.items()))


def make_weights(config: RecurrentGemmaConfig, seed: int) -> dict[str, np.ndarray]:
    """fp32 weights by checkpoint name, spread so that no part of the model is degenerate.

    Norms and biases are away from zero, attention logits have a standard deviation of about 2, the soft cap shows in
    logits of up to 10, and the recurrence's a covers 0.1 to 0.99999 with a median near 0.98.
    """
    stream = _Stream(seed)
    return {
        name: stream.uniform(*_weight_range(name, shape), shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def to_torch(weights: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights as a state dict."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in weights.items()}


class _Stream:
    """Uniform numbers in [0, 1) and integers out of PCG64's raw 64-bit stream."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        raw = self._bits.random_raw(int(np.prod(shape)))
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (low + (high - low) * unit).reshape(shape)

    def integers(self, high: int, shape: tuple[int, ...]) -> np.ndarray:
        raw = self._bits.random_raw(int(np.prod(shape)))
        return (raw % np.uint64(high)).astype(np.int64).reshape(shape)


def _weight_range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name == "model.final_norm.weight":
        return 0.0, 1.0
    if name.endswith("norm.weight"):
        return -0.5, 0.8
    if name.endswith("recurrent_param"):
        return -9.5, -1.0
    if name.endswith("_gate_bias"):
        return -1.0, 1.0
    if name.endswith("bias"):
        return -0.5, 0.5
    # A uniform distribution of half-width sqrt(3 / n) has the variance 1 / n.
    if name.endswith("embed_tokens.weight"):
        half = 0.5
    elif name.endswith("_gate_weight"):
        half = (3.0 / shape[1]) ** 0.5
    elif name.endswith("conv_1d.weight"):
        half = 1.0
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        half = 1.5 * (3.0 / shape[1]) ** 0.5
    else:
        half = (3.0 / shape[1]) ** 0.5
    return -half, half
