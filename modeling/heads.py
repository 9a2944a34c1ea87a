"""``RecurrentGemmaForCausalLM``: the language model."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME, one_cache, rename_cache
from recurrent_gemma.modeling.inputs import check_labels
from recurrent_gemma.modeling.model import RecurrentGemmaModel, RecurrentGemmaPreTrainedModel


class RecurrentGemmaForCausalLM(RecurrentGemmaPreTrainedModel, GenerationMixin):
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

        Returns:
            ``loss`` (fp32 scalar), ``logits`` (B, columns kept, vocab_size) in the model's dtype, soft-capped in fp32,
            ``past_key_values`` (``cache`` from Transformers 5.24 on), ``hidden_states``, ``attentions``.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape, or with logits_to_keep.
        """
        tokens = inputs_embeds if input_ids is None else input_ids
        if labels is not None and isinstance(tokens, Tensor):
            # Before the model runs, so that a cache stays as it was.
            check_labels(labels, tuple(tokens.shape[:2]), self.config.vocab_size)
            if isinstance(logits_to_keep, Tensor) or logits_to_keep:
                raise ValueError(
                    "logits_to_keep: expected 0 together with labels, whose loss needs every logit, got "
                    f"{logits_to_keep}."
                )
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"logits_to_keep: expected at least 0, got {logits_to_keep}.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=one_cache(past_key_values, cache),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits = self._soft_cap(self.lm_head(hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits.to(outputs.last_hidden_state.dtype),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        # The cache has both of its names here as well.
        return super().generate(*args, **rename_cache(kwargs))

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # Transformers asks a cache without attention layers for no length, and would read again what it has seen.
        cache, length = kwargs.get(CACHE_NAME), input_ids.shape[1]
        if next_sequence_length is None and isinstance(cache, RecurrentGemmaCache) and cache.columns > 0:
            # Positions stand for a mask of ones, which newer releases leave out. Either is longer if all ids are new.
            mask = kwargs.get("attention_mask")
            all_columns = kwargs.get("position_ids") if mask is None else mask
            if all_columns is not None and all_columns.shape[1] == length > cache.columns:
                next_sequence_length = length - cache.columns
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length=next_sequence_length, **kwargs)

    def _soft_cap(self, logits: Tensor) -> Tensor:
        """cap * tanh(logits / cap), in fp32."""
        cap = self.config.final_logit_softcapping
        if cap is None:
            return logits
        return torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap) * cap

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        # Transformers would make a cache that cannot hold this family's state.
        given = model_kwargs.get(CACHE_NAME)
        implementation = generation_config.cache_implementation
        if given is not None:
            if not isinstance(given, RecurrentGemmaCache):
                raise TypeError(
                    f"past_key_values: expected a RecurrentGemmaCache, got {type(given).__name__}; make one with "
                    "RecurrentGemmaCache(model.config)."
                )
            if implementation is not None:
                raise ValueError(
                    "cache_implementation: expected None together with past_key_values, which is the cache, got "
                    f"{implementation!r}."
                )
            positions = model_kwargs.get("position_ids")
            if positions is not None and positions.shape[1] <= given.columns:
                # generate() would cut the inputs at the wrong place and read them as a new document.
                raise ValueError(
                    f"past_key_values: expected inputs that go beyond the {given.columns} columns it has seen, got "
                    f"{positions.shape[1]}; pass all ids from the start, or an attention_mask of past and new columns."
                )
            return
        if generation_config.use_cache is False:
            return
        if implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation: expected None or 'dynamic', got {implementation!r}; a RecurrentGemmaCache has "
                "a constant size and needs no other form."
            )
        model_kwargs[CACHE_NAME] = RecurrentGemmaCache(self.config)

    @staticmethod
    def create_masks_for_generate(
        config: RecurrentGemmaConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor | None:
        """The 2-D mask itself: this family's layers take no prepared masks."""
        return attention_mask
