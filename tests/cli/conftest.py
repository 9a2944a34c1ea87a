"""Checkpoints for the folder's tests, which must not change them, and what a model reads."""

from pathlib import Path

import pytest

from recurrent_gemma import RecurrentGemmaForCausalLM
from tests.registration.checkpoint import write_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="package")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Under this seed some answers end by themselves and some at their last token.
    return write_checkpoint(tmp_path_factory.mktemp("chat_checkpoint"), seed=2, chat=True)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids that models have read, in order."""
    ids: list[int] = []
    forward = RecurrentGemmaForCausalLM.forward

    def recorded(self, input_ids=None, **kwargs):
        output = forward(self, input_ids=input_ids, **kwargs)
        ids.extend(input_ids[0].tolist())
        return output

    monkeypatch.setattr(RecurrentGemmaForCausalLM, "forward", recorded)
    return ids
