"""Quantized contestants: they are what ``from_pretrained`` makes, and the model they are made of stays as it is."""

import pytest
import torch
from benchmarks.quantized import SCHEMES, quantized
from transformers import TorchAoConfig

from benchmarks.models import SIZES, build_ours
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.support import require

require("torchao")


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_the_model_is_the_one_that_from_pretrained_makes(scheme: str, tmp_path):
    model, ids = build_ours(SIZES["demo"]), torch.arange(4, 30)[None]
    before = model(ids).logits
    made = quantized(model, scheme)(ids).logits
    assert torch.equal(model(ids).logits, before)
    model.save_pretrained(tmp_path)
    quantization = TorchAoConfig(SCHEMES[scheme]())
    loaded = RecurrentGemmaForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    assert torch.equal(made, loaded(ids).logits)
    assert not torch.equal(made, before)


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="device: expected cpu"):
        quantized(build_ours(SIZES["tiny"]).to("meta"), "int8")
