"""The three kinds of checkpoints: which kind a path is, how each is read, and how each is written."""

from pathlib import Path

from recurrent_gemma.conversion_scripts.checkpoints.base import Checkpoint, ConversionError, OptionsError, TensorInfo
from recurrent_gemma.conversion_scripts.checkpoints.orbax import OrbaxCheckpoint, is_orbax, write_orbax
from recurrent_gemma.conversion_scripts.checkpoints.torch_file import SUFFIXES, TorchCheckpoint, write_torch_file
from recurrent_gemma.conversion_scripts.checkpoints.transformers_directory import (
    TransformersCheckpoint,
    is_transformers,
    shards_of,
    write_safetensors,
)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint of any kind as far as its headers.

    Args:
        path: An Orbax directory, a file of torch.save, or a Transformers directory.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ConversionError: It is none of these, or cannot be read.
        ImportError: It needs an optional dependency.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory.")
    if path.suffix == ".safetensors":
        raise ConversionError(str(path), "expected a checkpoint, got a file of one: pass its directory.")
    if path.is_file():
        return TorchCheckpoint(path)
    if not path.is_dir():
        raise ConversionError(str(path), "expected a file or a directory, got neither.")
    if is_transformers(path):
        return TransformersCheckpoint(path)
    if is_orbax(path):
        return OrbaxCheckpoint(path)
    # Orbax's managers put what they save two levels down.
    inside = [child for child in sorted([*path.glob("*"), *path.glob("*/*")]) if _is_checkpoint(child)]
    hint = f"; did you mean {' or '.join(map(str, inside))}?" if inside else "."
    raise ConversionError(
        str(path),
        "expected an Orbax directory (with _METADATA or manifest.ocdbt), a Transformers directory (with config.json), "
        f"or a {', '.join(SUFFIXES)} file, got a directory that is neither{hint}",
    )


def _is_checkpoint(path: Path) -> bool:
    return path.suffix in SUFFIXES if path.is_file() else is_orbax(path) or is_transformers(path)


__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "ConversionError",
    "OptionsError",
    "OrbaxCheckpoint",
    "TensorInfo",
    "TorchCheckpoint",
    "TransformersCheckpoint",
    "is_orbax",
    "is_transformers",
    "open_checkpoint",
    "shards_of",
    "write_orbax",
    "write_safetensors",
    "write_torch_file",
]
