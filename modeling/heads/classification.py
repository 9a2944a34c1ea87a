"""Classification of whole sequences, and of each token."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME, one_cache
from recurrent_gemma.modeling.heads.loss import IGNORED, mean_over
from recurrent_gemma.modeling.heads.tokens import last_tokens, mask_without_pads, valid_columns
from recurrent_gemma.modeling.model import RecurrentGemmaModel, RecurrentGemmaPreTrainedModel

# Dropout before the classifier of tokens where the config has no ``classifier_dropout``, as in Transformers' heads.
_CLASSIFIER_DROPOUT = 0.1


class RecurrentGemmaForSequenceClassification(RecurrentGemmaPreTrainedModel):
    """Backbone and a linear layer on the hidden state of each sequence's last token; also for rewards (one label)."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = RecurrentGemmaModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentGemmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits of B sequences. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            attention_mask: None: what equals ``config.pad_token_id`` is a pad, if the config has one.
            labels: (B,) int64 for one of several labels, (B,) or (B, num_labels) floats for regression,
                (B, num_labels) floats for several at once; ``config.problem_type`` decides, or is set by the first.
            num_items_in_batch: Number of labels that the loss is divided by; their mean when None.

        Returns:
            ``loss`` (scalar), ``logits`` (B, num_labels), ``past_key_values`` (``cache`` from Transformers 5.24 on),
            ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; a sequence without any token.
        """
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
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        logits = self.score(hidden_states[rows, last_tokens(hidden_states, mask)])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
            if num_items_in_batch is not None:
                # A mean over labels of every kind of problem, as a part of the mean over num_items_in_batch.
                loss = mean_over(loss * (labels != IGNORED).sum().to(loss.device), labels, num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class RecurrentGemmaForTokenClassification(RecurrentGemmaPreTrainedModel):
    """Backbone and a linear layer on the hidden state of each token."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = RecurrentGemmaModel(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(_CLASSIFIER_DROPOUT if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentGemmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits of L columns of B rows. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            attention_mask: None: what equals ``config.pad_token_id`` is a pad, if the config has one.
            labels: (B, L) int64, -100 where no loss is wanted; those of pads do not count.
            num_items_in_batch: Number of labels that the loss is divided by; their mean when None.

        Returns:
            ``loss`` (scalar), ``logits`` (B, L, num_labels), ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape than (B, L).
        """
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
        logits = self.score(self.dropout(hidden_states))
        loss = None
        if labels is not None:
            if labels.shape != logits.shape[:2]:
                raise ValueError(
                    f"labels: expected shape (B, L) = {tuple(logits.shape[:2])}, got {tuple(labels.shape)}."
                )
            labels = labels.to(logits.device)
            if mask is not None:
                labels = labels.masked_fill(~valid_columns(hidden_states, mask), IGNORED)
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
