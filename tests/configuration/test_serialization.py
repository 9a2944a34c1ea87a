"""A config saved, loaded with overrides or copied is the same, whatever Transformers' machinery does to it."""

import copy
import json
import pickle

import pytest
import torch
from transformers import GenerationConfig

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from tests.modeling.models import tiny_config

VARIANTS = [
    {},
    {"block_types": ["attention", "recurrent", "recurrent", "recurrent"], "num_hidden_layers": 9},
    {"logits_soft_cap": None, "embeddings_scale_by_sqrt_dim": False},
    {"logits_soft_cap": 0.0, "tie_word_embeddings": False, "num_key_value_heads": 4},
    {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0}},
    {"dtype": "bfloat16", "num_labels": 3, "eos_token_id": [1, 7], "pad_token_id": None},
    {"attention_bias": True, "hidden_activation": "relu", "conv1d_width": 2},
]


def values(config) -> dict:
    """Everything but the version that saved it."""
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


def rope(theta: float = 10_000.0, factor: float = 0.5) -> dict:
    return {"rope_theta": theta, "partial_rotary_factor": factor, "rope_type": "default"}


@pytest.fixture
def saved(tmp_path):
    """A directory that holds ``tiny_config()``."""
    tiny_config().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize(
    "route",
    [
        pytest.param(lambda config, _: RecurrentGemmaConfig(**config.to_dict()), id="to_dict"),
        pytest.param(lambda config, _: RecurrentGemmaConfig.from_dict(config.to_diff_dict()), id="to_diff_dict"),
        pytest.param(lambda config, _: RecurrentGemmaConfig(**json.loads(config.to_json_string())), id="json"),
        pytest.param(lambda config, _: pickle.loads(pickle.dumps(config)), id="pickle"),
        pytest.param(lambda config, _: copy.deepcopy(config), id="deepcopy"),
        pytest.param(
            lambda config, path: config.save_pretrained(path) or RecurrentGemmaConfig.from_pretrained(path), id="file"
        ),
    ],
)
def test_round_trip(fields, route, tmp_path):
    config = tiny_config(**fields)
    again = route(config, tmp_path)
    assert values(again) == values(config)
    assert (again.layer_types, again.dtype, again.num_labels) == (config.layer_types, config.dtype, config.num_labels)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_round_trip(preset, tmp_path):
    config = RecurrentGemmaConfig.from_preset(preset)
    config.save_pretrained(tmp_path)
    assert values(RecurrentGemmaConfig.from_pretrained(tmp_path)) == values(config)


def test_copies_are_independent():
    config = tiny_config()
    twin = copy.deepcopy(config)
    twin.block_types.append("attention")
    twin.rope_parameters["rope_theta"] = 3.0
    assert values(config) == values(tiny_config())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"num_hidden_layers": 2}, {"layer_types": ["linear_attention"] * 2, "final_w_init_variance_scale": 1.0}),
        ({"hidden_size": 64}, {"head_dim": 16, "lru_width": 48}),
        ({"attention_window_size": 3}, {"sliding_window": 4}),
        ({"block_types": ["attention"]}, {"layer_types": ["sliding_attention"] * 5}),
        ({"logits_soft_cap": None}, {"final_logit_softcapping": None}),
        ({"rope_theta": 5.0}, {"rope_parameters": rope(theta=5.0)}),
        ({"partial_rotary_factor": 1.0}, {"rope_parameters": rope(factor=1.0)}),
        ({"rope_parameters": {"rope_theta": 5.0}}, {"rope_parameters": rope(theta=5.0)}),
        ({"dtype": "float16"}, {"dtype": torch.float16}),
        ({"dtype": torch.float16}, {"dtype": torch.float16}),
        ({"torch_dtype": "float16"}, {"dtype": torch.float16}),
        ({"dtype": "auto"}, {"dtype": torch.bfloat16}),
        ({"num_labels": 4}, {"num_labels": 4}),
        ({"attn_implementation": "eager"}, {"_attn_implementation": "eager"}),
        ({"head_dim": 8, "sliding_window": 8}, {"head_dim": 8, "sliding_window": 8}),
    ],
)
@pytest.mark.parametrize("spelling", ["now", "transformers_4"])
def test_overrides_when_loading(overrides, expected, spelling, tmp_path):
    stored = {**tiny_config().to_dict(), "dtype": "bfloat16"}
    if spelling == "transformers_4":
        stored |= {"torch_dtype": stored.pop("dtype"), "_block_types": stored["block_types"], "head_dim": 8}
        parameters = stored.pop("rope_parameters")
        stored |= {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor")}
        stored |= {"rope_scaling": None, "final_w_init_variance_scale": 0.4}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = RecurrentGemmaConfig.from_pretrained(tmp_path, **overrides)
    assert {name: getattr(config, name) for name in expected} == expected


def test_override_by_the_default_pattern(tmp_path):
    stored = {**tiny_config().to_dict(), "_block_types": ["attention"]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    default = ["recurrent", "recurrent", "attention"]
    assert RecurrentGemmaConfig.from_pretrained(tmp_path, block_types=default).block_types == default


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor"),
        ({"attention_window_size": "3"}, "attention_window_size: expected a positive int, got '3'"),
        ({"sliding_window": 3}, "sliding_window: expected 8"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types: expected"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping: expected 30.0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: expected None together with rope_parameters"),
        ({"dtype": "float99"}, "dtype: expected a torch.dtype"),
    ],
)
def test_wrong_overrides(saved, overrides, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        RecurrentGemmaConfig.from_pretrained(saved, **overrides)


def test_unused_arguments_are_handed_back(saved):
    config, unused = RecurrentGemmaConfig.from_pretrained(
        saved, num_hidden_layers=4, dtype="float16", rope_theta=5.0, revision_note=1, return_unused_kwargs=True
    )
    assert (config.num_hidden_layers, config.dtype, unused) == (4, torch.float16, {"revision_note": 1})


def test_arguments_are_not_changed():
    stored = tiny_config().to_dict()
    before = copy.deepcopy(stored)
    RecurrentGemmaConfig.from_dict(stored, num_hidden_layers=2, attn_implementation="eager", rope_theta=5.0)
    RecurrentGemmaConfig.from_dict(stored, attn_implementation="eager")
    assert stored == before


def test_config_of_another_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma", "hidden_size": 64}))
    with pytest.raises(ValueError, match=r"model_type: expected 'recurrent_gemma' .*, got 'gemma'"):
        RecurrentGemmaConfig.from_pretrained(tmp_path)


def test_generation_config_takes_the_special_tokens():
    generation = GenerationConfig.from_model_config(tiny_config(eos_token_id=[1, 7]))
    assert (generation.pad_token_id, generation.eos_token_id, generation.bos_token_id) == (0, [1, 7], 2)


def test_labels():
    config = tiny_config(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert (config.num_labels, config.id2label) == (3, {0: "a", 1: "b", 2: "c"})


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_is_stored_by_its_name(dtype):
    config = tiny_config(dtype=dtype)
    assert (config.dtype, json.loads(config.to_json_string())["dtype"]) == (torch.bfloat16, "bfloat16")


def test_attention_implementation_belongs_to_the_run_and_not_to_the_file(tmp_path):
    tiny_config(attn_implementation="eager").save_pretrained(tmp_path)
    assert RecurrentGemmaConfig.from_pretrained(tmp_path)._attn_implementation is None
