"""TRL's SFTTrainer: its batches, its losses and its masks against the model's own, and what it learns."""

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
from tests.modeling.models import tiny_config, tiny_model
from tests.support import require
from tests.tolerances import ROWS_EQUAL_SOLO_GRADIENTS, ROWS_EQUAL_SOLO_LOGITS, assert_close, assert_close_by_max
from tests.training.adapters import adapted, some_ids
from tests.training.trl_jobs import demo_model, demo_texts, settings

trl = require("trl")
datasets = require("datasets")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_path())


def sft(tmp_path: Path, tokenizer: Any, rows: Any, *, model: Any = None, held_out: Any = None, **options: Any) -> Any:
    adapter = options.pop("peft_config", None)
    return trl.SFTTrainer(
        model=demo_model() if model is None else model,
        args=trl.SFTConfig(**settings(tmp_path, **options)),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=held_out and datasets.Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=adapter,
    )


# --- The loss ---------------------------------------------------------------------------------------------------------


def loss_by_hand(model: RecurrentGemmaForCausalLM, ids: Tensor, labels: Tensor, items: int | None) -> Tensor:
    """Mean, or sum over ``items``, of -log p of the next labels that are not -100: from hidden states, in fp64."""
    hidden = model.model(ids, use_cache=False).last_hidden_state.double()
    logits = hidden @ model.get_output_embeddings().weight.double().T
    cap = model.config.logits_soft_cap
    if cap is not None:
        logits = cap * (logits / cap).tanh()
    chosen = [
        logits[row, column].log_softmax(-1)[labels[row, column + 1]]
        for row in range(ids.shape[0])
        for column in range(ids.shape[1] - 1)
        if labels[row, column + 1] != -100
    ]
    return -torch.stack(chosen).sum() / (len(chosen) if items is None else items)


@pytest.mark.parametrize("items", [None, 50])
@pytest.mark.parametrize("cap", [None, 2.0, 30.0])
@pytest.mark.parametrize("tied", [True, False])
def test_its_fused_head_gives_the_models_loss(cap: float | None, tied: bool, items: int | None):
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model(tiny_config(logits_soft_cap=cap, tie_word_embeddings=tied))
    ids = some_ids(model)
    labels = ids.clone()
    labels[0, :7] = labels[1, 12:] = -100
    add_fused_lm_head(model)
    count = None if items is None else torch.tensor(items)
    fused = model(input_ids=ids, labels=labels, num_items_in_batch=count, fused_lm_head=True).loss
    own = model(input_ids=ids, labels=labels, num_items_in_batch=count).loss
    expected = loss_by_hand(model, ids, labels, items)
    tolerance = ROWS_EQUAL_SOLO_LOGITS
    assert_close(fused, expected, tolerance, "TRL's loss")
    assert_close(own, expected, tolerance, "the model's loss")
    fused.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    own.backward()
    for name, gradient in gradients.items():
        assert_close_by_max(gradient, model.get_parameter(name).grad, ROWS_EQUAL_SOLO_GRADIENTS, name)


def test_its_loss_depends_on_the_soft_cap():
    model = tiny_model(tiny_config(logits_soft_cap=2.0))
    ids = some_ids(model)
    capped = loss_by_hand(model, ids, ids, None)
    model.config.logits_soft_cap = None
    assert (loss_by_hand(model, ids, ids, None) - capped).abs() > 1


@pytest.mark.parametrize("gates", [False, True])
def test_its_fused_head_under_an_adapter(gates: bool):
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_model()
    add_fused_lm_head(model)
    wrapped = adapted(lora_config(model, gates=gates), model)
    ids = some_ids(model)
    fused = wrapped(input_ids=ids, labels=ids, fused_lm_head=True).loss
    assert_close(fused, wrapped(input_ids=ids, labels=ids).loss, ROWS_EQUAL_SOLO_LOGITS, "loss")


# --- Its batches ------------------------------------------------------------------------------------------------------

PACKING: dict[str, dict[str, Any]] = {
    "best fit": {"packing": True, "packing_strategy": "bfd", "max_length": 64},
    "best fit, split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 64},
    "padding-free": {"padding_free": True, "max_length": None},
    "padded": {"max_length": 64},
}


