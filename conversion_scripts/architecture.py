"""What model a checkpoint holds: from its shapes for DeepMind's kinds, from its config.json for Transformers'."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.checkpoints import Checkpoint, ConversionError, OptionsError, TensorInfo
from recurrent_gemma.conversion_scripts.parameter_map import (
    RULES,
    BlockType,
    Dimensions,
    Kind,
    Parameter,
    Rule,
    parameters,
)

# Far above any model's number of blocks; a name beyond it is no block's.
_MAX_BLOCKS = 10_000
# What no shape says.
OPEN_FIELDS = ("attention_window_size", "embeddings_scale_by_sqrt_dim", "logits_soft_cap")
# What is fixed in DeepMind's code.
_FIXED_FIELDS: dict[str, Any] = {
    "num_key_value_heads": 1,
    "conv1d_width": 4,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"},
}
_FIELDS_OF_BLOCKS = {
    "num_key_value_heads": "sliding_attention",
    "attention_bias": "sliding_attention",
    "rope_parameters": "sliding_attention",
    "conv1d_width": "linear_attention",
}


@dataclass(frozen=True)
class Architecture:
    """The parameters that a checkpoint has to have.

    Attributes:
        block_types: Type of each block.
        sizes: What the shapes consist of.
        parameters: Every parameter, block after block.
        problems: Where names or shapes contradict each other.
    """

    block_types: tuple[BlockType, ...]
    sizes: Dimensions
    parameters: tuple[Parameter, ...]
    problems: tuple[str, ...] = ()

    def tensors(self, kind: Kind) -> dict[str, tuple[int, ...]]:
        """Shape of each entry of a complete checkpoint of ``kind``, in the order of :attr:`parameters`."""
        return {
            name: shape
            for parameter in self.parameters
            for name, shape in zip(parameter.names(kind), parameter.rule.shapes(kind, self.sizes), strict=True)
        }

    def config_fields(self) -> dict[str, Any]:
        """The config fields that shapes give, for a model of DeepMind's."""
        return {
            "vocab_size": self.sizes.V,
            "hidden_size": self.sizes.D,
            "intermediate_size": 2 * self.sizes.M,
            "num_hidden_layers": len(self.block_types),
            "num_attention_heads": self.sizes.H,
            "num_key_value_heads": 1,
            "lru_width": self.sizes.R,
            "conv1d_width": self.sizes.K,
            "block_types": _pattern(self.block_types),
        }


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """The architecture of an open checkpoint.

    Raises:
        ConversionError: Names or shapes are not those of this family, or the config is not valid.
    """
    if checkpoint.config is not None:
        return architecture_of_config(read_config(checkpoint))
    return _from_shapes(checkpoint)


def read_config(checkpoint: Checkpoint) -> RecurrentGemmaConfig:
    """The config of a Transformers directory.

    Raises:
        ConversionError: It is another model's, or not valid.
    """
    # The dtype is that of the weights, whatever the file says.
    fields = {name: value for name, value in (checkpoint.config or {}).items() if name not in ("dtype", "torch_dtype")}
    try:
        return RecurrentGemmaConfig.from_dict(fields)
    except Exception as error:  # of Transformers' code as well, which does not check what it is given
        raise ConversionError(str(checkpoint.path / "config.json"), str(error)) from error


def architecture_of_config(config: RecurrentGemmaConfig) -> Architecture:
    """The architecture that a config describes."""
    block_types: tuple[BlockType, ...] = tuple(
        "recurrent" if kind == "linear_attention" else "attention" for kind in config.layers_block_type
    )
    sizes = Dimensions(
        V=config.vocab_size,
        D=config.hidden_size,
        M=config.mlp_width,
        R=config.lru_width,
        H=config.num_attention_heads,
        C=config.lru_width // config.num_attention_heads,
        K=config.conv1d_width,
        Q=config.num_attention_heads * config.head_dim,
        G=config.num_key_value_heads * config.head_dim,
    )
    found = parameters(block_types, attention_bias=config.attention_bias, tied_embeddings=config.tie_word_embeddings)
    return Architecture(block_types, sizes, tuple(found))


def config_of(
    architecture: Architecture, *, preset: str | None, options: dict[str, Any], dtype: str
) -> RecurrentGemmaConfig:
    """The config of a model of DeepMind's.

    Args:
        architecture: What the shapes say.
        preset: Name of the published model it is, for what they do not say.
        options: Values of ``OPEN_FIELDS`` in place of the preset's; ``None``: not given.
        dtype: Dtype of the weights.

    Raises:
        OptionsError: The preset is another model's, a field is left open, or a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    fields = architecture.config_fields()
    alike = [name for name in PRESETS if _same_shapes(architecture, name)]
    hint = [f"The shapes are those of {' and '.join(alike)}."] if alike else []
    if preset is not None:
        fixed = {**PRESETS[preset], "block_types": list(PRESETS[preset]["block_types"])}
        differing = [
            f"{name}: expected {value} (preset {preset}), got {fields[name]}."
            for name, value in fixed.items()
            if name not in OPEN_FIELDS and fields[name] != value
        ]
        if differing:
            raise OptionsError("preset", differing + hint)
        given = {**{name: fixed[name] for name in OPEN_FIELDS}, **given}
    if open_fields := [name for name in OPEN_FIELDS if name not in given]:
        what = "a value" if len(open_fields) == 1 else "values"
        message = f"expected {what}, which no shape says, got none; pass {what}, or preset."
        raise OptionsError(", ".join(open_fields), " ".join([message, *hint]))
    # Zero turns the cap off in DeepMind's code, None in the config.
    given["logits_soft_cap"] = given["logits_soft_cap"] or None
    fields |= given | _no_special_tokens(fields)
    try:
        return RecurrentGemmaConfig(**fields, architectures=["RecurrentGemmaForCausalLM"], dtype=dtype)
    except (TypeError, ValueError) as error:
        raise OptionsError("config", str(error)) from error


def beyond_deepmind(config: RecurrentGemmaConfig) -> list[str]:
    """What DeepMind's models cannot express of a config, one line each."""
    # A field of blocks that the model does not have says nothing.
    unused = {name for name, kind in _FIELDS_OF_BLOCKS.items() if kind not in config.layers_block_type}
    problems = [
        f"{name}: expected {value!r}, the only value in DeepMind's code, got {getattr(config, name)!r}."
        for name, value in _FIXED_FIELDS.items()
        if getattr(config, name) != value and name not in unused
    ]
    # Assertions and splits of jax/layers.py and jax/modules.py.
    if "linear_attention" in config.layers_block_type and config.lru_width % 2:
        problems.append(f"lru_width: expected an even number, as DeepMind's code does, got {config.lru_width}.")
    if "sliding_attention" in config.layers_block_type and config.head_dim % 4:
        problems.append(
            "hidden_size / num_attention_heads: expected a multiple of 4, as DeepMind's code does, got "
            f"{config.head_dim}."
        )
    return problems


