"""Opens a checkpoint directory as far as its headers, so that what is wrong with it is known before it is loaded."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoTokenizer

from recurrent_gemma.cli.errors import CommandError, ExitCode, reported_as
from recurrent_gemma.configuration import RecurrentGemmaConfig

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A readable checkpoint directory.

    Attributes:
        directory: Where it is.
        config: Its configuration.
        parameters: Number of values in its weight files.
        dtypes: Their dtypes, in safetensors' names.
        weight_bytes: Size of the weight files.
    """

    directory: Path
    config: RecurrentGemmaConfig
    parameters: int
    dtypes: tuple[str, ...]
    weight_bytes: int


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the config and the headers of the weights.

    Raises:
        CommandError: The directory or a file does not exist, holds another architecture, or cannot be read.
    """
    if not directory.is_dir():
        raise CommandError(
            f"{directory}: no such directory; a model on the Hub is downloaded with `hf download NAME --local-dir DIR`",
            ExitCode.NOT_FOUND,
        )
    config = _read_config(directory / "config.json")
    parameters, dtypes, files = 0, set(), _weight_files(directory)
    for file in files:
        with reported_as(ExitCode.BROKEN, f"{file}: not a complete safetensors file"), safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict, and not iterable
                tensor = tensors.get_slice(name)
                parameters += math.prod(tensor.get_shape())
                dtypes.add(tensor.get_dtype())
    return Checkpoint(directory, config, parameters, tuple(sorted(dtypes)), sum(file.stat().st_size for file in files))


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        CommandError: It does not exist or does not load.
    """
    directory = checkpoint.directory
    if not (directory / "tokenizer.model").is_file():
        require_file(directory / "tokenizer.json")
    with reported_as(ExitCode.BROKEN, f"{directory}: the tokenizer does not load"):
        return AutoTokenizer.from_pretrained(directory, config=checkpoint.config, local_files_only=True)


def require_file(path: Path) -> Path:
    """``path``.

    Raises:
        CommandError: There is no such file.
    """
    if not path.is_file():
        raise CommandError(f"{path}: no such file; is {path.parent} a checkpoint directory?", ExitCode.NOT_FOUND)
    return path


def _read_config(path: Path) -> RecurrentGemmaConfig:
    fields = _read_json(path)
    expected, actual = RecurrentGemmaConfig.model_type, fields.get("model_type")
    if actual != expected:
        raise CommandError(
            f"{path}: expected model_type {expected!r}, got {actual!r}; this program runs RecurrentGemma only",
            ExitCode.WRONG_ARCHITECTURE,
        )
    with reported_as(ExitCode.BROKEN, str(path)):
        return RecurrentGemmaConfig.from_dict(fields)


def block_types_of(layers: Iterable[str]) -> list[str]:
    """DeepMind's names, which a config takes, of layer types in Transformers' terms."""
    return ["attention" if kind == "sliding_attention" else "recurrent" for kind in layers]


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if (directory / _WEIGHTS).is_file() or not index.is_file():
        return [require_file(directory / _WEIGHTS)]
    with reported_as(ExitCode.BROKEN, f"{index}: expected a 'weight_map' of tensor names to file names"):
        names = sorted(set(_read_json(index)["weight_map"].values()))
    return [require_file(directory / name) for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    text = require_file(path).read_bytes()
    with reported_as(ExitCode.BROKEN, f"{path}: not valid JSON"):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise CommandError(f"{path}: expected a JSON object, got {type(content).__name__}", ExitCode.BROKEN)
    return content


__all__ = ["Checkpoint", "block_types_of", "load_tokenizer", "open_checkpoint", "require_file"]
