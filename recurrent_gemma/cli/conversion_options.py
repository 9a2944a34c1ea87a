"""The arguments and options of ``recurrent-gemma convert``, and what their values may be."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from recurrent_gemma.cli.options import Dtype


class Kind(str, Enum):
    """Kinds of checkpoints."""

    HF = "hf"
    FLAX = "flax"
    TORCH = "torch"


SourceArgument = Annotated[Path, typer.Argument(metavar="SRC", help="The checkpoint; its kind is detected.")]
TargetArgument = Annotated[Path, typer.Argument(metavar="DST", help="What to write; for torch a file *.pt or *.bin.")]
KindOption = Annotated[
    Kind | None,
    typer.Option(help="hf: Transformers, flax: DeepMind's JAX, torch: DeepMind's PyTorch. Default: by DST's name."),
]
PresetOption = Annotated[
    str | None,
    typer.Option(metavar="2b|9b|NAME", help="The published model it is, for what DeepMind's files do not say."),
]
WindowOption = Annotated[int | None, typer.Option(help="The window, in place of the preset's.")]
EmbeddingScaleOption = Annotated[
    bool | None, typer.Option(help="Whether embeddings are scaled, in place of what the preset says.")
]
SoftCapOption = Annotated[float | None, typer.Option(help="Cap of the logits, in place of the preset's; 0 for none.")]
WrittenDtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype to write. Default: the source's, bit for bit.")]
TokenizerOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="SentencePiece tokenizer.model, converted as well.")
]
ShardSizeOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Size of a weight file at most, such as 5GB, the default.")
]
ShimOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code-shim",
        help="Lead programs that load DST with trust_remote_code=True to this package, which they need not import.",
    ),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Compare the logits with those of DeepMind's JAX model at the end.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is at DST.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check names and shapes, show the plan and end.")]


__all__ = [
    "DryRunOption",
    "EmbeddingScaleOption",
    "Kind",
    "KindOption",
    "OverwriteOption",
    "PresetOption",
    "ShardSizeOption",
    "ShimOption",
    "SoftCapOption",
    "SourceArgument",
    "TargetArgument",
    "TokenizerOption",
    "VerifyOption",
    "WindowOption",
    "WrittenDtypeOption",
]
