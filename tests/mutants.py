"""Semantic mutants: the model with one thing wrong each, and the check that must notice.

A mutant is a function that patches the package's modules through ``pytest.MonkeyPatch``. ``tests/test_mutants.py``
asserts that the named check passes without it and fails with it, so that every rule of the architecture is guarded by a
test that can fail. (Not here, because nothing can tell it from the model: positions of RoPE that go on across packed
documents. RoPE is relative, and documents do not see each other.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling import inputs, layers, model
from recurrent_gemma.modeling.layer_interface import Sealed
from recurrent_gemma.modeling.ops.rg_lru import chunked, gates
from tests.parity import checks, rows
from tests.parity.cases import CASES, Case

_CASES = {case.name: case for case in CASES}
Check = Callable[[Case], None]


@dataclass(frozen=True)
class Mutant:
    """A defect, and what must notice it."""

    name: str
    apply: Callable[[pytest.MonkeyPatch], None]
    check: Check
    case: Case

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def _killed_by(check: Check, case: str = "shipped") -> Callable:
    def register(apply: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
        MUTANTS.append(Mutant(apply.__name__, apply, check, _CASES[case]))
        return apply

    return register


def _wrap(patch: pytest.MonkeyPatch, owner: object, name: str, wrapper: Callable) -> None:
    """Replace ``owner.name`` by ``wrapper(original, ...)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def _force(patch: pytest.MonkeyPatch, name: str, **forced: object) -> None:
    """Call the op ``name`` of the layers with some of its keyword arguments replaced."""
    _wrap(patch, layers, name, lambda op, *args, **kwargs: op(*args, **{**kwargs, **forced}))


def _decay(recurrence_gate: Tensor, a_param: Tensor) -> Tensor:
    """a of the RG-LRU, as the equations have it."""
    return torch.exp(-8.0 * torch.sigmoid(recurrence_gate) * F.softplus(a_param))


