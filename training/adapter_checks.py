"""Refuses by name the adapters that PEFT would apply differently from what their configuration says, or not at all."""

import re
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from recurrent_gemma.extras import require_extra
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

# The gates' block-diagonal weights (H, R/H, R/H), as PEFT's ``target_parameters`` names them.
GATE_WEIGHTS = ("rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight")

_EMBEDDINGS = ("embed_tokens", "lm_head")
# What PEFT adds to modules_to_save by itself for a task, whether or not the model has it.
_AUTOMATIC = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# Ways of starting an adapter that read no weight of a linear layer, which a gate is not.
_PLAIN_INITIALIZATIONS = (True, False, "gaussian")


class _Skeleton(NamedTuple):
    """The names in a model, without its weights."""

    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    tied: bool
    layers: int


def require_peft() -> ModuleType:
    """The module ``peft``.

    Raises:
        ImportError: It is not installed.
    """
    return require_extra("peft", extra="train", needed_by="adapters need")


def check_adapter(model: "PreTrainedModel | PreTrainedConfig | PeftModel", adapter: "PeftConfig") -> None:
    """Check that PEFT can apply ``adapter`` to a model of this family, and that it will do what it says.

    PEFT ignores names that match nothing beside others that do, merges an adapter of tied embeddings into both of
    their uses, ignores ``layers_to_transform`` for parameters, and refuses much of what it cannot do in terms of its
    own classes. Prefixes of keys and values have no place in a recurrent block.

    Args:
        model: The model that is to be adapted, or its config for a language model.
        adapter: Any ``PeftConfig``; a ``LoraConfig`` is checked in every field that has such a case.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: Names the field, the module or parameter, and what to do instead.
    """
    peft = require_peft()
    if adapter.peft_type in (peft.PeftType.PREFIX_TUNING, peft.PeftType.CARTRIDGE, peft.PeftType.ADAPTION_PROMPT):
        raise ValueError(
            f"peft_type: expected a method for recurrent blocks, got {adapter.peft_type}, which puts keys and "
            "values before those of every layer, and recurrent blocks have none; use LoRA, or prompt tuning, which "
            "puts embeddings before the first token."
        )
    if not isinstance(adapter, peft.LoraConfig):
        return
    skeleton = _skeleton(model)
    if adapter.layer_replication:
        raise ValueError(
            "layer_replication: expected None, got "
            f"{adapter.layer_replication}; PEFT can replicate layers of other families only."
        )
    _check_layers(skeleton, adapter)
    targeted = _check_target_modules(skeleton, adapter)
    owners = _check_target_parameters(skeleton, adapter, targeted)
    _check_modules_to_save(skeleton, adapter, owners)


def layers_of(layers: int | Iterable[int]) -> list[int]:
    """``layers_to_transform``, which may be one number, as a list."""
    return [layers] if isinstance(layers, int) else list(layers)


def _skeleton(model: Any) -> _Skeleton:
    cls: Any = RecurrentGemmaForCausalLM
    config = model
    if not isinstance(model, PreTrainedConfig):
        base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
        cls, config = type(base), base.config
    # Built anew, as a model that is adapted already has its adapters' names.
    with torch.device("meta"):
        bare = cls(config)
    modules = {name: module for name, module in bare.named_modules() if name}
    parameters = dict(bare.named_parameters(remove_duplicate=False))
    # Without an output layer the embeddings have one use, whatever the config says.
    tied = config.tie_word_embeddings and bare.get_output_embeddings() is not None
    return _Skeleton(modules, parameters, tied, config.num_hidden_layers)


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _matches(names: Iterable[str], target: str) -> list[str]:
    return [name for name in names if _ends_with(name, target)]


def _expect_names(field: str, targets: Iterable[str], names: Iterable[str], kind: str) -> None:
    names = list(names)
    unknown = sorted(target for target in targets if not _matches(names, target))
    if unknown:
        known = sorted({re.sub(r".*?layers\.\d+\.", "", name) for name in names if "layers." in name})
        raise ValueError(
            f"{field}: expected names of {kind}s of the model, got {unknown}, which name none; PEFT would leave them "
            f"out. Blocks have {', '.join(known)}."
        )


def _check_layers(skeleton: _Skeleton, adapter: "LoraConfig") -> None:
    if adapter.layers_to_transform is None:
        return
    wrong = [layer for layer in layers_of(adapter.layers_to_transform) if not 0 <= layer < skeleton.layers]
    if wrong:
        raise ValueError(
            f"layers_to_transform: expected layers from 0 to {skeleton.layers - 1}, got {wrong}; PEFT would leave "
            "them out."
        )


