"""The backbone with a task on top: language model, classification of sequences and tokens, question answering."""

from recurrent_gemma.modeling.heads.causal_lm import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.heads.classification import (
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
)
from recurrent_gemma.modeling.heads.question_answering import RecurrentGemmaForQuestionAnswering

__all__ = [
    "RecurrentGemmaForCausalLM",
    "RecurrentGemmaForQuestionAnswering",
    "RecurrentGemmaForSequenceClassification",
    "RecurrentGemmaForTokenClassification",
]
