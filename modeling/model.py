"""``RecurrentGemmaModel``: embeddings, residual blocks and final norm."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import LayerState, RecurrentGemmaCache, state_signature
from recurrent_gemma.modeling.cache.progress import UNKNOWN_ID
from recurrent_gemma.modeling.cache.trail import ColumnTrail
from recurrent_gemma.modeling.compat import CACHE_NAME, one_cache
from recurrent_gemma.modeling.inputs import (
    SequenceInputs,
    check_key_lengths,
    check_token_ids,
    derive_sequence_inputs,
    next_positions,
)
from recurrent_gemma.modeling.layer_interface import LayerContext, Sealed
from recurrent_gemma.modeling.layers import (
    RecurrentGemmaDecoderLayer,
    RecurrentGemmaRMSNorm,
    RecurrentGemmaScaledEmbedding,
    attention_backend,
    rotary_angles,
)
from recurrent_gemma.modeling.ops.dispatch import expect_floating
from recurrent_gemma.modeling.pretrained import RecurrentGemmaPreTrainedModel


class RecurrentGemmaModel(RecurrentGemmaPreTrainedModel):
    """The family's backbone: token ids or embeddings in, hidden states and state of the sequence out."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        config.validate()  # fields may have been set since its construction
        attention_backend(config)
        self._has_attention = "sliding_attention" in config.layers_block_type
        self.embed_tokens = RecurrentGemmaScaledEmbedding(
            config.vocab_size, config.hidden_size, config.embeddings_scale_by_sqrt_dim
        )
        self.layers = nn.ModuleList(RecurrentGemmaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentGemmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the backbone over L new columns of B rows.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, past + L) of 1 (token) and 0 (pad, anywhere); a pad changes nothing but its own outputs.
            position_ids: (B, L) or (1, L); 0 starts a document, so packed rows restart at 0. Counts valid tokens when
                None.
            past_key_values: The state to go on from; extended in place. ``RecurrentGemmaCache`` only.
            inputs_embeds: (B, L, D) instead of input_ids; not scaled here, as ``embed_tokens`` gives scaled ones.
            use_cache: Whether to make a cache where none is given. None: ``config.use_cache``, but not in training.
            output_hidden_states: Also return (B, L, D) before every block and after the final norm.
            output_attentions: Also return each attention block's weights (B, H, L, past + L);
                ``attn_implementation="eager"`` only.
            cu_seq_lens_q: (documents + 1,) cumulative lengths of the documents packed in one row.
            seq_idx: (B, L) number of the document that each token belongs to.
            cache: Another name of ``past_key_values``, that of Transformers 5.24 and later.
            **kwargs: What collators for variable-length attention send along; all else raises.

        Returns:
            ``last_hidden_state`` (B, L, D), ``past_key_values`` (``cache`` from Transformers 5.24 on),
            ``hidden_states``, ``attentions``.

        Raises:
            TypeError: A cache of another class, an unknown argument, or a wrong dtype.
            ValueError: Ids outside the vocabulary, wrong shapes, positions that follow no rule, a cache of another
                model or batch size (see ``modeling/inputs.py``); a cache in training under reentrant checkpointing.
        """
        _refuse_unknown(kwargs, cu_seq_lens_q)
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        batch, length, _ = inputs_embeds.shape
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and attention_backend(self.config) != "reference":
            raise ValueError(
                'output_attentions: expected attn_implementation="eager", which makes the weights, got '
                f'"{self.config._attn_implementation}"; load the model with attn_implementation="eager".'
            )
        cache = self._prepare_cache(one_cache(past_key_values, cache), use_cache, batch, inputs_embeds.requires_grad)
        if output_attentions and cache is not None and cache.static:
            raise ValueError(
                "output_attentions: expected the default form of the cache, whose columns are in order, got the static "
                "one; leave out cache_implementation."
            )
        boundaries = {"position_ids": position_ids, "cu_seq_lens_q": cu_seq_lens_q, "seq_idx": seq_idx}
        sequence = sequence_inputs(inputs_embeds, cache, attention_mask, **boundaries)
        record = 0 if cache is None else cache.columns_to_record(length)
        context = self._context(sequence, torch.promote_types(inputs_embeds.dtype, torch.float32), record)
        keep_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        hidden_states = inputs_embeds
        all_hidden_states, all_attentions, states, trails = [], [], [], []
        for index, layer in enumerate(self.layers):
            if keep_hidden_states:
                all_hidden_states.append(hidden_states)
            state = None if cache is None else cache.layers[index].load()
            needs_gradient = hidden_states.requires_grad and torch.is_grad_enabled()
            hidden_states, rest = layer(hidden_states, Sealed(state), context, output_attentions)
            state, weights, trail = rest.value
            if cache is not None and layer.gradient_checkpointing and needs_gradient:
                _expect_gradient(state)
            states.append(state)
            if trail is not None:
                trails.append(trail)
            if weights is not None:
                all_attentions.append(weights)
        hidden_states = self.final_norm(hidden_states)
        if keep_hidden_states:
            all_hidden_states.append(hidden_states)
        if cache is not None:
            # Only now, so that an error on the way leaves the cache as it was.
            for cache_layer, state in zip(cache.layers, states, strict=True):
                cache_layer.store(state)
            column_trail = _column_trail(sequence, input_ids, cache).last(record) if record else None
            cache.advance(length, sequence.next_position, input_ids, trails, column_trail)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if keep_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
            **{CACHE_NAME: cache},
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"input_ids, inputs_embeds: expected exactly one of them, got {given}.")
        if inputs_embeds is not None:
            expect_floating("inputs_embeds", inputs_embeds)
            width = self.config.hidden_size
            if inputs_embeds.ndim != 3 or 0 in inputs_embeds.shape or inputs_embeds.shape[-1] != width:
                raise ValueError(
                    f"inputs_embeds: expected a non-empty (B, L, D) tensor with D = {width}, got shape "
                    f"{tuple(inputs_embeds.shape)}."
                )
            return inputs_embeds
        assert input_ids is not None
        if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
            got = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise TypeError(f"input_ids: expected an int64 or int32 tensor, got {got}.")
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise ValueError(f"input_ids: expected a non-empty (B, L) tensor, got shape {tuple(input_ids.shape)}.")
        check_token_ids(input_ids, self.config.vocab_size)
        return self.embed_tokens(input_ids)

    def _prepare_cache(
        self, past_key_values: Any, use_cache: bool | None, batch: int, requires_grad: bool
    ) -> RecurrentGemmaCache | None:
        if past_key_values is None:
            if use_cache is None:
                use_cache = self.config.use_cache and not self.training
            return RecurrentGemmaCache(self.config) if use_cache else None
        if not isinstance(past_key_values, RecurrentGemmaCache):
            raise TypeError(
                f"past_key_values: expected a RecurrentGemmaCache, got {type(past_key_values).__name__}, which cannot "
                "hold this family's state; make one with RecurrentGemmaCache(model.config)."
            )
        past_key_values.expect_matches(state_signature(self.config), batch)
        if past_key_values.static and requires_grad:
            raise ValueError(
                "past_key_values: expected torch.no_grad() with the static form of the cache, whose buffers are "
                "written in place, got inputs that require a gradient; use the default form for training."
            )
        return past_key_values

    def _context(self, sequence: SequenceInputs, dtype: torch.dtype, record: int) -> Sealed[LayerContext]:
        cos, sin = None, None
        if self._has_attention:
            cos, sin = rotary_angles(sequence.positions, self.config, dtype)
        return Sealed(LayerContext(sequence.starts, sequence.valid, sequence.past_length, cos, sin, record))


def sequence_inputs(
    tokens: Tensor, cache: RecurrentGemmaCache | None, attention_mask: Tensor | None, **boundaries: Tensor | None
) -> SequenceInputs:
    """Positions, document starts and valid tokens of a forward pass that goes on from ``cache``.

    Args:
        tokens: (B, L) or (B, L, ...), ids or embeddings.
        cache: The state before this pass.
        attention_mask: (B, past + L).
        **boundaries: ``position_ids``, ``cu_seq_lens_q`` and ``seq_idx``.

    Raises:
        TypeError, ValueError: As in ``modeling/inputs.py``.
    """
    batch, length = tokens.shape[:2]
    past_columns = 0
    if cache is not None:
        lengths = boundaries.get("cu_seq_lens_q"), boundaries.get("seq_idx")
        past_columns = _past_columns(cache, length, attention_mask, *lengths)
    return derive_sequence_inputs(
        batch=batch,
        length=length,
        device=tokens.device,
        past_columns=past_columns,
        past_next_position=None if cache is None else cache.next_position,
        attention_mask=attention_mask,
        **boundaries,
    )


def _past_columns(cache: RecurrentGemmaCache, length: int, mask: Tensor | None, *boundaries: Tensor | None) -> int:
    """Columns that ``mask`` covers before the new ones. Document boundaries only go with a cache that is empty."""
    if not cache.static:
        return cache.columns
    # The static form counts in a tensor, which a compiled step must not look at. Its mask may cover the new columns
    # alone, so that it keeps its shape from token to token.
    if isinstance(mask, Tensor) and (mask.shape[-1] == length or torch.compiler.is_compiling()):
        return mask.shape[-1] - length
    return cache.columns if mask is not None or any(b is not None for b in boundaries) else 0


def _column_trail(sequence: SequenceInputs, ids: Tensor | None, cache: RecurrentGemmaCache) -> ColumnTrail:
    positions = sequence.positions
    return ColumnTrail(
        starts=torch.zeros_like(positions, dtype=torch.bool) if sequence.starts is None else sequence.starts,
        valid=torch.ones_like(positions, dtype=torch.bool) if sequence.valid is None else sequence.valid,
        next_position=next_positions(positions, sequence.valid, sequence.past_length),
        ids=torch.full_like(positions, UNKNOWN_ID) if ids is None else ids,
        base_position=sequence.past_length,
        base_ids=positions[:, :0] if cache.last_ids is None else cache.last_ids,
    )


def _expect_gradient(state: LayerState) -> None:
    """Reentrant checkpointing knows the gradient of tensors that a block takes and returns itself, not of its state."""
    if not any(tensor.requires_grad for tensor in state):
        raise ValueError(
            "past_key_values: expected no cache under gradient checkpointing with use_reentrant=True, which loses the "
            "gradient through the state, got one; checkpoint with use_reentrant=False, or pass use_cache=False."
        )


def _refuse_unknown(kwargs: dict[str, Any], cu_seq_lens_q: Tensor | None) -> None:
    """Collators for variable-length attention also send what follows from ``cu_seq_lens_q``; all else is unknown."""
    check_key_lengths(kwargs.pop("cu_seq_lens_k", None), cu_seq_lens_q)
    kwargs.pop("max_length_q", None)
    kwargs.pop("max_length_k", None)
    unknown = sorted(name for name, value in kwargs.items() if value is not None)
    if unknown:
        raise TypeError(f"forward: expected arguments that RecurrentGemma knows, got also {unknown}.")
