"""TRL's DPOTrainer: its reference model and its loss against both by hand, and the preferences it learns."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.training import lora_config
from tests.support import require
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, assert_close
from tests.training.adapters import draw
from tests.training.trl_jobs import demo_model, demo_texts, settings

trl = require("trl")
datasets = require("datasets")

ADAPTER = pytest.mark.parametrize("adapter", [False, True], ids=["whole", "LoRA"])
PRECOMPUTE = pytest.mark.parametrize("precompute", [False, True], ids=["reference at hand", "reference precomputed"])


def pairs() -> list[dict[str, str]]:
    """A text's beginning, what is to be preferred as its end, in capitals, and what is not, its own."""
    cuts = [(text[:60].rsplit(" ", 1)[0], text[60:110]) for text in demo_texts()]
    return [{"prompt": begin, "chosen": " " + end.upper(), "rejected": " " + end} for begin, end in cuts]


def dpo(tmp_path: Path, *, model: Any = None, adapter: bool = False, **options: Any) -> Any:
    model = demo_model() if model is None else model
    rows = pairs()
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(**settings(tmp_path, per_device_eval_batch_size=4, **options)),
        train_dataset=datasets.Dataset.from_list(rows[4:14]),
        eval_dataset=datasets.Dataset.from_list(rows[:4]),
        processing_class=AutoTokenizer.from_pretrained(demo_path()),
        peft_config=lora_config(model, gates=True) if adapter else None,
    )


@torch.no_grad()
def log_probability(model: Any, ids: Tensor, completion: Tensor) -> Tensor:
    """(B,) log-probabilities of the columns in ``completion`` (B, L), row by row without pads."""
    values = []
    for row, mask in zip(ids, completion, strict=True):
        row = row[: int(mask.nonzero().max()) + 1][None]
        log_probs = model(input_ids=row, use_cache=False).logits[0, :-1].log_softmax(-1)
        chosen = log_probs.gather(1, row[0, 1:, None])[:, 0]
        values.append((chosen * mask[1 : row.shape[1]]).sum())
    return torch.stack(values)


@ADAPTER
@PRECOMPUTE
def test_its_loss_is_that_of_the_paper(adapter: bool, precompute: bool, tmp_path: Path):
    trainer = dpo(tmp_path, adapter=adapter, precompute_ref_log_probs=precompute, per_device_train_batch_size=2)
    model = trainer.model.eval()
    draw(model)
    batch = next(iter(trainer.get_train_dataloader()))
    ids, completion = batch["input_ids"], batch["completion_mask"]
    margin = 0.1 * (log_probability(model, ids, completion) - log_probability(demo_model(), ids, completion))
    chosen, rejected = margin.chunk(2)
    # Equation 7 of arXiv 2305.18290.
    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert abs(expected - math.log(2)) > 0.1
    with torch.no_grad():
        actual = trainer.compute_loss(model, dict(batch))
    # Sums of dozens of log-probabilities.
    assert_close(actual, expected, 10 * ROWS_EQUAL_SOLO_LOGITS, "loss")


def test_its_reference_model_is_this_packages_class(tmp_path: Path):
    trainer = dpo(tmp_path)
    assert type(trainer.ref_model) is RecurrentGemmaForCausalLM
    assert trainer.ref_model is not trainer.model and not trainer.ref_model.training
    assert dpo(tmp_path, adapter=True).ref_model is None


@ADAPTER
def test_a_short_job_learns_the_preference(adapter: bool, tmp_path: Path):
    trainer = dpo(
        tmp_path,
        adapter=adapter,
        precompute_ref_log_probs=not adapter,
        max_steps=5,
        learning_rate=1e-3 if adapter else 1e-4,
        per_device_train_batch_size=4,
    )
    before = trainer.evaluate()
    assert abs(before["eval_loss"] - math.log(2)) < 1e-3 and abs(before["eval_rewards/margins"]) < 1e-3
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_rewards/accuracies"] == 1.0
    assert after["eval_rewards/margins"] > 0.5 and after["eval_loss"] < before["eval_loss"] - 0.2


def test_an_adapter_of_its_own_is_its_reference(tmp_path: Path):
    # Going on with an adapter: TRL keeps a copy of it, gates and all, as the reference.
    import peft

    base = demo_model()
    model = peft.get_peft_model(base, lora_config(base, gates=True))
    draw(model)
    trainer = dpo(tmp_path, model=model)
    assert sorted(trainer.model.peft_config) == ["default", "ref"]
    with torch.no_grad():
        batch = next(iter(trainer.get_train_dataloader()))
        assert_close(
            trainer.compute_loss(trainer.model, dict(batch)), torch.tensor(math.log(2)), ROWS_EQUAL_SOLO_LOGITS, "loss"
        )


def test_a_head_under_an_adapter_is_refused(tmp_path: Path):
    import peft

    with pytest.warns(UserWarning, match="tie_word_embeddings"), pytest.raises(ValueError, match="`lm_head`"):
        trl.DPOTrainer(
            model=demo_model(),
            args=trl.DPOConfig(**settings(tmp_path)),
            train_dataset=datasets.Dataset.from_list(pairs()[:2]),
            processing_class=AutoTokenizer.from_pretrained(demo_path()),
            peft_config=peft.LoraConfig(target_modules=["lm_head"]),
        )
