"""The model against stored results of DeepMind's JAX code; needs no JAX."""

import pytest
import torch

from recurrent_gemma import RecurrentGemmaForCausalLM
from tests.parity import checks, goldens, ours
from tests.parity.cases import CASES, Case, parameter_shapes
from tests.tolerances import LOGITS_VS_JAX, assert_close

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_stored_files_are_the_ones_of_the_manifest():
    stored = {path.name: goldens.hash_of_file(path) for path in goldens.FOLDER.glob("*.safetensors")}
    assert stored == goldens.manifest()["files"]
    assert stored.keys() == {f"{case.name}.safetensors" for case in CASES}


@every_case
def test_inputs_are_those_that_the_results_were_made_with(case: Case):
    assert goldens.hash_of_inputs(case) == goldens.manifest()["inputs"][case.name]


@every_case
def test_rows_are_longer_than_three_windows(case: Case):
    assert case.length > 3 * (case.config.attention_window_size + 1)


@every_case
def test_model_has_exactly_the_checkpoint_names_and_shapes(case: Case):
    model = RecurrentGemmaForCausalLM(case.config)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(case.config)


@every_case
def test_prefill_logits_equal_jax(case: Case):
    checks.check_prefill(case)


@every_case
def test_prefill_logits_of_eager_attention_equal_jax(case: Case):
    model = ours.build(case)
    model.set_attn_implementation("eager")
    actual = ours.run(model, ours.tokens_of(case))
    assert_close(actual, goldens.load(case)["logits/prefill"], LOGITS_VS_JAX, f"{case} eager")


@every_case
def test_decode_logits_equal_jax(case: Case):
    checks.check_decode(case)


@every_case
def test_packed_logits_equal_jax(case: Case):
    checks.check_packed(case)


@every_case
def test_hidden_states_of_every_layer_equal_jax(case: Case):
    checks.check_hidden_states(case)


@every_case
def test_loss_and_gradients_equal_jax(case: Case):
    checks.check_gradients(case)


@every_case
def test_bf16_error_is_no_larger_than_that_of_jax(case: Case):
    checks.check_bf16(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every_case
def test_every_block_is_as_exact_as_that_of_jax(case: Case, dtype: torch.dtype):
    checks.check_blocks_against_fp64(case, dtype)


@every_case
def test_every_gradient_is_as_exact_as_that_of_jax(case: Case):
    checks.check_gradients_against_fp64(case)


@every_case
def test_fp64_model_equals_the_reference(case: Case):
    checks.check_fp64(case)