def _check_target_modules(skeleton: _Skeleton, adapter: "LoraConfig") -> list[str]:
    """The names of the modules that are adapted."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND

    targets = adapter.target_modules
    if not targets or targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return []
    if not isinstance(targets, str):
        _expect_names("target_modules", targets, skeleton.modules, "module")
    matched = [name for name in skeleton.modules if check_target_module_exists(adapter, name)]
    if not matched:
        raise ValueError(f"target_modules: expected names of modules of the model, got {targets!r}, which name none.")
    for name in matched:
        module = skeleton.modules[name]
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            raise ValueError(
                f"target_modules: expected linear layers, got {name} ({type(module).__name__}); "
                f"{_instead_of_adapting(name)}."
            )
        if skeleton.tied:
            _expect_no_embeddings("target_modules", name)
    return matched


def _instead_of_adapting(name: str) -> str:
    last = name.rpartition(".")[2]
    if last == "conv_1d":
        return 'an update of low rank would be larger than it is: train it whole, modules_to_save=["conv_1d"]'
    if last == "rg_lru":
        return (
            f"adapt its gates with target_parameters={list(GATE_WEIGHTS)}, which lora_config(model, gates=True) sets, "
            'or train it whole, modules_to_save=["rg_lru"]'
        )
    if last.endswith("norm"):
        return f'train it whole, modules_to_save=["{last}"]'
    return "name the linear layers in it"


def _expect_no_embeddings(field: str, name: str) -> None:
    if any(part in _EMBEDDINGS for part in name.split(".")):
        raise ValueError(
            f"{field}: expected no {name} in a model with tied embeddings, where the adapter acts in one of their two "
            "uses and, once merged, in both; use trainable_token_indices for single tokens, or "
            'modules_to_save=["embed_tokens"] with ensure_weight_tying=True for all of them.'
        )


def _check_target_parameters(skeleton: _Skeleton, adapter: "LoraConfig", targeted: list[str]) -> list[str]:
    """The names of the modules that own the parameters which are adapted."""
    targets = adapter.target_parameters
    if not targets:
        return []
    _expect_names("target_parameters", targets, skeleton.parameters, "parameter")
    matched = [name for target in targets for name in _matches(skeleton.parameters, target)]
    for name in matched:
        owner, _, last = name.rpartition(".")
        if skeleton.tied:
            _expect_no_embeddings("target_parameters", name)
        if owner in targeted:
            raise ValueError(
                f"target_parameters: expected parameters of modules that target_modules leaves out, got {name}; name "
                "it in one of them."
            )
        linear = isinstance(skeleton.modules[owner], nn.Linear) and last == "weight"
        if not linear and not any(_ends_with(name, gate) for gate in GATE_WEIGHTS):
            shape = tuple(skeleton.parameters[name].shape)
            raise ValueError(
                f"target_parameters: expected weights of gates or of linear layers, got {name} of shape {shape}, of "
                "which an update of low rank would not be smaller than it is; train it whole, "
                f'modules_to_save=["{owner.rpartition(".")[2]}"].'
            )
    if adapter.layers_to_transform is not None:
        inside = [f"layers.{i}." for i in layers_of(adapter.layers_to_transform)]
        outside = [name for name in matched if not any(layer in name for layer in inside)]
        if outside:
            raise ValueError(
                "layers_to_transform: expected target_parameters of these layers only, since PEFT applies it to "
                f'modules alone, got {outside[0]}; name each with its layer, "layers.0.temporal_block.'
                f'{GATE_WEIGHTS[0]}", as lora_config(model, gates=True, layers_to_transform=...) does.'
            )
    _check_options_of_parameters(adapter)
    return sorted({name.rpartition(".")[0] for name in matched})


def _check_options_of_parameters(adapter: "LoraConfig") -> None:
    plain = adapter.init_lora_weights in _PLAIN_INITIALIZATIONS
    refused = {
        "lora_dropout": adapter.lora_dropout,
        "use_dora": adapter.use_dora,
        "lora_bias": adapter.lora_bias,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "init_lora_weights": False if plain else adapter.init_lora_weights,
    }
    for field, value in refused.items():
        if value:
            expected = "True, False or 'gaussian'" if field == "init_lora_weights" else "0" if value != 1 else "False"
            raise ValueError(
                f"{field}: expected {expected} together with target_parameters {adapter.target_parameters}, got "
                f"{value!r}; PEFT can do that with modules only. Leave it out, or leave the gates out."
            )


def _check_modules_to_save(skeleton: _Skeleton, adapter: "LoraConfig", owners: list[str]) -> None:
    saved = adapter.modules_to_save or []
    automatic = _AUTOMATIC.get(str(getattr(adapter.task_type, "value", adapter.task_type)), ())
    own = [name for name in saved if name not in automatic]
    _expect_names("modules_to_save", own, skeleton.modules, "module")
    for target in saved:
        for name in _matches(skeleton.modules, target):
            inside = [owner for owner in owners if owner == name or owner.startswith(f"{name}.")]
            if inside:
                raise ValueError(
                    f"modules_to_save: expected modules without target_parameters, got {name}, which holds those of "
                    f"{inside[0]}; a module is trained whole or adapted, not both."
                )
            if skeleton.tied and name.rpartition(".")[2] in _EMBEDDINGS and not adapter.ensure_weight_tying:
                raise ValueError(
                    f"modules_to_save: expected ensure_weight_tying=True together with {name} in a model with tied "
                    "embeddings, got False, which trains one of their two uses; pass it, or untie them first."
                )
