"""DeepMind's PyTorch checkpoints: one ``.pt`` or ``.bin`` file with a dictionary of tensors.

The file is torch.save's: a zip archive with a pickle that says which tensors there are and one record for the bytes of
each. Tensors are read from and written to their records one at a time; torch.save would need them all.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from recurrent_gemma.conversion_scripts.checkpoints.base import (
    Checkpoint,
    ConversionError,
    ReadTensor,
    TensorInfo,
    read_at,
    without_prefix,
)

SUFFIXES = (".pt", ".pth", ".bin")


class TorchCheckpoint(Checkpoint):
    """A file that torch.save wrote: a dictionary of tensors by DeepMind's names, bare, below ``params``, or behind it.

    Args:
        path: The file.

    Raises:
        ConversionError: It is none, holds something else, or would run code when loaded.
    """

    kind = "torch"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._check_archive()
        tensors = self._load_without_values()
        other = [
            f"{name}: expected a dense tensor, got {type(value).__name__}."
            for name, value in tensors.items()
            if not _is_dense(value)
        ]
        if other:
            raise ConversionError(str(path), other)
        self._tensors: dict[str, Tensor] = without_prefix(tensors, "params.")
        self.tensors = {
            name: TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        stub = self._tensors[name]
        if not stub.numel():
            return torch.empty(stub.shape, dtype=stub.dtype)
        # A view, such as the transposed weights of DeepMind's own converter, spans a part of its record.
        span = 1 + sum((size - 1) * stride for size, stride in zip(stub.shape, stub.stride(), strict=True))
        record: Any = stub.untyped_storage()._checkpoint_offset
        offset = record + int(stub.storage_offset()) * stub.dtype.itemsize
        values = read_at(self.path, offset, (span,), stub.dtype)
        view = values.as_strided(stub.shape, stub.stride())
        # What torch.load gives for the view of a negated tensor; the record holds the values without their sign.
        return view.neg() if stub.is_neg() else view

    def _check_archive(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                compressed = [entry.filename for entry in archive.infolist() if entry.compress_type]
                byteorder = [name for name in archive.namelist() if name.endswith("/byteorder")]
                stored = archive.read(byteorder[0]).decode() if byteorder else "little"
        except zipfile.BadZipFile as error:
            raise ConversionError(
                str(self.path),
                "expected DeepMind's PyTorch checkpoint, a file of torch.save, got one that is truncated or something "
                f"else ({error}). A file in the format before PyTorch 1.6 has to be loaded and saved again.",
            ) from error
        except OSError as error:
            raise ConversionError(str(self.path), f"cannot be read ({error}).") from error
        if compressed:
            raise ConversionError(
                str(self.path),
                f"expected records as torch.save stores them, got {len(compressed)} that are compressed; load the file "
                "with torch.load and save it again.",
            )
        if stored != sys.byteorder:
            raise ConversionError(str(self.path), f"expected bytes in {sys.byteorder}-endian order, got {stored}.")

    def _load_without_values(self) -> dict[str, Any]:
        try:
            with FakeTensorMode():
                loaded = torch.load(self.path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ConversionError(
                str(self.path),
                "expected nothing but tensors, got a file that would run code when it is loaded, and loaded nothing "
                f"of it. If you trust its source, load it with torch.load(..., weights_only=False) and save the "
                f"tensors alone. ({' '.join(str(error).split())[:300]})",
            ) from error
        except Exception as error:
            raise ConversionError(str(self.path), f"expected a complete file of torch.save: {error}") from error
        if isinstance(loaded, dict) and loaded.keys() == {"params"} and isinstance(loaded["params"], dict):
            loaded = loaded["params"]
        if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
            raise ConversionError(
                str(self.path), f"expected a dictionary of tensors by name, got {type(loaded).__name__}."
            )
        return loaded


def write_torch_file(path: Path, tensors: dict[str, TensorInfo], read: ReadTensor) -> None:
    """Write a file that ``torch.load(path, weights_only=True)`` gives the dictionary ``tensors`` from.

    Args:
        path: The file to make.
        tensors: The entries.
        read: Gives the values of each, which are written before the next are asked for.

    Raises:
        OSError: There is no room for it.
    """
    description = _describe(tensors)
    with path.open("wb") as stream:
        output: Any = _Output(stream)
        writer = torch._C.PyTorchFileWriter(output)
        try:
            writer.write_record("data.pkl", description, len(description))
            writer.write_record("byteorder", sys.byteorder.encode(), len(sys.byteorder))
            for index, name in enumerate(tensors):
                storage: Any = read(name).untyped_storage()
                writer.write_record(f"data/{index}", storage, storage.nbytes())
                output.raise_failure()
        finally:
            # Else torch's writer does it when it is freed, the file being closed by then.
            writer.write_end_of_file()
        output.raise_failure()


class _Output:
    """A file for torch's writer, which ends the whole process where a write fails: failures wait here."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write ``data``, unless a write has failed."""
        if self._failure is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._failure = error
        return len(data)

    def raise_failure(self) -> None:
        """Raise the OSError of the write that failed, if one has."""
        if self._failure is not None:
            raise self._failure


def _describe(tensors: dict[str, TensorInfo]) -> bytes:
    """The pickle of the dictionary, with references to records in place of values."""
    stream = io.BytesIO()
    # The protocol of torch.save; weights_only takes no newer one.
    pickler = _Pickler(stream, protocol=2)
    pickler.dump({name: _Unread(index, info) for index, (name, info) in enumerate(tensors.items())})
    return stream.getvalue()


class _Unread:
    """A tensor of the dictionary, of which the pickle holds everything but the values."""

    def __init__(self, index: int, info: TensorInfo) -> None:
        self.record, self.info = _Record(index, info), info

    def __reduce__(self) -> tuple[Any, ...]:
        stride = torch.empty(self.info.shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (self.record, 0, self.info.shape, stride, False, OrderedDict())


class _Record:
    """The storage of a tensor, by the name of its record."""

    def __init__(self, index: int, info: TensorInfo) -> None:
        dtype = getattr(torch, info.dtype)
        legacy_class = torch.storage._dtype_to_storage_type_map()[dtype]
        elements = torch.Size(info.shape).numel()
        self.reference = ("storage", getattr(torch, legacy_class), str(index), "cpu", elements)


class _Pickler(pickle.Pickler):
    """Writes records by reference."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.reference if isinstance(obj, _Record) else None


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
