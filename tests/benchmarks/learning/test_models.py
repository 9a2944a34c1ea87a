"""The models that are compared: of one size, the controls different in what they say and in nothing else."""

import math

import pytest
import torch

from benchmarks.learning.models import COMPARED, MODELS, REACH, WINDOW, build, parameter_count, signed_recurrence
from benchmarks.learning.tasks import TASKS, last_marker
from benchmarks.learning.training import training_loss
from recurrent_gemma.modeling import layers

MARKER = TASKS["marker"]


@pytest.mark.parametrize("task", TASKS)
def test_parameter_counts_are_within_5_percent(task: str):
    counts = [parameter_count(MODELS[name], TASKS[task]) for name in COMPARED]
    assert max(counts) / min(counts) < 1.05
    # Where one has more, it is attention.
    assert min(counts) == counts[0]


def test_controls_start_as_hawk_does():
    hawk = build(MODELS["hawk"], MARKER, seed=4).state_dict()
    for name in ("hawk-segments", "hawk-cut", "hawk-signed"):
        control = build(MODELS[name], MARKER, seed=4).state_dict()
        assert all(torch.equal(hawk[key], control[key]) for key in hawk)
    assert not torch.equal(build(MODELS["hawk"], MARKER, seed=5).lm_head.weight, hawk["lm_head.weight"])


def test_windows_and_blocks():
    configs = {name: build(MODELS[name], MARKER, seed=0).config for name in COMPARED}
    assert configs["hawk"].layers_block_type == ["linear_attention"] * 3
    assert configs["griffin"].layers_block_type == ["linear_attention", "linear_attention", "sliding_attention"]
    assert configs["local"].layers_block_type == configs["wide"].layers_block_type == ["sliding_attention"] * 3
    windows = {name: config.attention_window_size for name, config in configs.items()}
    assert windows["griffin"] == windows["local"] == WINDOW
    assert windows["wide"] == MARKER.train_length


@torch.no_grad()
def test_attention_hears_as_far_as_its_reach_and_hawk_farther():
    ids = torch.randint(0, MARKER.vocab_size, (1, REACH + 2), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    for column, heard in ((0, False), (1, True)):
        other[:, column] = (ids[:, column] + 1) % MARKER.vocab_size
        for name in ("local", "hawk"):
            model = build(MODELS[name], MARKER, seed=0).eval()
            last, changed = (model(input_ids=i, use_cache=False).logits[:, -1] for i in (ids, other))
            assert torch.equal(last, changed) != (heard or name == "hawk"), (name, column)


def _gradients(name: str) -> dict[str, torch.Tensor]:
    model = build(MODELS[name], MARKER, seed=0).train()
    with torch.no_grad():
        # The convolution starts so small that little of a gradient passes it.
        for layer in model.model.layers:
            layer.temporal_block.conv_1d.weight.mul_(10)
    batch = last_marker(4, 32, torch.Generator().manual_seed(0))
    training_loss(model, batch, MODELS[name]).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def test_segments_have_the_gradient_of_whole_rows_and_cut_ones_do_not():
    whole, segments, cut = (_gradients(name) for name in ("hawk", "hawk-segments", "hawk-cut"))

    def difference(other: dict[str, torch.Tensor], key: str) -> float:
        return ((other[key] - whole[key]).abs().max() / whole[key].abs().max()).item()

    assert max(difference(segments, key) for key in whole) < 1e-4
    assert difference(cut, "model.layers.0.temporal_block.rg_lru.recurrent_param") > 0.1


def test_signed_recurrence_is_the_loop_with_2a_minus_1_and_goes_away():
    original = layers.rg_lru
    torch.manual_seed(0)
    x, input_gate, recurrence_gate = torch.randn(3, 2, 6, 4, dtype=torch.float64).unbind()
    a_param = torch.randn(4, dtype=torch.float64)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[:, 0] = starts[1, 3] = True
    with signed_recurrence(True):
        states, last = layers.rg_lru(
            x, input_gate, recurrence_gate, a_param, None, starts=starts, valid=None, return_states=False
        )
        with pytest.raises(NotImplementedError, match="whole rows"):
            layers.rg_lru(x, input_gate, recurrence_gate, a_param, last, starts=starts, valid=None, return_states=False)
    assert layers.rg_lru is original
    with signed_recurrence(False):
        assert layers.rg_lru is original
    for b in range(2):
        for r in range(4):
            h = 0.0
            for t in range(6):
                i, gate = (1 / (1 + math.exp(-g[b, t, r])) for g in (input_gate, recurrence_gate))
                a = 2 * math.exp(-8 * gate * math.log1p(math.exp(a_param[r]))) - 1
                new = i * x[b, t, r].item()
                h = new if starts[b, t] else a * h + math.sqrt(1 - a * a) * new
                assert math.isclose(states[b, t, r], h, abs_tol=1e-5)
    assert torch.equal(last, states[:, -1])


def test_signed_recurrence_goes_away_after_an_error():
    original = layers.rg_lru
    with pytest.raises(KeyError), signed_recurrence(True):
        raise KeyError
    assert layers.rg_lru is original
