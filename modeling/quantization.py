"""What ``from_pretrained`` checks around torchao: all that it is asked to quantize fits, and is quantized.

Depending on the scheme, torchao leaves a weight that no whole number of groups covers as it is, or fails on it without
its name. Transformers ignores patterns and options that reach no weight. Here all of this raises.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from recurrent_gemma.modeling.layers import LINEAR_LAYER_NAMES


def expect_fitting(model: PreTrainedModel, quantization: TorchAoConfig) -> None:
    """Raise ValueError unless torchao can quantize what it is asked to, as it is asked to.

    Args:
        model: The model, whose weights need not be there.
        quantization: What was asked for.

    Raises:
        ValueError: Groups do not divide the width of a linear layer, or a pattern of ``modules_to_not_convert`` leaves
            out nothing; all are named.
    """
    unfit: dict[tuple[int, int], list[str]] = {}
    for name, layer in _linear_layers(model):
        group = _group_size(_scheme_of(name, quantization))
        if group is not None and layer.in_features % group:
            unfit.setdefault((group, layer.in_features), []).append(name)
    if unfit:
        found = "; ".join(f"{group} in {width} of {_listed(names)}" for (group, width), names in unfit.items())
        raise ValueError(
            f"group_size: expected a divisor of the width of every linear layer, got {found}. Choose another, or leave "
            "these layers out with modules_to_not_convert."
        )
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    patterns = quantization.modules_to_not_convert or ()
    idle = [pattern for pattern in patterns if all(should_convert_module(name, [pattern]) for name in names)]
    if idle:
        raise ValueError(
            f"modules_to_not_convert: expected patterns of names of weights, got {idle}, which match none, so that "
            "Transformers would leave nothing out. A pattern goes from the start of a weight's name to a dot, as "
            r'r"model\.layers\.\d+\.mlp_block", or is its end, as "down_proj.weight".'
        )


def expect_quantized(model: PreTrainedModel, source: str) -> None:
    """Raise ValueError unless exactly what torchao was asked to quantize in a loaded ``model`` is quantized.

    Args:
        model: The loaded model, adapted or not; one that torchao has no part in passes.
        source: What the user asked for.

    Raises:
        ValueError: Linear layers, or embeddings that were asked for, are left as they were; biases, gates or adapters
            are quantized; or a quantized weight has another shape than its layer. All are named.
    """
    quantization = getattr(model.config, "quantization_config", None)
    if not isinstance(quantization, TorchAoConfig):
        return
    from torchao.utils import TorchAOBaseTensor

    modules = dict(model.named_modules())
    linear = dict(_linear_layers(model))
    asked = {name for name in linear if _scheme_of(name, quantization) is not None}
    if quantization.include_input_output_embeddings:
        (name,) = (name for name, module in modules.items() if module is model.get_input_embeddings())
        asked |= {name} if _scheme_of(name, quantization) is not None else set()
    quantized, other, misshapen = set(), [], []
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, TorchAOBaseTensor):
            continue
        owner, _, last = name.rpartition(".")
        module, owner = modules[owner], owner.removesuffix(".base_layer")
        # Heads and embeddings are those at the top.
        known = owner in linear or "." not in owner.removeprefix(f"{model.base_model_prefix}.")
        if last != "weight" or not known or not isinstance(module, (nn.Linear, nn.Embedding)):
            other.append(name)
            continue
        quantized.add(owner)
        expected = (
            (module.out_features, module.in_features)
            if isinstance(module, nn.Linear)
            else (module.num_embeddings, module.embedding_dim)
        )
        if parameter.shape != expected:
            misshapen.append(f"{name} (expected {expected}, got {tuple(parameter.shape)})")
    problems = {
        "not quantized": _listed(asked - quantized),
        "quantized although no weight of a linear layer of the model or of its embeddings": _listed(other),
        "misshapen": ", ".join(misshapen),
    }
    found = "; ".join(f"{kind}: {names}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(
            f"{source}: expected all that quantization_config names to be quantized, and nothing else, got {found}."
        )


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the blocks, by the names they have without adapters."""
    for name, module in model.named_modules():
        name = name.removesuffix(".base_layer")
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in LINEAR_LAYER_NAMES:
            yield name, module


def _scheme_of(name: str, quantization: TorchAoConfig) -> Any:
    """The scheme that Transformers has torchao use for the weight of the module ``name``; None leaves it as it is."""
    weight = f"{name}.weight"
    if not should_convert_module(weight, quantization.modules_to_not_convert):
        return None
    schemes = getattr(quantization.quant_type, "fqn_to_config", None)
    if schemes is None:
        return quantization.quant_type
    for key in (weight, name):
        if key in schemes:
            return schemes[key]
    for key, scheme in schemes.items():
        if key.startswith("re:") and (re.fullmatch(key[3:], weight) or re.fullmatch(key[3:], name)):
            return scheme
    return schemes.get("_default")


def _group_size(scheme: Any) -> int | None:
    """Weights that share a scale, in schemes that go by groups."""
    direct = getattr(scheme, "group_size", None)
    return direct if direct is not None else getattr(getattr(scheme, "granularity", None), "group_size", None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
