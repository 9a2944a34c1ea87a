"""What a conversion will do, worked out from the options and from headers alone, with everything that is in its way."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.configuration.remote_code import SHIM_FILE
from recurrent_gemma.conversion_scripts.architecture import (
    OPEN_FIELDS,
    Architecture,
    architecture_of,
    beyond_deepmind,
    config_of,
    read_config,
)
from recurrent_gemma.conversion_scripts.checkpoints import (
    SUFFIXES,
    Checkpoint,
    ConversionError,
    TensorInfo,
    open_checkpoint,
    shards_of,
)
from recurrent_gemma.conversion_scripts.checkpoints.base import FLOATS
from recurrent_gemma.conversion_scripts.checkpoints.transformers_directory import COMPANIONS, CONFIG, is_weight_file
from recurrent_gemma.conversion_scripts.parameter_map import KINDS, Kind
from recurrent_gemma.conversion_scripts.shim import has_shim
from recurrent_gemma.conversion_scripts.target import check_space, check_target, leftovers

# (phase, name of the tensor that is done, its bytes, bytes of the phase).
OnProgress = Callable[[str, str, int, int], None]

_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Options:
    """The options of a conversion; see :func:`recurrent_gemma.conversion_scripts.convert`."""

    to: Kind | None = None
    preset: str | None = None
    attention_window_size: int | None = None
    embeddings_scale_by_sqrt_dim: bool | None = None
    logits_soft_cap: float | None = None
    dtype: str | torch.dtype | None = None
    tokenizer: str | os.PathLike | None = None
    max_shard_size: int | str | None = None
    trust_remote_code_shim: bool = False
    overwrite: bool = False
    verify: bool = False


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion does, known from headers alone.

    Attributes:
        source, target: Paths; the target's is absolute.
        source_kind, target_kind: ``"flax"``, ``"torch"`` or ``"hf"``.
        parameters: Number of values.
        source_dtype, dtype: Dtype of the weights there and here, by torch's name.
        nbytes: Bytes of the weights that are written.
        tensors: The entries of the target, in the order in which they are written.
        shards: Names of the entries of each weight file (``hf`` only).
        config: The model's config; ``None`` between DeepMind's kinds, which hold none, without preset and verify.
        free_bytes: Free bytes where the target is to be.
        notes: What is worth knowing.
    """

    source: Path
    target: Path
    source_kind: Kind
    target_kind: Kind
    parameters: int
    source_dtype: str
    dtype: str
    nbytes: int
    tensors: dict[str, TensorInfo]
    shards: dict[str, list[str]]
    config: RecurrentGemmaConfig | None
    free_bytes: int
    notes: tuple[str, ...]


def make_plan(source: Path, target: Path, options: Options) -> tuple[ConversionPlan, Checkpoint, Architecture]:
    """The plan, with the open source and what it holds.

    Raises:
        As ``convert``, except for values, which are not read.
    """
    # Not resolve(): a link is not followed to what it names.
    target = Path(os.path.abspath(target))
    preset = preset_name(options.preset)
    dtype = _dtype_name(options.dtype)
    checkpoint = open_checkpoint(source)
    kind = _target_kind(options.to, checkpoint.kind, target)
    _check_options(options, checkpoint.kind, kind)
    check_target(target, source, overwrite=options.overwrite)

    architecture = architecture_of(checkpoint)
    source_dtype, notes = check_entries(checkpoint, architecture, cast=dtype is not None)
    dtype = dtype or source_dtype
    tensors = {name: TensorInfo(shape, dtype) for name, shape in architecture.tensors(kind).items()}
    nbytes = sum(info.nbytes for info in tensors.values())
    return (
        ConversionPlan(
            source=source,
            target=target,
            source_kind=checkpoint.kind,
            target_kind=kind,
            parameters=sum(math.prod(info.shape) for info in tensors.values()),
            source_dtype=source_dtype,
            dtype=dtype,
            nbytes=nbytes,
            tensors=tensors,
            shards=shards_of(tensors, _SHARD_SIZE if options.max_shard_size is None else options.max_shard_size)
            if kind == "hf"
            else {},
            config=_config(checkpoint, architecture, kind, preset, options, dtype),
            free_bytes=check_space(target, nbytes),
            notes=(*notes, *_notes(checkpoint, kind, target, options)),
        ),
        checkpoint,
        architecture,
    )


def preset_name(given: str | None) -> str | None:
    """The full name of a preset that may be given by its end.

    Raises:
        ValueError: There is no such preset.
    """
    if given is None or given in PRESETS:
        return given
    matching = [name for name in PRESETS if name.endswith(f"-{given}")]
    if len(matching) != 1:
        names = ", ".join(PRESETS)
        raise ValueError(f"preset: expected 2b, 9b, or a name of {names}, got {given!r}.")
    return matching[0]


def _dtype_name(given: str | torch.dtype | None) -> str | None:
    name = given if given is None else str(given).removeprefix("torch.")
    if name is not None and name not in FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(FLOATS)}, got {given!r}.")
    return name


