"""A sequence's state in one safetensors file: complete or not there, and refused where it is not what it says."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache.states import AttentionState, LayerState, RecurrentState

FORMAT, FORMAT_VERSION = "recurrent_gemma.session", 1
_TOKEN_IDS = "token_ids"

# What makes two models read a state differently. Weights are not among them: models of one config cannot be told apart.
_CONFIG_FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads lru_width "
    "conv1d_width attention_window_size layers_block_type hidden_activation rms_norm_eps rope_parameters "
    "embeddings_scale_by_sqrt_dim logits_soft_cap attention_bias"
).split()


class SessionFileError(ValueError):
    """A session file that cannot be used: not one, of another version or config, truncated, or altered."""


@dataclass(frozen=True)
class SessionInfo:
    """What a session file says about itself.

    Attributes:
        path: The file.
        format_version: Version of the file format.
        config: The config fields of the model that wrote it.
        rows: Sequences in the batch; 0 if nothing has been read.
        columns: Columns seen, pads included.
        dtype: Dtype of the window and the convolution's history, by torch's name; None if nothing has been read.
        nbytes: Bytes of the file.
        token_ids: (rows, columns or more) int64 where they were saved; those beyond the columns are yet to be read.
    """

    path: Path
    format_version: int
    config: dict[str, Any]
    rows: int
    columns: int
    dtype: str | None
    nbytes: int
    token_ids: Tensor | None


def config_fields(config: RecurrentGemmaConfig) -> dict[str, Any]:
    """The fields of ``config`` that a state depends on, as JSON has them."""
    fields = {name: getattr(config, name) for name in _CONFIG_FIELDS}
    fields["logits_soft_cap"] = fields["logits_soft_cap"] or None
    return json.loads(json.dumps(fields))


def save(
    path: str | os.PathLike, fields: dict[str, Any], tensors: dict[str, Tensor], columns: int, token_ids: Tensor | None
) -> None:
    """Write a state; see ``RecurrentGemmaCache.save``."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    if token_ids is not None:
        rows = tensors["next_position"].shape[0] if tensors else token_ids.shape[0]
        if token_ids.is_floating_point() or token_ids.dtype == torch.bool:
            raise TypeError(f"token_ids: expected an integer tensor, got {token_ids.dtype}.")
        if token_ids.ndim != 2 or token_ids.shape[0] != rows or token_ids.shape[1] < columns:
            raise ValueError(
                f"token_ids: expected the ids the cache has seen, of shape (B, columns) = {(rows, columns)}, and any "
                f"that it has yet to read, got {tuple(token_ids.shape)}."
            )
        tensors[_TOKEN_IDS] = token_ids.detach().to("cpu", torch.int64).contiguous()
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(fields, sort_keys=True),
        "columns": str(columns),
    }
    metadata["sha256"] = _checksum(metadata, tensors)
    write_atomically(Path(path), serialize(tensors, metadata))


def load(
    path: str | os.PathLike, config: RecurrentGemmaConfig, device: torch.device | str
) -> tuple[dict[str, Tensor], int]:
    """The tensors and the number of columns of a file that ``save`` wrote; see ``RecurrentGemmaCache.load``."""
    path = Path(path)
    metadata, tensors = _read(path)
    stored, ours = json.loads(metadata["config"]), config_fields(config)
    for name, value in ours.items():
        if stored.get(name) != value:
            raise SessionFileError(
                f"{path}: expected a state of this model ({name} = {value}), got one of another model ({name} = "
                f"{stored.get(name)}); load it with the config of the model that wrote it."
            )
    tensors.pop(_TOKEN_IDS, None)
    columns = int(metadata["columns"])
    try:
        # Its checksum may be right and its content none of ours.
        states_from(config, tensors, columns)
    except ValueError as error:
        raise SessionFileError(f"{path}: expected a state of this model, got another content: {error}") from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}, columns


