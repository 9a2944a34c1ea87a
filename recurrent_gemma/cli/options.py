"""The options that several commands share, and what their values may be."""

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from recurrent_gemma.cli.generate import Sampling, check_device


class Dtype(str, Enum):
    """Dtypes that a model can run in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def _more_than_zero(value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"expected a finite number of more than 0, got {value:g}.")
    return value


def _probability(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"expected more than 0 and at most 1, got {value:g}.")
    return value


def _device(value: str | None) -> str | None:
    if value is not None:
        try:
            check_device(value)
        except ValueError as error:
            raise typer.BadParameter(f"{error}.") from error
    return value


ModelOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Checkpoint directory. Default: the model in the package.")
]
MaxNewTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Number of tokens at most. Default: the checkpoint's, else 256.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(callback=_more_than_zero, help="Divides the logits. Default: the checkpoint's, else 0.7."),
]
TopPOption = Annotated[
    float | None,
    typer.Option(callback=_probability, help="Sample from the likeliest tokens of this total probability."),
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=0, help="Sample from this many tokens, 0: all. Default: the checkpoint's, else 50."),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampling. Default: a new one every time.")
]
GreedyOption = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(callback=_device, help="Such as cpu or cuda:0. Default: an accelerator if there is one."),
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype to run in. Default: the checkpoint's.")]
SessionOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Go on from the state in FILE if it exists; save the state there."),
]
StatsOption = Annotated[
    bool, typer.Option("--stats", help="At the end, tokens, tokens per second and bytes of state on stderr.")
]


def sampling_of(
    max_new_tokens: int | None, temperature: float | None, top_p: float | None, top_k: int | None, greedy: bool
) -> Sampling:
    """The options of sampling as one.

    Raises:
        typer.BadParameter: They contradict each other.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, greedy)
    contradicting = [name for name in ("temperature", "top_p", "top_k") if getattr(sampling, name) is not None]
    if greedy and contradicting:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in contradicting)
        raise typer.BadParameter(f"does not go with {options}, which only matter to sampling.", param_hint="--greedy")
    return sampling


def dtype_name(dtype: Dtype | None) -> str | None:
    """The dtype as ``from_pretrained`` takes it."""
    return None if dtype is None else dtype.value


__all__ = [
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "GreedyOption",
    "MaxNewTokensOption",
    "ModelOption",
    "SeedOption",
    "SessionOption",
    "StatsOption",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
    "dtype_name",
    "sampling_of",
]
