"""Gradient checkpointing changes memory and time and nothing else: losses and gradients are equal bit for bit."""

import pytest
import torch
from torch import Tensor

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from tests.modeling.models import CONFIGS, tiny_config, tiny_model
from tests.tolerances import assert_close_by_max, backward_tolerance
from tests.training.trainers import Gradients, losses, rows, trainer

may_be_deprecated = pytest.mark.filterwarnings(
    # Renamed in Transformers 5.24; the old names are those that work with every supported release.
    "ignore:.gradient_checkpointing.*deprecated:FutureWarning"
)
pytestmark = may_be_deprecated


def positions() -> Tensor:
    """Two documents in the first row, three in the second."""
    return torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ((13, 27), (9, 1, 30))])


def mask() -> Tensor:
    """Pads on the left, in the middle and on the right."""
    marks = torch.ones(2, 40, dtype=torch.long)
    marks[0, :7] = marks[1, 20:25] = marks[1, -3:] = 0
    return marks


INPUTS = {
    "plain": {},
    "packed": {"position_ids": positions()},
    "packed in one row": {"cu_seq_lens_q": torch.tensor([0, 13, 40], dtype=torch.int32)},
    "pads": {"attention_mask": mask()},
    "all hidden states": {"output_hidden_states": True},
}


def checkpointed(model: RecurrentGemmaForCausalLM, use_reentrant: bool | None) -> RecurrentGemmaForCausalLM:
    """The model in training mode; None leaves checkpointing off."""
    if use_reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        assert all(layer.gradient_checkpointing for layer in model.model.layers)
    return model.train()


def gradients(model: RecurrentGemmaForCausalLM) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name, gradient in expected.items() if not torch.equal(actual[name], gradient)] == []


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_gradients_are_equal(name, use_reentrant):
    ids = torch.randint(3, 97, (1 if name == "packed in one row" else 2, 40))
    results = []
    for mode in (None, use_reentrant):
        model = checkpointed(tiny_model(), mode)
        outputs = model(ids, labels=ids, **INPUTS[name])
        loss = outputs.loss
        if outputs.hidden_states is not None:
            # Every state that is given out carries its gradient.
            loss = loss + sum(state.square().mean() for state in outputs.hidden_states)
        loss.backward()
        results.append((loss, gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert len(results[0][1]) == len(list(tiny_model().parameters()))
    if name == "all hidden states" and use_reentrant:
        # A state's gradients, of its uses inside and outside of a block, are added in another order.
        for parameter, gradient in results[0][1].items():
            assert_close_by_max(results[1][1][parameter], gradient, backward_tolerance(torch.float32), parameter)
    else:
        assert_equal(results[1][1], results[0][1])


@pytest.mark.parametrize("name", ["all attention", "odd pattern", "no history, window of one"])
def test_gradients_of_other_shapes_are_equal(name):
    ids = torch.randint(3, 97, (2, 40))
    results = []
    for mode in (None, False):
        model = checkpointed(tiny_model(tiny_config(**CONFIGS[name])), mode)
        model(ids, labels=ids).loss.backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0])


def test_attention_dropout_is_drawn_again_alike():
    ids = torch.randint(3, 97, (2, 40))
    results = []
    for mode in (None, False, True):
        model = checkpointed(tiny_model(tiny_config(attention_dropout=0.3)), mode)
        torch.manual_seed(1)
        model(ids, labels=ids).loss.backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


def test_layers_run_again_in_the_backward():
    model = checkpointed(tiny_model(), False)
    runs = []
    for layer in model.model.layers:
        layer.mlp_block.register_forward_pre_hook(lambda *call: runs.append(1))
    ids = torch.randint(3, 97, (2, 10))
    loss = model(ids, labels=ids).loss
    assert len(runs) == 5
    loss.backward()
    assert len(runs) == 10


def loss_by_way_of_a_cache(model: RecurrentGemmaForCausalLM, ids: Tensor) -> Tensor:
    """Loss of the second half, whose gradient goes through the state into the first one."""
    cache = RecurrentGemmaCache(model.config)
    model(ids[:, :20], past_key_values=cache)
    return model(ids[:, 20:], past_key_values=cache, labels=ids[:, 20:]).loss


def test_cache_carries_its_gradient():
    ids = torch.randint(3, 97, (2, 40))
    results = []
    for mode in (None, False):
        model = checkpointed(tiny_model(), mode)
        loss_by_way_of_a_cache(model, ids).backward()
        results.append(gradients(model))
    assert_equal(results[1], results[0])
    detached = checkpointed(tiny_model(), None)
    cache = RecurrentGemmaCache(detached.config)
    with torch.no_grad():
        detached(ids[:, :20], past_key_values=cache)
    detached(ids[:, 20:], past_key_values=cache, labels=ids[:, 20:]).loss.backward()
    name = "model.layers.0.temporal_block.linear_x.weight"
    assert not torch.equal(gradients(detached)[name], results[0][name])


def test_cache_under_reentrant_checkpointing_is_refused():
    model = checkpointed(tiny_model(), True)
    ids = torch.randint(3, 97, (2, 40))
    cache = RecurrentGemmaCache(model.config)
    with pytest.raises(ValueError, match=r"past_key_values: expected no cache.*use_reentrant=False"):
        model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="use_cache=False"):
        model(ids, use_cache=True)


# Before Transformers 5.24 blocks are checkpointed where there is no gradient as well, and torch says so.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_without_gradients_caches_work_in_training_mode(use_reentrant):
    model, ids = checkpointed(tiny_model(), use_reentrant), torch.randint(3, 97, (2, 10))
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), tiny_model().generate(ids, **options))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_trainer_takes_equal_steps(use_reentrant, tmp_path):
    options = {"data": rows(8), "max_steps": 3}
    plain, checkpointing = Gradients(), Gradients()
    expected = trainer(tmp_path, callbacks=[plain], **options)
    actual = trainer(
        tmp_path,
        callbacks=[checkpointing],
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
        **options,
    )
    for run in (expected, actual):
        run.train()
    assert losses(actual) == losses(expected)
    for step, other in zip(checkpointing.steps, plain.steps, strict=True):
        assert_equal(step, other)
    assert actual.model.model.layers[0].gradient_checkpointing
