"""The one table of which tensor is which, and how its axes lie, in the three kinds of checkpoints. Read both ways.

Kinds, by the names the command line uses:

- ``flax``: DeepMind's JAX model; names are paths, ``blocks.0/mlp_block/ffw_up/w``;
- ``torch``: DeepMind's PyTorch model; the same names with dots, ``kernel`` called ``weight`` and stored transposed;
- ``hf``: Transformers; the names of ``RecurrentGemmaForCausalLM.state_dict()``.

Source: the parameters of ``recurrentgemma/jax/modules.py`` and ``recurrentgemma/torch/modules.py`` of PyPI
``recurrentgemma`` 1.0.1, and ``recurrentgemma/conversion.py``, which turns the first into the second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["flax", "torch", "hf"]
BlockType = Literal["recurrent", "attention"]
KINDS: tuple[Kind, ...] = ("flax", "torch", "hf")


class Layout(NamedTuple):
    """How the Transformers tensors of a rule lie in DeepMind's one tensor, and the inverse. Values stay as they are."""

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]


SAME = Layout(lambda parts: parts[0], lambda whole: (whole,))
# nn.Linear keeps (out, in), flax keeps (in, out).
TRANSPOSED = Layout(lambda parts: parts[0].T, lambda whole: (whole.T,))
# nn.Conv1d keeps (channels, 1, taps), DeepMind (taps, channels).
TAPS = Layout(lambda parts: parts[0][:, 0].T, lambda whole: (whole.T[:, None],))
# DeepMind keeps the two up-projections of the gated MLP in one array, the gate's first.
GATE_AND_UP = Layout(lambda parts: torch.stack([part.T for part in parts]), lambda whole: (whole[0].T, whole[1].T))
GATE_AND_UP_BIAS = Layout(
    lambda parts: torch.stack(list(parts))[:, None, None], lambda whole: (whole[0, 0, 0], whole[1, 0, 0])
)


