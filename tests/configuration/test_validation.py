"""Every field is checked on construction: errors name the field, what was expected and what was given."""

import math
import re

import pytest

from recurrent_gemma.configuration import RecurrentGemmaConfig
from tests.modeling.models import tiny_config

INTEGERS = (
    "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "lru_width",
    "attention_window_size", "conv1d_width", "num_key_value_heads",
)  # fmt: skip
# hidden_size and num_attention_heads stand for lru_width and num_key_value_heads where these are None.
NEVER_NONE = [name for name in INTEGERS if name not in ("lru_width", "num_key_value_heads")]
NUMBERS = ("rms_norm_eps", "attention_dropout", "w_init_variance_scale")
BOOLEANS = ("use_cache", "attention_bias", "tie_word_embeddings", "embeddings_scale_by_sqrt_dim")

WRONG_TYPES = [
    *((name, value) for name in INTEGERS for value in (2.0, "2", True)),
    *((name, None) for name in NEVER_NONE),
    *((name, value) for name in NUMBERS for value in ("0.5", True, None)),
    *((name, value) for name in BOOLEANS for value in (1, "true", None)),
    ("logits_soft_cap", "30"),
    ("logits_soft_cap", True),
    ("hidden_activation", None),
    ("hidden_activation", ["gelu"]),
    ("block_types", "recurrent"),
    ("block_types", None),
    ("block_types", {"recurrent": 1}),
    ("rope_parameters", [10_000.0]),
    ("pad_token_id", 1.0),
    ("pad_token_id", [1, 2]),
    ("bos_token_id", [1, 2]),
    ("bos_token_id", True),
    ("eos_token_id", "1"),
    ("eos_token_id", [1, 2.0]),
    ("dtype", "float99"),
    ("dtype", "load"),
    ("dtype", 16),
]

WRONG_VALUES = [
    *((name, value) for name in INTEGERS for value in (0, -1)),
    ("intermediate_size", 97),
    ("hidden_size", 33),
    ("lru_width", 50),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 8),
    *((name, value) for name in ("rms_norm_eps", "w_init_variance_scale") for value in (0, -1.0, math.inf, math.nan)),
    *(("attention_dropout", value) for value in (-0.1, 1, math.nan)),
    *(("logits_soft_cap", value) for value in (-1.0, math.inf, math.nan)),
    ("block_types", []),
    ("block_types", ["recurrent", "mamba"]),
    ("block_types", ["recurrent", 1]),
    ("block_types", [["recurrent"]]),
    ("hidden_activation", "gelu_tanh_pytorch"),
    *((name, value) for name in ("pad_token_id", "bos_token_id", "eos_token_id") for value in (-1, 97)),
    ("eos_token_id", [1, 97]),
    ("model_type", "gemma"),
    ("per_layer_config", {0: {"attention_window_size": 3}}),
    ("head_dim", 16),
    ("mlp_width", 96),
    ("rotary_dim", 8),
    ("sliding_window", 7),
    ("layer_types", ["full_attention"] * 5),
    ("final_logit_softcapping", 12.0),
    ("final_logit_softcapping", None),
]


