"""Values that follow from the fields are what Transformers' cache, masking and loss code expects to read."""

import pytest

from recurrent_gemma.configuration import RecurrentGemmaConfig
from tests.modeling.models import tiny_config

R, A = "linear_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("block_types", "layers", "expected"),
    [
        (["recurrent", "recurrent", "attention"], 8, [R, R, A, R, R, A, R, R]),
        (["recurrent"], 3, [R, R, R]),
        (["attention"], 1, [A]),
        (["attention", "recurrent"], 1, [A]),
        (["attention", "recurrent", "attention", "attention", "recurrent"], 5, [A, R, A, A, R]),
        (["recurrent"] * 6 + ["attention"], 4, [R, R, R, R]),
        (("recurrent", "attention"), 3, [R, A, R]),
    ],
)
def test_layer_types_repeat_and_cut_the_pattern(block_types, layers, expected):
    config = tiny_config(block_types=block_types, num_hidden_layers=layers)
    assert config.layer_types == config.layers_block_type == expected


def test_layer_types_of_more_layers_than_a_hundred_patterns():
    layer_types = tiny_config(block_types=["recurrent", "attention"], num_hidden_layers=301).layer_types
    assert (len(layer_types), layer_types.count(A)) == (301, 150)


def test_sliding_window_counts_the_query_itself():
    config = tiny_config(attention_window_size=7)
    assert config.sliding_window == 8
    config.sliding_window = 3
    assert config == tiny_config(attention_window_size=2)
    config.sliding_window = 1
    with pytest.raises(ValueError, match="attention_window_size: expected at least 1"):
        config.validate()


@pytest.mark.parametrize(("cap", "expected"), [(30.0, 30.0), (12, 12.0), (0, None), (0.0, None), (None, None)])
def test_final_logit_softcapping_is_none_when_off(cap, expected):
    assert RecurrentGemmaConfig(logits_soft_cap=cap).final_logit_softcapping == expected


def test_widths():
    config = RecurrentGemmaConfig(hidden_size=96, num_attention_heads=6, intermediate_size=250, num_hidden_layers=8)
    assert (config.head_dim, config.mlp_width, config.rotary_dim) == (16, 125, 8)
    assert (config.lru_width, config.num_key_value_heads) == (96, 6)
    assert config.final_w_init_variance_scale == 0.25


def test_derived_values_follow_fields_that_are_set_later():
    config = tiny_config()
    config.num_hidden_layers, config.attention_window_size, config.logits_soft_cap = 2, 9, 0.0
    assert (config.layer_types, config.sliding_window, config.final_logit_softcapping) == ([R, R], 10, None)


@pytest.mark.parametrize(
    "name",
    ["head_dim", "mlp_width", "rotary_dim", "layer_types", "layers_block_type", "final_logit_softcapping",
     "final_w_init_variance_scale"],
)  # fmt: skip
def test_derived_values_cannot_be_set(name):
    with pytest.raises(AttributeError, match=r"no setter|can't set attribute"):
        setattr(tiny_config(), name, 3)


@pytest.mark.parametrize("name", ["head_dim", "mlp_width", "rotary_dim", "layer_types", "sliding_window"])
def test_true_derived_values_may_be_given(name):
    config = tiny_config()
    assert tiny_config(**{name: getattr(config, name)}) == config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (10_000.0, 0.5)),
        ({"rope_theta": 500.0}, (500.0, 0.5)),
        ({"partial_rotary_factor": 1.0}, (10_000.0, 1.0)),
        ({"rope_parameters": {"rope_theta": 500.0}}, (500.0, 0.5)),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, (10_000.0, 1.0)),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 500.0, "rope_scaling": None}, (500.0, 0.5)),
        ({"rope_scaling": {"type": "default", "rope_theta": 500.0}}, (500.0, 0.5)),
    ],
)
def test_rope_parameters_from_either_spelling(fields, expected):
    theta, factor = expected
    parameters = {"rope_theta": theta, "partial_rotary_factor": factor, "rope_type": "default"}
    assert tiny_config(**fields).rope_parameters == parameters


def test_arguments_are_copied():
    pattern, rope = ["recurrent", "attention"], {"rope_theta": 500.0}
    config = tiny_config(block_types=pattern, rope_parameters=rope)
    config.block_types.append("attention")
    assert (pattern, rope) == (["recurrent", "attention"], {"rope_theta": 500.0})


def test_a_window_cannot_be_taken_away():
    config = RecurrentGemmaConfig(attention_window_size=7)
    with pytest.raises(TypeError, match="sliding_window: expected an int, as attention has a window always, got None"):
        config.sliding_window = None
    assert config.attention_window_size == 7
