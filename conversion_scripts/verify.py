"""Whether two checkpoints are the same model: one run by DeepMind's JAX code, the other by this package's."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.architecture import (
    OPEN_FIELDS,
    Architecture,
    architecture_of,
    beyond_deepmind,
    config_of,
    read_config,
)
from recurrent_gemma.conversion_scripts.checkpoints import Checkpoint, ConversionError, open_checkpoint
from recurrent_gemma.conversion_scripts.comparison import Comparison, LayerDifference, Side, StoredWeights, compare
from recurrent_gemma.conversion_scripts.parameter_map import Kind
from recurrent_gemma.conversion_scripts.plan import OnProgress, check_entries, preset_name
from recurrent_gemma.conversion_scripts.sides import DeepMindModel, OurModel, import_deepmind

# The longer prompt goes beyond the window by as much, the shorter one is within any but the smallest windows.
_BEYOND_WINDOW, _SHORT = 64, 7


@dataclass(frozen=True)
class Verification:
    """What a comparison of two checkpoints found.

    Attributes:
        deepmind, ours: The checkpoints that DeepMind's code and this package's ran.
        layers: The differences from the embedding to the logits, in order.
        lengths: Tokens of each prompt.
        agreeing: Of these, after how many both models predict the same next token.
        notes: What is worth knowing.
        seconds: Time it took.
    """

    deepmind: Path
    ours: Path
    layers: tuple[LayerDifference, ...]
    lengths: tuple[int, ...]
    agreeing: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def logits(self) -> LayerDifference:
        """The difference of the logits."""
        return self.layers[-1]

    @property
    def passed(self) -> bool:
        """Whether the two are the same model, as far as rounding lets anyone see."""
        return self.first_failure is None

    @property
    def first_failure(self) -> LayerDifference | None:
        """Where a difference that is not rounding begins."""
        return next((layer for layer in self.layers if not layer.passed), None)

    def table(self) -> Table:
        """The differences as a table for a console of rich."""
        # Paths and notes are text, in which brackets stand for themselves.
        caption = Text("\n".join(self.notes))
        table = Table(title=Text(str(self)), title_justify="left", caption=caption, caption_justify="left")
        table.add_column("after", no_wrap=True)
        for heading in ("difference", "largest", "relative", "bound"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("")
        for layer in self.layers:
            figures = (f"{figure:.1e}" for figure in (layer.absolute, layer.largest, layer.relative, layer.bound))
            table.add_row(
                layer.name, *figures, "" if layer.passed else "DIFFERS", style=None if layer.passed else "red"
            )
        return table

    def __str__(self) -> str:
        failure, total = self.first_failure, sum(self.lengths)
        found = "the same model" if failure is None else f"different from {failure.name} on"
        return (
            f"{found}: logits differ by at most {self.logits.absolute:.1e} (bound {self.logits.bound:.1e}), and "
            f"{self.agreeing:,} of {total:,} next tokens agree; {self.seconds:.1f} s"
        )


def verify(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    preset: str | None = None,
    attention_window_size: int | None = None,
    embeddings_scale_by_sqrt_dim: bool | None = None,
    logits_soft_cap: float | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Compare two checkpoints of one model, of any kinds, by running DeepMind's JAX code on one and ours on the other.

    Both run in fp32 on the CPU, on the weights as stored; where dtypes differ, on the source's weights rounded to the
    target's dtype. Where they differ by more than the bound they run once more in fp64: DeepMind's 1 - exp(2 log a)
    loses digits where gates are nearly closed, and with some weights that alone is beyond the bound in fp32.

    The prompts are random tokens, one of them longer than the attention window. Each model goes on with its own hidden
    states, so differences add up as they do in use. DeepMind's code runs the checkpoint of DeepMind's kind: the PyTorch
    one if both are, else the source.

    The table of parameters (``parameter_map.py``) is trusted as little as possible: the two models read ``flax`` and
    ``hf`` checkpoints by the names and layouts of their own code, and a ``torch`` checkpoint reaches DeepMind's by the
    rule of ``recurrentgemma/conversion.py``.

    Memory: both embedding tables as stored, or one block in fp32 (fp64) and twice its activations. DeepMind's attention
    makes several arrays of 4 H (W + 64)^2 bytes. A change of the weights that shows in no figure of the prompts, such
    as that of one low bit, stays unseen.

    Args:
        source: One checkpoint.
        target: The other.
        preset: As in ``convert``, for what DeepMind's checkpoints do not say, and so are the three below. Default: what
            the other one's config.json says.
        attention_window_size: W.
        embeddings_scale_by_sqrt_dim: Whether embeddings are scaled.
        logits_soft_cap: Cap of the logits; 0 for none.
        on_progress: Called with the phase (``"verify"``, then maybe ``"verify in fp64"``), the name of a tensor that is
            done, its bytes, and the bytes of both checkpoints.

    Raises:
        ConversionError: A checkpoint is not complete, they have different shapes, DeepMind's code cannot express the
            model, or a field is left open.
        FileNotFoundError, ValueError: A path or an option cannot be used.
        ImportError: An optional dependency is not installed.
    """
    started = time.monotonic()
    options = {
        "attention_window_size": attention_window_size,
        "embeddings_scale_by_sqrt_dim": embeddings_scale_by_sqrt_dim,
        "logits_soft_cap": logits_soft_cap,
    }
    import_deepmind()
    checkpoints = [open_checkpoint(Path(path)) for path in (source, target)]
    architectures = [architecture_of(checkpoint) for checkpoint in checkpoints]
    # A source may be converted to one dtype from several.
    source_dtype, _ = check_entries(checkpoints[0], architectures[0], cast=True)
    dtype, _ = check_entries(checkpoints[1], architectures[1], cast=False)
    _expect_same_shapes(checkpoints, architectures)

    kinds = [checkpoint.kind for checkpoint in checkpoints]
    theirs = kinds.index("torch" if "torch" in kinds else "flax" if "flax" in kinds else "hf")
    ours = 1 - theirs
    configs = _configs(checkpoints[theirs], checkpoints[ours], architectures[theirs], preset, options, dtype)

    def run(compute: torch.dtype, phase: str) -> Comparison:
        report = _Progress(checkpoints, architectures, on_progress, phase)

        def weights(side: int, kind: Kind) -> StoredWeights:
            return StoredWeights(checkpoints[side], architectures[side], kind, getattr(torch, dtype), compute, report)

        return compare(
            Side(DeepMindModel(configs[0]), weights(theirs, "flax")),
            Side(OurModel(configs[1]), weights(ours, "hf")),
            prompts,
        )

    prompts = _prompts(configs[0])
    notes = []
    if source_dtype != dtype:
        notes.append(f"The source's {source_dtype} weights are compared as {dtype}, the target's dtype.")
    layers, agreeing = run(torch.float32, "verify")
    if not all(layer.passed for layer in layers):
        notes.append(f"Compared in fp64: in fp32 the logits differ by {layers[-1].absolute:.1e}.")
        layers, agreeing = run(torch.float64, "verify in fp64")
    return Verification(
        deepmind=checkpoints[theirs].path,
        ours=checkpoints[ours].path,
        layers=layers,
        lengths=tuple(prompt.shape[1] for prompt in prompts),
        agreeing=agreeing,
        notes=tuple(notes),
        seconds=time.monotonic() - started,
    )


