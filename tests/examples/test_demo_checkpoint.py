"""The shipped checkpoint, measured anew from the files in the package alone."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import recurrent_gemma
from recurrent_gemma import RecurrentGemmaForCausalLM, RecurrentGemmaTokenizer
from tests.held_out import held_out_chapters, token_losses

DEMO = Path(recurrent_gemma.demo_path())


@pytest.fixture(scope="module")
def evaluation() -> dict:
    return json.loads((DEMO / "evaluation.json").read_text(encoding="utf-8"))


def test_held_out_perplexity_is_the_recorded_one_and_beats_the_baselines(evaluation: dict) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    assert isinstance(model, RecurrentGemmaForCausalLM)
    assert isinstance(tokenizer, RecurrentGemmaTokenizer)
    losses = token_losses(model, held_out_chapters())
    perplexity = math.exp(losses.mean().item())
    baselines = evaluation["baseline_perplexity"]
    assert len(losses) == evaluation["heldout_tokens"]
    assert perplexity == pytest.approx(evaluation["heldout_perplexity"], rel=5e-3)
    assert perplexity < 0.85 * baselines["trigram"] < baselines["trigram"] < baselines["unigram"]


def test_files_are_small_and_weights_are_bfloat16(evaluation: dict) -> None:
    assert (DEMO / "model.safetensors").stat().st_size <= 15e6
    with safe_open(DEMO / "model.safetensors", framework="pt") as weights:
        tensors = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors} == {"BF16"}
        assert sum(math.prod(tensor.get_shape()) for tensor in tensors) == evaluation["parameters"]


def test_little_of_its_text_is_copied(evaluation: dict) -> None:
    assert evaluation["copied_8gram_share"] < 0.1


def test_card_states_data_licence_training_and_figures(evaluation: dict) -> None:
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    for fact in (
        "bible-kjv-text",
        "r-cran-janeaustenr",
        "public domain",
        "license: apache-2.0",
        f"{evaluation['training']['steps']:,} steps",
        f"{evaluation['heldout_perplexity']:.2f}",
        f"{evaluation['baseline_perplexity']['unigram']:.1f}",
        f"{evaluation['baseline_perplexity']['trigram']:.1f}",
    ):
        assert fact in card
    for sample in evaluation["samples"]:
        assert sample.splitlines()[0] in card