def _rescale_input(patch: pytest.MonkeyPatch, factor: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Multiply the RG-LRU's input by ``factor(a, start)``, (B, L, R)."""

    def wrapper(op, x, input_gate, recurrence_gate, a_param, h0=None, *, starts, valid, **kwargs):
        x = x * factor(_decay(recurrence_gate, a_param), starts[..., None])
        return op(x, input_gate, recurrence_gate, a_param, h0, starts=starts, valid=valid, **kwargs)

    _wrap(patch, layers, "rg_lru", wrapper)


# --- Local attention --------------------------------------------------------------------------------------------------


@_killed_by(checks.check_prefill, "tiny_window")
def window_one_more(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "local_attention", lambda op, *args, window, **kwargs: op(*args, window=window + 1, **kwargs))


@_killed_by(checks.check_prefill, "tiny_window")
def window_one_less(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "local_attention", lambda op, *args, window, **kwargs: op(*args, window=window - 1, **kwargs))


@_killed_by(checks.check_packed, "tiny_window")
def attention_crosses_documents(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "local_attention", starts=None)


@_killed_by(rows.check_split_packed, "tiny_window")
def attention_sees_cached_keys_of_the_document_before(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "local_attention", past_length=None)


@_killed_by(rows.check_padded_equals_solo)
def attention_sees_pads(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "local_attention", valid=None)


@_killed_by(checks.check_decode)
def cached_keys_dropped(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "local_attention",
          lambda op, query, key, value, past_key, past_value, **kwargs: op(query, key, value, **kwargs))  # fmt: skip


@_killed_by(checks.check_decode, "tiny_window")
def cached_keys_one_less(patch: pytest.MonkeyPatch) -> None:
    def attend(op, *args, **kwargs):
        output, key, value = op(*args, **kwargs)
        size = min(key.shape[2], kwargs["window"] - 1)
        return output, key[:, :, key.shape[2] - size :], value[:, :, value.shape[2] - size :]

    _wrap(patch, layers, "local_attention", attend)


@_killed_by(checks.check_decode)
def cached_keys_not_rotated(patch: pytest.MonkeyPatch) -> None:
    raw: list[Tensor] = []  # query and key before RoPE of the layer that runs

    def rotate(op, x, cos, sin):
        raw.append(x)
        return op(x, cos, sin)

    def attend(op, query, key, value, past_key, past_value, **kwargs):
        output, _, new_value = op(query, key, value, past_key, past_value, **kwargs)[:3]
        keys = [raw[-1]] if past_key is None else [past_key, raw[-1]]
        raw.clear()
        return output, torch.cat(keys, dim=2)[:, :, -new_value.shape[2] :], new_value

    _wrap(patch, layers, "apply_rotary", rotate)
    _wrap(patch, layers, "local_attention", attend)


@_killed_by(checks.check_prefill)
def head_scaling_missing(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "local_attention", scaling=1.0)


@_killed_by(checks.check_prefill)
def rope_over_the_whole_head(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecurrentGemmaConfig, "rotary_dim", property(lambda config: config.head_dim))


@_killed_by(checks.check_prefill)
def rope_turns_the_other_way(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "apply_rotary", lambda op, x, cos, sin: op(x, cos, -sin))


@_killed_by(checks.check_decode)
def rope_restarts_with_every_call(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, model, "rotary_angles", lambda op, positions, *rest: op(positions - positions[:, :1], *rest))


# --- Convolution ------------------------------------------------------------------------------------------------------


@_killed_by(checks.check_decode, "hawk_paper")
def conv_history_dropped(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "causal_conv1d",
          lambda op, x, weight, bias, history, **kwargs: op(x, weight, bias, None, **kwargs))  # fmt: skip


@_killed_by(checks.check_packed, "hawk_paper")
def conv_crosses_documents(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "causal_conv1d", starts=None)


@_killed_by(rows.check_padded_equals_solo, "hawk_paper")
def conv_sees_pads(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "causal_conv1d", valid=None)


@_killed_by(checks.check_prefill, "hawk_paper")
def conv_taps_reversed(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "causal_conv1d", lambda op, x, weight, *args, **kwargs: op(x, weight.flip(1), *args, **kwargs))


# --- RG-LRU -----------------------------------------------------------------------------------------------------------


@_killed_by(checks.check_decode, "hawk_paper")
def state_dropped_between_calls(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "rg_lru", lambda op, x, i, r, a_param, h0, **kwargs: op(x, i, r, a_param, None, **kwargs))


@_killed_by(checks.check_decode, "hawk_paper")
def state_kept_in_bf16(patch: pytest.MonkeyPatch) -> None:
    def wrapper(op, *args, **kwargs):
        y, h_last = op(*args, **kwargs)
        return y, h_last.bfloat16().float()

    _wrap(patch, layers, "rg_lru", wrapper)


@_killed_by(checks.check_decode, "hawk_paper")
def every_call_starts_a_document(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, inputs, "next_positions", lambda op, *args: torch.zeros_like(op(*args)))


@_killed_by(checks.check_prefill, "hawk_paper")
def multiplier_at_a_start_not_one(patch: pytest.MonkeyPatch) -> None:
    _rescale_input(patch, lambda a, start: torch.where(start, (1 - a * a).sqrt(), 1.0))


@_killed_by(checks.check_packed, "hawk_paper")
def decay_at_a_start_not_zero(patch: pytest.MonkeyPatch) -> None:
    # The state of the document before stays, while the multiplier at the start is still 1.
    _force(patch, "rg_lru", starts=None)
    _rescale_input(patch, lambda a, start: torch.where(start, 1 / (1 - a * a).sqrt(), 1.0))


@_killed_by(checks.check_packed, "hawk_paper")
def starts_ignored_by_the_recurrence(patch: pytest.MonkeyPatch) -> None:
    _force(patch, "rg_lru", starts=None)


@_killed_by(rows.check_padded_equals_solo, "hawk_paper")
def pad_decays_the_state(patch: pytest.MonkeyPatch) -> None:
    def wrapper(op, x, *args, valid, **kwargs):
        x = x if valid is None else x.masked_fill(~valid[..., None], 0.0)
        return op(x, *args, valid=None, **kwargs)

    _wrap(patch, layers, "rg_lru", wrapper)


@_killed_by(rows.check_padded_equals_solo, "hawk_paper")
def pads_count_as_positions(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, inputs, "_counted_positions", lambda op, start, valid, length: op(start, None, length))


@_killed_by(checks.check_prefill, "hawk_paper")
def gates_swapped(patch: pytest.MonkeyPatch) -> None:
    _wrap(patch, layers, "rg_lru", lambda op, x, i, r, *args, **kwargs: op(x, r, i, *args, **kwargs))


@_killed_by(checks.check_prefill, "hawk_paper")
def multiplier_missing(patch: pytest.MonkeyPatch) -> None:
    _rescale_input(patch, lambda a, start: torch.where(start, 1.0, 1 / (1 - a * a).sqrt()))


@_killed_by(checks.check_prefill, "hawk_paper")
def multiplier_without_the_square_of_a(patch: pytest.MonkeyPatch) -> None:
    _rescale_input(patch, lambda a, start: torch.where(start, 1.0, (1 - a).sqrt() / (1 - a * a).sqrt()))


@_killed_by(checks.check_prefill, "hawk_paper")
def decay_constant_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates, "DECAY_SCALE", -8.01)


