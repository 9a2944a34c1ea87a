"""Makes Transformers use this package's classes for ``model_type: recurrent_gemma``, and undoes it.

Two ways lead from a checkpoint to a class, and both are rebound. The Auto classes (and ``pipeline``) look the model
type up in their registries. TRL, ``pipeline`` and ``transformers serve`` also take the class name from
``architectures`` and read it off the ``transformers`` module. ``transformers.models.recurrent_gemma`` is left alone: it
is the way to reach Transformers' own classes.
"""

import gc
import importlib
import sys
from collections.abc import Hashable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES, TOKENIZER_MAPPING

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import (
    RecurrentGemmaForCausalLM,
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
    RecurrentGemmaModel,
    RecurrentGemmaPreTrainedModel,
)
from recurrent_gemma.modeling.layers import LINEAR_LAYER_NAMES
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

_AUTO_MODELS = {
    "AutoModel": (MODEL_MAPPING, RecurrentGemmaModel),
    "AutoModelForCausalLM": (MODEL_FOR_CAUSAL_LM_MAPPING, RecurrentGemmaForCausalLM),
    "AutoModelForQuestionAnswering": (MODEL_FOR_QUESTION_ANSWERING_MAPPING, RecurrentGemmaForQuestionAnswering),
    "AutoModelForSequenceClassification": (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        RecurrentGemmaForSequenceClassification,
    ),
    "AutoModelForTokenClassification": (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, RecurrentGemmaForTokenClassification),
}
_MODULE_NAMES = (
    RecurrentGemmaConfig,
    RecurrentGemmaPreTrainedModel,
    *(model_class for _, model_class in _AUTO_MODELS.values()),
)
_ABSENT = object()


class _Binding(NamedTuple):
    """One entry of one of Transformers' registries."""

    table: dict[Any, Any]
    key: Hashable
    value: Any
    where: str

    @property
    def current(self) -> Any:
        return self.table.get(self.key, _ABSENT)


# What `register` replaced, in order, for `unregister` to put back.
_replaced: list[tuple[_Binding, Any]] = []


def register() -> None:
    """Make the Auto classes, ``pipeline`` and the names in the ``transformers`` module resolve to this package.

    Importing ``recurrent_gemma`` calls it. Calling it again changes nothing, unless something else has rebound an entry
    since: then that entry is taken back.

    Names that were imported before (``from transformers import RecurrentGemmaForCausalLM``) keep the class they had.
    A published directory whose ``tokenizer_config.json`` names ``GemmaTokenizer`` keeps Transformers' tokenizer; this
    package's is used where the file names ``RecurrentGemmaTokenizer`` or no class.

    Where PEFT is imported already, a ``LoraConfig`` without ``target_modules`` adapts this family's linear layers.
    """
    for binding in (*_bindings(), *_peft_bindings()):
        if binding.current is not binding.value:
            _replaced.append((binding, binding.current))
            binding.table[binding.key] = binding.value


def unregister() -> None:
    """Put back every entry that :func:`register` replaced; Transformers then uses its own classes again.

    Entries that something else has rebound since are left as they are.
    """
    while _replaced:
        binding, previous = _replaced.pop()
        if binding.current is not binding.value:
            continue
        if previous is _ABSENT:
            del binding.table[binding.key]
        else:
            binding.table[binding.key] = previous


def is_active() -> bool:
    """Whether every way from a checkpoint to a class leads to this package."""
    return not _inactive()


def assert_active() -> None:
    """Check that Transformers uses this package for RecurrentGemma checkpoints.

    Raises:
        RuntimeError: It does not, or not everywhere: names what resolves to another class, and the remedy.
    """
    inactive = _inactive()
    if inactive:
        raise RuntimeError(
            f"recurrent_gemma is not the implementation that Transformers uses: {'; '.join(inactive)}. "
            "Call recurrent_gemma.register() before loading a model, or start the program with "
            "`recurrent-gemma exec -- COMMAND`."
        )


def _inactive() -> list[str]:
    wrong = [binding for binding in _bindings() if binding.current is not binding.value]
    return list(dict.fromkeys(f"{binding.where} gives {_describe(binding.current)}" for binding in wrong))


def _describe(value: Any) -> str:
    return "Transformers' default" if value is _ABSENT else f"{value.__module__}.{value.__qualname__}"


def _bindings() -> Iterator[_Binding]:
    # What the Auto classes' public `register` methods write to, which have no inverse.
    config, tokenizer = RecurrentGemmaConfig, RecurrentGemmaTokenizer
    yield _Binding(CONFIG_MAPPING._extra_content, config.model_type, config, "AutoConfig")
    for name, (mapping, model_class) in _AUTO_MODELS.items():
        yield _Binding(mapping._extra_content, config, model_class, name)
    yield _Binding(TOKENIZER_MAPPING._extra_content, config, tokenizer, "AutoTokenizer")
    yield _Binding(REGISTERED_TOKENIZER_CLASSES, tokenizer.__name__, tokenizer, f"tokenizer_class {tokenizer.__name__}")
    for module in _transformers_modules():
        for cls in _MODULE_NAMES:
            yield _Binding(vars(module), cls.__name__, cls, f"transformers.{cls.__name__}")


def _peft_bindings() -> Iterator[_Binding]:
    # PEFT is an extra: it is not imported for this.
    constants = sys.modules.get("peft.utils.constants")
    if constants is not None:
        # What it adapts where a LoraConfig names no modules.
        table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        yield _Binding(table, RecurrentGemmaConfig.model_type, LINEAR_LAYER_NAMES, "peft.LoraConfig")


def _transformers_modules() -> list[ModuleType]:
    """Every living ``transformers`` module object.

    The import of ``transformers.processing_utils`` (of any model, that is) executes ``transformers/__init__.py`` a
    second time and puts the result into ``sys.modules``, while earlier importers of ``transformers`` hold the first.
    """
    importlib.import_module("transformers.processing_utils")
    current = sys.modules["transformers"]
    lazy_module = type(current)
    modules = [referrer for referrer in gc.get_referrers(lazy_module) if type(referrer) is lazy_module]
    return [module for module in modules if module.__name__ == current.__name__]
