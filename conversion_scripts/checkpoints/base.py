"""What a checkpoint is to a conversion: names, shapes and dtypes known at once, values read one tensor at a time."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.conversion_scripts.parameter_map import Kind

FLOATS = ("float32", "bfloat16", "float16")
# (name) -> the tensor to write under it, contiguous and alone in its storage; called once for each name.
ReadTensor = Callable[[str], Tensor]


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, or a target that cannot be written.

    Attributes:
        subject: What is wrong: a path, or the fields of a config.
        problems: Everything that is wrong, one line each, with the names of the entries.
    """

    def __init__(self, subject: str, problems: list[str] | tuple[str, ...] | str) -> None:
        self.subject = subject
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        lines = self.problems[0] if len(self.problems) == 1 else "\n  ".join(("", *self.problems)).rstrip()
        super().__init__(f"{subject}: {lines}")


class OptionsError(ConversionError):
    """Options that leave something open, or contradict the checkpoint."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype (by torch's name, as far as it has one) of an entry."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its values; 0 for a dtype that torch does not have."""
        dtype = getattr(torch, self.dtype, None)
        return torch.Size(self.shape).numel() * dtype.itemsize if isinstance(dtype, torch.dtype) else 0

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class Checkpoint(ABC):
    """A checkpoint on disk, open as far as its headers.

    Attributes:
        kind: Whose format it is.
        path: Where it is.
        tensors: Every entry, by the names of ``kind``.
        config: The fields of its config.json, where the format has one.
    """

    kind: Kind
    path: Path
    tensors: dict[str, TensorInfo]
    config: Mapping[str, Any] | None = None

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The values of one entry; nothing of it stays in memory once the result is gone.

        Raises:
            ConversionError: They cannot be read.
        """


def read_at(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor whose values lie in a file from ``offset`` on.

    Read rather than mapped: what was read of a mapped file counts as memory until the file is closed, and a file of
    more than the memory cannot be mapped everywhere.

    Raises:
        ConversionError: The file ends before, or cannot be read.
    """
    tensor = torch.empty(shape, dtype=dtype)
    buffer: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            found = stream.readinto(buffer)
    except OSError as error:
        raise ConversionError(str(path), f"cannot be read ({error}).") from error
    if found != tensor.nbytes:
        raise ConversionError(str(path), f"expected {tensor.nbytes} bytes from {offset} on, got {found}.")
    return tensor


def without_prefix(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """``tensors`` with the names that begin with ``prefix``, once or several times, without it."""
    while any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def sync(path: Path) -> None:
    """Wait until a file, or a directory's entries, are on the disk."""
    # Not every system opens directories or syncs them.
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