@pytest.mark.parametrize("options", PACKING.values(), ids=PACKING)
def test_its_batches_train_as_separate_documents(options: dict[str, Any], tmp_path: Path, tokenizer: Any):
    lengths = (40, 17, 30, 9)
    texts = demo_texts()[: len(lengths)]
    documents = [{"input_ids": tokenizer(t).input_ids[:n]} for t, n in zip(texts, lengths, strict=True)]
    trainer = sft(tmp_path, tokenizer, documents, per_device_train_batch_size=4, **options)
    model = trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    assert ("position_ids" in batch) is ("packing" in options or "padding_free" in options)
    assert batch["input_ids"].numel() == (4 * 40 if "position_ids" not in batch else 96)
    trainer.compute_loss(model, dict(batch)).backward()
    actual = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = sum(len(row["input_ids"]) - 1 for row in documents)
    expected = torch.tensor(0.0)
    for row in documents:
        ids = torch.tensor(row["input_ids"])[None]
        loss = model(input_ids=ids, labels=ids, num_items_in_batch=total).loss
        loss.backward()
        expected += loss.detach()
    assert_close(trainer.compute_loss(model, dict(batch)), expected, ROWS_EQUAL_SOLO_LOGITS, "loss")
    for name, gradient in actual.items():
        assert_close_by_max(gradient, model.get_parameter(name).grad, ROWS_EQUAL_SOLO_GRADIENTS, name)


def test_wrapped_packing_cuts_one_stream(tmp_path: Path, tokenizer: Any):
    documents = [{"input_ids": tokenizer(text).input_ids[:30]} for text in demo_texts()[:4]]
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}
    trainer = sft(tmp_path, tokenizer, documents, per_device_train_batch_size=1, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    # No boundaries reach the model: a row is one document to it, as TRL means it here.
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"] and batch["input_ids"].shape == (1, 32)


# --- Chats ------------------------------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "Who said it?"},
    {"role": "assistant", "content": "The king."},
    {"role": "user", "content": "To whom?"},
    {"role": "assistant", "content": "To his son."},
]


def test_its_checks_find_the_chat_templates_markers(tokenizer: Any):
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    assert has_generation_markers(tokenizer.chat_template)
    assert is_chat_template_stop_token_trained(tokenizer)
    assert get_training_chat_template(tokenizer) is None


@pytest.mark.parametrize("packing", [False, True])
def test_assistant_only_loss_trains_what_the_model_says(packing: bool, tmp_path: Path, tokenizer: Any):
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}]
    options = {"assistant_only_loss": True, "packing": packing, "max_length": 256, "shuffle_dataset": False}
    trainer = sft(tmp_path, tokenizer, rows, per_device_train_batch_size=2, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    said = batch["input_ids"][batch["labels"] != -100]
    assert torch.equal(said, batch["labels"][batch["labels"] != -100])
    once = "The king.<end_of_turn>\n"
    assert sorted(tokenizer.decode(said).split("<end_of_turn>\n")) == sorted(
        (once + "To his son.<end_of_turn>\n" + once).split("<end_of_turn>\n")
    )
    assert int((batch["input_ids"] == tokenizer.bos_token_id).sum()) == 2


def test_prompts_and_completions(tmp_path: Path, tokenizer: Any):
    rows = [{"prompt": CHAT[:1], "completion": CHAT[1:2]}]
    trainer = sft(tmp_path, tokenizer, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    said = batch["input_ids"][batch["labels"] != -100]
    assert tokenizer.decode(said) == "The king.<end_of_turn>\n"
    assert batch["input_ids"][0].tolist() == tokenizer.apply_chat_template(CHAT[:2]).input_ids


# --- What it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "LoRA"])
def test_a_short_job_lowers_the_held_out_loss(adapter: bool, tmp_path: Path, tokenizer: Any):
    texts = [text.upper() for text in demo_texts()]
    model = demo_model()
    trainer = sft(
        tmp_path,
        tokenizer,
        [{"text": text} for text in texts[4:]],
        model=model,
        held_out=[{"text": text} for text in texts[:4]],
        packing=True,
        max_length=128,
        max_steps=8,
        learning_rate=2e-3 if adapter else 5e-4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        peft_config=lora_config(model, gates=True) if adapter else None,
    )
    before = trainer.evaluate()["eval_loss"]
    result = trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert math.isfinite(result.training_loss)
    assert after < before - 0.5
