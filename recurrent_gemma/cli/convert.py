"""``recurrent-gemma convert``: a checkpoint of DeepMind's to a Transformers directory, or back."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from recurrent_gemma.cli.errors import CommandError, ExitCode, one_line
from recurrent_gemma.conversion_scripts import (
    ConversionError,
    ConversionPlan,
    ConversionResult,
    OptionsError,
    convert,
)
from recurrent_gemma.conversion_scripts.convert import OnProgress

_KINDS = {"flax": "JAX (Orbax directory)", "torch": "PyTorch (torch.save)", "hf": "Transformers directory"}
_PHASES = {"check": "checking", "write": "writing", "verify": "verifying"}


def convert_checkpoint(source: Path, target: Path, **options: Any) -> None:
    """Convert and say what was done; a dry run says what would be.

    Args:
        source, target, **options: As ``recurrent_gemma.conversion_scripts.convert`` takes them.

    Raises:
        CommandError: Nothing was written, or what was written does not give the source's logits.
    """
    # Orbax has JAX look for devices, and JAX would take most of an accelerator's memory.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with _reported(options), _progress() as on_progress:
        result = convert(source, target, on_progress=on_progress, **options)
    console = Console()
    console.print(_summary(f"{source} -> {target}", result, options))
    if result.verification is not None:
        console.print(result.verification.table())
        if not result.verification.passed:
            raise CommandError(f"{target}: its logits are not those of {source}", ExitCode.UNEXPECTED)


@contextlib.contextmanager
def _reported(options: Mapping[str, Any]) -> Iterator[None]:
    """Failures as exit codes; a list of problems is written to stderr whole."""
    try:
        yield
    except ConversionError as error:
        code = ExitCode.USAGE if isinstance(error, OptionsError) else ExitCode.BROKEN
        *listed, last = error.problems
        if listed:
            print(*error.problems, sep="\n", file=sys.stderr)
            last = f"{len(error.problems)} problems, which are listed above"
        raise CommandError(_as_options(f"{error.subject}: {last}", options), code) from error
    except FileNotFoundError as error:
        raise CommandError(_as_options(str(error), options), ExitCode.NOT_FOUND) from error
    except (ImportError, TypeError, ValueError) as error:
        raise CommandError(_as_options(str(error), options), ExitCode.USAGE) from error
    except OSError as error:
        raise CommandError(_as_options(str(error), options), ExitCode.TARGET) from error


def _as_options(message: str, options: Mapping[str, Any]) -> str:
    """``message`` with the names that options have on the command line."""
    for name in options:
        option = f"--{name.replace('_', '-')}"
        # A name of one word may be a word elsewhere.
        pattern = rf"(?<![-\w])({name})\b" if "_" in name else rf"^({name})(?=:)|(?<= or )({name})(?=\.)"
        message = re.sub(pattern, option, message)
    return one_line(message)


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar for each phase on stderr, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[tensor]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def advance(phase: str, tensor: str, nbytes: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(_PHASES.get(phase, phase), total=total, tensor="")
            progress.update(tasks[phase], advance=nbytes, tensor=tensor)

        yield advance


def _summary(way: str, result: ConversionResult, options: Mapping[str, Any]) -> Table:
    plan = result.plan
    title = f"{'Converted' if result.written else 'Plan of'} {way}"
    table = Table(title=Text(title), title_justify="left", show_header=False)
    for name, value in _rows(result, plan, options).items():
        table.add_row(name, Text(value))
    return table


def _rows(result: ConversionResult, plan: ConversionPlan, options: Mapping[str, Any]) -> dict[str, str]:
    rows = {
        "from": f"{_KINDS[plan.source_kind]}, {plan.source_dtype}",
        "to": f"{_KINDS[plan.target_kind]}, {plan.dtype}",
        "parameters": f"{plan.parameters:,} in {len(plan.tensors)} tensors",
        "bytes": f"{plan.nbytes:,} ({decimal(plan.nbytes)}); {decimal(plan.free_bytes)} were free",
    }
    if plan.shards:
        rows["weight files"] = ", ".join(f"{name} ({len(names)} tensors)" for name, names in plan.shards.items())
    if plan.config is not None:
        config = plan.config
        cap, scaled = config.final_logit_softcapping, config.embeddings_scale_by_sqrt_dim
        rows |= {
            "layers": f"{config.num_hidden_layers}: {', '.join(config.block_types or ())}, repeated",
            "width": f"{config.hidden_size}; recurrence {config.lru_width}, MLP {config.mlp_width}, "
            f"{config.num_attention_heads} heads, vocabulary {config.vocab_size:,}",
            "window": f"{config.attention_window_size:,}",
            "logits": f"soft-capped at {cap:g}" if cap else "not capped",
            "embeddings": "scaled by the root of the width" if scaled else "not scaled",
        }
    if options["tokenizer"] is not None:
        rows["tokenizer"] = f"from {options['tokenizer']}"
    if result.written:
        rows["time"] = f"{result.seconds:.1f} s"
    else:
        verification = ", and verifies it" if options["verify"] else ""
        rows["next"] = f"nothing was written, and no values were read; without --dry-run it converts{verification}"
    rows |= {f"note {number}": note for number, note in enumerate(plan.notes, start=1)}
    return rows
