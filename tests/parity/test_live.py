"""The model against DeepMind's JAX code, run here: other weights and tokens than the stored results, and bf16."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.parity import goldens, ours
from tests.parity.cases import CASES, Case
from tests.support import require
from tests.tolerances import (
    GRADIENTS_VS_JAX,
    LOGITS_BF16,
    LOGITS_VS_JAX,
    assert_close,
    assert_close_by_max,
    max_difference,
    root_mean_square_error,
)

require("jax")
require("recurrentgemma.jax")

from tests.parity.jax_model import JaxModel, initial_weights  # noqa: E402

# Compiling DeepMind's unrolled scan takes most of the time: fewer layers and shorter rows (still more than three
# windows) than in the stored results.
FRESH_CASES = tuple(
    replace(
        case,
        seed=case.seed + 500,
        documents=((13, 1, 9, 5), (2, 3, 17, 6)),
        overrides=(*case.overrides, ("num_hidden_layers", layers)),
    )
    for case, layers in zip(CASES, (3, 3, 2, 2, 2), strict=True)
)


def torch_of(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize("case", FRESH_CASES, ids=str)
def test_logits_equal_jax(case: Case):
    theirs = JaxModel(case.config, case.weights(), compile_quickly=True)
    model, tokens = ours.build(case), ours.tokens_of(case)
    for name, positions in (("prefill", case.positions()), ("packed", case.packed_positions())):
        actual = ours.run(model, tokens, position_ids=torch.from_numpy(positions))
        assert_close(actual, torch_of(theirs.logits(case.tokens(), positions)), LOGITS_VS_JAX, f"{case} {name}")
    actual = ours.run_in_pieces(model, tokens, [1] * case.length)
    assert_close(actual, torch_of(theirs.decode(case.tokens(), prompt_length=1)), LOGITS_VS_JAX, f"{case} decode")


@pytest.mark.parametrize("case", [FRESH_CASES[0], FRESH_CASES[-1]], ids=str)
def test_gradients_of_packed_rows_equal_jax(case: Case):
    positions = case.packed_positions()
    loss, expected = JaxModel(case.config, case.weights(), compile_quickly=True).gradients(case.tokens(), positions)
    model, tokens = ours.build(case), ours.tokens_of(case)
    actual_loss, actual = ours.gradients(model, tokens, position_ids=torch.from_numpy(positions))
    assert_close_by_max(actual_loss, torch.tensor(loss), GRADIENTS_VS_JAX, f"{case} loss")
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close_by_max(gradient, torch_of(expected[name]), GRADIENTS_VS_JAX, f"{case} gradient of {name}")


def test_bf16_of_a_new_model_is_as_exact_as_in_jax():
    case = FRESH_CASES[0]
    weights = {name: torch_of(w).bfloat16() for name, w in initial_weights(case.config, case.seed).items()}
    rounded = {name: w.float().numpy() for name, w in weights.items()}
    exact = torch_of(JaxModel(case.config, rounded, compile_quickly=True).logits(case.tokens(), case.positions()))
    theirs = torch_of(
        JaxModel(case.config, rounded, bf16=True, compile_quickly=True).logits(case.tokens(), case.positions())
    )
    model = ours.build_from(case.config, weights, torch.bfloat16)
    actual = ours.run(model, ours.tokens_of(case))
    assert root_mean_square_error(actual, exact) <= root_mean_square_error(theirs, exact)
    assert max_difference(actual, exact) <= LOGITS_BF16


def test_stored_results_come_from_this_code():
    case = CASES[-1]
    logits = JaxModel(case.config, case.weights(), compile_quickly=True).logits(case.tokens(), case.positions())
    assert_close(torch_of(logits), goldens.load(case)["logits/prefill"], LOGITS_VS_JAX, f"{case} made again")
