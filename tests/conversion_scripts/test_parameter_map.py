"""The map is complete and reversible: every parameter of every preset, on DeepMind's two sides and on ours."""

import pytest
import torch

from recurrent_gemma import PRESETS, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from recurrent_gemma.conversion_scripts.architecture import architecture_of, architecture_of_config, config_of
from recurrent_gemma.conversion_scripts.checkpoints import Checkpoint, TensorInfo
from recurrent_gemma.conversion_scripts.parameter_map import KINDS, RULES
from tests.conversion_scripts.checkpoints import ATTENTION_ONLY, jax_shapes, torch_shapes

CONFIGS = {name: RecurrentGemmaConfig.from_preset(name) for name in PRESETS}
CONFIGS["attention only"] = RecurrentGemmaConfig(**ATTENTION_ONLY)


def _model_shapes(config: RecurrentGemmaConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = RecurrentGemmaForCausalLM(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_each_implementation(name: str):
    config = CONFIGS[name]
    architecture = architecture_of_config(config)
    assert architecture.tensors("hf") == _model_shapes(config)
    assert architecture.tensors("flax") == jax_shapes(config)
    assert architecture.tensors("torch") == torch_shapes(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_belongs_to_one_parameter(name: str):
    parameters = architecture_of_config(CONFIGS[name]).parameters
    for kind in KINDS:
        names = [name for parameter in parameters for name in parameter.names(kind)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "changes", [{"attention_bias": True}, {"tie_word_embeddings": False}, {"num_key_value_heads": 5}]
)
def test_what_only_transformers_has(changes: dict):
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", **changes)
    assert architecture_of_config(config).tensors("hf") == _model_shapes(config)


@pytest.mark.parametrize("kind", ["flax", "torch"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.flax)
def test_layouts_are_inverse_to_each_other(rule, kind: str):
    sizes = architecture_of_config(CONFIGS["griffin-paper-7b"]).sizes._replace(V=5, D=6, M=7, R=8, H=2, C=4, Q=6, G=3)
    parts = [torch.randn([int(d) if d.isdigit() else getattr(sizes, d) for d in rule.shape.split()]) for _ in rule.hf]
    joined = rule.from_hf(kind, parts)
    assert [tensor.shape for tensor in joined] == [torch.Size(shape) for shape in rule.shapes(kind, sizes)]
    back = rule.to_hf(kind, joined)
    assert len(back) == len(parts)
    assert all(torch.equal(a, b) for a, b in zip(back, parts, strict=True))
    again = rule.from_hf(kind, back)
    assert torch.equal(again[0], joined[0])


class _Headers(Checkpoint):
    """Names and shapes without values."""

    def __init__(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.kind = kind
        self.tensors = {name: TensorInfo(shape, "bfloat16") for name, shape in shapes.items()}

    def read(self, name: str):
        raise AssertionError(name)


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_and_preset_give_the_presets_config(preset: str):
    expected = CONFIGS[preset]
    for kind, shapes in (("flax", jax_shapes(expected)), ("torch", torch_shapes(expected))):
        architecture = architecture_of(_Headers(kind, shapes))
        assert architecture.problems == ()
        config = config_of(architecture, preset=preset, options={}, dtype="bfloat16")
        differing = {
            name
            for name, value in expected.to_dict().items()
            if config.to_dict()[name] != value and name not in ("architectures", "dtype")
        }
        assert differing == set()
        assert config.layers_block_type == expected.layers_block_type
        assert config.dtype == torch.bfloat16


def test_shapes_of_attention_alone_give_its_config():
    expected = CONFIGS["attention only"]
    fields = architecture_of(_Headers("flax", jax_shapes(expected))).config_fields()
    assert {name: getattr(expected, name) for name in fields} == fields
