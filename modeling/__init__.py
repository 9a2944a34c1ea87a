"""The model: layers, cache, inputs and heads. ``modeling.ops`` holds the pure functions on tensors beneath them."""

from recurrent_gemma.modeling import quiet_import  # noqa: F401
from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.heads import (
    RecurrentGemmaForCausalLM,
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
)
from recurrent_gemma.modeling.model import RecurrentGemmaModel
from recurrent_gemma.modeling.prefix_cache import PrefixCache
from recurrent_gemma.modeling.pretrained import RecurrentGemmaPreTrainedModel

__all__ = [
    "PrefixCache",
    "RecurrentGemmaCache",
    "RecurrentGemmaForCausalLM",
    "RecurrentGemmaForQuestionAnswering",
    "RecurrentGemmaForSequenceClassification",
    "RecurrentGemmaForTokenClassification",
    "RecurrentGemmaModel",
    "RecurrentGemmaPreTrainedModel",
]
