"""Converts a checkpoint: everything is checked first, then it is read, turned over and written a tensor at a time."""

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.architecture import Architecture
from recurrent_gemma.conversion_scripts.checkpoints import (
    Checkpoint,
    ConversionError,
    write_orbax,
    write_safetensors,
    write_torch_file,
)
from recurrent_gemma.conversion_scripts.checkpoints.transformers_directory import COMPANIONS, TOKENIZER_FILES
from recurrent_gemma.conversion_scripts.parameter_map import Kind, Parameter
from recurrent_gemma.conversion_scripts.plan import ConversionPlan, OnProgress, Options, is_tied_head_stored, make_plan
from recurrent_gemma.conversion_scripts.shim import add_shim, add_shim_to_tokenizer, has_shim
from recurrent_gemma.conversion_scripts.target import replacing
from recurrent_gemma.conversion_scripts.verify import Verification, check_verifiable
from recurrent_gemma.conversion_scripts.verify import verify as compare_checkpoints
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer, tokenizer_from_sentencepiece
from recurrent_gemma.tokenization.tokenizer import TURN_MARKERS

# Only glibc has it.
_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TIED = ("lm_head.weight", "model.embed_tokens.weight")
# Values looked at together, so that a check takes no memory to speak of.
_CHUNK = 2**22


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        plan: What was planned.
        written: Whether it was carried out; not so in a dry run.
        seconds: Time it took, that of the verification included.
        verification: What the verification found, if one was asked for and something was written.
    """

    plan: ConversionPlan
    written: bool
    seconds: float
    verification: Verification | None = None


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: Kind | None = None,
    preset: str | None = None,
    attention_window_size: int | None = None,
    embeddings_scale_by_sqrt_dim: bool | None = None,
    logits_soft_cap: float | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: str | os.PathLike | None = None,
    max_shard_size: int | str | None = None,
    trust_remote_code_shim: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    on_progress: OnProgress | None = None,
) -> ConversionResult:
    """Convert a checkpoint of the Griffin family; every value arrives bit for bit unless ``dtype`` is another.

    Memory: one shard of the target (``flax`` and ``torch``: one tensor) and two tensors. The target appears when it is
    complete; a run that fails or is killed leaves what was there before.

    Args:
        source: DeepMind's Orbax directory (``flax``) or file of torch.save (``torch``), or a Transformers directory
            (``hf``), this package's or that of Transformers' own class. Its kind is detected.
        target: What to write: a directory, for ``torch`` a file.
        to: Kind of the target. Default: ``torch`` for a target named ``*.pt``, ``*.pth`` or ``*.bin``, else ``hf``.
        preset: The published model it is, for what DeepMind's checkpoints do not say: a name of ``PRESETS``, or its
            end, ``2b`` or ``9b``.
        attention_window_size: W, in place of the preset's.
        embeddings_scale_by_sqrt_dim: Whether embeddings are scaled, in place of what the preset says.
        logits_soft_cap: Cap of the logits, in place of the preset's; 0 for none.
        dtype: Dtype to write, ``float32``, ``bfloat16`` or ``float16``, rounded to as torch does. Default: the
            source's.
        tokenizer: A SentencePiece ``tokenizer.model``, to be converted as well (``hf`` only).
        max_shard_size: Bytes of a weight file at most, as a number or like the default ``"5GB"`` (``hf`` only).
        trust_remote_code_shim: Whether programs that load the directory with ``trust_remote_code=True``, and do not
            import this package, are led to its classes (``hf`` only). Others load it as before.
        overwrite: Whether a checkpoint that is at ``target`` is replaced.
        dry_run: Check and plan, and read no values and write nothing.
        verify: Whether to run both models at the end and compare them (see ``verify``). A target that differs stays,
            and ``verification.passed`` is false.
        on_progress: Called with the phase (``"check"``, ``"write"``, then ``"verify"``), the name of a tensor that is
            done, its bytes, and the bytes of the phase.

    Raises:
        OptionsError: A field is left open, or an option contradicts the checkpoint.
        ConversionError: Entries are missing, extra, misshapen, of a wrong dtype, or hold values that are not finite
            (all are named, and nothing is written); or the target cannot hold the model.
        FileExistsError, FileNotFoundError, OSError, TypeError, ValueError: A path or an option cannot be used.
        ImportError: An optional dependency is not installed.
    """
    started = time.monotonic()
    options = Options(
        to=to,
        preset=preset,
        attention_window_size=attention_window_size,
        embeddings_scale_by_sqrt_dim=embeddings_scale_by_sqrt_dim,
        logits_soft_cap=logits_soft_cap,
        dtype=dtype,
        tokenizer=tokenizer,
        max_shard_size=max_shard_size,
        trust_remote_code_shim=trust_remote_code_shim,
        overwrite=overwrite,
        verify=verify,
    )
    plan, checkpoint, architecture = make_plan(Path(source), Path(target), options)
    converted_tokenizer = _tokenizer(tokenizer, plan)
    if trust_remote_code_shim and plan.config is not None:
        add_shim(plan.config)
    if verify:
        assert plan.config is not None
        # Now rather than after the work.
        check_verifiable(plan.config, plan.source)
    verification = None
    if not dry_run:
        report = on_progress or (lambda *_: None)
        _check_values(plan, checkpoint, architecture, report)
        with replacing(plan.target, plan.source, overwrite=overwrite) as path:
            _write(path, plan, _Converted(plan, checkpoint, architecture, report), converted_tokenizer)
        if verify:
            verification = compare_checkpoints(
                plan.source,
                plan.target,
                preset=preset,
                attention_window_size=attention_window_size,
                embeddings_scale_by_sqrt_dim=embeddings_scale_by_sqrt_dim,
                logits_soft_cap=logits_soft_cap,
                on_progress=on_progress,
            )
    return ConversionResult(plan, not dry_run, time.monotonic() - started, verification)


class _Converted:
    """The tensors of the target, made from those of the source when they are asked for, in the plan's order."""

    def __init__(
        self, plan: ConversionPlan, checkpoint: Checkpoint, architecture: Architecture, report: OnProgress
    ) -> None:
        self._plan, self._checkpoint, self._report = plan, checkpoint, report
        self._dtype = getattr(torch, plan.dtype)
        self._parameters = {
            name: parameter for parameter in architecture.parameters for name in parameter.names(plan.target_kind)
        }
        # Two targets may come from one source: what the other one waits for.
        self._waiting: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self._waiting:
            _return_free_memory()
            parameter = self._parameters[name]
            self._waiting |= zip(parameter.names(self._plan.target_kind), self._turned_over(parameter), strict=True)
        tensor = _by_itself(self._waiting.pop(name).to(self._dtype))
        self._report("write", name, tensor.nbytes, self._plan.nbytes)
        return tensor

    def _turned_over(self, parameter: Parameter) -> tuple[Tensor, ...]:
        source_kind, target_kind = self._plan.source_kind, self._plan.target_kind
        tensors = [self._checkpoint.read(name) for name in parameter.names(source_kind)]
        if source_kind == target_kind:
            return tuple(tensors)
        return parameter.rule.from_hf(target_kind, parameter.rule.to_hf(source_kind, tensors))


