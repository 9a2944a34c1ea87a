"""Extractive question answering: where in a text the answer begins and ends."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForQuestionAnsweringLoss
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.heads.loss import IGNORED, mean_cross_entropy
from recurrent_gemma.modeling.heads.tokens import read, valid_columns
from recurrent_gemma.modeling.inputs import expect_all
from recurrent_gemma.modeling.model import RecurrentGemmaModel
from recurrent_gemma.modeling.pretrained import RecurrentGemmaPreTrainedModel


class RecurrentGemmaForQuestionAnswering(RecurrentGemmaPreTrainedModel):
    """Backbone and two scores for each token: of being the answer's first, and its last."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        self.model = RecurrentGemmaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentGemmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Scores of L columns of B rows. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            attention_mask: None: what equals ``config.pad_token_id`` is a pad, if the config has one.
            start_positions: (B,) int64 column of the answer's first token; one outside 0 to L - 1 does not count.
            end_positions: (B,) int64 column of its last; the same.
            num_items_in_batch: Number of answers that the loss is divided by; their mean when None.

        Returns:
            ``loss`` (scalar), ``start_logits`` and ``end_logits`` (B, L), the dtype's least value at pads,
            ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; one of start_positions and end_positions alone, or a
                position of a pad.
        """
        if (start_positions is None) != (end_positions is None):
            alone = "start_positions" if end_positions is None else "end_positions"
            raise ValueError(f"start_positions, end_positions: expected both or neither, got {alone} alone.")
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache, **kwargs}
        outputs, mask = read(
            self.model, input_ids, attention_mask, past_key_values, cache, returns_cache=False, **inputs
        )
        hidden_states = outputs.last_hidden_state
        logits = self.qa_outputs(hidden_states)
        valid = None if mask is None else valid_columns(hidden_states, mask)
        if valid is not None:
            logits = logits.masked_fill(~valid[..., None], torch.finfo(logits.dtype).min)
        start_logits, end_logits = (part.contiguous() for part in logits.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            if self.loss_function is ForQuestionAnsweringLoss:
                start = _loss("start_positions", start_logits, start_positions, valid, num_items_in_batch)
                loss = (start + _loss("end_positions", end_logits, end_positions, valid, num_items_in_batch)) / 2
            else:
                loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _loss(
    name: str, logits: Tensor, positions: Tensor, valid: Tensor | None, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """Mean cross entropy (), fp32, of scores (B, L) at positions (B,) or (B, 1)."""
    positions = positions.to(logits.device).flatten()
    counts = (positions >= 0) & (positions < logits.shape[1])
    column = positions.masked_fill(~counts, 0)
    if valid is not None:
        at_token = valid.gather(1, column[:, None]).squeeze(1)
        remedy = "mark what has no answer with a position outside the row, such as -1"
        expect_all(at_token | ~counts, f"{name}: expected columns of tokens, not of pads", positions, remedy)
    return mean_cross_entropy(logits, column.masked_fill(~counts, IGNORED), num_items_in_batch)
