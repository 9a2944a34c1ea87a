"""Counts what a model is fed."""

from collections.abc import Callable

import pytest

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM


@pytest.fixture
def count_columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[RecurrentGemmaForCausalLM], list[int]]:
    """A function that gives the list of columns of every forward pass that the model makes from then on."""

    def count(model: RecurrentGemmaForCausalLM) -> list[int]:
        fed: list[int] = []
        forward = model.model.forward

        def counting(*args, input_ids=None, inputs_embeds=None, **kwargs):
            fed.append((inputs_embeds if input_ids is None else input_ids).shape[1])
            return forward(*args, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

        monkeypatch.setattr(model.model, "forward", counting)
        return fed

    return count
