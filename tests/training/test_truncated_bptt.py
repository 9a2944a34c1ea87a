"""The Trainer with a carried state does what a loop by hand does, and goes on after a kill as if there was none."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.training import TruncatedBPTTTrainer, cut_into_windows
from recurrent_gemma.training.truncated_bptt import STATE_FILE
from tests.modeling.models import WINDOW, tiny_model
from tests.support import require
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    assert_close_by_max,
)
from tests.training.routes import draw_documents, separately
from tests.training.test_windows import batches_of

LANES, RATE = 2, 0.05
SETTINGS = {
    "train_sampling_strategy": "sequential",
    "per_device_train_batch_size": LANES,
    "per_device_eval_batch_size": LANES,
    "num_train_epochs": 2,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def windows(*lengths, **options):
    return cut_into_windows(draw_documents(*lengths), **{"lanes": LANES, "window_length": WINDOW, **options})


def trainer_for(folder, rows, model=None, **options):
    trainer_options = {
        key: options.pop(key)
        for key in list(options)
        if key not in TrainingArguments.__annotations__ and key not in SETTINGS
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**SETTINGS, **options})
    return TruncatedBPTTTrainer(
        tiny_model() if model is None else model, arguments, train_dataset=rows, **trainer_options
    )


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def by_hand(rows, accumulation, epochs=2):
    """Losses of the steps, and the model after them."""
    model, losses = tiny_model().train(), []
    batches = batches_of(rows, LANES)
    for _ in range(epochs):
        cache = RecurrentGemmaCache(model.config)
        for first in range(0, len(batches), accumulation):
            step = batches[first : first + accumulation]
            count = max(1, sum(int((batch["shift_labels"] != -100).sum()) for batch in step))
            model.zero_grad()
            total = 0.0
            for batch in step:
                loss = model(**batch, past_key_values=cache.detach(), num_items_in_batch=count).loss
                loss.backward()
                total += loss.item()
            losses.append(total)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= RATE * parameter.grad
    return losses, model


@pytest.mark.parametrize("accumulation", [1, 4])
def test_losses_and_weights_are_those_of_a_loop_by_hand(accumulation, tmp_path):
    # A document begins inside a window, a lane ends with pads, and steps have windows and labels of any number.
    rows = windows(31, 5, 50)
    trainer = trainer_for(tmp_path, rows, gradient_accumulation_steps=accumulation)
    trainer.train()
    expected, model = by_hand(rows, accumulation)
    actual = losses_of(trainer)
    assert len(actual) == len(expected) == 2 * math.ceil(7 / accumulation)
    assert_close(torch.tensor(actual), torch.tensor(expected), ROWS_EQUAL_SOLO_LOGITS, "losses")
    for name, parameter in model.named_parameters():
        assert_close_by_max(trainer.model.get_parameter(name), parameter, ROWS_EQUAL_SOLO_GRADIENTS, name)


def test_labels_of_all_windows_of_a_step_count(tmp_path):
    trainer = trainer_for(tmp_path, windows(31, 5, 50))
    batches = batches_of(trainer.train_dataset, LANES)
    counts = [int((batch["shift_labels"] != -100).sum()) for batch in batches]
    assert trainer._get_num_items_in_batch(batches, torch.device("cpu")) == sum(counts)
    nothing = {**batches[0], "shift_labels": torch.full((LANES, WINDOW), -100)}
    assert trainer._get_num_items_in_batch([nothing], torch.device("cpu")) == 1


def test_a_window_without_labels_changes_nothing_and_is_no_nan(tmp_path):
    document = {"input_ids": list(range(40)), "assistant_masks": [0] * 30 + [1] * 10}
    rows = cut_into_windows([document], lanes=1, window_length=10)
    options = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "logging_nan_inf_filter": False}
    trainer = trainer_for(tmp_path, rows, num_train_epochs=1, **options)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[:2] == [0.0, 0.0] and losses[3] > 0
    assert trainer.evaluate(rows)["eval_loss"] > 0
    assert math.isnan(trainer.evaluate(cut_into_windows([{"input_ids": [1]}], lanes=1, window_length=4))["eval_loss"])
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **options):
            if state.global_step == 3:
                model.model.final_norm.weight.data.fill_(float("inf"))

    trainer = trainer_for(tmp_path, windows(31, 5, 50), gradient_accumulation_steps=2, callbacks=[Break()])
    message = rf"got (nan|inf) in step 4, window 6 of the epoch \(columns {6 * WINDOW} to {7 * WINDOW - 1}\).*bf16"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert len(losses_of(trainer)) == 3


def test_takes_the_arguments_of_the_trainer_in_its_order_and_columns_that_are_kept(tmp_path):
    rows = windows(31, 5, 50)
    plain = trainer_for(tmp_path, rows, num_train_epochs=1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), **{**SETTINGS, "num_train_epochs": 1, "remove_unused_columns": False}
    )
    trainer = TruncatedBPTTTrainer(tiny_model(), arguments, None, rows, rows)
    for run in (plain, trainer):
        run.train()
    assert losses_of(trainer) == losses_of(plain)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate(rows)["eval_loss"]
    assert trainer.predict(rows).predictions.shape == (len(rows), WINDOW, 97)


class Kill(TrainerCallback):
    """Ends the process's training after a step, as far as a test can."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **options):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("save_steps", "kill_after", "resumes_at"),
    [(3, 4, 3), (4, 6, 4), (5, 7, 5)],
    ids=["in the first epoch", "between epochs", "in the second epoch"],
)
def test_a_killed_run_goes_on_bit_for_bit(save_steps, kill_after, resumes_at, tmp_path):
    rows = windows(31, 5, 50)
    options = {
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
    }
    whole = trainer_for(tmp_path / "whole", rows, **{**options, "save_strategy": "no"})
    whole.train()
    killed = trainer_for(tmp_path / "killed", rows, callbacks=[Kill(kill_after)], **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    torch.manual_seed(1)  # another process
    resumed = trainer_for(tmp_path / "killed", rows, tiny_model(seed=3), **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses_of(killed) == losses_of(whole)[:kill_after]
    assert losses_of(resumed) == losses_of(whole)  # those up to the checkpoint are in it
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == list(range(1, 9))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter), name
    saved = RecurrentGemmaCache.load(tmp_path / "killed" / f"checkpoint-{resumes_at}" / STATE_FILE, whole.model.config)
    assert saved.columns == {3: 6, 4: 7, 5: 2}[resumes_at] * WINDOW


def test_a_checkpoint_without_a_state_is_refused(tmp_path):
    rows = windows(31, 5, 50)
    trainer_for(tmp_path, rows, save_strategy="steps", save_steps=3, max_steps=3).train()
    (tmp_path / "checkpoint-3" / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=f"resume_from_checkpoint: expected {STATE_FILE} in .*checkpoint-3, got none"):
        trainer_for(tmp_path, rows).train(resume_from_checkpoint=True)


def test_an_epoch_cut_short_and_a_second_training_begin_anew(tmp_path):
    class EndEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **options):
            control.should_epoch_stop = state.global_step in (3, 6)

    rows = windows(31, 5, 50)
    trainer = trainer_for(tmp_path, rows, learning_rate=0.0, callbacks=[EndEpoch()])
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 6 and losses[3:] == losses[:3]
    trainer.train()
    assert losses_of(trainer)[:3] == losses[:3]


