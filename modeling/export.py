"""One decode step as a pure function of tensors, for ``torch.export`` and runtimes that hold the state themselves."""

import torch
from torch import Tensor, nn

from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.heads import RecurrentGemmaForCausalLM


class RecurrentGemmaDecodeStep(nn.Module):
    """``forward(input_ids, state)`` gives the logits after one token of each row, and the new state.

    The state is a dict of tensors of fixed shapes: ``layers.0.conv``, ``layers.0.rg_lru``, ``layers.2.key``, ...,
    ``next_position``; keys and values lie in rings (``modeling/ops/local_attention/ring.py``). Nothing else is read or
    written, so ``torch.export.export(step, (input_ids, step.initial_state(batch)))`` makes a program that decodes.

    Args:
        model: The language model; its parameters are shared, not copied.
    """

    def __init__(self, model: RecurrentGemmaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """The state before the first token of ``batch_size`` rows."""
        cache = RecurrentGemmaCache(
            self.model.config,
            static=True,
            batch_size=batch_size,
            dtype=self.model.dtype,
            device=self.model.device,
        )
        return cache.buffers()

    def forward(self, input_ids: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one step.

        Args:
            input_ids: (B, 1) int64.
            state: What ``initial_state`` or the last step gave; not changed.

        Returns:
            Logits (B, vocab_size) and the state after the token.
        """
        cache = RecurrentGemmaCache(self.model.config, static=True)
        cache.use_buffers({name: tensor.clone() for name, tensor in state.items()})
        with torch.no_grad():
            logits = self.model(input_ids=input_ids, past_key_values=cache).logits
        return logits[:, -1], cache.buffers()
