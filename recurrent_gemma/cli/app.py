"""The commands, their options, and how failures leave the program."""

import contextlib
import math
import signal
import sys
import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

import recurrent_gemma
from recurrent_gemma.cli.errors import CommandError, ExitCode, describe, exit_code
from recurrent_gemma.cli.exec import execute
from recurrent_gemma.cli.generate import Sampling, check_device, quiet
from recurrent_gemma.cli.generate import generate as generate_text
from recurrent_gemma.cli.info import info as print_info
from recurrent_gemma.configuration import PRESETS

_PROGRAM = "recurrent-gemma"
_EPILOG = """\b
Exit codes:
  0    success
  1    unexpected error; --debug before the command shows the traceback
  2    wrong usage or option value
  3    the checkpoint directory or one of its files does not exist
  4    the checkpoint is of another architecture
  5    the checkpoint is broken: truncated, invalid JSON, missing weights
  126  exec: the command cannot be executed
  127  exec: the command does not exist
`exec` ends with the exit code of its command otherwise."""

app = typer.Typer(name=_PROGRAM, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Dtype(str, Enum):
    """Dtypes that a model can run in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def main() -> int:
    """Entry point of ``recurrent-gemma``."""
    # As other filters do: end quietly when the reader of the output has gone, here and in what `exec` becomes.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; failures are one line on stderr."""
    options = {"debug": False}
    try:
        return app(args=list(arguments), prog_name=_PROGRAM, standalone_mode=False, obj=options) or 0
    except Exception as error:
        if options["debug"]:
            traceback.print_exc()
        print(f"{_PROGRAM}: error: {describe(error)}", file=sys.stderr)
        return exit_code(error)


def _version(requested: bool) -> None:
    if requested:
        print(f"{_PROGRAM} {recurrent_gemma.__version__}")
        raise typer.Exit


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


@app.callback(invoke_without_command=True, epilog=_EPILOG)
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """RecurrentGemma: text generation with a state of constant size."""
    context.obj["debug"] = debug
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


@app.command(epilog=_EPILOG)
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.", show_default=False)],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoint directory. Default: the model in the package.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Number of tokens at most. Default: the checkpoint's, else 256.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(callback=_more_than_zero, help="Divides the logits. Default: the checkpoint's, else 0.7."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(callback=_probability, help="Sample from the likeliest tokens of this total probability."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, help="Sample from this many tokens, 0: all. Default: the checkpoint's, else 50."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of the sampling. Default: a new one every time.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling.")] = False,
    device: Annotated[
        str | None,
        typer.Option(callback=_device, help="Such as cpu or cuda:0. Default: an accelerator if there is one."),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype to run in. Default: the checkpoint's.")] = None,
) -> None:
    """Continue PROMPT; the text is printed as its tokens come.

    The same seed and settings give the same text as Transformers' pipeline("text-generation").
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, greedy)
    contradicting = [name for name in ("temperature", "top_p", "top_k") if getattr(sampling, name) is not None]
    if greedy and contradicting:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in contradicting)
        raise typer.BadParameter(f"does not go with {options}, which only matter to sampling.", param_hint="--greedy")
    with contextlib.nullcontext() if context.obj["debug"] else quiet():
        generate_text(
            prompt,
            model=model or recurrent_gemma.demo_path(),
            sampling=sampling,
            seed=seed,
            device=device,
            dtype=None if dtype is None else dtype.value,
        )


@app.command(epilog=_EPILOG)
def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]",
            help=f"Checkpoint directory, or one of {', '.join(PRESETS)}. Default: the model in the package.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype to count memory in. Default: the checkpoint's, for presets bfloat16.")
    ] = None,
) -> None:
    """Show architecture, parameters, and bytes of state per sequence beside a Gemma-like KV cache."""
    print_info(model or str(recurrent_gemma.demo_path()), dtype=None if dtype is None else getattr(torch, dtype.value))


@app.command(
    "exec",
    epilog=_EPILOG,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
def exec_command(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND [ARGUMENTS]", help="The program and its arguments.", show_default=False),
    ] = None,
) -> None:
    """Run COMMAND with this package registered in it and its children, whenever they import Transformers.

    For programs that never import recurrent_gemma: accelerate launch, trl, lm_eval, transformers serve. A Python that
    ignores PYTHONPATH (options -I, -E, -S) is not reached; recurrent_gemma.assert_active() tells.
    """
    if not command:
        raise CommandError("exec: no command; write recurrent-gemma exec -- COMMAND [ARGUMENTS]", ExitCode.USAGE)
    execute(command)


__all__ = ["app", "main", "run"]