def check_verifiable(config: RecurrentGemmaConfig, path: Path) -> None:
    """Refuse a model that DeepMind's code cannot run, or cannot run here.

    Args:
        config: The model's config.
        path: The checkpoint, for the message.

    Raises:
        ConversionError: DeepMind's code cannot express it.
        ImportError: DeepMind's code is not installed.
    """
    import_deepmind()
    if problems := beyond_deepmind(config):
        raise ConversionError(f"{path}: DeepMind's code, which verify runs, cannot express this model", problems)


def _configs(
    theirs: Checkpoint,
    ours: Checkpoint,
    architecture: Architecture,
    preset: str | None,
    options: dict[str, Any],
    dtype: str,
) -> tuple[RecurrentGemmaConfig, RecurrentGemmaConfig]:
    """The config of either side: its own config.json, else from its shapes, the options and the other's config.json."""
    given = [name for name, value in {"preset": preset, **options}.items() if value is not None]
    config = None if ours.config is None else read_config(ours)
    if theirs.config is not None:
        if given:
            raise ValueError(f"{given[0]}: expected None between Transformers directories, whose config.json says it.")
        derived = read_config(theirs)
    else:
        if config is not None and preset is None:
            in_file = {name: getattr(config, name) for name in OPEN_FIELDS}
            in_file["logits_soft_cap"] = config.logits_soft_cap or 0.0
            options = {name: in_file[name] if value is None else value for name, value in options.items()}
        derived = config_of(architecture, preset=preset_name(preset), options=options, dtype=dtype)
    for checkpoint, own in ((theirs, derived), (ours, config)):
        if own is not None:
            check_verifiable(own, checkpoint.path)
    return derived, config or derived


def _expect_same_shapes(checkpoints: Sequence[Checkpoint], architectures: Sequence[Architecture]) -> None:
    source, target = (architecture.tensors("hf") for architecture in architectures)
    if problems := [
        f"{name}: expected {source.get(name, 'no such tensor')} (source), got {target.get(name, 'none')} (target)."
        for name in {**source, **target}
        if source.get(name) != target.get(name)
    ]:
        raise ConversionError(" and ".join(str(checkpoint.path) for checkpoint in checkpoints), problems)


def _prompts(config: RecurrentGemmaConfig) -> tuple[Tensor, ...]:
    """Random ids (1, L), the same every time, after the token that begins a text in training."""
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for length in (config.attention_window_size + _BEYOND_WINDOW, _SHORT):
        prompt = torch.randint(config.vocab_size, (1, length), generator=generator)
        if config.bos_token_id is not None:
            prompt[0, 0] = config.bos_token_id
        prompts.append(prompt)
    return tuple(prompts)


class _Progress:
    """Reports what is read, as a part of all bytes that the models have in both checkpoints."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        architectures: Sequence[Architecture],
        on_progress: OnProgress | None,
        phase: str,
    ) -> None:
        self._on_progress, self._phase = on_progress, phase
        self._total = sum(
            checkpoint.tensors[name].nbytes
            for checkpoint, architecture in zip(checkpoints, architectures, strict=True)
            for name in architecture.tensors(checkpoint.kind)
        )

    def __call__(self, checkpoint: Checkpoint, name: str) -> None:
        if self._on_progress is not None:
            self._on_progress(self._phase, name, checkpoint.tensors[name].nbytes, self._total)
