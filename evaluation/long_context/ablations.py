"""The same weights with one part taken away. None of it is known to the modeling code.

What a model loses then is what it had learned to expect from that part. It is not what a model trained without the part
would lack.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layer_interface import LayerOutput
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention


@contextlib.contextmanager
def attention_off(model: nn.Module) -> Iterator[None]:
    """Within it, every attention block adds 0 to the residual stream; its MLP and all other blocks work on.

    Raises:
        ValueError: The model has no attention block.
    """
    blocks = [module for module in model.modules() if isinstance(module, RecurrentGemmaAttention)]
    if not blocks:
        raise ValueError("model: expected one with attention blocks, got one of recurrent blocks only.")

    def silence(block: nn.Module, inputs: Any, output: LayerOutput) -> LayerOutput:
        return output._replace(hidden_states=torch.zeros_like(output.hidden_states))

    with contextlib.ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(silence).remove)
        yield


def with_window(model: RecurrentGemmaForCausalLM, window: int) -> RecurrentGemmaForCausalLM:
    """A model with the very parameters of ``model``, whose queries see themselves and the ``window`` keys before them.

    Raises:
        ValueError: The window is below 1.
    """
    if window < 1:
        raise ValueError(f"window: expected at least 1, got {window}.")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    # Modules and config are copied, once for all that refer to them; no tensor is.
    twin = copy.deepcopy(model, shared)
    twin.config.attention_window_size = window
    return twin