def read_session_info(path: str | os.PathLike) -> SessionInfo:
    """What the session file ``path`` says about itself.

    Raises:
        SessionFileError: The file is none of this kind, of another version, truncated or altered.
        OSError: The file cannot be read.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    positions = tensors.get("next_position")
    dtypes = [t.dtype for name, t in tensors.items() if name.endswith((".key", ".conv"))]
    return SessionInfo(
        path=path,
        format_version=int(metadata["format_version"]),
        config=json.loads(metadata["config"]),
        rows=0 if positions is None else positions.shape[0],
        columns=int(metadata["columns"]),
        dtype=str(dtypes[0]).removeprefix("torch.") if dtypes else None,
        nbytes=path.stat().st_size,
        token_ids=tensors.get(_TOKEN_IDS),
    )


def states_from(config: RecurrentGemmaConfig, tensors: dict[str, Tensor], columns: int) -> list[LayerState]:
    """Each layer's state after ``columns`` columns out of tensors by name (``RecurrentGemmaCache.tensors``).

    Raises:
        ValueError: A tensor is missing, unknown, or of a shape, dtype or value that the config's layers cannot have.
    """
    if not columns and not tensors:
        return []
    expected = {"next_position", "last_ids"}
    for index, kind in enumerate(config.layers_block_type):
        names = RecurrentState._fields if kind == "linear_attention" else AttentionState._fields
        expected |= {f"layers.{index}.{name}" for name in names}
    if expected != tensors.keys():
        raise ValueError(
            f"tensors: expected one for each state, got none for {sorted(expected - tensors.keys())} and unknown ones "
            f"{sorted(tensors.keys() - expected)}."
        )
    positions = tensors["next_position"]
    if positions.ndim != 1 or positions.dtype != torch.int64 or not positions.numel():
        raise ValueError(
            f"next_position: expected a (B,) int64 tensor, got {positions.dtype} {tuple(positions.shape)}."
        )
    if columns < 1 or bool(((positions < 0) | (positions > columns)).any()):
        raise ValueError(f"next_position: expected 0 to {columns}, the columns seen, got {positions.tolist()}.")
    batch, width, last_ids = positions.shape[0], config.lru_width, tensors["last_ids"]
    if last_ids.ndim != 2 or last_ids.shape[0] != batch or last_ids.dtype != torch.int64:
        raise ValueError(f"last_ids: expected a (B, n) int64 tensor, got {last_ids.dtype} {tuple(last_ids.shape)}.")
    states: list[LayerState] = []
    for index, kind in enumerate(config.layers_block_type):
        prefix = f"layers.{index}."
        if kind == "linear_attention":
            recurrent = RecurrentState(*(tensors[prefix + name] for name in RecurrentState._fields))
            _expect(prefix + "conv", recurrent.conv, (batch, config.conv1d_width - 1, width))
            _expect(prefix + "rg_lru", recurrent.rg_lru, (batch, width), (torch.float32, torch.float64))
            states.append(recurrent)
        else:
            attention = AttentionState(*(tensors[prefix + name] for name in AttentionState._fields))
            window = config.attention_window_size
            # The static form has all of its columns from the start.
            seen = window if attention.key.ndim == 4 and attention.key.shape[2] == window else min(window, columns)
            for name, tensor in attention._asdict().items():
                _expect(prefix + name, tensor, (batch, config.num_key_value_heads, seen, config.head_dim))
            states.append(attention)
    return states


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete or what was there before, whenever the process or the machine stops.

    Raises:
        OSError: The file cannot be written; nothing has changed then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    # The new name is safe only once its directory is on the disk.
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def content_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements in order, for checksums."""
    # Not contiguous(): one element passes for contiguous with any stride, and is no view of bytes then.
    copied = tensor.clone(memory_format=torch.contiguous_format)
    return copied.view(-1).view(torch.uint8).numpy().tobytes()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            _expect_format(path, metadata)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise SessionFileError(
            f"{path}: expected a complete session file, got one that is truncated, altered, or none ({error})."
        ) from error
    if metadata.pop("sha256") != _checksum(metadata, tensors):
        raise SessionFileError(f"{path}: expected the content its checksum stands for, got one that was altered.")
    return metadata, tensors


def _expect_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise SessionFileError(
            f"{path}: expected a session file (format {FORMAT!r}), got format {metadata.get('format')!r}; "
            "RecurrentGemmaCache.save writes them."
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise SessionFileError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version!r}; a newer release of recurrent-gemma "
            "reads newer versions."
        )
    if missing := {"config", "columns", "sha256"} - metadata.keys():
        raise SessionFileError(f"{path}: expected the entries of a session file, got none for {sorted(missing)}.")


def _checksum(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for part in _parts(tensors):
        digest.update(part)
    return digest.hexdigest()


def _parts(tensors: dict[str, Tensor]) -> Iterator[bytes]:
    for name in sorted(tensors):
        tensor = tensors[name]
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield content_of(tensor)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = ()) -> None:
    if tuple(tensor.shape) != shape or not (tensor.dtype in dtypes if dtypes else tensor.is_floating_point()):
        raise ValueError(f"{name}: expected a floating-point tensor of shape {shape}, got {tensor.dtype} "
                         f"{tuple(tensor.shape)}.")  # fmt: skip