@dataclass(frozen=True)
class Rule:
    """One tensor of DeepMind's models.

    Attributes:
        flax: Its path in the JAX model, empty where only Transformers has it; ``{layer}`` is the block's number.
        hf: The Transformers tensor of the same values, or the two that it holds both of.
        shape: Shape of each Transformers tensor, in the letters of :class:`Dimensions`; a number stands for itself.
        layout: How the Transformers tensors lie in the flax one.
        block_type: The blocks that have it; ``None``: all blocks, or it is outside of them.
    """

    flax: str
    hf: tuple[str, ...]
    shape: str
    layout: Layout = SAME
    block_type: BlockType | None = None

    @property
    def torch(self) -> str:
        """Name in DeepMind's PyTorch model."""
        return self.flax.replace("/", ".").replace("kernel", "weight")

    @property
    def in_blocks(self) -> bool:
        """Whether it belongs to blocks rather than to the model as a whole."""
        return "{layer}" in self.hf[0]

    def names(self, kind: Kind, layer: int | None = None) -> tuple[str, ...]:
        """The names of its tensors in a checkpoint of ``kind``, in block ``layer``."""
        names = {"flax": (self.flax,), "torch": (self.torch,), "hf": self.hf}[kind]
        return tuple(name.replace("{layer}", str(layer)) for name in names)

    def layout_of(self, kind: Kind) -> Layout:
        """How the Transformers tensors lie in a checkpoint of DeepMind's ``kind``."""
        return SAME if kind == "torch" and self.layout is TRANSPOSED else self.layout

    def to_hf(self, kind: Kind, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its tensors as Transformers has them, from those of a checkpoint of ``kind``; views where possible."""
        return tuple(tensors) if kind == "hf" else self.layout_of(kind).split(tensors[0])

    def from_hf(self, kind: Kind, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inverse of :meth:`to_hf`."""
        return tuple(tensors) if kind == "hf" else (self.layout_of(kind).join(tensors),)

    def shapes(self, kind: Kind, sizes: "Dimensions") -> tuple[tuple[int, ...], ...]:
        """Shapes of its tensors in a checkpoint of ``kind``."""
        shape = tuple(int(d) if d.isdigit() else getattr(sizes, d) for d in self.shape.split())
        tensors = [torch.empty(shape, device="meta") for _ in self.hf]
        return tuple(tuple(tensor.shape) for tensor in self.from_hf(kind, tensors))


class Dimensions(NamedTuple):
    """The sizes that shapes consist of.

    Attributes:
        V: Vocabulary.
        D: Width of the residual stream.
        M: Width of the MLP.
        R: Width of the recurrence.
        H: Blocks of the gates.
        C: Channels of one such block.
        K: Taps of the convolution.
        Q: Width of the queries, all heads together.
        G: Width of the keys, all key/value heads together.
    """

    V: int
    D: int
    M: int
    R: int
    H: int
    C: int
    K: int
    Q: int
    G: int


def _block(flax: str, hf: str | tuple[str, ...], shape: str, layout: Layout = SAME) -> Rule:
    names = (hf,) if isinstance(hf, str) else hf
    return Rule("blocks.{layer}/" + flax, tuple("model.layers.{layer}." + name for name in names), shape, layout)


def _temporal(block_type: BlockType, flax: str, hf: str, shape: str, layout: Layout = SAME) -> Rule:
    return Rule(
        f"blocks.{{layer}}/{block_type}_block/{flax}",
        (f"model.layers.{{layer}}.temporal_block.{hf}",),
        shape,
        layout,
        block_type,
    )


RULES: tuple[Rule, ...] = (
    Rule("embedder/input_embedding", ("model.embed_tokens.weight",), "V D"),
    _block("temporal_pre_norm/scale", "temporal_pre_norm.weight", "D"),
    _temporal("recurrent", "linear_y/kernel", "linear_y.weight", "R D", TRANSPOSED),
    _temporal("recurrent", "linear_y/bias", "linear_y.bias", "R"),
    _temporal("recurrent", "linear_x/kernel", "linear_x.weight", "R D", TRANSPOSED),
    _temporal("recurrent", "linear_x/bias", "linear_x.bias", "R"),
    _temporal("recurrent", "linear_out/kernel", "linear_out.weight", "D R", TRANSPOSED),
    _temporal("recurrent", "linear_out/bias", "linear_out.bias", "D"),
    _temporal("recurrent", "conv_1d/w", "conv_1d.weight", "R 1 K", TAPS),
    _temporal("recurrent", "conv_1d/b", "conv_1d.bias", "R"),
    _temporal("recurrent", "rg_lru/a_param", "rg_lru.recurrent_param", "R"),
    _temporal("recurrent", "rg_lru/input_gate/w", "rg_lru.input_gate_weight", "H C C"),
    _temporal("recurrent", "rg_lru/input_gate/b", "rg_lru.input_gate_bias", "H C"),
    _temporal("recurrent", "rg_lru/a_gate/w", "rg_lru.recurrent_gate_weight", "H C C"),
    _temporal("recurrent", "rg_lru/a_gate/b", "rg_lru.recurrent_gate_bias", "H C"),
    _temporal("attention", "proj_q/kernel", "q_proj.weight", "Q D", TRANSPOSED),
    _temporal("attention", "proj_k/kernel", "k_proj.weight", "G D", TRANSPOSED),
    _temporal("attention", "proj_v/kernel", "v_proj.weight", "G D", TRANSPOSED),
    _temporal("attention", "proj_final/kernel", "o_proj.weight", "D Q", TRANSPOSED),
    _temporal("attention", "proj_final/bias", "o_proj.bias", "D"),
    _block("channel_pre_norm/scale", "channel_pre_norm.weight", "D"),
    _block("mlp_block/ffw_up/w", ("mlp_block.gate_proj.weight", "mlp_block.up_proj.weight"), "M D", GATE_AND_UP),
    _block("mlp_block/ffw_up/b", ("mlp_block.gate_proj.bias", "mlp_block.up_proj.bias"), "M", GATE_AND_UP_BIAS),
    _block("mlp_block/ffw_down/kernel", "mlp_block.down_proj.weight", "D M", TRANSPOSED),
    _block("mlp_block/ffw_down/bias", "mlp_block.down_proj.bias", "D"),
    Rule("final_norm/scale", ("model.final_norm.weight",), "D"),
)


# What DeepMind's models do not have: biases of a config with attention_bias, the head of one without tied embeddings.
_ATTENTION_BIASES = tuple(
    Rule("", (f"model.layers.{{layer}}.temporal_block.{name}.bias",), width, block_type="attention")
    for name, width in (("q_proj", "Q"), ("k_proj", "G"), ("v_proj", "G"))
)
_HEAD = Rule("", ("lm_head.weight",), "V D")


@dataclass(frozen=True)
class Parameter:
    """A rule in one block: what a conversion reads, turns over and writes at a time."""

    rule: Rule
    layer: int | None = None

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The names of its tensors in a checkpoint of ``kind``."""
        return self.rule.names(kind, self.layer)


def parameters(
    block_types: Sequence[BlockType], *, attention_bias: bool = False, tied_embeddings: bool = True
) -> list[Parameter]:
    """Every parameter of a model, block after block.

    Args:
        block_types: The type of each block.
        attention_bias: Whether its queries, keys and values have biases.
        tied_embeddings: Whether its output projection is the embedding table.
    """
    first, last = (rule for rule in RULES if not rule.in_blocks)
    in_blocks = [rule for rule in RULES if rule.in_blocks] + list(_ATTENTION_BIASES if attention_bias else ())
    return [
        Parameter(first),
        *(
            Parameter(rule, layer)
            for layer, block_type in enumerate(block_types)
            for rule in in_blocks
            if rule.block_type in (None, block_type)
        ),
        Parameter(last),
        *([] if tied_embeddings else [Parameter(_HEAD)]),
    ]
