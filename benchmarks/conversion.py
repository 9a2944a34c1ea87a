"""The conversion case: time and memory of every way between the kinds of checkpoints, each in a process of its own."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.models import Size
from benchmarks.resident import in_its_own_process, watch
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts import convert
from recurrent_gemma.conversion_scripts.architecture import architecture_of_config
from recurrent_gemma.conversion_scripts.checkpoints import (
    TensorInfo,
    open_checkpoint,
    shards_of,
    write_safetensors,
)

# (from, to, the one whose kind and values the result has to have).
_STEPS = (
    ("hf", "flax", None),
    ("flax", "hf-back", "hf"),
    ("hf", "weights.pt", None),
    ("weights.pt", "hf-again", "hf"),
    ("weights.pt", "flax-again", "flax"),
    ("flax", "weights-again.pt", "weights.pt"),
)
_WINDOW = {"attention_window_size": 8, "embeddings_scale_by_sqrt_dim": True, "logits_soft_cap": 30.0}


@dataclass(frozen=True)
class Step:
    """One conversion.

    Attributes:
        source, target: Names of the checkpoints.
        seconds: Time of the conversion, both of its passes.
        peak_bytes: Most resident memory during it, above that of the process before it.
        bound_bytes: What it may take: one shard (to ``hf``) or one tensor, and two tensors.
        curve: (seconds since the begin, resident bytes above those before), a few times a second.
    """

    source: str
    target: str
    seconds: float
    peak_bytes: int
    bound_bytes: int
    curve: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class ConversionCase:
    """All conversions of one checkpoint.

    Attributes:
        model: What was converted.
        nbytes: Bytes of its weights.
        shard_bytes: Bytes of the largest weight file.
        tensor_bytes: Bytes of the largest tensor.
        steps: The conversions. What comes back was compared with the original bit by bit.
    """

    model: str
    nbytes: int
    shard_bytes: int
    tensor_bytes: int
    steps: tuple[Step, ...]


def conversion(size: Size, name: str, *, dtype: str, max_shard_size: str, folder: Path | None) -> ConversionCase:
    """Convert random weights of a size to every kind and back, and measure each way.

    Args:
        size: The shapes.
        name: What to call them.
        dtype: Dtype of the weights.
        max_shard_size: Bytes of a weight file at most.
        folder: Where to put the checkpoints, about five times the weights; ``None``: the system's temporary folder.

    Raises:
        ValueError: A checkpoint did not come back bit for bit.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        root = Path(work)
        config = RecurrentGemmaConfig(**size.config_fields(size.attention_window_size), dtype=dtype)
        tensors = _write_source(root / "hf", config, dtype, max_shard_size)
        largest = max(info.nbytes for info in tensors.values())
        shards = shards_of(tensors, max_shard_size)
        shard = max(sum(tensors[name].nbytes for name in names) for names in shards.values())
        steps = []
        for source, target, original in _STEPS:
            to = target.partition("-")[0] if not target.endswith(".pt") else "torch"
            options = {"to": to, "max_shard_size": max_shard_size if to == "hf" else None}
            if to == "hf":
                options |= {**_WINDOW, "attention_window_size": size.attention_window_size}
            measured = in_its_own_process(
                "benchmarks.conversion", str(root / source), str(root / target), json.dumps(options)
            )
            bound = (shard if to == "hf" else largest) + 2 * largest
            steps.append(Step(source, target, bound_bytes=bound, **measured))
            if original is not None:
                _expect_equal(root / original, root / target)
                shutil.rmtree(root / target) if (root / target).is_dir() else (root / target).unlink()
        return ConversionCase(name, sum(info.nbytes for info in tensors.values()), shard, largest, tuple(steps))


def _write_source(path: Path, config: RecurrentGemmaConfig, dtype: str, max_shard_size: str) -> dict[str, TensorInfo]:
    path.mkdir()
    shapes = architecture_of_config(config).tensors("hf")
    tensors = {name: TensorInfo(shape, dtype) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)

    def read(name: str) -> torch.Tensor:
        values = torch.empty(tensors[name].shape, dtype=getattr(torch, dtype))
        return values.normal_(std=0.02, generator=generator)

    write_safetensors(path, tensors, shards_of(tensors, max_shard_size), read)
    config.save_pretrained(path)
    return tensors


def _expect_equal(path: Path, other: Path) -> None:
    a, b = open_checkpoint(path), open_checkpoint(other)
    if a.tensors != b.tensors:
        raise ValueError(f"{other.name}: expected the entries of {path.name}, got others.")
    for name in a.tensors:
        bits = [checkpoint.read(name).contiguous().view(torch.uint8) for checkpoint in (a, b)]
        if not torch.equal(*bits):
            raise ValueError(f"{other.name}: expected the values of {path.name}, got others in {name}.")


def _measure(run: Callable[[], None]) -> dict:
    """Seconds, and resident memory above what there was before, of a call."""
    seconds, peak, curve = watch(run)
    # The highest sample of each fifth of a second.
    thinned: dict[int, tuple[float, int]] = {}
    for moment, nbytes in curve:
        slot = int(5 * moment)
        thinned[slot] = max(thinned.get(slot, (moment, nbytes)), (moment, nbytes), key=lambda point: point[1])
    return {"seconds": seconds, "peak_bytes": peak, "curve": list(thinned.values())}


def _warm_up(folder: Path, to: str, source_kind: str) -> None:
    """The same conversion in small, so that what the libraries load and allocate once is not counted."""
    config = RecurrentGemmaConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3,
        vocab_size=8, attention_window_size=8,
    )  # fmt: skip
    _write_source(folder / "hf", config, "bfloat16", "5GB")
    names = {"hf": "hf", "flax": "flax", "torch": "weights.pt"}
    if source_kind != "hf":
        convert(folder / "hf", folder / names[source_kind], to=source_kind)
    options = _WINDOW if to == "hf" and source_kind != "hf" else {}
    convert(folder / names[source_kind], folder / f"target{'.pt' if to == 'torch' else ''}", to=to, **options)


def _child(source: str, target: str, options: str) -> None:
    given = json.loads(options)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(Path(folder), given["to"], open_checkpoint(Path(source)).kind)
    print(json.dumps(_measure(lambda: convert(source, target, **given) and None)))


if __name__ == "__main__":
    _child(*sys.argv[1:])