def named(name: str, value: object) -> str:
    """Pattern of a message that names the field and what was given, or the wrong one of several token ids."""
    given = value[-1] if name == "eos_token_id" and isinstance(value, list) else value
    return f"^{name}: expected .*, got .*{re.escape(str(given))}"


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_types(name, value):
    with pytest.raises(TypeError, match=named(name, value)):
        tiny_config(**{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_wrong_values(name, value):
    with pytest.raises(ValueError, match=named(name, value)):
        tiny_config(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("rope_theta", value, "a finite number of more than 0") for value in (0, -1.0, math.inf, math.nan)),
        *(("partial_rotary_factor", value, "more than 0 and at most 1") for value in (0, 1.5, math.nan)),
        # 3 of 8 dimensions do not make pairs.
        ("partial_rotary_factor", 0.4, "a share of head_dim (8) that gives a positive even number"),
        ("rope_theta", "10000", "a number"),
        ("partial_rotary_factor", True, "a number"),
    ],
)
def test_rope_values_by_either_spelling(name, value, expected):
    message = f"^{re.escape(f'rope_parameters[{name!r}]: expected {expected}')}.*, got {value!r}"
    for fields in ({name: value}, {"rope_parameters": {name: value}}):
        with pytest.raises((TypeError, ValueError), match=message):
            tiny_config(**fields)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "yarn", "factor": 8.0}, "rope_parameters['rope_type']: expected 'default'"),
        ({"type": "linear", "factor": 8.0}, "rope_parameters['rope_type']: expected 'default'"),
        ({"factor": 8.0}, "rope_parameters: expected the keys"),
        ({"sliding_attention": {"rope_theta": 10.0}}, "rope_parameters: expected the keys"),
        ({"rope_theta": None}, "rope_parameters['rope_theta']: expected a number, got None"),
    ],
)
def test_rope_parameters(parameters, message):
    for name in ("rope_parameters", "rope_scaling"):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
            tiny_config(**{name: parameters})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_theta": 3.0, "rope_parameters": {"rope_theta": 2.0}},
         "rope_theta: expected rope_parameters['rope_theta'], which is 2.0, or None, got 3.0"),
        ({"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}},
         "partial_rotary_factor: expected rope_parameters['partial_rotary_factor'], which is 0.5, or None, got 1.0"),
        ({"rope_scaling": {"rope_theta": 3.0}, "rope_parameters": {"rope_theta": 2.0}},
         "rope_scaling: expected None together with rope_parameters"),
    ],
)  # fmt: skip
def test_contradicting_spellings_of_rope(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_window_size": 1, "conv1d_width": 1, "num_hidden_layers": 1},
        {"num_key_value_heads": 2, "attention_bias": True, "attention_dropout": 0.5},
        {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
        {"pad_token_id": 96, "eos_token_id": [1, 96]},
        {"logits_soft_cap": None, "embeddings_scale_by_sqrt_dim": False, "tie_word_embeddings": False},
        {"hidden_activation": "relu", "rms_norm_eps": 1e-5, "w_init_variance_scale": 1},
        {"partial_rotary_factor": 1},
        # Heads of one dimension have nothing to rotate, which only attention minds.
        {"hidden_size": 4, "block_types": ["recurrent"]},
    ],
)
def test_unusual_but_right_values(fields):
    config = tiny_config(**fields)
    stated = {name: value for name, value in fields.items() if name != "partial_rotary_factor"}
    assert {name: getattr(config, name) for name in stated} == stated


def test_heads_too_small_to_rotate():
    with pytest.raises(ValueError, match=re.escape("a share of head_dim (2) that gives a positive even number")):
        tiny_config(hidden_size=8)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: expected one of .*'recurrentgemma-2b'.*, got 'recurrentgemma-3b'"):
        RecurrentGemmaConfig.from_preset("recurrentgemma-3b")


def test_preset_overrides_are_validated():
    assert RecurrentGemmaConfig.from_preset("recurrentgemma-2b", num_hidden_layers=3).num_hidden_layers == 3
    with pytest.raises(ValueError, match="num_key_value_heads: expected a divisor of num_attention_heads"):
        RecurrentGemmaConfig.from_preset("recurrentgemma-2b", num_key_value_heads=3)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("attention_window_size", "x", TypeError), ("num_key_value_heads", 3, ValueError), ("lru_width", None, TypeError),
     ("rope_parameters", None, TypeError), ("block_types", [], ValueError)],
)  # fmt: skip
def test_attributes_set_later_are_checked_before_they_are_saved(name, value, error, tmp_path):
    config = tiny_config()
    setattr(config, name, value)
    with pytest.raises(error, match=f"^{name}: expected"):
        config.validate()
    with pytest.raises(error, match=f"^{name}: expected"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
