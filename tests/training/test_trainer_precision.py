"""Half precision stays close to fp32, keeps the state in fp32 and shows overflow; compiled steps equal eager ones."""

import math

import pytest
import torch
from transformers import Trainer

from recurrent_gemma.modeling.layers import RecurrentGemmaRglru
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import (
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    bf16_loss_tolerance,
    logits_tolerance,
)
from tests.training.trainers import collate, losses, row_logits, rows, token_losses, trainer


def test_bf16_autocast_follows_fp32(tmp_path):
    data = rows(32)
    exact = trainer(tmp_path, data=data, max_steps=8, learning_rate=1e-2)
    half = trainer(tmp_path, data=data, max_steps=8, learning_rate=1e-2, bf16=True)
    for run in (exact, half):
        run.train()
    model = tiny_model()
    tokens = token_losses(model, data[:4]).numel()
    bar = bf16_loss_tolerance(row_logits(model, data[0]), tokens, layers=5)
    assert losses(half) != losses(exact)
    assert losses(exact)[-1] < losses(exact)[0] - 10 * bar
    assert_close(torch.tensor(losses(half)), torch.tensor(losses(exact)), bar, "losses")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_recurrence_in_fp32(dtype):
    model, seen = tiny_model().train(), []

    def look(module, inputs, output):
        seen.append((inputs[0].dtype, module.recurrent_param.dtype, output[1].dtype))

    for module in model.modules():
        if isinstance(module, RecurrentGemmaRglru):
            module.register_forward_hook(look)
    batch = collate(rows(4))
    with torch.autocast("cpu", dtype):
        outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    # x comes from a product in half precision; a_param and the state do not leave fp32.
    assert set(seen) == {(dtype, torch.float32, torch.float32)}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_fp16_argument_means_fp32_on_a_cpu(tmp_path):
    exact, half = (trainer(tmp_path, max_steps=3, fp16=fp16) for fp16 in (False, True))
    for run in (exact, half):
        run.train()
    assert losses(half) == losses(exact)


@pytest.mark.parametrize("filtered", [True, False])
def test_overflow_of_an_fp16_model_shows_in_the_gradient_norm(filtered, tmp_path):
    model = tiny_model().half()
    model.model.layers[0].mlp_block.up_proj.weight.data *= 3e4
    run = trainer(tmp_path, model=model, max_steps=2, logging_nan_inf_filter=filtered)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert all(math.isnan(entry["grad_norm"]) for entry in logged)
    # The Trainer's filter, which is on by default, logs 0 in place of NaN.
    assert [entry["loss"] for entry in logged] == (
        [0.0, 0.0] if filtered else pytest.approx([math.nan] * 2, nan_ok=True)
    )


def test_steps_that_overflow_in_fp16_are_skipped():
    model, batch = tiny_model().train(), collate(rows(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**33)
    history = []
    for _ in range(24):
        before, scale = model.lm_head.weight.detach().clone(), scaler.get_scale()
        with torch.autocast("cpu", torch.float16):
            loss = model(**batch).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped = torch.equal(model.lm_head.weight, before)
        assert skipped == (scaler.get_scale() < scale)
        history.append((skipped, loss.item()))
    steps = [loss for skipped, loss in history if not skipped]
    assert history[0][0]
    assert len(steps) > 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert steps[-1] < steps[0]


def assert_compiled_steps_equal_eager_ones(tmp_path, **options) -> None:
    class Watching(Trainer):
        """Counts the graphs that the compiler got."""

        graphs = 0

        def training_step(self, *args, **kwargs):
            result = super().training_step(*args, **kwargs)
            Watching.graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            return result

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = tiny_config(num_hidden_layers=2, block_types=["recurrent", "attention"])
    data = rows(16, shortest=16, longest=16)
    runs = [
        trainer(tmp_path, kind=Watching, model=tiny_model(config), data=data, max_steps=3, **extra)
        for extra in ({}, {"torch_compile": True, **options})
    ]
    for run in runs:
        run.train()
    assert Watching.graphs > 0
    expected = torch.tensor(losses(runs[0]))
    # A mean of losses, each the difference of two sums of logits of up to 30.
    bar = logits_tolerance(2 * SPLIT_EQUALS_WHOLE_LOGITS, torch.tensor(30.0))
    assert_close(torch.tensor(losses(runs[1])), expected, bar, "losses")


def test_traced_steps_equal_eager_ones(tmp_path):
    assert_compiled_steps_equal_eager_ones(tmp_path, torch_compile_backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own, inside it
def test_compiled_steps_equal_eager_ones(tmp_path):
    assert_compiled_steps_equal_eager_ones(tmp_path)
