"""Tensor parallelism: what the ranks compute, each from its part of the weights, adds up to the model's own block.

The ranks run one after the other in this process. What is missing of the real thing is the sum between processes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recurrent_gemma.modeling.layer_interface import LayerContext
from recurrent_gemma.modeling.layers import apply_rotary, rotary_angles
from recurrent_gemma.modeling.ops.local_attention import local_attention
from tests.serving.engines import batch, layers, model, reference, state
from tests.tolerances import assert_close_by_max, forward_tolerance

LENGTH = 300
# Of the demo model: its first recurrent layer, its first attention layer.
RECURRENT, ATTENTION = 0, 2


@dataclasses.dataclass
class Rank:
    """Stands in for vLLM's group of tensor-parallel ranks."""

    rank_in_group: int
    world_size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum is taken by the test."""
        return x


@pytest.fixture
def config() -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from recurrent_gemma import demo_path

    return EngineArgs(model=str(demo_path()), dtype="float32", enforce_eager=True).create_engine_config()


@pytest.fixture
def shard(config: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Makes a rank's part of a block, with its part of the weights of the model's own."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import process_weights_after_loading
    from vllm.model_executor.models.utils import AutoWeightsLoader

    def make(kind: type[nn.Module], own: nn.Module, rank: int, ranks: int) -> nn.Module:
        monkeypatch.setattr(parallel_state, "_TP", Rank(rank, ranks))
        holder = nn.Module()
        with set_current_vllm_config(config):
            holder.block = kind(config.model_config.hf_config, config, prefix=f"rank{rank}of{ranks}")
        loader = AutoWeightsLoader(holder)
        named = [(f"block.{name}", value) for name, value in own.state_dict().items()]
        loaded = loader.load_weights(named, mapper=model.STACKED)
        assert loaded == {name for name, _ in holder.named_parameters()}
        process_weights_after_loading(holder, config.model_config, torch.device("cpu"))
        return holder.block

    return make


def _inputs() -> tuple[Tensor, LayerContext]:
    positions = torch.arange(LENGTH)[None]
    own = reference()
    context = LayerContext(
        positions == 0, None, torch.zeros(1, dtype=torch.long), *rotary_angles(positions, own.config, torch.float32)
    )
    return torch.randn(1, LENGTH, own.config.hidden_size), context


@pytest.mark.parametrize("ranks", [1, 2, 4])
@torch.inference_mode()
def test_recurrent_block(config: Any, shard: Callable[..., nn.Module], ranks: int):
    from vllm.forward_context import set_forward_context

    own = reference().model.layers[RECURRENT].temporal_block
    x, context = _inputs()
    expected = own(x, None, context)
    # Two chunks and two pages; page 0 is nobody's.
    chunks, parts, states, histories = (x[0, :100], x[0, 100:]), [], [], []
    for rank in range(ranks):
        block = shard(layers.RecurrentBlock, own, rank, ranks)
        shapes = state.state_shapes(config.model_config.hf_config, ranks)
        assert block.get_state_shape() == shapes
        block.kv_cache = tuple(torch.full((3, *shape), torch.nan) for shape in shapes)
        outputs = []
        for chunk in chunks:
            told = batch.RecurrentBatch(
                torch.tensor([0, len(chunk)], dtype=torch.int32),
                torch.tensor([2], dtype=torch.int32),
                torch.tensor([bool(outputs)]),
            )
            with set_forward_context({block.prefix: told}, config):
                outputs.append(block(chunk))
        parts.append(torch.cat(outputs))
        states.append(block.kv_cache[0][2])
        histories.append(block.kv_cache[1][2])
    tolerance = forward_tolerance(torch.float32, x.shape[-1])
    assert_close_by_max(sum(parts), expected.hidden_states[0], tolerance, "output")
    assert_close_by_max(torch.cat(states), expected.state.rg_lru[0], tolerance, "state")
    assert_close_by_max(torch.cat(histories, dim=-1), expected.state.conv[0], tolerance, "history")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@torch.inference_mode()
def test_attention(shard: Callable[..., nn.Module], ranks: int):
    own = reference().model.layers[ATTENTION].temporal_block
    x, context = _inputs()
    expected = own(x, None, context).hidden_states[0]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (t.unflatten(-1, (-1, own.head_dim)).transpose(0, 1)[None] for t in (query, key, value))
        output, *_ = local_attention(*heads, window=own.config.attention_window_size)
        return output[0].transpose(0, 1).flatten(1)

    angles = (context.cos[0, 0, :, None], context.sin[0, 0, :, None])
    parts = []
    for rank in range(ranks):
        block = shard(layers.LocalAttention, own, rank, ranks)
        block.attn.forward = attend
        parts.append(block(x[0], *angles))
    assert_close_by_max(sum(parts), expected, forward_tolerance(torch.float32, x.shape[-1]), "output")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@torch.inference_mode()
def test_mlp(shard: Callable[..., nn.Module], ranks: int):
    own = reference().model.layers[0].mlp_block
    x, _ = _inputs()
    parts = [shard(layers.Mlp, own, rank, ranks)(x[0]) for rank in range(ranks)]
    assert_close_by_max(sum(parts), own(x)[0], forward_tolerance(torch.float32, x.shape[-1]), "output")


def test_angles_are_the_model_s():
    x, context = _inputs()
    heads = x[0].unflatten(-1, (4, -1))
    flat = apply_rotary(heads, context.cos[0, 0, :, None], context.sin[0, 0, :, None])
    rows = apply_rotary(heads.transpose(0, 1)[None], context.cos, context.sin)
    torch.testing.assert_close(flat, rows[0].transpose(0, 1), rtol=0, atol=0)
