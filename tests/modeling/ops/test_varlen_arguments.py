"""Packed sequences: whatever is wrong with an argument of either op and either face raises and is named."""

import pytest
import torch

from tests.modeling.ops.packed_ops import DEVICE, Conv, both, bounds


@both
def test_bad_arguments_name_what_is_wrong(op):
    *tensors, memory = op.draw(5, 2, torch.float32)
    options = {"cu_seqlens": bounds((2, 3)), "has_initial": torch.tensor([True, False], device=DEVICE)}
    pages = {"slots": torch.tensor([1, 2], device=DEVICE)}
    state = torch.zeros(3, *op.memory, device=DEVICE)
    shared = (
        ("cu_seqlens", options["cu_seqlens"].long(), TypeError),
        ("cu_seqlens", options["cu_seqlens"][:1], ValueError),
        ("cu_seqlens", bounds((2, 4)), ValueError),
        ("cu_seqlens", bounds((2, 3)) + 1, ValueError),
        ("cu_seqlens", bounds((4, -1)), ValueError),
        ("has_initial", options["has_initial"].long(), TypeError),
        ("has_initial", options["has_initial"][:1], ValueError),
        ("impl", "flashed", ValueError),
    )
    for name, value, error in shared:
        with pytest.raises(error, match=name):
            op.packed(*tensors, memory, **{**options, name: value})
        with pytest.raises(error, match=name):
            op.serve(*tensors, state, **{**options, **pages, name: value})
    with pytest.raises(ValueError, match="cu_seqlens: expected 0, then"):
        op.packed(*tensors, memory, **{**options, "cu_seqlens": bounds((2, 2))})
    with pytest.raises(ValueError, match="has_initial: expected None"):
        op.packed(*tensors, **options)
    with pytest.raises(ValueError, match=r"\(N, "):
        op.packed(*tensors, memory[:1], **options)
    with pytest.raises(ValueError, match="x: expected a non-empty"):
        op.packed(tensors[0][None], *tensors[1:], **options)
    for name, value, error in (
        ("slots", pages["slots"].float(), TypeError),
        ("slots", pages["slots"][:1], ValueError),
        ("slots", torch.tensor([1, 3], device=DEVICE), ValueError),
        ("slots", torch.tensor([1, -1], device=DEVICE), ValueError),
        ("slots", torch.tensor([1, 1], device=DEVICE), ValueError),
    ):
        with pytest.raises(error, match=name):
            op.serve(*tensors, state, **{**options, **pages, name: value})
    for value, error in ((state.double(), TypeError), (state[..., :2], ValueError), (state[0], ValueError)):
        with pytest.raises(error, match="state: expected"):
            op.serve(*tensors, value, **options, **pages)
    with pytest.raises(ValueError, match=f"requires_grad.*use {op.name}_varlen"):
        op.serve(tensors[0].clone().requires_grad_(), *tensors[1:], state, **options, **pages)
    if op is Conv:
        with pytest.raises(ValueError, match="layout: expected one of"):
            op.serve(*tensors, state, layout="RK", **options, **pages)
        with pytest.raises(ValueError, match="the other layout"):
            op.serve(*tensors, state, layout="channels_taps", **options, **pages)