def _return_free_memory() -> None:
    """Give the system what has been freed.

    glibc keeps freed blocks between blocks in use, and with some sizes of tensors cannot use them again: small ones of
    the writers that live on take their beginnings.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


def _by_itself(tensor: Tensor) -> Tensor:
    """``tensor`` contiguous, and in a storage of nothing else."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check_values(plan: ConversionPlan, checkpoint: Checkpoint, architecture: Architecture, report: OnProgress) -> None:
    """Raise a ConversionError that names every entry with values that cannot be converted.

    They are not finite, there or in the new dtype, or those of an output projection that should be the embedding table.
    """
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    dtype = getattr(torch, plan.dtype)
    problems = []
    for name, info in checkpoint.tensors.items():
        not_finite = too_large = 0
        for chunk in _chunks(checkpoint.read(name)):
            # Of a chunk in which all is well the extremes tell, and they are quicker to find.
            if not torch.stack(chunk.aminmax()).to(dtype).isfinite().all():
                finite = chunk.isfinite()
                not_finite += chunk.numel() - int(finite.sum())
                too_large += int((chunk.to(dtype).isinf() & finite).sum())
        if not_finite:
            problems.append(f"not finite: {name}, {not_finite:,} of its values.")
        if too_large:
            problems.append(f"too large for {plan.dtype}: {name}, {too_large:,} of its values.")
        report("check", name, info.nbytes, total)
    if is_tied_head_stored(checkpoint, architecture) and not _same(checkpoint, *_TIED):
        problems.append(f"{_TIED[0]}: expected {_TIED[1]}, as tie_word_embeddings is true, got other values.")
    if problems:
        raise ConversionError(str(checkpoint.path), problems)


