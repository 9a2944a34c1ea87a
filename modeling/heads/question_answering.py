"""Extractive question answering: where in a text the answer begins and ends."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import one_cache
from recurrent_gemma.modeling.heads.tokens import mask_without_pads, valid_columns
from recurrent_gemma.modeling.model import RecurrentGemmaModel, RecurrentGemmaPreTrainedModel


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
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Scores of L columns of B rows. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            attention_mask: None: what equals ``config.pad_token_id`` is a pad, if the config has one.
            start_positions, end_positions: (B,) int64 columns; one outside 0 to L - 1 does not count.

        Returns:
            ``loss`` (scalar), ``start_logits`` and ``end_logits`` (B, L), the dtype's least value at pads,
            ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; one of start_positions and end_positions alone.
        """
        if (start_positions is None) != (end_positions is None):
            alone = "start_positions" if end_positions is None else "end_positions"
            raise ValueError(f"start_positions, end_positions: expected both or neither, got {alone} alone.")
        cache = one_cache(past_key_values, cache)
        mask = mask_without_pads(attention_mask, input_ids, self.config.pad_token_id, cache)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = self.qa_outputs(hidden_states)
        if mask is not None:
            pads = ~valid_columns(hidden_states, mask)[..., None]
            logits = logits.masked_fill(pads, torch.finfo(logits.dtype).min)
        start_logits, end_logits = (part.contiguous() for part in logits.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
