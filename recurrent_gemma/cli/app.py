"""The commands, their options, and how failures leave the program."""

import contextlib
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

import recurrent_gemma
from recurrent_gemma.cli.chat import chat as hold_chat
from recurrent_gemma.cli.conversion_options import (
    DryRunOption,
    EmbeddingScaleOption,
    KindOption,
    OverwriteOption,
    PresetOption,
    ShardSizeOption,
    ShimOption,
    SoftCapOption,
    SourceArgument,
    TargetArgument,
    TokenizerOption,
    VerifyOption,
    WindowOption,
    WrittenDtypeOption,
)
from recurrent_gemma.cli.convert import convert_checkpoint
from recurrent_gemma.cli.errors import EPILOG, CommandError, ExitCode, describe, exit_code
from recurrent_gemma.cli.evaluate import evaluate_model, list_rows
from recurrent_gemma.cli.evaluation_options import (
    BatchSizeOption,
    CardOption,
    ChatTemplateOption,
    ClassifierLabelOption,
    ClassifierOption,
    CodeOption,
    DataDirOption,
    EvaluationSeedOption,
    LimitOption,
    NoSharedContextsOption,
    OutputOption,
    Suite,
    SuiteOption,
    TasksOption,
    split_names,
)
from recurrent_gemma.cli.exec import execute
from recurrent_gemma.cli.generate import generate as generate_text
from recurrent_gemma.cli.generate import quiet
from recurrent_gemma.cli.info import info as print_info
from recurrent_gemma.cli.options import (
    DeviceOption,
    Dtype,
    DtypeOption,
    GreedyOption,
    MaxNewTokensOption,
    ModelOption,
    SeedOption,
    SessionOption,
    StatsOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    dtype_name,
    sampling_of,
)
from recurrent_gemma.cli.session import session_info
from recurrent_gemma.configuration import PRESETS

_PROGRAM = "recurrent-gemma"

app = typer.Typer(name=_PROGRAM, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
sessions = typer.Typer(rich_markup_mode=None, help="Files that keep the state of a text.", epilog=EPILOG)
app.add_typer(sessions, name="session")


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


@app.callback(invoke_without_command=True, epilog=EPILOG)
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


def _quiet(context: typer.Context) -> contextlib.AbstractContextManager[None]:
    """The libraries' warnings and progress bars are shown with --debug only."""
    return contextlib.nullcontext() if context.obj["debug"] else quiet()


@app.command(epilog=EPILOG)
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Text to continue; may be left out with a session.", show_default=False),
    ] = None,
    model: ModelOption = None,
    session: SessionOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    stats: StatsOption = False,
) -> None:
    """Continue PROMPT; the text is printed as its tokens come.

    The same seed and settings give the same text as Transformers' pipeline("text-generation"). With --session the text
    goes on where it ended the time before, and only PROMPT is read.
    """
    sampling = sampling_of(max_new_tokens, temperature, top_p, top_k, greedy)
    with _quiet(context):
        generate_text(
            prompt,
            model=model or recurrent_gemma.demo_path(),
            sampling=sampling,
            seed=seed,
            device=device,
            dtype=dtype_name(dtype),
            session_file=session,
            stats=stats,
        )


@app.command(epilog=EPILOG)
def chat(
    context: typer.Context,
    model: ModelOption = None,
    session: SessionOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = None,
    greedy: GreedyOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    stats: StatsOption = False,
) -> None:
    """Talk to a model: one turn a line on stdin, answers on stdout as their tokens come.

    The end of the input or /exit ends it; Ctrl-C ends an answer. Every turn goes on from the state after the one before
    it, which --session saves: what was said is never read again.
    """
    sampling = sampling_of(max_new_tokens, temperature, top_p, top_k, greedy)
    with _quiet(context):
        hold_chat(
            model=model or recurrent_gemma.demo_path(),
            sampling=sampling,
            seed=seed,
            device=device,
            dtype=dtype_name(dtype),
            session_file=session,
            stats=stats,
        )


@sessions.command("info", epilog=EPILOG)
def session_info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --session wrote.", show_default=False)],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Its checkpoint directory: shows the last line of the text.")
    ] = None,
) -> None:
    """Show a session file's model, its tokens, and the bytes of its state."""
    session_info(file, model)


@app.command("convert", epilog=EPILOG)
def convert_command(
    context: typer.Context,
    source: SourceArgument,
    target: TargetArgument,
    to: KindOption = None,
    preset: PresetOption = None,
    attention_window_size: WindowOption = None,
    embeddings_scale_by_sqrt_dim: EmbeddingScaleOption = None,
    logits_soft_cap: SoftCapOption = None,
    dtype: WrittenDtypeOption = None,
    tokenizer: TokenizerOption = None,
    max_shard_size: ShardSizeOption = None,
    trust_remote_code_shim: ShimOption = False,
    verify: VerifyOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Convert a checkpoint between DeepMind's JAX and PyTorch code and Transformers.

    SRC is an Orbax directory, a file of torch.save, or a Transformers directory. Everything is checked before anything
    is written; DST appears when it is complete. Memory: one weight file and two tensors.
    """
    with _quiet(context):
        convert_checkpoint(
            source,
            target,
            to=None if to is None else to.value,
            preset=preset,
            attention_window_size=attention_window_size,
            embeddings_scale_by_sqrt_dim=embeddings_scale_by_sqrt_dim,
            logits_soft_cap=logits_soft_cap,
            dtype=dtype_name(dtype),
            tokenizer=tokenizer,
            max_shard_size=max_shard_size,
            trust_remote_code_shim=trust_remote_code_shim,
            verify=verify,
            overwrite=overwrite,
            dry_run=dry_run,
        )


@app.command(epilog=EPILOG)
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


@app.command("eval", epilog=EPILOG)
def eval_command(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Checkpoint directory.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the card's rows, one a line, and end.")] = False,
    suite: SuiteOption = Suite.CARD,
    tasks: TasksOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = "auto",
    output: OutputOption = None,
    data_dir: DataDirOption = None,
    card: CardOption = None,
    chat_template: ChatTemplateOption = None,
    classifier: ClassifierOption = None,
    classifier_label: ClassifierLabelOption = None,
    allow_code_execution: CodeOption = False,
    no_shared_contexts: NoSharedContextsOption = False,
    seed: EvaluationSeedOption = 1234,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Evaluate MODEL on the tables of the model card, by lm-eval; the report has its figures next to the card's.

    The same command goes on where a killed one stopped. Needs pip install "recurrent-gemma[eval]".
    """
    if list_:
        list_rows()
        return
    if model is None:
        raise CommandError("Missing argument 'MODEL'.", ExitCode.USAGE)
    with _quiet(context):
        evaluate_model(
            model,
            output=output,
            dtype=dtype_name(dtype),
            device=device,
            classifiers=classifier or [],
            classifier_labels=classifier_label or [],
            debug=context.obj["debug"],
            suite=suite.value,
            tasks=split_names(tasks),
            limit=limit,
            batch_size=batch_size if batch_size == "auto" else int(batch_size),
            data_dir=data_dir,
            card_model=None if card is None else card.value,
            chat_template=chat_template,
            unsafe_code=allow_code_execution,
            shared_contexts=not no_shared_contexts,
            seed=seed,
        )


@app.command(
    "exec",
    epilog=EPILOG,
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
