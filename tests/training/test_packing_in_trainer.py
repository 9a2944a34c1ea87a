"""Packed rows in the Trainer itself: one step and an evaluation are those of the documents."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from recurrent_gemma.training import PackingCollator, pack_documents
from tests.modeling.models import WINDOW, tiny_model
from tests.support import require
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    assert_close,
    assert_close_by_max,
    max_difference,
)
from tests.training.routes import draw_documents, results_of, separately

LENGTHS = (1, 2, WINDOW + 1, 3 * WINDOW + 2, 4, 12, 9, 17)


def rows_and_collator(how, documents):
    if how == "documents, joined":
        return documents, PackingCollator()
    if how == "documents, joined by Transformers":
        return documents, DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    if how == "rows of a dataset":
        documents = require("datasets").Dataset.from_list(documents)
    return pack_documents(documents, max_length=24), PackingCollator(padding_side="left")


@pytest.mark.parametrize(
    "how", ["documents, joined", "documents, joined by Transformers", "rows of a list", "rows of a dataset"]
)
def test_a_step_and_an_evaluation_are_those_of_separate_documents(how, tmp_path):
    batch_size, documents = 2, draw_documents(*LENGTHS)
    rows, collator = rows_and_collator(how, documents)
    batches = -(-len(rows) // batch_size)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=len(rows),
        gradient_accumulation_steps=batches,  # the number of labels differs from batch to batch
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    model = tiny_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = results_of(model.train(), separately(documents))
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    assert max_difference(torch.tensor(trainer.evaluate()["eval_loss"]), expected.loss) <= ROWS_EQUAL_SOLO_LOGITS
    trainer.train()
    assert_close(torch.tensor(trainer.state.log_history[0]["loss"]), expected.loss, ROWS_EQUAL_SOLO_LOGITS, "loss")
    for name, gradient in expected.gradients.items():
        step = before[name] - model.get_parameter(name)
        # The step is read off rounded weights: half a unit in the last place of the largest one.
        floor = torch.finfo(torch.float32).eps * before[name].abs().max() / gradient.abs().max()
        assert_close_by_max(step, gradient, ROWS_EQUAL_SOLO_GRADIENTS + floor.item(), name)


MASKED = [
    {"input_ids": [2, 5, 6, 7], "completion_mask": [0, 0, 1, 1]},
    {"input_ids": [2, 8], "completion_mask": [0, 1]},
]


def first_batch(rows, collator, folder, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Trainer(tiny_model(), arguments, train_dataset=rows, data_collator=collator)
    return next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("packed", [False, True])
def test_a_mask_reaches_the_collator_or_its_absence_is_told(packed, tmp_path):
    rows = MASKED
    if packed:
        rows = [{"position_ids": list(range(len(row["input_ids"]))), **row} for row in MASKED]
    collator = PackingCollator(target_mask="completion_mask")
    # The Trainer drops what forward() does not name, and the prompts would be learned.
    with pytest.raises(ValueError, match=r"features\[0\]: expected completion_mask.*remove_unused_columns=False"):
        first_batch(rows, collator, tmp_path)
    batch = first_batch(rows, collator, tmp_path, remove_unused_columns=False)
    expected = [[-100, -100, 6, 7], [-100, 8, -100, -100]] if packed else [[-100, -100, 6, 7, -100, 8]]
    assert batch["labels"].tolist() == expected
    # Rows of pack_documents have it in their labels.
    batch = first_batch(pack_documents(MASKED, max_length=6), PackingCollator(), tmp_path)
    assert batch["labels"].tolist() == [[-100, -100, 6, 7, -100, 8]]


def test_masks_have_known_names():
    with pytest.raises(
        ValueError, match=r"target_mask: expected None or one of \['assistant_masks', 'completion_mask'"
    ):
        PackingCollator(target_mask="mask")
