"""``RecurrentGemmaConfig``: the checkpoint's field names and defaults, validated on construction."""

import math
import os
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from recurrent_gemma.configuration.presets import PRESETS
from recurrent_gemma.configuration.remote_code import names_shim, write_shim

_INTEGERS = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "lru_width",
    "attention_window_size",
    "conv1d_width",
    "num_key_value_heads",
)
_LAYER_TYPES = {"recurrent": "linear_attention", "attention": "sliding_attention"}
# Values that follow from other fields. Checkpoints written by Transformers store some of them.
_DERIVED_FIELDS = (
    "head_dim",
    "mlp_width",
    "rotary_dim",
    "layer_types",
    "layers_block_type",
    "sliding_window",
    "final_logit_softcapping",
    "final_w_init_variance_scale",
)
_ROPE_DEFAULTS = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
# Transformers 4 stored these beside the other fields.
_LEGACY_ROPE_FIELDS = ("rope_theta", "partial_rotary_factor", "rope_scaling")


class RecurrentGemmaConfig(PreTrainedConfig):
    """Configuration of a Griffin-family model (RecurrentGemma, Griffin, Hawk).

    Field names and defaults are those of Transformers' own class, so published ``config.json`` files load unchanged.
    Source: arXiv 2402.19427 and PyPI ``recurrentgemma`` 1.0.1 (``GriffinConfig``). Each field is an argument.

    Attributes:
        num_hidden_layers: Number of residual blocks.
        vocab_size: Number of token embeddings.
        hidden_size: Width D of the residual stream.
        intermediate_size: Twice the width of the MLP; see :attr:`mlp_width`.
        num_attention_heads: Query heads of attention blocks, and blocks H of the RG-LRU's block-diagonal gates.
        lru_width: Width R of the recurrence; ``None`` means ``hidden_size``.
        attention_window_size: W. A query attends itself and the W keys before it, W + 1 keys in all.
        conv1d_width: Taps K of the temporal convolution.
        logits_soft_cap: Logits become ``cap * tanh(logits / cap)``; ``None`` or 0 turns it off.
        rms_norm_eps: Added to the mean square in RMSNorm.
        use_cache: Whether ``forward`` returns a cache by default.
        pad_token_id: Token of columns that hold none; ``None`` where there is none, as for the two below.
        eos_token_id: Token that ends a text.
        bos_token_id: Token that every text begins with.
        hidden_activation: Activation of the MLP's gate and of the recurrent block's gate branch.
        rope_parameters: ``{"rope_theta", "partial_rotary_factor", "rope_type"}``; the family knows no
            ``rope_type`` but ``"default"``. Default: theta 10,000 on the first half of each head.
        block_types: Pattern of ``"recurrent"`` and ``"attention"``, of any length, repeated and cut to
            ``num_hidden_layers``.
        attention_dropout: Dropout probability of attention weights in training.
        num_key_value_heads: Key/value heads; divides ``num_attention_heads``. ``None`` means as many (published: 1).
        attention_bias: Whether the query, key and value projections have a bias.
        w_init_variance_scale: Variance scale of the convolution's initialization.
        tie_word_embeddings: Whether the output projection is the embedding table.
        embeddings_scale_by_sqrt_dim: Whether embeddings are multiplied by sqrt(D), rounded to bfloat16.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field has a value outside its range, or fields contradict each other.
    """

    model_type = "recurrent_gemma"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"layer_types": "layers_block_type"}

    # Where None stands for a default, it is replaced on construction: annotations say what is read afterwards.
    num_hidden_layers: int = 26
    vocab_size: int = 256000
    hidden_size: int = 2560
    intermediate_size: int = 3 * 2560
    num_attention_heads: int = 10
    lru_width: int = None  # type: ignore[assignment]
    attention_window_size: int = 2048
    conv1d_width: int = 4
    logits_soft_cap: float | None = 30.0
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    bos_token_id: int | None = 2
    hidden_activation: str = "gelu_pytorch_tanh"
    rope_parameters: dict[str, Any] = None  # type: ignore[assignment]
    block_types: list[str] | tuple[str, ...] = ("recurrent", "recurrent", "attention")
    attention_dropout: float = 0.0
    num_key_value_heads: int = None  # type: ignore[assignment]
    attention_bias: bool = False
    w_init_variance_scale: float = 0.01
    tie_word_embeddings: bool = True
    embeddings_scale_by_sqrt_dim: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Transformers 4 saved the pattern under a private name.
        stored_pattern = kwargs.pop("_block_types", None)
        if stored_pattern is not None and tuple(self.block_types or ()) == type(self).block_types:
            self.block_types = stored_pattern
        if isinstance(self.block_types, (list, tuple)):
            self.block_types = list(self.block_types)
        if self.lru_width is None:
            self.lru_width = self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        model_type = kwargs.pop("model_type", self.model_type)
        expected = f"{self.model_type!r} (is this the config of another model?)"
        _expect(model_type == self.model_type, "model_type", expected, repr(model_type))
        layer_configs = kwargs.pop("per_layer_config", None)
        _expect(layer_configs is None, "per_layer_config", "None (layers differ by block_types only)", layer_configs)
        self.rope_parameters = self._gather_rope_parameters(kwargs)
        self._validate_fields()
        for name in ("rms_norm_eps", "attention_dropout", "w_init_variance_scale", "logits_soft_cap"):
            # Transformers' class refuses a file with an int here.
            if getattr(self, name) is not None:
                setattr(self, name, float(getattr(self, name)))
        self._pop_derived(kwargs)
        # Named twice, so that Transformers' check of rope_parameters expects it; some releases keep the second copy.
        super().__post_init__(partial_rotary_factor=self.rope_parameters["partial_rotary_factor"], **kwargs)
        self.__dict__.pop("partial_rotary_factor", None)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "RecurrentGemmaConfig":
        """Config of a published model.

        Args:
            preset: One of ``recurrent_gemma.PRESETS``.
            **overrides: Fields that differ from the preset.

        Raises:
            ValueError: The preset does not exist.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {preset!r}.")
        return cls(**{**PRESETS[preset], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RecurrentGemmaConfig":
        """Config from the fields of a ``config.json``, overridden by those among ``kwargs`` before validation."""
        names = (*cls.__dataclass_fields__, *_DERIVED_FIELDS, *_LEGACY_ROPE_FIELDS, "torch_dtype")
        overrides = {name: kwargs.pop(name) for name in names if name in kwargs}
        for name in ("dtype", "torch_dtype"):
            # "auto" is for models: the dtype of the weights.
            if overrides.get(name) == "auto":
                del overrides[name]
        return super().from_dict({**_without_obsolete(config_dict, overrides), **overrides}, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write ``config.json``, and the module of :mod:`.remote_code` beside it if the config names that."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if names_shim(getattr(self, "auto_map", None)):
            write_shim(save_directory)

    def validate(self) -> None:
        """Check every field again, since attributes may have been set; ``save_pretrained`` does.

        Raises:
            TypeError, ValueError: As on construction.
        """
        self._validate_fields()
        super().validate()  # type: ignore[misc]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        """True width of the MLP, half the checkpoint field ``intermediate_size``."""
        return self.intermediate_size // 2

    @property
    def layers_block_type(self) -> list[str]:
        """Type of each layer in Transformers' terms: ``linear_attention`` or ``sliding_attention``."""
        return [_LAYER_TYPES[self.block_types[i % len(self.block_types)]] for i in range(self.num_hidden_layers)]

    @property
    def sliding_window(self) -> int:
        """Keys a query sees in Transformers' terms, itself included: ``attention_window_size + 1``. May be set."""
        return self.attention_window_size + 1

    @sliding_window.setter
    def sliding_window(self, keys: int) -> None:
        if not isinstance(keys, int):
            raise TypeError(f"sliding_window: expected an int, as attention has a window always, got {keys!r}.")
        self.attention_window_size = keys - 1

    @property
    def final_logit_softcapping(self) -> float | None:
        """The soft cap under the name that TRL and others read; ``None`` when off."""
        return self.logits_soft_cap or None

    @property
    def final_w_init_variance_scale(self) -> float:
        """Variance scale of the last projection of every block at initialization."""
        return 2.0 / self.num_hidden_layers

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of each head that RoPE rotates."""
        return int(self.head_dim * self.rope_parameters["partial_rotary_factor"])

    def _gather_rope_parameters(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        theta, factor, scaling = (kwargs.pop(name, None) for name in _LEGACY_ROPE_FIELDS)
        given = scaling if self.rope_parameters is None else self.rope_parameters
        if given is not None and not isinstance(given, dict):
            raise TypeError(f"rope_parameters: expected a dict or None, got {given!r}.")
        _expect(scaling is None or given == scaling, "rope_scaling", "None together with rope_parameters", scaling)
        given = {"rope_type" if name == "type" else name: value for name, value in (given or {}).items()}
        legacy = {"rope_theta": theta, "partial_rotary_factor": factor}
        legacy = {name: value for name, value in legacy.items() if value is not None}
        for name in legacy.keys() & given.keys():
            expected = f"rope_parameters[{name!r}], which is {given[name]}, or None"
            _expect(legacy[name] == given[name], name, expected, legacy[name])
        return _ROPE_DEFAULTS | legacy | given

    def _validate_fields(self) -> None:
        self._validate_types()
        self._validate_values()
        self._validate_rope_parameters()

    def _validate_types(self) -> None:
        for name in _INTEGERS:
            _expect_type(name, getattr(self, name), int, "a positive int")
        for name in ("rms_norm_eps", "attention_dropout", "w_init_variance_scale"):
            _expect_type(name, getattr(self, name), (int, float), "a number")
        if self.logits_soft_cap is not None:
            _expect_type("logits_soft_cap", self.logits_soft_cap, (int, float), "a number or None")
        for name in ("use_cache", "attention_bias", "tie_word_embeddings", "embeddings_scale_by_sqrt_dim"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}.")
        if not isinstance(self.block_types, list):
            raise TypeError(f"block_types: expected a list of block names, got {self.block_types!r}.")
        _expect_type("hidden_activation", self.hidden_activation, str, "a name from transformers.activations.ACT2FN")
        _expect_type("rope_parameters", self.rope_parameters, dict, "a dict")
        for name in ("pad_token_id", "bos_token_id"):
            if getattr(self, name) is not None:
                _expect_type(name, getattr(self, name), int, "an int or None")
        for token in _as_list(self.eos_token_id):
            _expect_type("eos_token_id", token, int, "an int, a list of ints, or None")
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if self.dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, its name, or None, got {self.dtype!r}.")

    def _validate_values(self) -> None:
        for name in _INTEGERS:
            self._expect_field(name, getattr(self, name) >= 1, "at least 1")
        self._expect_field("intermediate_size", self.intermediate_size % 2 == 0, "an even number (twice the MLP width)")
        heads = self.num_attention_heads
        for name in ("hidden_size", "lru_width"):
            self._expect_field(name, getattr(self, name) % heads == 0, f"a multiple of num_attention_heads ({heads})")
        divides = heads % self.num_key_value_heads == 0
        self._expect_field("num_key_value_heads", divides, f"a divisor of num_attention_heads ({heads})")
        for name in ("rms_norm_eps", "w_init_variance_scale"):
            self._expect_field(name, 0 < getattr(self, name) < math.inf, "a finite number of more than 0")
        self._expect_field("attention_dropout", 0 <= self.attention_dropout < 1, "at least 0 and less than 1")
        cap = self.logits_soft_cap
        turned_off = "a finite number of at least 0, or None (0 and None turn it off)"
        self._expect_field("logits_soft_cap", cap is None or 0 <= cap < math.inf, turned_off)
        known = bool(self.block_types) and all(isinstance(b, str) and b in _LAYER_TYPES for b in self.block_types)
        self._expect_field("block_types", known, f"a non-empty list of {sorted(_LAYER_TYPES)}")
        known = self.hidden_activation in ACT2FN
        self._expect_field("hidden_activation", known, "a name from transformers.activations.ACT2FN")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            for token in _as_list(getattr(self, name)):
                _expect(
                    0 <= token < self.vocab_size, name, f"an id below vocab_size ({self.vocab_size}), or None", token
                )

    def _expect_field(self, name: str, condition: bool, expected: str) -> None:
        _expect(condition, name, expected, getattr(self, name))

    def _validate_rope_parameters(self) -> None:
        rope = self.rope_parameters
        field = "rope_parameters[{!r}]".format
        rope_type, keys = rope.get("rope_type"), sorted(_ROPE_DEFAULTS)
        _expect(
            rope_type == "default", field("rope_type"), "'default' (the family has no scaled RoPE)", repr(rope_type)
        )
        _expect(sorted(rope) == keys, "rope_parameters", f"the keys {keys}", sorted(rope))
        theta, factor = rope["rope_theta"], rope["partial_rotary_factor"]
        _expect_type(field("rope_theta"), theta, (int, float), "a number")
        _expect_type(field("partial_rotary_factor"), factor, (int, float), "a number")
        _expect(0 < theta < math.inf, field("rope_theta"), "a finite number of more than 0", theta)
        _expect(0 < factor <= 1, field("partial_rotary_factor"), "more than 0 and at most 1", factor)
        if "sliding_attention" in self.layers_block_type:
            _expect(
                self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
                field("partial_rotary_factor"),
                f"a share of head_dim ({self.head_dim}) that gives a positive even number of rotated dimensions",
                f"{factor}, which gives {self.rotary_dim}",
            )

    def _pop_derived(self, kwargs: dict[str, Any]) -> None:
        # Only at initialization, and not a choice: Transformers' class recomputes it as well.
        kwargs.pop("final_w_init_variance_scale", None)
        for name in kwargs.keys() & set(_DERIVED_FIELDS):
            given, derived = kwargs.pop(name), getattr(self, name)
            given = list(given) if isinstance(given, tuple) else given
            left_open = given is None and name != "final_logit_softcapping"
            expected = f"{derived} (derived from the other fields; set those instead)"
            _expect(left_open or given == derived, name, expected, given)


def _without_obsolete(stored: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``stored`` without what ``overrides`` say anew: derived values, and other spellings of the same fields."""
    if not overrides:
        return stored
    obsolete = set(_DERIVED_FIELDS)
    for name, spellings in {
        "block_types": ("_block_types",),
        "rope_parameters": _LEGACY_ROPE_FIELDS,
        "torch_dtype": ("dtype",),
        "dtype": ("torch_dtype",),
    }.items():
        if name in overrides:
            obsolete.update(spellings)
    kept = {name: value for name, value in stored.items() if name not in obsolete}
    if isinstance(rope := kept.get("rope_parameters"), dict):
        kept["rope_parameters"] = {name: value for name, value in rope.items() if name not in overrides}
    return kept


def _as_list(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _expect_type(name: str, value: Any, types: type | tuple[type, ...], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name}: expected {expected}, got {value!r} of type {type(value).__name__}.")


def _expect(condition: bool, name: str, expected: str, actual: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual}.")
