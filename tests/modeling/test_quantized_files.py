"""Files of quantized weights and of their states: they give the same logits again, and a damaged one is named."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig, pipeline

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from tests.modeling.quantized import DOWN, INT4, INT8, PROMPT, SAVED_SCHEMES, intx, load, logits, quantized_names

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the int8 demo model, not to be changed."""
    path = tmp_path_factory.mktemp("int8")
    load(INT8).save_pretrained(path)
    return path


@SAVED_SCHEMES
def test_saved_and_loaded(scheme, tmp_path):
    model = load(scheme)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert (tmp_path / "one" / WEIGHTS).stat().st_size < 0.65 * (demo_path() / WEIGHTS).stat().st_size
    for cls, folder in ((AutoModelForCausalLM, "one"), (RecurrentGemmaForCausalLM, "shards")):
        loaded = cls.from_pretrained(tmp_path / folder)
        assert loaded.dtype == torch.bfloat16
        assert quantized_names(loaded) == quantized_names(model)
        assert torch.equal(logits(loaded), logits(model))


def test_packed_int4_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"Unsupported tensor type.*Int4OpaqueTensor"):
        load(INT4).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def damaged(saved: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy whose tensors are replaced; None removes one."""
    shutil.copytree(saved, folder)
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    weights = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: w for name, w in weights.items() if w is not None}, folder / WEIGHTS, metadata)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_qdata": None, "weight_scale": None, "weight_zero_point": None}, f"missing: {DOWN}.weight."),
        ({"weight_qdata": torch.zeros(256, 700, dtype=torch.int8)}, f"misshapen: {DOWN}.weight (expected (256, 768), "),
    ],
    ids=["missing", "misshapen"],
)
def test_a_broken_checkpoint_is_named(saved, tmp_path, changes, message):
    folder = damaged(saved, tmp_path / "broken", {f"{DOWN}._{name}": value for name, value in changes.items()})
    with pytest.raises(ValueError, match=re.escape(message)):
        RecurrentGemmaForCausalLM.from_pretrained(folder)


def test_a_weight_in_full_where_the_config_says_quantized(saved, tmp_path):
    changes = dict.fromkeys(f"{DOWN}._weight_{part}" for part in ("qdata", "scale", "zero_point"))
    folder = damaged(saved, tmp_path / "mixed", {**changes, f"{DOWN}.weight": torch.zeros(256, 768)})
    with pytest.raises(ValueError, match=re.escape(f"not quantized: {DOWN}.")):
        RecurrentGemmaForCausalLM.from_pretrained(folder)


def test_the_scheme_of_a_checkpoint_stands(saved):
    # A scheme that does not fit is no error where it is not used.
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load(intx(4, 96), source=saved)
    assert {type(model.get_parameter(name)).__name__ for name in quantized_names(model)} == {"Int8Tensor"}


@torch.no_grad()
def test_files_of_states_go_between_the_forms(tmp_path):
    plain = RecurrentGemmaForCausalLM.from_pretrained(demo_path(), dtype=torch.bfloat16)
    model = load(INT8)
    cache = RecurrentGemmaCache(model.config)
    model(PROMPT, past_key_values=cache)
    cache.save(tmp_path / "state")
    loaded = RecurrentGemmaCache.load(tmp_path / "state", plain.config)
    next_ids = PROMPT[:, -1:]
    expected = plain(next_ids, past_key_values=cache).logits
    assert torch.equal(plain(next_ids, past_key_values=loaded).logits, expected)


def test_pipeline(saved):
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    loaded = pipeline("text-generation", model=str(saved), tokenizer=tokenizer)
    quantization = {"quantization_config": TorchAoConfig(INT8), "dtype": torch.bfloat16}
    quantized = pipeline("text-generation", model=str(demo_path()), model_kwargs=quantization)
    texts = [
        generator("In the beginning", max_new_tokens=8, do_sample=False, temperature=None, top_p=None)
        for generator in (loaded, quantized)
    ]
    assert texts[0] == texts[1] and texts[0][0]["generated_text"].startswith("In the beginning ")
    assert json.loads((saved / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"