@_killed_by(checks.check_prefill, "hawk_paper")
def softplus_replaced_by_exp(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chunked, "decay_rate", lambda a_param: -8.0 * torch.exp(a_param))


@_killed_by(checks.check_gradients, "hawk_paper")
def derivative_of_the_multiplier_clipped_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chunked, "MAX_SQRT_GRADIENT", 10.0)


@_killed_by(checks.check_prefill, "hawk_paper")
def gate_weights_transposed(patch: pytest.MonkeyPatch) -> None:
    gate = layers.block_diagonal_linear
    patch.setattr(layers, "block_diagonal_linear", lambda x, w, b: gate(x, w.transpose(1, 2), b))


# --- Blocks, embeddings and head --------------------------------------------------------------------------------------


@_killed_by(checks.check_prefill)
def norm_without_the_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.RecurrentGemmaRMSNorm, "forward",
                  lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, self.eps))  # fmt: skip


@_killed_by(checks.check_prefill)
def embedding_scale_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.RecurrentGemmaScaledEmbedding, "forward", torch.nn.Embedding.forward)


def _scale_by_the_root(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.RecurrentGemmaScaledEmbedding, "forward",
                  lambda self, ids: torch.nn.Embedding.forward(self, ids) * self.embedding_dim**0.5)  # fmt: skip


@_killed_by(checks.check_prefill, "griffin_paper")
def embedding_scale_on_in_paper_models(patch: pytest.MonkeyPatch) -> None:
    _scale_by_the_root(patch)


@_killed_by(checks.check_hidden_states)
def embedding_scale_not_rounded_to_bf16(patch: pytest.MonkeyPatch) -> None:
    _scale_by_the_root(patch)


@_killed_by(checks.check_prefill)
def soft_cap_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecurrentGemmaForCausalLM, "_soft_cap", lambda self, logits: logits)


@_killed_by(checks.check_prefill)
def gelu_exact(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.RecurrentGemmaMlp, "forward",
                  lambda self, x: self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x)))  # fmt: skip


@_killed_by(checks.check_prefill)
def mlp_gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers.RecurrentGemmaMlp, "forward",
                  lambda self, x: self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x))))  # fmt: skip


@_killed_by(checks.check_prefill, "hawk_paper")
def recurrent_branches_swapped(patch: pytest.MonkeyPatch) -> None:
    def forward(original, self, *args):
        self.linear_x, self.linear_y = self.linear_y, self.linear_x
        try:
            return original(self, *args)
        finally:
            self.linear_x, self.linear_y = self.linear_y, self.linear_x

    _wrap(patch, layers.RecurrentGemmaRecurrentBlock, "forward", forward)


@_killed_by(checks.check_prefill)
def linear_out_without_bias(patch: pytest.MonkeyPatch) -> None:
    def forward(original, self, *args):
        output, *rest = original(self, *args)
        return output - self.linear_out.bias, *rest

    _wrap(patch, layers.RecurrentGemmaRecurrentBlock, "forward", forward)


@_killed_by(checks.check_prefill)
def mlp_beside_the_temporal_block(patch: pytest.MonkeyPatch) -> None:
    # x + temporal(norm(x)) + mlp(norm(x)) instead of one after the other.
    def forward(self, x, state, context, return_weights=False):
        mixed, *rest = self.temporal_block(self.temporal_pre_norm(x), state.value, context.value)
        return x + mixed + self.mlp_block(self.channel_pre_norm(x)), Sealed(rest)

    patch.setattr(layers.RecurrentGemmaDecoderLayer, "forward", forward)
