"""Moments of freshly initialized parameters: the variances of DeepMind's JAX code, and that code itself."""

import math

import pytest
import torch
from torch import Tensor

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from tests.support import require

# All widths differ, so that a fan-in taken from the wrong axis shows; three layers make the last projections' 2 / 3.
CONFIG = RecurrentGemmaConfig(
    vocab_size=701, hidden_size=160, lru_width=240, intermediate_size=2 * 384, num_attention_heads=4,
    num_key_value_heads=1, num_hidden_layers=3, attention_window_size=8,
)  # fmt: skip
D, R, M, LAYERS = CONFIG.hidden_size, CONFIG.lru_width, CONFIG.mlp_width, CONFIG.num_hidden_layers

# Variances by the end of the parameter's name. Everything else is zero, but for recurrent_param.
VARIANCES = {
    "embed_tokens.weight": 1 / D,
    "linear_x.weight": 1 / D,
    "linear_y.weight": 1 / D,
    "linear_out.weight": 2 / LAYERS / R,
    "conv_1d.weight": CONFIG.w_init_variance_scale / CONFIG.conv1d_width,
    "input_gate_weight": 1 / R,  # the fan-in that flax counts is all heads', not one block's
    "recurrent_gate_weight": 1 / R,
    "q_proj.weight": 1 / D,
    "k_proj.weight": 1 / D,
    "v_proj.weight": 1 / D,
    "o_proj.weight": 2 / LAYERS / D,
    "gate_proj.weight": 1 / (2 * D),  # one array of two halves in the source, whose fan-in counts both
    "up_proj.weight": 1 / (2 * D),
    "down_proj.weight": 2 / LAYERS / M,
}
MIN_RADIUS, MAX_RADIUS = 0.9, 0.999


def variance_of(name: str) -> float | None:
    return next((variance for end, variance in VARIANCES.items() if name.endswith(end)), None)


def assert_moments(name: str, weight: Tensor) -> None:
    """Compare mean, variance and kurtosis with those of the expected distribution, within five standard errors."""
    weight, count = weight.detach().double().flatten(), weight.numel()
    if name.endswith("recurrent_param"):
        # exp(-softplus(param)) is uniform by area on a ring, so its square is uniform: kurtosis 1.8.
        weight = torch.exp(-torch.nn.functional.softplus(weight)).square()
        low, high = MIN_RADIUS**2, MAX_RADIUS**2
        assert low - 1e-6 <= weight.min() <= weight.max() <= high + 1e-6
        mean, variance, kurtosis = (low + high) / 2, (high - low) ** 2 / 12, 1.8
    elif (variance := variance_of(name)) is None:
        assert not weight.any(), f"{name}: expected zeros"
        return
    else:
        mean, kurtosis = 0.0, 3.0
    # Standard errors: of a variance, var * sqrt((kurtosis - 1) / n); of a normal sample's kurtosis, sqrt(24 / n).
    deviation = weight - weight.mean()
    measured = deviation.square().mean().item()
    assert abs(weight.mean().item() - mean) <= 5 * math.sqrt(variance / count), f"{name}: mean"
    assert abs(measured / variance - 1) <= 5 * math.sqrt((kurtosis - 1) / count), (
        f"{name}: variance {measured:.3g}, expected {variance:.3g}"
    )
    # A truncated normal of the same variance would have 2.4 to 2.8.
    actual_kurtosis = deviation.pow(4).mean().item() / measured**2
    assert abs(actual_kurtosis - kurtosis) <= 5 * math.sqrt(24 / count), f"{name}: kurtosis {actual_kurtosis:.2f}"


@pytest.fixture(scope="module")
def parameters() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(RecurrentGemmaForCausalLM(CONFIG).named_parameters())


def test_moments_of_every_parameter(parameters: dict[str, Tensor]):
    for name, parameter in parameters.items():
        assert_moments(name, parameter)
    for end in VARIANCES:
        assert any(name.endswith(end) for name in parameters), f"no parameter {end}"


def test_row_of_the_pad_token_is_a_row_like_any_other(parameters: dict[str, Tensor]):
    row = parameters["model.embed_tokens.weight"][CONFIG.pad_token_id]
    assert 0.5 < row.var().item() * D < 1.5


def test_untied_head_has_the_variance_of_the_embeddings():
    config = RecurrentGemmaConfig.from_dict({**CONFIG.to_dict(), "tie_word_embeddings": False})
    head = dict(RecurrentGemmaForCausalLM(config).named_parameters())["lm_head.weight"]
    assert abs(head.var().item() * D - 1) < 0.05


def test_moments_are_those_of_deepminds_code():
    require("jax")
    require("recurrentgemma.jax")
    from tests.parity.jax_model import initial_weights

    weights = initial_weights(CONFIG, seed=0)
    assert weights.keys() == {name for name, _ in RecurrentGemmaForCausalLM(CONFIG).named_parameters()}
    for name, weight in weights.items():
        assert_moments(name, torch.tensor(weight))


def test_bias_of_attention_starts_at_zero():
    config = RecurrentGemmaConfig.from_dict({**CONFIG.to_dict(), "attention_bias": True})
    biases = [p for name, p in RecurrentGemmaForCausalLM(config).named_parameters() if name.endswith("q_proj.bias")]
    assert biases
    assert not any(bias.any() for bias in biases)
