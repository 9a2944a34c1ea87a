"""Defects of the kind that serving invites, each noticed by the comparison that the other tests rest on."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.engines import WINDOW, Engine, batch, check, layers, running, text


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running(max_num_batched_tokens=64) as made:
        yield made


def _rewrite(patch: pytest.MonkeyPatch, change: Callable[[batch.RecurrentBatch], dict[str, Any]]) -> None:
    build = batch.RecurrentBatchBuilder.build

    def changed(*args: Any, **kwargs: Any) -> batch.RecurrentBatch:
        made = build(*args, **kwargs)
        return dataclasses.replace(made, **change(made))

    patch.setattr(batch.RecurrentBatchBuilder, "build", changed)


def stale_slot_read(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, lambda made: {"has_initial": made.has_initial | True})


def state_dropped_between_chunks(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, lambda made: {"has_initial": made.has_initial & (made.cu_seqlens.diff() == 1)})


def state_dropped_at_a_chunk_of_one_token(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, lambda made: {"has_initial": made.has_initial & (made.cu_seqlens.diff() > 1)})


def states_of_neighbours_swapped(patch: pytest.MonkeyPatch) -> None:
    _rewrite(patch, lambda made: {"slots": made.slots.roll(1) if (made.cu_seqlens.diff() == 1).all() else made.slots})


def convolution_without_history(patch: pytest.MonkeyPatch) -> None:
    mix = layers.RecurrentBlock.mix

    def forgetful(self: layers.RecurrentBlock, inputs: Any, made: Any, states: Any, histories: Any) -> Any:
        histories.zero_()
        return mix(self, inputs, made, states, histories)

    patch.setattr(layers.RecurrentBlock, "mix", forgetful)


def new_blocks_of_keys_not_cleared(patch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    patch.setattr(CPUModelRunner, "_zero_block_ids", lambda self, block_ids: None)


SABOTAGES = [
    stale_slot_read,
    state_dropped_between_chunks,
    state_dropped_at_a_chunk_of_one_token,
    states_of_neighbours_swapped,
    convolution_without_history,
    new_blocks_of_keys_not_cleared,
]


def _scenario(engine: Engine) -> None:
    engine.poison()
    check(engine.generate([text(150), text(65, start=400), text(40, start=900)]))


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.__name__)
def test_a_defect_of_states_is_noticed(engine: Engine, sabotage: Callable, monkeypatch: pytest.MonkeyPatch):
    _scenario(engine)
    sabotage(monkeypatch)
    with pytest.raises(AssertionError, match="exceeds"):
        _scenario(engine)


@pytest.mark.parametrize("keys", [WINDOW, WINDOW + 2])
def test_a_window_that_is_one_off_is_noticed(keys: int, monkeypatch: pytest.MonkeyPatch):
    attention = layers.Attention
    monkeypatch.setattr(
        layers,
        "Attention",
        lambda *args, **kwargs: attention(*args, **{**kwargs, "per_layer_sliding_window": keys}),
    )
    with running() as engine:
        check(engine.generate([text(WINDOW - 8)]))
        with pytest.raises(AssertionError, match="exceeds"):
            check(engine.generate([text(2 * WINDOW)]))
