"""``RecurrentGemmaForCausalLM``: the language model."""

import functools
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import RecurrentGemmaCache, state_signature
from recurrent_gemma.modeling.compat import CACHE_NAME, one_cache
from recurrent_gemma.modeling.generation import RecurrentGemmaGeneration
from recurrent_gemma.modeling.heads.loss import IGNORED, mean_cross_entropy, mean_over, next_token_labels
from recurrent_gemma.modeling.heads.tokens import valid_columns
from recurrent_gemma.modeling.inputs import check_labels
from recurrent_gemma.modeling.layer_interface import Sealed
from recurrent_gemma.modeling.model import RecurrentGemmaModel, sequence_inputs
from recurrent_gemma.modeling.ops.cross_entropy import linear_cross_entropy
from recurrent_gemma.modeling.ops.dispatch import holds_on_cpu
from recurrent_gemma.modeling.ops.linear import linear
from recurrent_gemma.modeling.ops.ragged import gather_columns
from recurrent_gemma.modeling.pretrained import RecurrentGemmaPreTrainedModel

logger = logging.getLogger("recurrent_gemma")


class LossTarget(NamedTuple):
    """What the loss is taken against."""

    shift_labels: Tensor  # (B, L) int64, the label of the token after each column
    soft_cap: float | None
    num_items_in_batch: Tensor | int | None


class RecurrentGemmaLMHead(nn.Linear):
    """Output projection, bare of bias; gives the loss itself where nobody wants the logits.

    It is asked for the loss by a call, so that what is wrapped around it (FSDP2's gathering of its weight, for one)
    works as for logits.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> "RecurrentGemmaLMHead":
        """A head with the very weight of a linear layer without bias."""
        with torch.device("meta"):
            head = cls(linear.in_features, linear.out_features)
        head.weight = linear.weight
        # Transformers' mark on what must not be drawn anew.
        head._is_hf_initialized = vars(linear).get("_is_hf_initialized", False)
        return head

    def forward(self, hidden_states: Tensor, target: "Sealed[LossTarget] | None" = None) -> Tensor:
        """Logits (B, L, vocab_size) of hidden states (B, L, D), not capped; or, given a target, the loss (), fp32."""
        if target is None:
            return linear(hidden_states, self.weight)
        shift_labels, soft_cap, num_items_in_batch = target.value
        labels = shift_labels.flatten().to(hidden_states.device)
        total = linear_cross_entropy(hidden_states.flatten(0, 1), self.weight, labels, soft_cap=soft_cap)
        return mean_over(total, labels, num_items_in_batch)


@dataclass
class RecurrentGemmaLossOutput(ModelOutput):
    """What the language model gives back where only the loss is wanted: all but the logits.

    Attributes:
        loss: fp32 scalar.
        past_key_values or cache: The state, under the name that the installed Transformers knows.
        hidden_states, attentions: As in ``CausalLMOutputWithPast``.
    """

    loss: Tensor | None = None
    # One field: FSDP2 makes the output anew from its fields, and Transformers refuses both names.
    if CACHE_NAME == "cache":
        cache: RecurrentGemmaCache | None = None
    else:
        past_key_values: RecurrentGemmaCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "logits":
            raise AttributeError(
                "logits: not computed, since the model was given num_items_in_batch in training mode, as Trainer does "
                "where it wants the loss alone; pass skip_logits=False to the model to get them."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class RecurrentGemmaForCausalLM(  # type: ignore[misc]
    RecurrentGemmaPreTrainedModel, RecurrentGemmaGeneration, GenerationMixin
):
    """Backbone, output projection (tied to the embeddings in published models) and tanh soft cap."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__(config)
        self.model = RecurrentGemmaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = RecurrentGemmaLMHead(config.hidden_size, config.vocab_size)
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
        skip_logits: bool | None = None,
        cache: RecurrentGemmaCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | RecurrentGemmaLossOutput:
        """Next-token logits of L new columns of B rows. Arguments not listed are those of ``RecurrentGemmaModel``.

        Args:
            labels: (B, L) ids, -100 where no loss is wanted; shifted here, so ``labels=input_ids`` trains a language
                model. A document's first token is predicted by nothing, so its label is not used.
            logits_to_keep: Compute logits of the last n columns only (0: all), or of the columns in a 1-D index tensor.
            num_items_in_batch: Number of labels that the loss is divided by; their mean when None.
            skip_logits: Whether to give the loss without the logits, which are then never held all at once (4 GB of
                fp32 at 4,096 tokens and 256,000 words). None: in training mode when ``num_items_in_batch`` is given,
                as Trainer does; nobody else leaves out what the caller may want to read.
            **kwargs: ``shift_labels``, (B, L) labels of the token after each column, which sequence parallelism and
                windows of a longer text need; they replace ``labels``.

        Returns:
            ``loss`` (fp32 scalar; 0 where every label is -100), ``logits`` (B, columns kept, vocab_size) in the model's
            dtype, soft-capped in fp32 (at a pad: those of the token before it, so that the last column has each row's
            next token), ``past_key_values`` (``cache`` from Transformers 5.24 on), ``hidden_states``, ``attentions``;
            a ``RecurrentGemmaLossOutput``, without ``logits``, if they are skipped.

        Raises:
            TypeError, ValueError: As in ``RecurrentGemmaModel``; labels of another shape, or with logits_to_keep;
                skip_logits without labels.
        """
        # Not in the signature: the Trainer takes each name with "label" there for one that every batch has to have
        # (``transformers.utils.generic.find_labels``), and computes no evaluation loss where one is missing.
        shift_labels = kwargs.pop("shift_labels", None)
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
        if skip_logits is None:
            skip_logits = self.training and targets is not None and num_items_in_batch is not None
        if skip_logits and targets is None:
            raise ValueError(
                "skip_logits: expected labels or shift_labels with it, got none; there is nothing to give."
            )
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"logits_to_keep: expected at least 0, got {logits_to_keep}.")
        cache = one_cache(past_key_values, cache)
        if isinstance(cache, RecurrentGemmaCache) and isinstance(logits_to_keep, int):
            # Assisted generation asks for the logits of the drafts, and takes back those it does not accept.
            cache.record_limit = max(cache.record_limit, logits_to_keep)
        if shift_labels is None and labels is not None and isinstance(tokens, Tensor):
            boundaries = {"position_ids": position_ids, **{n: kwargs.get(n) for n in ("cu_seq_lens_q", "seq_idx")}}
            shift_labels = self._next_token_labels(labels, tokens, cache, attention_mask, boundaries)
            if num_items_in_batch is not None:
                _warn_of_uncounted(labels, shift_labels)
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
        logits, loss = None, None
        if (
            shift_labels is not None
            and skip_logits
            and self.loss_function is ForCausalLMLoss
            and _gives_loss(self.lm_head)
        ):
            cap = self.config.final_logit_softcapping
            loss = self.lm_head(hidden_states, Sealed(LossTarget(shift_labels, cap, num_items_in_batch)))
        else:
            logits = self._soft_cap(self.lm_head(hidden_states))
            if shift_labels is not None:
                loss = self._loss_of_logits(logits, labels, shift_labels, num_items_in_batch)
        rest = {
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
            CACHE_NAME: getattr(outputs, CACHE_NAME),
        }
        if skip_logits or logits is None:
            return RecurrentGemmaLossOutput(loss=loss, **rest)
        return CausalLMOutputWithPast(loss=loss, logits=logits.to(outputs.last_hidden_state.dtype), **rest)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output projection, as ``resize_token_embeddings`` does; a bare linear layer is made a head."""
        if type(new_embeddings) is nn.Linear and new_embeddings.bias is None:
            new_embeddings = RecurrentGemmaLMHead.of(new_embeddings)
        self.lm_head = new_embeddings

    def _next_token_labels(
        self,
        labels: Tensor,
        tokens: Tensor,
        cache: Any,
        attention_mask: Tensor | None,
        boundaries: dict[str, Tensor | None],
    ) -> Tensor:
        """Each column's label, by the state as it is before the model has run."""
        if cache is not None:
            if not isinstance(cache, RecurrentGemmaCache):
                return labels  # which the model refuses
            cache.expect_matches(state_signature(self.config), tokens.shape[0])
        sequence = sequence_inputs(tokens, cache, attention_mask, **boundaries)
        return next_token_labels(labels, sequence.starts, sequence.valid)

    def _loss_of_logits(
        self, logits: Tensor, labels: Tensor | None, shift_labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if self.loss_function is not ForCausalLMLoss:
            return self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels.contiguous(),
            )
        return mean_cross_entropy(logits.flatten(0, 1), shift_labels.flatten().to(logits.device), num_items_in_batch)

    def _soft_cap(self, logits: Tensor) -> Tensor:
        """cap * tanh(logits / cap), in fp32."""
        cap = self.config.final_logit_softcapping
        if cap is None:
            return logits
        return torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / cap) * cap