def test_evaluation_has_a_state_of_its_own_and_counts_every_label_once(tmp_path):
    documents = draw_documents(33, 4, 20)
    held_out = cut_into_windows(documents, lanes=LANES, window_length=WINDOW, keep_documents=True)
    rows = windows(31, 5, 50)
    plain = trainer_for(tmp_path, rows)
    plain.train()
    trainer = trainer_for(tmp_path, rows, eval_strategy="steps", eval_steps=3, eval_dataset=held_out)
    trainer.train()
    assert losses_of(trainer) == losses_of(plain)
    batches = separately(documents)
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    with torch.no_grad():
        trainer.model.eval()
        expected = sum(trainer.model(**batch, num_items_in_batch=count).loss for batch in batches)
    for dataset in (None, held_out, {"a": held_out}):
        metrics = trainer.evaluate(dataset)
        name = "eval_a_loss" if isinstance(dataset, dict) else "eval_loss"
        assert_close(torch.tensor(metrics[name]), expected, SPLIT_EQUALS_WHOLE_LOGITS, "eval_loss")
    predicted = trainer.predict(held_out)
    assert_close(torch.tensor(predicted.metrics["test_loss"]), expected, SPLIT_EQUALS_WHOLE_LOGITS, "test_loss")
    assert predicted.predictions.shape == (len(held_out), WINDOW, 97)
    assert predicted.label_ids.tolist() == [row["shift_labels"] for row in held_out]


