"""What generate() has to know about this family: which cache to make, which masks to pass on, what cannot be done."""

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.cache.progress import UNKNOWN_ID
from recurrent_gemma.modeling.cache.recording import DEFAULT_LIMIT
from recurrent_gemma.modeling.compat import CACHE_NAME, rename_cache

_UNSUPPORTED_CACHES = {
    "quantized": "the window is all there is to quantize, and it does not grow",
    "offloaded": "the state of a layer is too small for its transfer to pay",
    "offloaded_static": "the state of a layer is too small for its transfer to pay",
}


class RecurrentGemmaGeneration:
    """Mixed into language models in front of ``GenerationMixin``."""

    config: RecurrentGemmaConfig

    @functools.wraps(GenerationMixin.generate)
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        # The cache has both of its names here as well.
        kwargs = rename_cache(kwargs)
        cache = kwargs.get(CACHE_NAME)
        # An assistant with another vocabulary is given its own drafts in other ids again; they are guesses anyway.
        is_assistant = getattr(kwargs.get("generation_config"), "is_assistant", False)
        if isinstance(cache, RecurrentGemmaCache) and not is_assistant:
            ids = kwargs.get("input_ids") if inputs is None else inputs
            _expect_continuation(cache, ids, kwargs.get("attention_mask"))
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            "generate_batch: continuous batching keeps keys and values in pages of memory and has no place for a "
            "recurrent state; use generate() with padded batches."
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        # Transformers would make a cache that cannot hold this family's state.
        given = model_kwargs.get(CACHE_NAME)
        past = given.columns if isinstance(given, RecurrentGemmaCache) else 0
        _expect_tokens_at_the_end(model_kwargs.get("attention_mask"), past, generation_config.prefill_chunk_size)
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
            given.record_limit = max(given.record_limit, _draft_limit(generation_config))
            given._is_user_defined = True
            return
        if generation_config.use_cache is False:
            return
        if implementation in _UNSUPPORTED_CACHES:
            raise ValueError(
                f"cache_implementation: expected None, 'dynamic' or 'static', got {implementation!r}, for which this "
                f"family has no use: {_UNSUPPORTED_CACHES[implementation]}."
            )
        if implementation not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation: expected None, 'dynamic' or 'static', got {implementation!r}.")
        cache = RecurrentGemmaCache(self.config, static=implementation == "static")
        cache.record_limit = _draft_limit(generation_config)
        if generation_config.is_assistant:
            cache.activate_past_recording()
        model_kwargs[CACHE_NAME] = cache

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: GenerationConfig) -> bool:
        # Transformers compiles on accelerators only, and drops a compile_config elsewhere. Who passes one asks for it.
        if generation_config.compile_config is not None:
            generation_config = copy.copy(generation_config)
            generation_config.compile_config = copy.copy(generation_config.compile_config)
            generation_config.compile_config._compile_all_devices = True
        return super()._valid_auto_compile_criteria(model_kwargs, generation_config)  # type: ignore[misc]

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        # PEFT's prompt tuning looks for the cache under this name, with every release of Transformers; where it finds
        # none, it puts its prompt before every new token.
        if CACHE_NAME in inputs:
            inputs["past_key_values"] = inputs.pop(CACHE_NAME)
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        # Transformers gives pads position 0 and counts on from the last column: wrong where that is a pad.
        positions = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # type: ignore[misc]
        mask = model_kwargs.get("attention_mask")
        return positions if mask is None else (mask.long().cumsum(dim=-1) - 1).clamp_min(0)

    @staticmethod
    def create_masks_for_generate(
        config: RecurrentGemmaConfig, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """The 2-D mask of the new columns: this family's layers take no prepared masks.

        Called for the static form only, whose compiled step needs a mask of the same shape for every token.
        """
        if not isinstance(attention_mask, Tensor):
            return attention_mask
        # A view's stride would grow with the mask; contiguous() would keep it where there is one row.
        return attention_mask[:, attention_mask.shape[1] - inputs_embeds.shape[1] :].clone(
            memory_format=torch.contiguous_format
        )


def _draft_limit(generation_config: GenerationConfig) -> int:
    """Columns that one round of assisted generation may take back."""
    drafts = max(
        generation_config.num_assistant_tokens or 0,
        generation_config.prompt_lookup_num_tokens or 0,
        # An assistant is asked for one round at a time.
        (generation_config.max_new_tokens or 0) if generation_config.is_assistant else 0,
    )
    # The default schedule drafts two tokens more after every round that was accepted as a whole, so the n-th such round
    # follows n^2 tokens. Drafts in another vocabulary may become several tokens each.
    growth = 2 * math.isqrt(max(0, generation_config.max_length or 0))
    return max(DEFAULT_LIMIT, 4 * (drafts + growth))


def _expect_continuation(cache: RecurrentGemmaCache, ids: Any, mask: Any) -> None:
    """Raise ValueError where generate() would cut ``ids`` at the wrong place and read them as something else.

    With a cache it takes all ids from the start, and drops as many as the cache has columns; or the new ones alone, and
    tells them by a mask that is longer than they are.
    """
    columns = cache.columns
    if not columns or not isinstance(ids, Tensor) or ids.ndim != 2:
        return
    length = ids.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != length:
        if mask.shape[1] != columns + length:
            raise ValueError(
                f"attention_mask: expected one column for each of the {columns} that the cache has seen and of the "
                f"{length} new ids, got {mask.shape[1]}."
            )
        return
    if length <= columns:
        raise ValueError(
            f"input_ids: expected ids that go beyond the {columns} columns of past_key_values, got {length}; pass all "
            f"ids from the start, or only the new ones with an attention_mask of {columns} + {length} columns."
        )
    if not _begins_as_seen(cache, ids, mask):
        raise ValueError(
            f"input_ids: expected all ids from the start, the first {columns} as past_key_values has seen them, got "
            f"others; pass them, or only the new ones with an attention_mask of {columns} + {length} columns."
        )


def _expect_tokens_at_the_end(mask: Any, past: int, chunk: int | None) -> None:
    """Raise ValueError if a row has no token in the last pass over a prompt, which gives the first new one."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= past:
        return
    columns = mask.shape[1] - past
    last = columns if chunk is None else columns % chunk or chunk
    empty = (mask[:, mask.shape[1] - last :] != 0).sum(dim=1) == 0
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise ValueError(
            f"attention_mask: expected a token of each row in the last {last} columns, which are read together and "
            f"give the first new one, got pads only in row {row}; pad on the left."
        )


def _begins_as_seen(cache: RecurrentGemmaCache, ids: Tensor, mask: Any) -> bool:
    last_ids, columns = cache.last_ids, cache.columns
    if last_ids is None or last_ids.shape[0] % ids.shape[0]:
        return True
    # The static form has room for more ids than it may have seen.
    last_ids = last_ids[:, -min(columns, last_ids.shape[1]) :]
    seen = slice(columns - last_ids.shape[1], columns)
    # Beams and several sequences of a prompt stand side by side in the cache.
    expand = last_ids.shape[0] // ids.shape[0]
    given = ids[:, seen].repeat_interleave(expand, dim=0).to(last_ids.device)
    agree = (given == last_ids) | (last_ids == UNKNOWN_ID)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        agree |= (mask[:, seen] == 0).repeat_interleave(expand, dim=0).to(last_ids.device)
    return bool(agree.all())
