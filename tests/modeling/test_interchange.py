"""Checkpoints go to Transformers' own class and back unchanged, and where that class is right, the logits agree."""

import pytest
import torch
from safetensors import safe_open
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaModel as InTreeModel
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRotaryEmbedding as InTreeRotary

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM, RecurrentGemmaModel
from tests.configuration.test_published import DATA, PUBLISHED
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, assert_close

# A shard per few weights, or one file.
SHARD_SIZES = ("20kB", "5GB")

VARIANTS = [
    {},
    {"tie_word_embeddings": False},
    {"num_key_value_heads": 4, "attention_bias": True},
    {"block_types": ["attention", "recurrent"], "lru_width": 32, "conv1d_width": 2},
    {"block_types": ["recurrent"], "num_hidden_layers": 2, "hidden_activation": "relu"},
]


def in_tree_model(config: RecurrentGemmaConfig, **overrides) -> InTreeForCausalLM:
    """Transformers' model of the same config, with weights of its own."""
    model = InTreeForCausalLM(InTreeConfig(**{**config.to_dict(), **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model.eval()


def skip_if_transformers_rotates_wrongly(config: RecurrentGemmaConfig) -> None:
    """Skip where the installed release spreads RoPE's frequencies over whole heads instead of their rotated halves."""
    frequencies, _ = InTreeRotary.compute_default_rope_parameters(InTreeConfig(**config.to_dict()))
    if frequencies.numel() != config.rotary_dim // 2:
        pytest.skip("this Transformers release computes RoPE's frequencies for whole heads")


def assert_loaded_completely(info: dict) -> None:
    assert {name: list(problems or []) for name, problems in info.items()} == {name: [] for name in info}


def assert_same_parameters(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert {name: tensor.dtype for name, tensor in actual.items()} == {name: t.dtype for name, t in expected.items()}


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("shard_size", SHARD_SIZES)
def test_transformers_loads_what_we_save(fields, shard_size, tmp_path):
    ours = tiny_model(tiny_config(**fields))
    ours.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "20kB"
    in_tree, info = InTreeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_loaded_completely(info)
    assert_same_parameters(in_tree, ours)


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("shard_size", SHARD_SIZES)
def test_we_load_what_transformers_saves(fields, shard_size, tmp_path):
    in_tree = in_tree_model(tiny_config(**fields))
    in_tree.save_pretrained(tmp_path, max_shard_size=shard_size)
    ours, info = RecurrentGemmaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_loaded_completely(info)
    assert_same_parameters(ours, in_tree)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_both_ways(dtype, tmp_path):
    ours = tiny_model().to(dtype)
    ours.save_pretrained(tmp_path / "ours")
    in_tree = InTreeForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype)
    assert_same_parameters(in_tree, ours)
    in_tree.save_pretrained(tmp_path / "in_tree")
    assert_same_parameters(RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "in_tree", dtype=dtype), ours)


def test_backbones_go_both_ways(tmp_path):
    ours = tiny_model().model
    ours.save_pretrained(tmp_path / "ours")
    in_tree, info = InTreeModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert_loaded_completely(info)
    assert_same_parameters(in_tree, ours)
    in_tree.save_pretrained(tmp_path / "in_tree")
    assert_same_parameters(RecurrentGemmaModel.from_pretrained(tmp_path / "in_tree"), ours)


@pytest.mark.parametrize("tied", [True, False])
def test_files_hold_the_same_names(tied, tmp_path):
    config = tiny_config(tie_word_embeddings=tied)
    tiny_model(config).save_pretrained(tmp_path / "ours")
    in_tree_model(config).save_pretrained(tmp_path / "in_tree")
    names = []
    for folder in ("ours", "in_tree"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            names.append((sorted(file.keys()), file.metadata()))
    assert names[0] == names[1]
    assert ("lm_head.weight" in names[0][0]) is not tied


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes(name):
    path = DATA / f"{name}.json"
    with torch.device("meta"):
        ours = RecurrentGemmaForCausalLM(RecurrentGemmaConfig.from_pretrained(path))
        in_tree = InTreeForCausalLM(InTreeConfig.from_pretrained(path))
    assert {k: tuple(t.shape) for k, t in ours.state_dict().items()} == {
        k: tuple(t.shape) for k, t in in_tree.state_dict().items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": False, "lru_width": 32},
        {"block_types": ["attention"], "num_hidden_layers": 2},
        {"block_types": ["recurrent"], "num_hidden_layers": 2},
    ],
)
def test_logits_agree_where_transformers_class_is_right(fields):
    config = tiny_config(**fields)
    if "sliding_attention" in config.layer_types:
        skip_if_transformers_rotates_wrongly(config)
    # Its attention sees one key less than the source's: a window of W + 1 there is one of W here.
    ours = tiny_model(config)
    in_tree = in_tree_model(config, attention_window_size=config.attention_window_size + 1)
    in_tree.load_state_dict(ours.state_dict())
    ids = torch.randint(config.vocab_size, (2, 4 * config.attention_window_size))
    with torch.no_grad():
        assert_close(ours(ids).logits, in_tree(ids, use_cache=False).logits, ROWS_EQUAL_SOLO_LOGITS, "logits")


def test_transformers_window_is_one_key_smaller():
    config = tiny_config()
    skip_if_transformers_rotates_wrongly(config)
    ours, in_tree = tiny_model(config), in_tree_model(config)
    in_tree.load_state_dict(ours.state_dict())
    ids = torch.randint(config.vocab_size, (1, 3 * config.attention_window_size))
    with torch.no_grad():
        difference = (ours(ids).logits - in_tree(ids, use_cache=False).logits).abs()[0].amax(dim=-1)
    within = config.attention_window_size
    assert_close(difference[:within], torch.zeros(within), ROWS_EQUAL_SOLO_LOGITS, "logits within the window")
    assert difference[within] > 0.1
