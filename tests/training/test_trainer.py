"""The Trainer with these models: what it reports and saves equals what the model gives by hand."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
)

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.models import tiny_model
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    assert_close,
    assert_close_by_max,
    logits_tolerance,
)
from tests.training.trainers import Gradients, arguments, collate, losses, row_logits, rows, token_losses, trainer


def assert_same_loss(actual: float, expected: torch.Tensor) -> None:
    """A mean loss of the batch against that of rows read alone: each token's is off by at most twice its logits."""
    assert_close(
        torch.tensor(actual), expected, logits_tolerance(2 * ROWS_EQUAL_SOLO_LOGITS, torch.tensor(30.0)), "loss"
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 40 steps that was evaluated before and after, and the folder it was saved to."""
    run = trainer(
        tmp_path_factory.mktemp("run"),
        data=rows(256),
        held_out=rows(16, seed=1),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
    )
    before = run.evaluate()
    run.train()
    return run, before, run.evaluate()


def test_training_lowers_the_loss_of_held_out_rows(trained):
    _, before, after = trained
    assert before["eval_loss"] > 15
    assert after["eval_loss"] < 4


def test_losses_are_means_over_labels_by_hand(tmp_path):
    held_out = rows(16, seed=1)
    run = trainer(tmp_path, held_out=held_out, max_steps=1, train_sampling_strategy="sequential")
    model = tiny_model()
    # All rows in one batch: the mean over all labels. In several: the mean of their means, weighted by rows.
    run.args.per_device_eval_batch_size = 16
    assert_same_loss(run.evaluate()["eval_loss"], token_losses(model, held_out).mean())
    run.args.per_device_eval_batch_size = 6
    parts = [token_losses(model, held_out[start : start + 6]).mean() for start in (0, 6, 12)]
    weighted = (6 * parts[0] + 6 * parts[1] + 4 * parts[2]) / 16
    assert_same_loss(run.evaluate()["eval_loss"], weighted)
    assert abs(weighted - token_losses(model, held_out).mean()) > 1e-2
    run.train()
    assert_same_loss(losses(run)[0], token_losses(model, rows(32)[:4]).mean())


def test_predictions_are_logits_alone(tmp_path):
    data = rows(6, seed=2, shortest=12, longest=12)
    result = trainer(tmp_path, per_device_eval_batch_size=4).predict(data)
    assert result.predictions.shape == (6, 12, 97)
    assert result.label_ids.shape == (6, 12)
    assert result.metrics["test_loss"] > 0
    expected = torch.stack([row_logits(tiny_model(), row) for row in data])
    tolerance = logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected)
    assert_close(torch.from_numpy(result.predictions), expected, tolerance, "predictions")


def test_predictions_hold_no_cache_under_either_name(tmp_path):
    run = trainer(tmp_path, use_cache=True)
    batch = collate(rows(2))
    outputs = run.model(**batch)
    assert isinstance(outputs[CACHE_NAME], RecurrentGemmaCache)
    _, logits, labels = run.prediction_step(run.model, batch, prediction_loss_only=False)
    assert torch.equal(logits, outputs.logits)
    assert torch.equal(labels, batch["labels"])


def test_metrics_get_what_is_made_of_the_logits(tmp_path):
    def compute_metrics(prediction):
        guesses, labels = (
            torch.from_numpy(prediction.predictions)[:, :-1],
            torch.from_numpy(prediction.label_ids)[:, 1:],
        )
        return {"accuracy": (guesses == labels)[labels != -100].double().mean().item()}

    data = rows(7, seed=3, longest=16)
    functions = {
        "compute_metrics": compute_metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    run = trainer(tmp_path, held_out=data, per_device_eval_batch_size=3, extra=functions)
    hits = []
    for row in data:
        labels = torch.tensor(row["labels"][1:])
        hits.append((row_logits(tiny_model(), row)[:-1].argmax(-1) == labels)[labels != -100])
    assert run.evaluate()["eval_accuracy"] == torch.cat(hits).double().mean().item()


def test_micro_batches_of_uneven_labels_make_one_batch(tmp_path):
    # Rows of 6 to 60 tokens, so that a mean of the micro-batches' means is another number.
    data = [row for length in (6, 60, 9, 31) for row in rows(1, seed=length, shortest=length, longest=length)]
    whole, parts = Gradients(), Gradients()
    options = {"data": data, "max_steps": 1, "train_sampling_strategy": "sequential", "max_grad_norm": 0.0}
    one = trainer(tmp_path, per_device_train_batch_size=4, callbacks=[whole], optim="sgd", **options)
    four = trainer(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        callbacks=[parts],
        optim="sgd",
        **options,
    )
    for run in (one, four):
        run.train()
    assert_same_loss(losses(four)[0], token_losses(tiny_model(), data).mean())
    assert_same_loss(losses(four)[0], torch.tensor(losses(one)[0]))
    means = torch.stack([token_losses(tiny_model(), [row]).mean() for row in data]).mean()
    assert abs(means - losses(four)[0]) > 1e-2
    assert whole.steps[0].keys() == parts.steps[0].keys() == weights(one.model).keys()
    for name, expected in whole.steps[0].items():
        assert_close_by_max(parts.steps[0][name], expected, ROWS_EQUAL_SOLO_GRADIENTS, f"gradient of {name}")
    start = weights(tiny_model())
    for name, expected in weights(one.model).items():
        step = 1e-3 * whole.steps[0][name].abs().max().item()
        rounding = torch.finfo(torch.float32).eps * expected.abs().max().item()
        assert_close(weights(four.model)[name], expected, ROWS_EQUAL_SOLO_GRADIENTS * step + rounding, name)
        assert not torch.equal(expected, start[name])


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_padded_on_the_right_have_one_loss_however_they_are_batched(side, tmp_path):
    # As a text is tokenized: every token has a label, the first one too.
    data = [{"input_ids": row["input_ids"]} for n in (6, 60, 9, 31) for row in rows(1, seed=n, shortest=n, longest=n)]
    tokenizer = AutoTokenizer.from_pretrained(demo_path(), padding_side=side)
    found = []
    for batch_size in (1, 2, 4):
        run = Trainer(
            model=tiny_model(),
            args=arguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=4 // batch_size,
                train_sampling_strategy="sequential",
            ),
            train_dataset=data,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        run.train()
        found.append(losses(run)[0])
    expected = token_losses(tiny_model(), [{**row, "labels": row["input_ids"]} for row in data]).mean()
    assert_same_loss(found[0], expected)
    if side == "right":
        for loss in found:
            assert_same_loss(loss, expected)
    else:  # why docs/trainer.md asks for the right
        assert found[0] - found[2] > 1e-2


def test_label_smoothing_by_hand(tmp_path):
    run = trainer(
        tmp_path,
        held_out=rows(6, seed=1),
        max_steps=1,
        label_smoothing_factor=0.2,
        train_sampling_strategy="sequential",
    )
    model = tiny_model()
    smoothed = token_losses(model, rows(6, seed=1), label_smoothing=0.2).mean()
    assert_same_loss(run.evaluate()["eval_loss"], smoothed)
    run.train()
    assert_same_loss(losses(run)[0], token_losses(model, rows(32)[:4], label_smoothing=0.2).mean())
    assert abs(smoothed - token_losses(model, rows(6, seed=1)).mean()) > 1e-2


def test_rows_are_grouped_by_length(tmp_path):
    seen = []

    class Watching(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(inputs["attention_mask"].sum(1))
            return super().training_step(model, inputs, *args, **kwargs)

    spreads = {}
    for strategy in ("random", "group_by_length"):
        seen.clear()
        run = trainer(tmp_path, kind=Watching, data=rows(64), max_steps=16, train_sampling_strategy=strategy)
        run.train()
        lengths = torch.stack(seen)
        spreads[strategy] = (lengths.amax(1) - lengths.amin(1)).double().mean().item()
        # Each row once, in whatever order.
        assert lengths.flatten().sort().values.tolist() == sorted(len(row["input_ids"]) for row in rows(64))
    assert spreads["group_by_length"] < 0.5 * spreads["random"]


def test_batch_size_shrinks_until_a_step_fits(tmp_path):
    sizes = []

    class Small(Trainer):
        """Holds two rows."""

        def training_step(self, model, inputs, *args, **kwargs):
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    options = {"max_steps": 3, "train_sampling_strategy": "sequential"}
    run = trainer(tmp_path, kind=Small, auto_find_batch_size=True, per_device_train_batch_size=4, **options)
    run.train()
    assert sizes[0] == 4
    assert sizes[-3:] == [2, 2, 2]
    assert sizes == sorted(sizes, reverse=True)
    plain = trainer(tmp_path, per_device_train_batch_size=2, **options)
    plain.train()
    assert losses(run) == losses(plain)


def test_saved_folder_loads_with_no_further_step(trained, tmp_path):
    run, _, after = trained
    run.processing_class = AutoTokenizer.from_pretrained(demo_path())
    run.save_model(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is RecurrentGemmaForCausalLM
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.model.parameters(), strict=True))
    halves = [token_losses(loaded, rows(16, seed=1)[part]).mean() for part in (slice(8), slice(8, 16))]
    assert_same_loss(after["eval_loss"], sum(halves) / 2)
    text = "In the beginning"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == run.processing_class(text).input_ids
    ids = torch.tensor([rows(1, seed=9)[0]["input_ids"]])
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    generated = loaded.generate(ids, **options)
    assert torch.equal(generated.sequences, run.model.eval().generate(ids, **options).sequences)
    # The Trainer has turned use_cache off in the config, which generate() has no regard for.
    assert isinstance(generated[CACHE_NAME], RecurrentGemmaCache)


def test_best_model_is_loaded_at_the_end(tmp_path):
    kept = []

    class Keep(TrainerCallback):
        def on_evaluate(self, args, state, control, model, **kwargs):
            kept.append(weights(model))

        def on_save(self, args, state, control, model, **kwargs):
            # The steps that follow cannot make up for that.
            model.model.final_norm.weight.data.add_(2.0)

    options = dict.fromkeys(("eval_steps", "save_steps"), 3)
    options |= dict.fromkeys(("eval_strategy", "save_strategy"), "steps")
    run = trainer(
        tmp_path,
        held_out=rows(8, seed=1),
        callbacks=[Keep()],
        max_steps=6,
        load_best_model_at_end=True,
        **options,
    )
    run.train()
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert evaluated[0] < evaluated[1]
    differing = [n for n, weight in weights(run.model).items() if not torch.equal(kept[0][n], weight)]
    assert differing == []
    assert not torch.equal(kept[0]["model.final_norm.weight"], kept[1]["model.final_norm.weight"])


def test_mean_loss_is_cross_entropy_in_fp32_of_half_precision_logits(tmp_path):
    # The Trainer's loss is the model's own, whatever the logits' dtype is.
    model = tiny_model().bfloat16()
    batch = collate(rows(3))
    outputs = model(**batch, use_cache=False)
    assert outputs.loss.dtype == torch.float32
    labels = batch["labels"][:, 1:]
    logits = outputs.logits[:, :-1].float()
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    # The logits that are returned are rounded to bf16, those of the loss are not.
    assert_close(outputs.loss, expected, 2 * torch.finfo(torch.bfloat16).eps * logits.abs().max().item(), "loss")
