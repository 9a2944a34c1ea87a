"""Classification of whole sequences, and of each token."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss, ForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME
from recurrent_gemma.modeling.heads.loss import IGNORED, mean_cross_entropy, mean_over
from recurrent_gemma.modeling.heads.tokens import (
    expect_class_labels,
    last_tokens,
    read,
    rows_and_columns,
    valid_columns,
)
from recurrent_gemma.modeling.model import RecurrentGemmaModel
from recurrent_gemma.modeling.pretrained import RecurrentGemmaPreTrainedModel

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
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape or dtype than the problem has,
                or out of range; a sequence without any token.
        """
        shape = rows_and_columns(input_ids, inputs_embeds)
        if labels is not None and shape is not None:
            self._check_labels(labels, shape[0])
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache, **kwargs}
        outputs, mask = read(
            self.model, input_ids, attention_mask, past_key_values, cache, returns_cache=True, **inputs
        )
        hidden_states = outputs.last_hidden_state
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        logits = self.score(hidden_states[rows, last_tokens(hidden_states, mask)])
        loss = None if labels is None else self._loss(logits, labels.to(logits.device), num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def _check_labels(self, labels: Tensor, batch: int) -> None:
        """Raise unless labels fit the problem, whose type the first labels decide, as in Transformers."""
        whole = labels.dtype in (torch.int64, torch.int32)
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif whole:
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        problem = self.config.problem_type
        if problem == "single_label_classification":
            expect_class_labels("labels", labels, (batch,), self.num_labels)
            return
        if whole or not labels.is_floating_point():
            raise TypeError(f"labels: expected floats for problem_type {problem!r}, got {labels.dtype}.")
        shapes = [(batch, self.num_labels)] + ([(batch,)] if self.num_labels == 1 else [])
        if tuple(labels.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(
                f"labels: expected shape {expected} for problem_type {problem!r}, got {tuple(labels.shape)}."
            )

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        if self.loss_function is not ForSequenceClassificationLoss:
            return self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        if self.config.problem_type == "single_label_classification":
            return mean_cross_entropy(logits, labels, num_items_in_batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.problem_type == "regression":
            total = F.mse_loss(logits, labels.view_as(logits).to(logits.dtype), reduction="sum")
        else:
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        return mean_over(total, labels, num_items_in_batch)


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
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape or dtype, or out of range.
        """
        shape = rows_and_columns(input_ids, inputs_embeds)
        if labels is not None and shape is not None:
            expect_class_labels("labels", labels, shape, self.num_labels)
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache, **kwargs}
        outputs, mask = read(
            self.model, input_ids, attention_mask, past_key_values, cache, returns_cache=False, **inputs
        )
        hidden_states = outputs.last_hidden_state
        logits = self.score(self.dropout(hidden_states))
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            if mask is not None:
                labels = labels.masked_fill(~valid_columns(hidden_states, mask), IGNORED)
            loss = self._loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        if self.loss_function is not ForTokenClassification:
            return self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return mean_cross_entropy(logits.flatten(0, 1), labels.flatten(), num_items_in_batch)