def test_the_carried_state_lowers_the_held_out_loss(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    text = (demo_path() / "heldout.txt").read_text(encoding="utf-8")[:6000]
    ids = tokenizer(text).input_ids[:1600]
    rows = cut_into_windows([{"input_ids": ids}], lanes=LANES, window_length=32)
    model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    carried = trainer_for(tmp_path, rows, model).evaluate(rows)["eval_loss"]
    with torch.no_grad():
        alone = [model(b["input_ids"], shift_labels=b["shift_labels"]).loss for b in batches_of(rows, LANES)]
    assert carried < torch.stack(alone).mean() - 0.15  # nats per token; measured: 0.22


# Transformers 5.24 has new names for gradient checkpointing, which older releases and PEFT do not know.
old_names = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@old_names
@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}, {"dataloader_num_workers": 1}])
def test_settings_that_save_memory_or_time(options, tmp_path):
    rows = windows(31, 5, 50)
    trainer = trainer_for(tmp_path, rows, num_train_epochs=1, **options)
    trainer.train()
    expected, _ = by_hand(rows, 1, epochs=1)
    # Under autocast, a loss of about 10 is off by some roundings of logits.
    tolerance = 0.1 if "bf16" in options else ROWS_EQUAL_SOLO_LOGITS
    assert_close(torch.tensor(losses_of(trainer)), torch.tensor(expected), tolerance, "losses")


@old_names
def test_a_dataset_and_adapters_of_peft(tmp_path):
    datasets, peft = require("datasets"), require("peft")
    rows = cut_into_windows(datasets.Dataset.from_list(draw_documents(31, 5, 50)), lanes=LANES, window_length=WINDOW)
    config = peft.LoraConfig(target_modules=["linear_x", "q_proj"], init_lora_weights=False, r=2)
    model = peft.get_peft_model(tiny_model(), config)
    trainer = trainer_for(tmp_path, rows, model, num_train_epochs=1, save_strategy="steps", save_steps=4)
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 7 and (tmp_path / "checkpoint-4" / STATE_FILE).is_file()
    model = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-4", is_trainable=True)
    resumed = trainer_for(tmp_path, rows, model, num_train_epochs=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses_of(resumed) == losses


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train_sampling_strategy", {"train_sampling_strategy": "random"}),
        ("train_sampling_strategy", {"train_sampling_strategy": "group_by_length"}),
        ("ignore_data_skip", {"ignore_data_skip": True}),
        ("auto_find_batch_size", {"auto_find_batch_size": True}),
        ("label_smoothing_factor", {"label_smoothing_factor": 0.1}),
        ("dataloader_in_order", {"dataloader_in_order": False, "dataloader_num_workers": 1}),
        ("compute_loss_func", {"compute_loss_func": lambda *_, **__: None}),
    ],
)
def test_settings_that_are_refused(name, options, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        trainer_for(tmp_path, windows(40), **options)


def test_several_devices_are_refused(tmp_path):
    trainer = trainer_for(tmp_path, windows(40))
    fields = {name: getattr(trainer.args, name) for name in SETTINGS}
    rest = {"ignore_data_skip": False, "dataloader_in_order": True, "auto_find_batch_size": False, "fsdp": None}
    rest |= {"label_smoothing_factor": 0.0, "deepspeed": None}
    for world_size, n_gpu in ((2, 1), (1, 2)):
        trainer.args = SimpleNamespace(**fields, **rest, world_size=world_size, n_gpu=n_gpu)
        with pytest.raises(ValueError, match="args: expected one process on one device"):
            trainer._expect_settings()


def test_data_that_does_not_fit_is_refused(tmp_path):
    rows = windows(4 * WINDOW, lanes=4)
    with pytest.raises(ValueError, match=r"train_dataset: expected as many lanes as the batch has rows \(2\), got 4"):
        trainer_for(tmp_path, rows).train()
    trainer = trainer_for(tmp_path, windows(40))
    with pytest.raises(ValueError, match="eval_dataset: expected as many lanes"):
        trainer.evaluate(rows)
    with pytest.raises(ValueError, match="test_dataset: expected rows with 'window'"):
        trainer.predict(draw_documents(4, 5))
