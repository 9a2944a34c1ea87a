"""LoRA for this family: what it adapts by default, and the configuration that PEFT takes.

The default adapts every linear layer and leaves the recurrence alone. Source: Galim et al., "Parameter-Efficient
Fine-Tuning of State Space Models" (arXiv 2410.09016), where adapters on the projections of recurrent blocks do best and
adapters on the recurrence itself add little; Dettmers et al., "QLoRA" (arXiv 2305.14314), section 4, for adapting all
linear layers of a block.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel

from recurrent_gemma.modeling.layers import LINEAR_LAYERS
from recurrent_gemma.training.adapter_checks import GATE_WEIGHTS, check_adapter, layers_of, require_peft

if TYPE_CHECKING:
    from peft import LoraConfig

# The end of a class's name, and the task that PEFT wraps such a model for.
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "Model": "FEATURE_EXTRACTION",
}


def lora_config(
    model: PreTrainedModel | PreTrainedConfig, *, rank: int = 16, gates: bool = False, **overrides: Any
) -> "LoraConfig":
    """A ``peft.LoraConfig`` for a model of this family, checked with :func:`check_adapter`.

    Args:
        model: The model to adapt, or its config for a language model. This package's class or Transformers' own.
        rank: Rank of the updates; ``lora_alpha`` is twice as much unless overridden.
        gates: Also adapt the weights of the RG-LRU's gates (H, R/H, R/H), each of the H blocks by itself. They are
            plain parameters, which PEFT reaches with ``target_parameters``, without dropout, DoRA and biases.
        **overrides: Fields of ``LoraConfig``; ``target_modules`` replaces the default, all linear layers of the blocks.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: ``LoraConfig`` has no such field.
        ValueError: As :func:`check_adapter`; ``gates`` together with ``target_parameters``, or without a recurrent
            block.
    """
    peft = require_peft()
    config = model if isinstance(model, PreTrainedConfig) else model.config
    if gates and "target_parameters" in overrides:
        raise ValueError(
            "gates: expected False together with target_parameters, got True; name the gates there, as "
            f"{list(GATE_WEIGHTS)}."
        )
    fields: dict[str, Any] = {
        "task_type": _task_of(model),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": _targets_in(config),
        **overrides,
    }
    if gates:
        fields["target_parameters"] = _gate_parameters(config, overrides.get("layers_to_transform"))
    adapter = peft.LoraConfig(**fields)
    check_adapter(model, adapter)
    return adapter


def _task_of(model: PreTrainedModel | PreTrainedConfig) -> str | None:
    if isinstance(model, PreTrainedConfig):
        return "CAUSAL_LM"
    name = type(model).__name__
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


def _targets_in(config: PreTrainedConfig) -> list[str]:
    """The default targets that a model of ``config`` has: one without attention has no ``q_proj``."""
    kinds = set(config.layers_block_type)
    recurrent, attention, mlp = LINEAR_LAYERS.values()
    return [
        *(recurrent if kinds & {"linear_attention", "recurrent"} else ()),
        *(attention if kinds & {"sliding_attention", "attention"} else ()),
        *mlp,
    ]


def _gate_parameters(config: PreTrainedConfig, layers: int | Iterable[int] | None) -> list[str]:
    kinds = config.layers_block_type
    recurrent = [i for i, kind in enumerate(kinds) if kind in ("linear_attention", "recurrent")]
    if layers is not None:
        # PEFT applies layers_to_transform to modules only, so the parameters are named layer by layer.
        recurrent = [i for i in recurrent if i in layers_of(layers)]
    if not recurrent:
        raise ValueError(
            "gates: expected False in a model, or in layers_to_transform, without recurrent blocks, got True."
        )
    if layers is None:
        return list(GATE_WEIGHTS)
    return [f"layers.{i}.temporal_block.{name}" for i in recurrent for name in GATE_WEIGHTS]
