"""Transformers directories: config.json and safetensors, in one file or in shards with an index."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recurrent_gemma.conversion_scripts.checkpoints.base import (
    Checkpoint,
    ConversionError,
    ReadTensor,
    TensorInfo,
    read_at,
)

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja"
).split()
# What goes along from one directory to another.
COMPANIONS = ("generation_config.json", *TOKENIZER_FILES)
# safetensors' names of dtypes that are not torch's in capitals.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8",
           "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"}  # fmt: skip


def is_transformers(path: Path) -> bool:
    """Whether a directory has the config of a model for Transformers."""
    return (path / CONFIG).is_file()


def is_weight_file(name: str) -> bool:
    """Whether ``save_pretrained`` gives that name to a file of weights or to their index."""
    return fnmatch(name, "model*.safetensors") or name == INDEX


class TransformersCheckpoint(Checkpoint):
    """A directory that ``save_pretrained`` wrote, of this package's classes or of Transformers' own.

    A backbone that was saved alone has the names of the whole model here.

    Args:
        path: The directory.

    Raises:
        ConversionError: A file is missing, truncated, or not what it should be.
    """

    kind = "hf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _read_json(path / CONFIG)
        self._places: dict[str, tuple[Path, int]] = {}
        self.tensors = {}
        for file in self._weight_files():
            begin, header = _read_header(file)
            for name, entry in header.items():
                if name in self._places:
                    raise ConversionError(str(path), f"{name}: in {self._places[name][0].name} and in {file.name}.")
                self._places[name] = file, begin + entry["data_offsets"][0]
                self.tensors[name] = TensorInfo(tuple(entry["shape"]), _DTYPES.get(entry["dtype"], entry["dtype"]))

        if "embed_tokens.weight" in self.tensors:
            # A backbone that was saved alone.
            self.tensors = {f"model.{name}": info for name, info in self.tensors.items()}
            self._places = {f"model.{name}": place for name, place in self._places.items()}

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        return read_at(*self._places[name], info.shape, getattr(torch, info.dtype))

    def _weight_files(self) -> list[Path]:
        if (self.path / WEIGHTS).is_file():
            return [self.path / WEIGHTS]
        if not (self.path / INDEX).is_file():
            pickled = next(self.path.glob("pytorch_model*.bin"), None)
            remedy = (
                f"got {pickled.name}: load it with from_pretrained(..., use_safetensors=False), which runs what is in "
                "it, and save it with save_pretrained"
                if pickled
                else "got none of them"
            )
            raise ConversionError(str(self.path), f"expected {WEIGHTS} or {INDEX}, {remedy}.")
        weight_map = _read_json(self.path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ConversionError(str(self.path / INDEX), "expected an entry weight_map of names to files, got none.")
        files = sorted({str(file) for file in weight_map.values()})
        if elsewhere := [file for file in files if Path(file).name != file]:
            raise ConversionError(str(self.path / INDEX), f"expected file names, got paths: {', '.join(elsewhere)}.")
        return [self.path / file for file in files]


def shards_of(tensors: dict[str, TensorInfo], max_shard_size: int | str) -> dict[str, list[str]]:
    """The names of the entries in each weight file, as ``save_pretrained`` distributes them.

    Args:
        tensors: The entries.
        max_shard_size: Bytes of a file at most, as a number or like ``"5GB"``.

    Raises:
        ValueError: The size is none.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]B)?\s*", str(max_shard_size), flags=re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"max_shard_size: expected bytes, as a number or like '5GB', got {max_shard_size!r}.")
    size = int(match[1]) if match[2] is None else match[1] + match[2].upper()
    stand_ins = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta") for name, info in tensors.items()
    }
    return split_torch_state_dict_into_shards(stand_ins, max_shard_size=size).filename_to_tensors


def write_safetensors(
    path: Path, tensors: dict[str, TensorInfo], shards: dict[str, list[str]], read: ReadTensor
) -> None:
    """Write the weight files of a directory, and their index if there are several.

    Args:
        path: The directory, which exists.
        tensors: The entries.
        shards: What :func:`shards_of` says of them.
        read: Gives the values of each. Those of one shard are in memory at a time.
    """
    for file, names in shards.items():
        content = {name: read(name) for name in names}
        try:
            save_file(content, path / file, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path / file}: cannot be written ({error}).") from error
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        (path / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the values begin in a safetensors file, and what its header says of each entry.

    Source of the format: https://github.com/huggingface/safetensors#format.
    """
    try:
        # It checks that the header is sound and covers the file.
        with safe_open(file, framework="np"), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise ConversionError(str(file), f"expected a complete safetensors file ({error}).") from error
    header.pop("__metadata__", None)
    return 8 + length, header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConversionError(str(path), f"expected a JSON object ({error}).") from error
    if not isinstance(content, dict):
        raise ConversionError(str(path), f"expected a JSON object, got {type(content).__name__}.")
    return content
