"""What every backend of the RG-LRU shares: constants and the decay rate of each channel."""

import torch.nn.functional as F
from torch import Tensor

# log a = DECAY_SCALE * sigmoid(recurrence gate) * softplus(a_param)
DECAY_SCALE = -8.0
# The derivative of sqrt(1 - a^2) is clipped here, as in the source.
MAX_SQRT_GRADIENT = 1000.0


def decay_rate(a_param: Tensor) -> Tensor:
    """(R,) log of the decay of a fully open recurrence gate, -8 softplus(a_param)."""
    return DECAY_SCALE * F.softplus(a_param)
