"""``RecurrentGemmaForCausalLM``: the language model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME, one_cache
from recurrent_gemma.modeling.generation import RecurrentGemmaGeneration
from recurrent_gemma.modeling.inputs import check_labels
from recurrent_gemma.modeling.model import RecurrentGemmaModel, RecurrentGemmaPreTrainedModel
from recurrent_gemma.modeling.ops.dispatch import holds_on_cpu
from recurrent_gemma.modeling.ops.ragged import gather_columns


class RecurrentGemmaForCausalLM(  # type: ignore[misc]
    RecurrentGemmaPreTrainedModel, RecurrentGemmaGeneration, GenerationMixin
):
    """Backbone, output projection (tied to the embeddings in published models) and tanh soft cap."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        self.model = RecurrentGemmaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of L new columns of B rows. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            labels: (B, L) ids, -100 where no loss is wanted; shifted here, so ``labels=input_ids`` trains a language
                model.
            logits_to_keep: Compute logits of the last n columns only (0: all), or of the columns in a 1-D index tensor.
            num_items_in_batch: Number of labels that the loss is divided by; their mean when None.
            **kwargs: ``shift_labels``, (B, L) labels that are shifted already, which sequence parallelism and windows
                of a longer text need; they replace ``labels``.

        Returns:
            ``loss`` (fp32 scalar), ``logits`` (B, columns kept, vocab_size) in the model's dtype, soft-capped in fp32
            (at a pad: those of the token before it, so that the last column has each row's next token),
            ``past_key_values`` (``cache`` from Transformers 5.24 on), ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape, or with logits_to_keep.
        """
        # Not in the signature: the Trainer takes every parameter named like a label for one that each batch must have,
        # and computes no evaluation loss where one is missing (``transformers.utils.generic.find_labels``).
        shift_labels: Tensor | None = kwargs.pop("shift_labels", None)
        tokens = inputs_embeds if input_ids is None else input_ids
        targets = labels if shift_labels is None else shift_labels
        if targets is not None and isinstance(tokens, Tensor):
            # Before the model runs, so that a cache stays as it was.
            name = "labels" if shift_labels is None else "shift_labels"
            check_labels(targets, tuple(tokens.shape[:2]), self.config.vocab_size, name)
            if isinstance(logits_to_keep, Tensor) or logits_to_keep:
                raise ValueError(
                    "logits_to_keep: expected 0 together with labels, whose loss needs every logit, got "
                    f"{logits_to_keep}."
                )
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"logits_to_keep: expected at least 0, got {logits_to_keep}.")
        cache = one_cache(past_key_values, cache)
        if isinstance(cache, RecurrentGemmaCache) and isinstance(logits_to_keep, int):
            # Assisted generation asks for the logits of the drafts, and takes back those it does not accept.
            cache.record_limit = max(cache.record_limit, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if attention_mask is not None:
            hidden_states = _repeat_at_pads(hidden_states, attention_mask)
        if isinstance(logits_to_keep, Tensor):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits = self._soft_cap(self.lm_head(hidden_states))
        loss = None
        if targets is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                # Windows cut from longer rows are not contiguous, and the loss takes a view.
                shift_labels=None if shift_labels is None else shift_labels.contiguous(),
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits.to(outputs.last_hidden_state.dtype),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def _soft_cap(self, logits: Tensor) -> Tensor:
        """cap * tanh(logits / cap), in fp32."""
        cap = self.config.final_logit_softcapping
        if cap is None:
            return logits
        return torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap) * cap


def _repeat_at_pads(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states (B, L, D) with those of the last valid token in place of each pad's after it."""
    length = hidden_states.shape[1]
    valid = attention_mask[:, attention_mask.shape[1] - length :].to(hidden_states.device) != 0
    if holds_on_cpu(valid):
        return hidden_states
    columns = torch.arange(length, device=valid.device)
    return gather_columns(hidden_states, (valid * columns).cummax(dim=1).values)