def _gives_loss(head: nn.Module) -> bool:
    """Whether ``head`` gives the loss itself: no adapter, no quantized weight, and no hook but those of FSDP2."""
    if not isinstance(head, RecurrentGemmaLMHead):
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    # accelerate replaces forward() as well, and passes arguments on.
    hooked = any(hooks) or ("forward" in vars(head) and not hasattr(head, "_hf_hook"))
    return _is_fsdp_unit(head) or (type(head.weight) in (nn.Parameter, Tensor) and not hooked)


def _is_fsdp_unit(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _warn_of_uncounted(labels: Tensor, shift_labels: Tensor) -> None:
    """Say, once and on CPU only, that ``num_items_in_batch`` counts labels that the loss leaves out."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if bool(((labels[:, 1:] != IGNORED) & (shift_labels[:, :-1] == IGNORED)).any()):
        log_uncounted()


@functools.cache
def log_uncounted() -> None:
    logger.warning(
        "labels: expected -100 at pads and at first tokens of documents together with num_items_in_batch, which counts "
        "them while the loss leaves them out, so that it depends on how rows are batched; pad on the right "
        '(tokenizer.padding_side = "right"), or use recurrent_gemma.training.PackingCollator.'
    )


def _repeat_at_pads(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states (B, L, D) with those of the last valid token in place of each pad's after it."""
    valid = valid_columns(hidden_states, attention_mask)
    if holds_on_cpu(valid):
        return hidden_states
    columns = torch.arange(valid.shape[1], device=valid.device)
    return gather_columns(hidden_states, (valid * columns).cummax(dim=1).values)
