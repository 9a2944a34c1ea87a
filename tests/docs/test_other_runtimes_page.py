"""docs/other_runtimes.md holds true: its code runs, names and fields are those of our files, and sources are pinned.

The comparison with mlx-lm runs where that is installed; no extra brings it.
"""

import importlib.util
import json
import re
from itertools import product
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig

from recurrent_gemma import demo_path
from recurrent_gemma.configuration import RecurrentGemmaConfig
from tests.docs.sources import PINNED, definitions, missing_tests, tables, used_labels
from tests.support import ROOT, code_blocks, run_python

PAGE = (ROOT / "docs" / "other_runtimes.md").read_text()
FIELDS, MLX, EXPORT = code_blocks(PAGE, "python")
# What mlx-lm's ModelArgs and candle's Config cannot do without, at the commits that the page names.
NEEDED = {
    "mlx-lm": "model_type attention_bias conv1d_width hidden_size intermediate_size logits_soft_cap "
    "num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_theta "
    "attention_window_size vocab_size block_types",
    "candle": "num_hidden_layers vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads "
    "head_dim attention_window_size conv1d_width logits_soft_cap hidden_activation partial_rotary_factor rms_norm_eps "
    "rope_theta block_types attention_bias",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the block about the fields writes."""
    folder = tmp_path_factory.mktemp("fields")
    run_python("-c", FIELDS, cwd=folder)
    return folder / "for-other-runtimes"


def expanded(names: str, layer: str) -> set[str]:
    """``a.{i}.{b,c}`` -> ``a.0.b``, ``a.0.c``."""
    parts = re.split(r"\{([^}]*)\}", names.replace("{i}", layer))
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return {"".join(choice) for choice in product(*choices)}


def test_sources_and_tests_that_are_named():
    sources = definitions(PAGE)
    assert used_labels(PAGE) == sources.keys()
    removal = sources.pop("trt-removal")
    assert removal.startswith("https://nvidia.github.io/TensorRT-LLM/")
    assert {label: link for label, link in sources.items() if not PINNED.fullmatch(link)} == {}
    assert missing_tests(PAGE) == []


def test_every_runtime_leads_to_what_is_known_of_it():
    runtimes, _, unsupported = tables(PAGE)
    assert [row[0] for row in runtimes[1:] if "](" not in row[2]] == []
    assert [row[0] for row in unsupported[1:] if "][" not in row[1]] == []


def test_what_is_missing_without_the_added_fields():
    stored = json.loads((demo_path() / "config.json").read_text())
    missing = {name: set(fields.split()) - stored.keys() for name, fields in NEEDED.items()}
    assert missing == {"mlx-lm": {"rope_theta"}, "candle": {"rope_theta", "partial_rotary_factor", "head_dim"}}


def test_the_added_fields_are_all_that_was_missing_and_change_nothing_here(directory: Path):
    stored = json.loads((directory / "config.json").read_text())
    for name, fields in NEEDED.items():
        assert [field for field in fields.split() if stored.get(field) is None] == [], name
    ours = RecurrentGemmaConfig.from_pretrained(directory)
    assert ours.to_dict() == RecurrentGemmaConfig.from_pretrained(demo_path()).to_dict()
    in_tree = InTreeConfig.from_pretrained(directory)
    assert in_tree.head_dim == stored["head_dim"] and in_tree.rope_parameters["rope_theta"] == stored["rope_theta"]
    assert AutoModelForCausalLM.from_pretrained(directory).config.rope_parameters == ours.rope_parameters


def test_names_that_candle_asks_for_are_all_that_our_files_hold():
    with safe_open(demo_path() / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    config = RecurrentGemmaConfig.from_pretrained(demo_path())
    (listed,) = code_blocks(PAGE, "text")
    asked = set()
    for line, (layer, kind) in product(listed.split(), enumerate(config.layers_block_type)):
        # Of the mixers' names each layer has those of its kind.
        of_attention = re.search(r"q_proj|o_proj", line) is not None
        if "temporal_block." in line and of_attention != (kind == "sliding_attention"):
            continue
        asked |= expanded(line, str(layer))
    assert asked == shapes.keys()
    assert shapes["model.layers.0.temporal_block.conv_1d.weight"] == (config.lru_width, 1, config.conv1d_width)


def test_the_export_runs(tmp_path: Path):
    run_python("-c", f"import recurrent_gemma\n{EXPORT}assert len(state) == 16", cwd=tmp_path)
    assert "out as 16 named tensors" in " ".join(PAGE.split())


def test_mlx_lm_gives_our_logits_with_a_wider_window(tmp_path: Path):
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed: pip install 'mlx[cpu]' mlx-lm")
    run_python("-c", FIELDS + MLX, cwd=tmp_path)
    one_key_less = MLX.replace('config["attention_window_size"] += 1', 'config["attention_window_size"] += 0')
    assert one_key_less != MLX
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        run_python("-c", FIELDS.replace('"for-other', '"again-for-other') + one_key_less, cwd=tmp_path)