def _from_shapes(checkpoint: Checkpoint) -> Architecture:
    kind = checkpoint.kind
    found = list(_recognize(kind, checkpoint.tensors))
    layers = sorted({layer for _, layer, _ in found if layer is not None})
    if not layers:
        some = ", ".join(list(checkpoint.tensors)[:5])
        raise ConversionError(
            str(checkpoint.path),
            f"expected the parameters of DeepMind's {'JAX' if kind == 'flax' else 'PyTorch'} model, such as "
            f"{RULES[0].names(kind)[0]} and {RULES[1].names(kind, 0)[0]}, got {some or 'no entry'}. Weights by "
            "Transformers' names are converted from their directory.",
        )
    problems = []
    block_types: list[BlockType] = []
    for layer in range(layers[-1] + 1):
        votes = Counter(rule.block_type for rule, at, _ in found if at == layer and rule.block_type)
        if not votes:
            problems.append(f"missing: {RULES[1].names(kind, layer)[0].rpartition('temporal')[0]}*, the whole block or "
                            "what tells its type.")  # fmt: skip
        block_types.append(votes.most_common(1)[0][0] if votes else "recurrent")
    sizes = _complete(_sizes(kind, found))
    wanted = tuple(p for p in parameters(block_types) if p.layer is None or p.layer in layers)
    return Architecture(tuple(block_types), sizes, wanted, tuple(problems))


def _recognize(kind: Kind, tensors: dict[str, TensorInfo]) -> Iterator[tuple[Rule, int | None, TensorInfo]]:
    """(rule, block, entry) of every entry whose name is one of the family's."""
    patterns = [(re.compile(re.escape(rule.names(kind)[0]).replace("None", r"(\d+)")), rule) for rule in RULES]
    for name, info in tensors.items():
        for pattern, rule in patterns:
            if match := pattern.fullmatch(name):
                layer = int(match[1]) if rule.in_blocks else None
                if layer is None or layer < _MAX_BLOCKS:
                    yield rule, layer, info


def _sizes(kind: Kind, found: Sequence[tuple[Rule, int | None, TensorInfo]]) -> dict[str, int]:
    """Each size as most of the shapes have it, so that a misshapen entry stands out."""
    votes: dict[str, Counter] = defaultdict(Counter)
    for rule, _, info in found:
        try:
            parts = rule.to_hf(kind, [torch.empty(info.shape, device="meta")])
        except (IndexError, RuntimeError):  # too few axes
            continue
        for letter, size in zip(rule.shape.split(), parts[0].shape, strict=False):
            votes[letter][size] += 1
    return {letter: counter.most_common(1)[0][0] for letter, counter in votes.items() if not letter.isdigit()}


def _complete(votes: dict[str, int]) -> Dimensions:
    """All sizes of a model of DeepMind's; its attention has one key/value head, and its convolution four taps."""
    width = votes.get("D", 0)
    # As many heads as the gates have blocks; without gates, as many as keys fit into the width.
    heads = votes.get("H") or width // max(votes.get("G", width), 1) or 1
    recurrence = votes.get("R", width)
    return Dimensions(
        V=votes.get("V", 0),
        D=width,
        M=votes.get("M", 0),
        R=recurrence,
        H=heads,
        C=recurrence // heads,
        K=_FIXED_FIELDS["conv1d_width"],
        Q=width,
        G=width // heads,
    )


def _pattern(block_types: Sequence[BlockType]) -> list[str]:
    """The shortest pattern that gives these types when it is repeated and cut."""
    for length in range(1, len(block_types) + 1):
        if all(block_type == block_types[i % length] for i, block_type in enumerate(block_types)):
            return list(block_types[:length])
    return list(block_types)


def _same_shapes(architecture: Architecture, preset: str) -> bool:
    config = RecurrentGemmaConfig.from_preset(preset, vocab_size=max(architecture.sizes.V, 4))
    other = architecture_of_config(config)
    return other.sizes == architecture.sizes and other.block_types == architecture.block_types


def _no_special_tokens(fields: dict[str, Any]) -> dict[str, None]:
    """The special ids that a vocabulary is too small for, as a config says that there are none."""
    defaults = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return {name: None for name, token in defaults.items() if token >= fields["vocab_size"]}
