"""What parity means, as functions that raise AssertionError. Tests run them on the model, mutants on broken ones.

Each takes a ``Case`` and compares the model that it builds with stored results of DeepMind's JAX code, with the fp64
reference, or with itself by another route.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity import goldens, ours, reference
from tests.parity.cases import PROMPT_LENGTH, Case, to_torch
from tests.tolerances import (
    ERROR_VS_DEEPMIND,
    FP64_MODEL,
    GRADIENTS_VS_JAX,
    HIDDEN_STATES_VS_JAX,
    LOGITS_VS_JAX,
    assert_close,
    assert_close_by_max,
    bf16_model_tolerance,
    max_difference,
    relative_root_mean_square_error,
    relative_to_max,
    root_mean_square_error,
    rounding_floor,
)


def check_prefill(case: Case) -> None:
    """Logits of one pass equal DeepMind's."""
    actual = ours.run(ours.build(case), ours.tokens_of(case))
    assert_close(actual, goldens.load(case)["logits/prefill"], LOGITS_VS_JAX, f"{case} prefill")


def check_decode(case: Case) -> None:
    """Logits of a prompt and then token by token with the cache equal DeepMind's."""
    pieces = [PROMPT_LENGTH] + [1] * (case.length - PROMPT_LENGTH)
    actual = ours.run_in_pieces(ours.build(case), ours.tokens_of(case), pieces)
    assert_close(actual, goldens.load(case)["logits/decode"], LOGITS_VS_JAX, f"{case} decode")


def check_packed(case: Case) -> None:
    """Logits of rows of several documents equal DeepMind's."""
    positions = torch.from_numpy(case.packed_positions())
    actual = ours.run(ours.build(case), ours.tokens_of(case), position_ids=positions)
    assert_close(actual, goldens.load(case)["logits/packed"], LOGITS_VS_JAX, f"{case} packed")


def check_hidden_states(case: Case) -> None:
    """Embeddings and the output of each block equal DeepMind's; a failure names the first layer that differs."""
    actual = ours.hidden_states(ours.build(case), ours.tokens_of(case))
    expected = goldens.load(case)["hidden_states/fp32"]
    names = ["embeddings"] + [f"layer {i} ({kind})" for i, kind in enumerate(case.config.layers_block_type)]
    for name, state, theirs in zip(names, actual, expected, strict=True):
        assert_close_by_max(state, theirs, HIDDEN_STATES_VS_JAX, f"{case} {name}")


def check_gradients(case: Case) -> None:
    """The loss and its gradient for every parameter equal DeepMind's."""
    loss, actual = ours.gradients(ours.build(case), ours.tokens_of(case))
    expected = goldens.gradients(case)
    assert_close_by_max(loss, goldens.load(case)["loss"], GRADIENTS_VS_JAX, f"{case} loss")
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close_by_max(gradient, expected[name], GRADIENTS_VS_JAX, f"{case} gradient of {name}")


def check_gradients_against_fp64(case: Case) -> None:
    """The gradients' error against the fp64 reference is, per layer, at most 1.5 times that of DeepMind's code."""
    tokens, positions = ours.tokens_of(case), torch.from_numpy(case.positions())
    weights = {name: w.requires_grad_() for name, w in to_torch(case.weights(), torch.float64).items()}
    logits = reference.logits(weights, case.config, tokens, positions)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    exact = {name: w.grad for name, w in weights.items()}
    _, actual = ours.gradients(ours.build(case), tokens)
    for layer in range(case.config.num_hidden_layers):
        error, theirs = (_gradient_error(g, exact, layer) for g in (actual, goldens.gradients(case)))
        bar = ERROR_VS_DEEPMIND * theirs
        assert error <= bar, f"{case} gradients of layer {layer}: error against fp64 {error:.3g} exceeds {bar:.3g}"


def check_bf16(case: Case) -> None:
    """bf16 logits are as close to DeepMind's fp32 ones on the same rounded weights as DeepMind's bf16 ones are."""
    stored = goldens.load(case)
    actual, exact = ours.run(ours.build(case, torch.bfloat16), ours.tokens_of(case)), stored["logits/rounded_weights"]
    assert actual.dtype == torch.bfloat16
    for measure in (max_difference, root_mean_square_error):
        error, theirs = measure(actual, exact), measure(stored["logits/bf16"], exact)
        assert error <= theirs, f"{case} bf16: {measure.__name__} {error:.3g} exceeds JAX's own {theirs:.3g}"
    error, bar = relative_root_mean_square_error(actual, exact), bf16_model_tolerance(case.config.num_hidden_layers)
    assert error <= bar, f"{case} bf16: rms(difference) / rms(logits) {error:.3g} exceeds {bar:.3g}"


def check_blocks_against_fp64(case: Case, dtype: torch.dtype) -> None:
    """Each block's error against the fp64 reference is at most 1.5 times that of DeepMind's code on the same input."""
    states = goldens.load(case)["hidden_states/fp32" if dtype == torch.float32 else "hidden_states/bf16"]
    weights = {name: w.double() for name, w in to_torch(case.weights(), dtype).items()}
    positions = torch.from_numpy(case.positions())
    for layer, kind in enumerate(case.config.layers_block_type):
        x, theirs = states[layer], states[layer + 1]
        exact = reference.block(reference.block_weights(weights, layer), case.config, kind, x.double(), positions)
        actual = ours.run_block(case, layer, x)
        assert actual.dtype == dtype
        _assert_as_exact(actual, theirs, exact, f"{case} layer {layer} ({kind}) in {dtype}")


def check_fp64(case: Case) -> None:
    """The model in fp64 equals the fp64 reference: nothing in it falls back to fp32."""
    positions = torch.from_numpy(case.packed_positions())
    actual = ours.run(ours.build(case, torch.float64), ours.tokens_of(case), position_ids=positions)
    assert actual.dtype == torch.float64
    weights = to_torch(case.weights(), torch.float64)
    exact = reference.logits(weights, case.config, ours.tokens_of(case), positions)
    assert_close_by_max(actual, exact, FP64_MODEL, f"{case} fp64")


def _assert_as_exact(actual: Tensor, theirs: Tensor, exact: Tensor, name: str) -> None:
    """Our error is at most 1.5 times theirs: its root mean square, and its largest value beyond rounding."""
    error, bar = (root_mean_square_error(t, exact) for t in (actual, theirs))
    bar *= ERROR_VS_DEEPMIND
    assert error <= bar, f"{name}: rms error against fp64 {error:.3g} exceeds {bar:.3g}"
    error, bar = (relative_to_max(t, exact) for t in (actual, theirs))
    bar = max(ERROR_VS_DEEPMIND * bar, rounding_floor(actual.dtype))
    assert error <= bar, f"{name}: largest error against fp64 {error:.3g} exceeds {bar:.3g}"


def _gradient_error(gradients: dict[str, Tensor], exact: dict[str, Tensor], layer: int) -> float:
    """Relative rms error over the parameters of one layer; that of a single small parameter would scatter."""
    names = [name for name in exact if name.startswith(f"model.layers.{layer}.")]
    squares = [relative_root_mean_square_error(gradients[name], exact[name]) ** 2 for name in names]
    return (sum(squares) / len(squares)) ** 0.5