def _same(checkpoint: Checkpoint, name: str, other: str) -> bool:
    return torch.equal(checkpoint.read(name), checkpoint.read(other))


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.reshape(-1).split(_CHUNK) if tensor.numel() else ()


def _write(path: Path, plan: ConversionPlan, converted: _Converted, tokenizer: RecurrentGemmaTokenizer | None) -> None:
    if plan.target_kind == "flax":
        write_orbax(path, plan.tensors, converted)
    elif plan.target_kind == "torch":
        write_torch_file(path, plan.tensors, converted)
    else:
        path.mkdir()
        write_safetensors(path, plan.tensors, plan.shards, converted)
        _write_companions(path, plan, tokenizer)


def _write_companions(path: Path, plan: ConversionPlan, tokenizer: RecurrentGemmaTokenizer | None) -> None:
    assert plan.config is not None
    if plan.source_kind == "hf":
        for name in COMPANIONS:
            if (plan.source / name).is_file() and not (tokenizer is not None and name in TOKENIZER_FILES):
                shutil.copyfile(plan.source / name, path / name)
    if plan.source_kind != "hf" or tokenizer is not None:
        _generation_config(path, plan.config, tokenizer).save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    if has_shim(plan.config):
        add_shim_to_tokenizer(path)
    # Last, since no directory loads without it.
    plan.config.save_pretrained(path)


def _generation_config(
    path: Path, config: RecurrentGemmaConfig, tokenizer: RecurrentGemmaTokenizer | None
) -> GenerationConfig:
    """What the directory has, if anything, with the special ids of the config."""
    if (path / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(path)
    else:
        generation = GenerationConfig.from_model_config(config)
    for name in _SPECIAL_IDS:
        setattr(generation, name, getattr(config, name))
    # An instruction-tuned model ends its turn with it. A base model has no use for it.
    turn_end = None if tokenizer is None else tokenizer.backend_tokenizer.token_to_id(TURN_MARKERS[1])
    if turn_end is not None:
        generation.eos_token_id = [config.eos_token_id, turn_end]
    return generation


def _tokenizer(file: str | os.PathLike | None, plan: ConversionPlan) -> RecurrentGemmaTokenizer | None:
    """The converted tokenizer, whose special ids become those of the config."""
    if file is None:
        return None
    assert plan.config is not None
    try:
        tokenizer = tokenizer_from_sentencepiece(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"tokenizer: {str(error).removeprefix('path: ')}") from error
    except ValueError as error:
        raise ValueError(f"tokenizer: {str(error).removeprefix('path: ')}") from error
    if len(tokenizer) > plan.config.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the {plan.config.vocab_size:,} ids of the model, got {len(tokenizer):,}; is "
            f"{file} this model's?"
        )
    for name in _SPECIAL_IDS:
        setattr(plan.config, name, getattr(tokenizer, name))
    return tokenizer
