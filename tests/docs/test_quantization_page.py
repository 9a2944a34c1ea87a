"""docs/quantization.md holds true: its code runs, and its bytes and perplexities are those of the models."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from recurrent_gemma import demo_path
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import LINEAR_LAYERS
from tests.held_out import held_out_chapters, perplexity
from tests.support import ROOT, code_blocks, require, run_warm

require("torchao")
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # noqa: E402
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup  # noqa: E402
from torchao.utils import TorchAOBaseTensor  # noqa: E402

PAGE = (ROOT / "docs" / "quantization.md").read_text()
SCHEMES = {
    "": None,
    "`Int8WeightOnlyConfig()`": Int8WeightOnlyConfig(),
    "`PrototypeInt4WeightOnlyConfig(group_size=32)`": PrototypeInt4WeightOnlyConfig(group_size=32),
    "`PrototypeInt4WeightOnlyConfig(group_size=128)`": PrototypeInt4WeightOnlyConfig(group_size=128),
    "`IntxWeightOnlyConfig(torch.int4, PerGroup(32))`": IntxWeightOnlyConfig(torch.int4, PerGroup(32)),
    "`IntxWeightOnlyConfig(torch.int4)`, one scale a row": IntxWeightOnlyConfig(torch.int4),
    "`IntxWeightOnlyConfig(torch.int2, PerGroup(32))`": IntxWeightOnlyConfig(torch.int2, PerGroup(32)),
}
ROWS = {
    scheme.strip(): (float(figure), change.strip(), size.strip())
    for scheme, figure, change, size in re.findall(
        r"^\| [\w ]+ \|(.*)\| ([\d.]+) \|([^|]*)\|([^|]*)\|$", PAGE, flags=re.MULTILINE
    )
}


def load(scheme: Any) -> Any:
    options = {} if scheme is None else {"quantization_config": TorchAoConfig(scheme)}
    return AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.bfloat16, **options)


def stored_bytes(tensor: torch.Tensor) -> int:
    if not isinstance(tensor, TorchAOBaseTensor):
        return tensor.nbytes
    return sum(part.nbytes for part in vars(tensor).values() if isinstance(part, torch.Tensor))


def linear_weights(model: nn.Module) -> list[nn.Parameter]:
    names = {name for names in LINEAR_LAYERS.values() for name in names}
    return [module.weight for name, module in model.named_modules() if name.rpartition(".")[2] in names]


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    require("peft")
    code = code_blocks(PAGE, "python")
    assert len(code) == 3
    run_warm("-c", "\n".join(code), cwd=tmp_path)


def test_every_row_is_checked():
    assert list(ROWS) == list(SCHEMES)
    first = ROWS[""][0]
    for figure, change, _ in list(ROWS.values())[1:]:
        assert float(change.split()[0]) == pytest.approx(100 * (figure / first - 1), abs=0.06)


def test_bytes_of_the_demo_model():
    for scheme, (_, _, size) in ROWS.items():
        if size:
            assert f"{sum(map(stored_bytes, load(SCHEMES[scheme]).parameters())):,}" == size, scheme
    model = load(None)
    parts = (sum(w.numel() for w in weights) / 1e6 for weights in (model.parameters(), linear_weights(model)))
    total, linear = (f"{part:.2f} million" for part in parts)
    assert f"whose {total} parameters {linear.removesuffix(' million')} million are quantized" in PAGE
    assert all(f"`{name}`" in PAGE for names in LINEAR_LAYERS.values() for name in names)


def test_bytes_of_the_published_models():
    figures = []
    for preset in ("recurrentgemma-2b", "recurrentgemma-9b"):
        config = RecurrentGemmaConfig.from_preset(preset)
        with torch.device("meta"):
            model = RecurrentGemmaForCausalLM(config)
        weights = linear_weights(model)
        assert all(weight.shape[0] % 16 == weight.shape[1] % 128 == 0 for weight in weights)
        linear = sum(weight.numel() for weight in weights)
        rest = 2 * (sum(parameter.numel() for parameter in model.parameters()) - linear)
        # A row of int8 has a scale of 4 bytes and a zero of 1, a group of int4 a scale and a zero of 2 bytes each.
        int8 = linear + 5 * sum(weight.shape[0] for weight in weights)
        figures += [f"{size / 1e9:.1f}" for size in (rest + 2 * linear, rest + int8, rest + linear // 2 + linear // 8)]
        figures.append(f"{2 * config.vocab_size * config.hidden_size / 1e9:.1f}")
    text = " ".join(PAGE.split())
    assert "are {} GB in bfloat16, {} GB in int8 and {} GB in packed int4".format(*figures[:3]) in text
    assert "those of 9B {}, {} and {} GB".format(*figures[4:7]) in text
    assert f"the embeddings are {figures[3]} and {figures[7]} GB" in text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_perplexities(scheme: str):
    # Machines round bfloat16 products in different orders.
    assert perplexity(load(SCHEMES[scheme]), held_out_chapters()) == pytest.approx(ROWS[scheme][0], rel=5e-4)
