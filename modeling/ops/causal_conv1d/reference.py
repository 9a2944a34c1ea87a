"""Causal depthwise convolution as its definition, one token after the other. Differentiable; slow by design.

Source: ``Conv1D`` in ``recurrentgemma/jax/layers.py``.
"""

import torch
from torch import Tensor


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, R) in the compute dtype and the new history (B, K - 1, R) in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, length, width = x.shape
    taps = weight.shape[1]
    outputs, histories = [], []
    for row in range(batch):
        window = [x.new_zeros(width)] * (taps - 1) if history is None else list(history[row].to(x.dtype))
        row_outputs = []
        for t in range(length):
            if valid is not None and not valid[row, t]:
                row_outputs.append(x.new_zeros(width, dtype=dtype))
                continue
            if starts is not None and starts[row, t]:
                window = [x.new_zeros(width)] * (taps - 1)
            window = [*window, x[row, t]]
            output = torch.stack([weight[:, k].to(dtype) * window[k].to(dtype) for k in range(taps)]).sum(dim=0)
            row_outputs.append(output if bias is None else output + bias.to(dtype))
            window = window[1:]
        outputs.append(torch.stack(row_outputs))
        histories.append(torch.stack(window) if window else x.new_zeros(0, width))
    return torch.stack(outputs), torch.stack(histories)
