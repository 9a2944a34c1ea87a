"""Adapters on quantized weights learn and come back from files; what has no gradient or no file is refused."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig, Trainer, TrainingArguments

from recurrent_gemma import demo_path
from recurrent_gemma.training import lora_config
from tests.support import require
from tests.training.adapters import logits_of

peft = require("peft")
require("torchao")
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # noqa: E402
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup  # noqa: E402

INT8 = Int8WeightOnlyConfig()
UNPACKED = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
IDS = torch.tensor([[2, *range(100, 120)]])


def base(scheme: Any, source: Any = None) -> Any:
    quantization = TorchAoConfig(scheme)
    return AutoModelForCausalLM.from_pretrained(
        source or demo_path(), quantization_config=quantization, dtype=torch.bfloat16
    )


def adapted(scheme: Any, **options: Any) -> Any:
    model = base(scheme)
    return peft.get_peft_model(model, lora_config(model, rank=4, **options))


@pytest.mark.parametrize("scheme", [INT8, UNPACKED], ids=["int8", "unpacked int4"])
@pytest.mark.parametrize("gates", [False, True], ids=["linear", "gates"])
def test_an_adapter_learns_and_is_saved(scheme, gates, tmp_path):
    model = adapted(scheme, gates=gates)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: (p.dequantize() if hasattr(p, "qdata") else p.clone()) for name, p in frozen.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(4):
        losses.append(model(input_ids=IDS, labels=IDS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    after = {name: (p.dequantize() if hasattr(p, "qdata") else p) for name, p in frozen.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)

    model.save_pretrained(tmp_path)
    expected = logits_of(model.eval(), IDS)
    assert torch.equal(logits_of(peft.PeftModel.from_pretrained(base(scheme), tmp_path).eval(), IDS), expected)


@pytest.mark.parametrize("gates", [False, True], ids=["linear", "gates"])
def test_base_and_adapter_at_once_are_refused(gates, tmp_path):
    # Transformers quantizes the adapter as well.
    adapted(INT8, gates=gates).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"quantized although no weight of [^:]*: .*lora_A\.default\.weight"):
        base(INT8, tmp_path)


def arguments(folder: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True
    )


def test_in_the_trainer(tmp_path):
    rows = [{"input_ids": IDS[0], "labels": IDS[0]}] * 4
    model = adapted(INT8)
    result = Trainer(model, arguments(tmp_path), train_dataset=rows).train()
    assert 0 < result.training_loss < 20
    # Transformers knows of training on int8 only, and adapters must be there.
    with pytest.raises(ValueError, match="quantized"):
        Trainer(adapted(UNPACKED), arguments(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(base(INT8), arguments(tmp_path), train_dataset=rows)


def test_packed_int4_has_no_gradient():
    model = adapted(PrototypeInt4WeightOnlyConfig(group_size=32))
    with pytest.raises(RuntimeError, match="_weight_int4pack_mm_for_cpu is not implemented"):
        model(input_ids=IDS, labels=IDS).loss.backward()