def _target_kind(given: Kind | None, source: Kind, target: Path) -> Kind:
    if given is not None and given not in KINDS:
        raise ValueError(f"to: expected one of {', '.join(KINDS)}, got {given!r}.")
    is_file = target.suffix in SUFFIXES
    kind = given or ("torch" if is_file else "hf")
    if given is None and kind == source:
        raise ValueError(f"to: expected a kind, since the source's own ({source}) is also the default here, got None.")
    if (kind == "torch") != is_file:
        expected = f"a file named {', '.join('*' + s for s in SUFFIXES)}" if kind == "torch" else "a directory's name"
        raise ValueError(f"target: expected {expected} for {kind}, got {target.name!r}.")
    return kind


def _check_options(options: Options, source: Kind, kind: Kind) -> None:
    """Refuse options that would have no effect."""
    given = [name for name in ("preset", *OPEN_FIELDS) if getattr(options, name) is not None]
    if given and source == "hf":
        raise ValueError(f"{given[0]}: expected None for a Transformers directory, whose config.json says it.")
    if given and kind != "hf" and not options.verify and given != ["preset"]:
        name = next(name for name in given if name != "preset")
        raise ValueError(f"{name}: expected None, since a checkpoint of kind {kind} cannot hold it, without verify.")
    unset = Options()
    for name in ("tokenizer", "max_shard_size", "trust_remote_code_shim"):
        if kind != "hf" and getattr(options, name) != (left := getattr(unset, name)):
            raise ValueError(f"{name}: expected {left} for the kind {kind}; only a Transformers directory has it.")


def check_entries(checkpoint: Checkpoint, architecture: Architecture, *, cast: bool) -> tuple[str, list[str]]:
    """The dtype that most entries have, and notes.

    Args:
        checkpoint: The checkpoint.
        architecture: What it is to hold.
        cast: Whether its entries may have several dtypes.

    Raises:
        ConversionError: Names everything that does not fit.
    """
    expected, found, notes = architecture.tensors(checkpoint.kind), dict(checkpoint.tensors), []
    if is_tied_head_stored(checkpoint, architecture):
        notes.append("lm_head.weight is the embedding table, which is written once")
        del found["lm_head.weight"]
    dtypes = [info.dtype for name, info in found.items() if name in expected]
    usual = max(sorted(set(dtypes)), key=dtypes.count, default=FLOATS[0])
    problems = list(architecture.problems)
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"missing: {name}, expected shape {shape}.")
        elif found[name].shape != shape:
            problems.append(f"misshapen: {name}, expected shape {shape}, got {found[name].shape}.")
    problems += [f"unexpected: {name}, {info}." for name, info in found.items() if name not in expected]
    if not cast and usual not in FLOATS:
        remedy = "; dtype (--dtype) converts them" if usual == "float64" else ""
        problems.append(f"wrong dtype: most entries are {usual}, expected one of {', '.join(FLOATS)}{remedy}.")
    for name in expected:
        actual = found[name].dtype if name in found else usual
        if cast and actual not in (*FLOATS, "float64"):
            problems.append(f"wrong dtype: {name}, expected floating-point numbers, got {actual}.")
        elif not cast and actual != usual:
            remedy = "; dtype (--dtype) makes all of them the same" if actual in (*FLOATS, "float64") else ""
            problems.append(f"wrong dtype: {name}, expected {usual} as most entries are, got {actual}{remedy}.")
    if problems:
        raise ConversionError(str(checkpoint.path), problems)
    return usual, notes


def _notes(checkpoint: Checkpoint, kind: Kind, target: Path, options: Options) -> list[str]:
    notes = [f"left by an interrupted conversion: {path}" for path in leftovers(target)]
    if checkpoint.kind == "hf":
        taken = {CONFIG, SHIM_FILE, *(COMPANIONS if kind == "hf" else ())}
        names = sorted(path.name for path in checkpoint.path.iterdir())
        left = [name for name in names if name not in taken and not is_weight_file(name)]
        notes += [f"not taken along: {', '.join(left)}"] if left else []
    elif kind == "hf" and options.tokenizer is None:
        notes.append("no tokenizer will be there; tokenizer (--tokenizer) converts the release's tokenizer.model")
    return notes


def is_tied_head_stored(checkpoint: Checkpoint, architecture: Architecture) -> bool:
    """Whether an output projection is stored beside the embedding table that it should be the same as."""
    head = checkpoint.tensors.get("lm_head.weight")
    if head is None or "lm_head.weight" in architecture.tensors(checkpoint.kind):
        return False
    return head == checkpoint.tensors.get("model.embed_tokens.weight")


def _config(
    checkpoint: Checkpoint, architecture: Architecture, kind: Kind, preset: str | None, options: Options, dtype: str
) -> RecurrentGemmaConfig | None:
    if checkpoint.config is None:
        if kind != "hf" and not options.verify and preset is None:
            return None
        fields = {name: getattr(options, name) for name in OPEN_FIELDS}
        return config_of(architecture, preset=preset, options=fields, dtype=dtype)
    config = read_config(checkpoint)
    if kind != "hf" and (problems := beyond_deepmind(config)):
        raise ConversionError(f"{checkpoint.path}: {kind} cannot hold this model", problems)
    config.dtype = getattr(torch, dtype)
    config.architectures = ["RecurrentGemmaForCausalLM"]
    if not has_shim(config) and hasattr(config, "auto_map"):
        # It names code that does not come along.
        del config.auto_map
    return config
