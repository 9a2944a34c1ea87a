"""RecurrentGemma, Griffin and Hawk for Transformers: exact, with a state of constant size.

Importing this package makes ``AutoConfig``, ``AutoModel``, ``AutoModelForCausalLM``, ``AutoTokenizer`` and ``pipeline``
use it for RecurrentGemma checkpoints; :func:`unregister` undoes that.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.modeling import (
    PrefixCache,
    RecurrentGemmaCache,
    RecurrentGemmaForCausalLM,
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
    RecurrentGemmaModel,
    RecurrentGemmaPreTrainedModel,
)
from recurrent_gemma.registration import assert_active, is_active, register, unregister
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

try:
    __version__ = version("recurrent-gemma")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+unknown"


def demo_path() -> Path:
    """Directory of the small English model that comes with the package, as ``from_pretrained`` takes it."""
    return Path(__file__).parent / "demo"


register()

__all__ = [
    "PRESETS",
    "PrefixCache",
    "RecurrentGemmaCache",
    "RecurrentGemmaConfig",
    "RecurrentGemmaForCausalLM",
    "RecurrentGemmaForQuestionAnswering",
    "RecurrentGemmaForSequenceClassification",
    "RecurrentGemmaForTokenClassification",
    "RecurrentGemmaModel",
    "RecurrentGemmaPreTrainedModel",
    "RecurrentGemmaTokenizer",
    "__version__",
    "assert_active",
    "demo_path",
    "is_active",
    "register",
    "unregister",
]
