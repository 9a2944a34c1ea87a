"""Checkpoints for the folder's tests, made by DeepMind's own code: its shapes, its Orbax and PyTorch files."""

import functools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from tests.support import require

DATA = Path(__file__).parent / "data"

# The presets' proportions in small: as many heads, the same pattern, a tail that ends inside the pattern.
SMALL: dict[str, dict[str, Any]] = {
    "recurrentgemma-2b": {"hidden_size": 40, "intermediate_size": 240, "lru_width": 40, "num_hidden_layers": 5},
    "recurrentgemma-9b": {"hidden_size": 64, "intermediate_size": 384, "lru_width": 64, "num_hidden_layers": 4},
    "griffin-paper-7b": {"hidden_size": 128, "intermediate_size": 192, "lru_width": 160, "num_hidden_layers": 3},
    "hawk-paper-7b": {"hidden_size": 128, "intermediate_size": 192, "lru_width": 160, "num_hidden_layers": 2},
}
ATTENTION_ONLY = {
    "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "lru_width": 24,
    "num_hidden_layers": 2, "block_types": ["attention"], "vocab_size": 2, "attention_window_size": 4,
    "pad_token_id": None, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def small_config(preset: str) -> RecurrentGemmaConfig:
    """A preset in small, for files of a few hundred kilobytes."""
    return RecurrentGemmaConfig.from_preset(preset, **SMALL[preset], vocab_size=67, attention_window_size=8)


def open_fields(config: RecurrentGemmaConfig) -> dict[str, Any]:
    """What no shape says of a config, as options of ``convert``."""
    return {
        "attention_window_size": config.attention_window_size,
        "embeddings_scale_by_sqrt_dim": config.embeddings_scale_by_sqrt_dim,
        "logits_soft_cap": config.logits_soft_cap or 0.0,
    }


def jax_shapes(config: RecurrentGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of DeepMind's JAX model; allocates none."""
    return dict(_jax_shapes(config.to_json_string(use_diff=False)))


@functools.cache
def _jax_shapes(fields: str) -> dict[str, tuple[int, ...]]:
    config = RecurrentGemmaConfig.from_dict(json.loads(fields))
    jax, common = require("jax"), require("recurrentgemma.common")
    griffin = require("recurrentgemma.jax.griffin")
    model = griffin.Griffin(_griffin_config(common, config))
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    tree = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    return {name: leaf.shape for name, leaf in flattened(tree).items()}


def torch_shapes(config: RecurrentGemmaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of DeepMind's PyTorch model; allocates none."""
    common, griffin = require("recurrentgemma.common"), require("recurrentgemma.torch.griffin")
    with torch.device("meta"):
        model = griffin.Griffin(_griffin_config(common, config), device="meta")
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def jax_logits(config: RecurrentGemmaConfig, params: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """(B, L, V) fp32 logits of DeepMind's JAX model."""
    jax = require("jax")
    griffin = require("recurrentgemma.jax.griffin")
    model = griffin.Griffin(_griffin_config(require("recurrentgemma.common"), config), gradient_checkpointing=False)
    # Compiling its scan with all optimizations takes longer than everything else.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    apply = jax.jit(model.apply, compiler_options=options)
    return torch.from_numpy(numpy.array(apply(params, ids.numpy(), positions.numpy())[0]))


def torch_model(config: RecurrentGemmaConfig) -> Any:
    """DeepMind's PyTorch model."""
    return require("recurrentgemma.torch.griffin").Griffin(
        _griffin_config(require("recurrentgemma.common"), config), device="cpu", dtype=torch.float32
    )


def any_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Every kind of finite value: bits drawn at random, negative zeros and subnormals among them."""
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max + 1, (torch.Size(shape).numel(),), dtype=torch.int64).to(integers)
    values = bits.view(dtype)
    values = torch.where(values.isfinite(), values, torch.tensor(-0.0, dtype=dtype))
    return values.reshape(shape)


def model_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values that a forward pass makes something of."""
    return (0.3 * torch.randn(shape)).to(dtype)


def nested(params: dict[str, Tensor]) -> dict[str, Any]:
    """The tree of JAX arrays of parameters by path."""
    jnp = require("jax.numpy")
    tree: dict[str, Any] = {}
    for path, value in params.items():
        *parents, last = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        array = value.to(torch.float32).numpy() if value.dtype == torch.bfloat16 else value.numpy()
        branch[last] = jnp.asarray(array, str(value.dtype).removeprefix("torch."))
    return tree


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a tree by path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}/{key}" if prefix else key)
    return flat


def save_orbax(path: Path, params: dict[str, Tensor]) -> Path:
    """An Orbax directory, written by DeepMind's ``save_parameters``."""
    require("recurrentgemma.jax.utils").save_parameters(str(path), nested(params))
    return path


def save_torch(path: Path, params: dict[str, Tensor]) -> Path:
    """A ``.pt`` file of what DeepMind's converter gives: transposed weights are views, names have a prefix."""
    conversion = require("recurrentgemma.conversion")
    torch.save(conversion.flax_params_to_pytorch_state_dict({"params": nested(params)}), path)
    return path


def load_orbax(path: Path) -> dict[str, Any]:
    """Arrays of an Orbax directory by path, read by Orbax itself."""
    return flattened(require("orbax.checkpoint").PyTreeCheckpointer().restore(path)["params"])


def same_bits(tensor: Tensor, other: Any) -> bool:
    """Whether a tensor and a tensor or array have the same shape, dtype and bits."""
    if not isinstance(other, Tensor):
        array = numpy.asarray(other)
        if str(array.dtype) != str(tensor.dtype).removeprefix("torch."):
            return False
        other = torch.from_numpy(array.view(f"int{8 * array.itemsize}").copy()).view(tensor.dtype)
    integers = {2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize]
    return tensor.dtype == other.dtype and torch.equal(
        tensor.contiguous().view(integers), other.contiguous().view(integers)
    )


def unpack_old_orbax(name: str, directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint that an Orbax of 2024 wrote (``data/make_old_orbax.py``), and the values that are in it."""
    with tarfile.open(DATA / f"{name}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    shapes = json.loads((DATA / "old_orbax_shapes.json").read_text())
    values = {
        path: ((torch.arange(torch.Size(shape).numel()) + 7 * index) % 101 - 50).reshape(shape).to(torch.float32)
        for index, (path, shape) in enumerate(shapes.items())
    }
    return directory / name, values


def _griffin_config(common: Any, config: RecurrentGemmaConfig) -> Any:
    types = common.TemporalBlockType
    return common.GriffinConfig(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        mlp_expanded_width=config.intermediate_size // 2,
        num_heads=config.num_attention_heads,
        block_types=tuple(
            types.RECURRENT if kind == "linear_attention" else types.ATTENTION for kind in config.layers_block_type
        ),
        embeddings_scale_by_sqrt_dim=config.embeddings_scale_by_sqrt_dim,
        attention_window_size=config.attention_window_size,
        logits_soft_cap=config.logits_soft_cap or 0.0,
        lru_width=config.lru_width,
    )


assert SMALL.keys() == PRESETS.keys()
