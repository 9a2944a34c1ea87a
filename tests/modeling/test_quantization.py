"""Weights quantized by torchao: which they are, what they change, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM, RecurrentGemmaModel
from recurrent_gemma.modeling.layers import LINEAR_LAYER_NAMES
from tests.held_out import held_out_chapters, perplexity
from tests.modeling.models import tiny_config, tiny_model
from tests.modeling.quantized import (
    DOWN,
    EVERY_SCHEME,
    INT4,
    INT8,
    PROMPT,
    SAVED_SCHEMES,
    UNPACKED,
    intx,
    load,
    logits,
    quantized_names,
)
from tests.support import require
from tests.tolerances import (
    INT4_PERPLEXITY,
    INT8_PERPLEXITY,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    logits_tolerance,
    quantization_step,
)

require("torchao")
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # noqa: E402
from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig  # noqa: E402


def linear_names(model: nn.Module) -> set[str]:
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if name.endswith(".weight") and name.split(".")[-2] in LINEAR_LAYER_NAMES}


def in_full(linear: nn.Module) -> torch.Tensor:
    """The weight that a quantized layer multiplies by."""
    return nn.functional.linear(torch.eye(linear.in_features), linear.weight).T


@pytest.fixture(scope="module")
def plain() -> RecurrentGemmaForCausalLM:
    return RecurrentGemmaForCausalLM.from_pretrained(demo_path(), dtype=torch.bfloat16)


# --- What is quantized ------------------------------------------------------------------------------------------------


@EVERY_SCHEME
@pytest.mark.parametrize("cls", [RecurrentGemmaForCausalLM, AutoModelForCausalLM])
def test_the_linear_layers_are_quantized_and_nothing_else(plain, scheme, cls):
    model = load(scheme, cls=cls)
    assert type(model) is RecurrentGemmaForCausalLM
    assert quantized_names(model) == linear_names(plain)
    assert len(linear_names(plain)) == 4 * 3 + 2 * 4 + 6 * 3
    expected = dict(plain.named_parameters())
    assert all(
        torch.equal(parameter, expected[name]) and parameter.dtype == torch.bfloat16
        for name, parameter in model.named_parameters()
        if name not in linear_names(plain)
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_linear_layer_is_of_torchs_class():
    # bitsandbytes quantizes no subclass of it, and says nothing.
    modules = tiny_model().named_modules()
    classes = {
        name.rpartition(".")[2]: type(module)
        for name, module in modules
        if name.rpartition(".")[2] in LINEAR_LAYER_NAMES
    }
    assert classes == dict.fromkeys(LINEAR_LAYER_NAMES, nn.Linear)


@pytest.mark.parametrize(
    ("scheme", "group", "levels"),
    [(INT8, None, 127), (INT4, 32, 7), (UNPACKED, 32, 7)],
    ids=["int8", "int4", "unpacked int4"],
)
@torch.no_grad()
def test_logits_are_those_of_weights_within_half_a_step(scheme, group, levels):
    quantized = load(scheme, dtype=torch.float32)
    model = RecurrentGemmaForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    before = logits(model)
    for name in quantized_names(quantized):
        layer = model.get_submodule(name.removesuffix(".weight"))
        weight = in_full(quantized.get_submodule(name.removesuffix(".weight")))
        groups = layer.weight.unflatten(1, (-1, group or layer.in_features))
        error = (weight.view_as(groups) - groups).abs().amax(-1) / groups.abs().amax(-1)
        assert 0.1 * quantization_step(levels) < error.max() < 1.001 * quantization_step(levels), name
        layer.weight.copy_(weight)
    tolerance = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, before)
    assert_close(logits(quantized), logits(model), tolerance, "quantized")
    assert (logits(model) - before).abs().max() > 100 * tolerance


def test_other_heads_and_the_backbone(plain):
    backbone = load(INT8, cls=RecurrentGemmaModel)
    assert {f"model.{name}" for name in quantized_names(backbone)} == linear_names(plain)
    classifier = load(INT8, cls=AutoModelForSequenceClassification)
    assert quantized_names(classifier) == linear_names(plain)


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    tiny_model(tiny_config(tie_word_embeddings=False)).save_pretrained(tmp_path)
    return tmp_path


def test_an_untied_head_stays_unless_patterns_are_given(untied):
    model = load(intx(4, 16), source=untied)
    assert quantized_names(model) == linear_names(model)
    # Transformers leaves its own pattern out as soon as there is another.
    model = load(intx(4, 16), source=untied, modules_to_not_convert=[r"model\.layers\.0"])
    assert quantized_names(model) - linear_names(model) == {"lm_head.weight"}
    assert logits(model, PROMPT[:, :1]).isfinite().all()


def test_layers_left_out_and_schemes_by_name(plain):
    left_out = load(INT8, modules_to_not_convert=["lm_head", r"model\.layers\.\d+\.mlp_block", "o_proj.weight"])
    expected = {name for name in linear_names(plain) if "mlp_block" not in name and "o_proj" not in name}
    assert quantized_names(left_out) == expected
    by_name = FqnToConfig({r"re:.*\.up_proj\.weight": UNPACKED, DOWN: None, r"re:.*\.down_proj\.weight": INT8})
    model = load(by_name)
    kinds = {name.split(".")[-2]: type(model.get_parameter(name)).__name__ for name in quantized_names(model)}
    assert kinds == {"up_proj": "IntxUnpackedToInt8Tensor", "down_proj": "Int8Tensor"}
    assert f"{DOWN}.weight" not in quantized_names(model)
    assert len(quantized_names(model)) == 6 + 5


# --- What it costs in quality -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perplexity_in_bf16(plain) -> Callable[[Any], float]:
    """The perplexity of a model on the shortest held-out chapters over that in bf16, less one."""
    chapters = held_out_chapters()[:4]
    assert sum(ids.shape[1] for ids in chapters) > 1000
    expected = perplexity(plain, chapters)
    return lambda model: perplexity(model, chapters) / expected - 1


def test_perplexity_of_int8(perplexity_in_bf16):
    assert abs(perplexity_in_bf16(load(INT8))) < INT8_PERPLEXITY


@pytest.mark.parametrize("scheme", [INT4, UNPACKED], ids=["int4", "unpacked int4"])
def test_perplexity_of_int4(perplexity_in_bf16, scheme):
    assert abs(perplexity_in_bf16(load(scheme))) < INT4_PERPLEXITY


def test_perplexity_of_int2_is_beyond_the_bar(perplexity_in_bf16):
    assert perplexity_in_bf16(load(intx(2, 32))) > 3 * INT4_PERPLEXITY


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    [intx(4, 96), PrototypeInt4WeightOnlyConfig(group_size=96), Int4WeightOnlyConfig(group_size=96)],
    ids=["unpacked", "packed", "for accelerators"],
)
@pytest.mark.parametrize("cls", [RecurrentGemmaForCausalLM, AutoModelForCausalLM])
def test_groups_that_do_not_fit(scheme, cls):
    with pytest.raises(ValueError, match=r"^group_size: .*got 96 in 256 of model\.layers\.0\.mlp_block") as caught:
        load(scheme, cls=cls)
    assert all(name in str(caught.value) for name in LINEAR_LAYER_NAMES if name != "down_proj")
    assert "down_proj" not in str(caught.value)


def test_groups_are_those_of_the_model_that_is_loaded(untied):
    with pytest.raises(ValueError, match=r"32 in 48 of .*down_proj.*linear_out"):
        load(intx(4, 32), source=untied)
    load(intx(4, 32), source=untied, modules_to_not_convert=["lm_head", "down_proj.weight", "linear_out.weight"])
    with pytest.raises(ValueError, match=r"32 in 48 of [^;]*layers\.0\.temporal_block\.linear_out\."):
        load(intx(4, 32), source=untied, intermediate_size=128, num_hidden_layers=1)


@pytest.mark.parametrize("pattern", ["mlp_block", "down_proj", "model.layer.0"])
def test_patterns_that_leave_nothing_out(pattern):
    with pytest.raises(ValueError, match=rf"^modules_to_not_convert: .*got \['{re.escape(pattern)}'\]"):
        load(INT8, modules_to_not_convert=["lm_head", pattern])


def test_embeddings_that_would_stay_as_they_are():
    with pytest.raises(ValueError, match=r"not quantized: model\.embed_tokens\."):
        load(INT8, include_input_output_embeddings=True)


@pytest.mark.parametrize("pattern", [r".*\.input_gate_weight", r".*mlp_block\.\w+_proj"], ids=["gates", "biases"])
def test_gates_and_biases_stay_high(pattern):
    # torchao matches a layer's name with its bias as well.
    with pytest.raises(ValueError, match=r"quantized although no weight of [^:]*: model\.layers\.0"):
        load(FqnToConfig({f"re:{pattern}": INT8}))


# --- What a quantized model does --------------------------------------------------------------------------------------


@EVERY_SCHEME
def test_ways_to_generate_agree(plain, scheme):
    model = load(scheme)
    options = {"max_new_tokens": 12, "do_sample": False, "temperature": None, "top_p": None}

    def generated(**more: Any) -> list[int]:
        return model.generate(PROMPT, **options, **more)[0].tolist()

    expected = generated()
    assert len(expected) == PROMPT.shape[1] + 12
    assert generated(cache_implementation="static", disable_compile=True) == expected
    assert generated(assistant_model=plain) == expected
    assert generated(prompt_lookup_num_tokens=3) == expected
    assert generated(num_beams=1, use_cache=False) == expected


@SAVED_SCHEMES
@torch.no_grad()
def test_split_equals_whole(scheme):
    model = load(scheme, dtype=torch.float32)
    cache = RecurrentGemmaCache(model.config)
    pieces = [model(part, past_key_values=cache).logits for part in PROMPT.split([7, 1, 33], dim=1)]
    expected = logits(model)
    tolerance = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, expected)
    assert_close(torch.cat(pieces, dim=1), expected, tolerance, "split")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
@torch.no_grad()
def test_compiled_without_graph_breaks(scheme):
    model = load(scheme, dtype=torch.float32)
    expected = logits(model)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    cache = RecurrentGemmaCache(model.config, static=True, batch_size=1)
    pieces = [compiled(ids, past_key_values=cache).logits for ids in PROMPT.split([34, *[1] * 7], dim=1)]
    tolerance = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, expected)
    assert_close(torch.cat(pieces, dim=1), expected, tolerance, "compiled")
    assert counter.frame_count == 2
