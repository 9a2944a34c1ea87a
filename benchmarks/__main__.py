"""Speed and memory of this package, beside other implementations, other models, and the floor.

    python -m benchmarks [--only ROW ...] [--again] [--quick] [--output DIR]
    python -m benchmarks plot DIR
    python -m benchmarks gpu [--only ROW ...] [--output DIR]

measures the whole suite (docs/performance.md), row by row, goes on where it stopped, draws and writes tables; draws
anew; and does the same for a GPU, after it was seen to compute what the CPU computes. Single cases:

    python -m benchmarks prefill [--size 512x6] [--length 8192] [--peers in-tree gemma ...]
    python -m benchmarks train [--size 512x6] [--length 2048] [--peers in-tree gemma ...]
    python -m benchmarks decode [--size 256x12] [--tokens 128] [--context 16] [--peers in-tree gemma ...]
    python -m benchmarks profile [--size 512x6] [--length 2048] [--tokens 32]
    python -m benchmarks train-memory [--size 512x6-256k] [--lengths 2048 4096]
    python -m benchmarks memory [--size demo] [--tokens 20000] [--every 1000]
    python -m benchmarks convert [--size 2048x12] [--max-shard-size 300MB] [--dtype bfloat16] [--folder DIR]
    python -m benchmarks prefix-cache [--size demo] [--system 2000] [--tokens 20] [--requests 200]
    python -m benchmarks shared-contexts [--size demo] [--shots 600] [--question 100] [--batch-size 8]
    python -m benchmarks learning [--jobs 2] [--tasks marker] [--models hawk griffin] [--seeds 0] [--output DIR]
    python -m benchmarks serving [--size 512x6] [--clients 1 8] [--prompt 512] [--answer 64] [--json FILE]
    python -m benchmarks long-context [--model DIR] [--text FILE] [--length 32768] [--count 8] [--output DIR]

Speed: random weights, shared by all implementations of the model. First they must give the same logits (in-tree:
gradients too) in fp32; other models must give their own twice, with and without their cache. Then the floor, ours and
the peers run in turn, round by round, in the dtype and on the device asked for. The floor is the model's own matrix
products at the same shapes (decode: reading its weights once). Profile: where the time of ours goes, by kind of op.
Train-memory: the most memory that one training step takes beyond weights and gradients, each implementation in a
process of its own. Memory: one sequence grows token by token through the cache. Convert: random weights go to every
kind of checkpoint and back, bit for bit; time, and resident memory above that of the bare process. Prefix cache:
answers below a shared system prompt, cold and warm, and hit rates at the sizes of the 2B model, whose states are not
computed. Shared contexts: log-likelihoods of an evaluation with 5 shots, by this package's lm-eval model and by
lm-eval's own path. Serving: this family and Gemma of equal size, each served by vLLM, under the load of vLLM's own
benchmark. Learning: small models trained at one length and tested at longer ones. Long context: the loss of a
checkpoint against position, whole and with parts of it taken away, and a passkey to be found. These two make what
docs/evidence.md shows.

Only ratios within one run mean something: take them on an otherwise idle machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import conversion, memory, op_profile, prefix_cache, report, shared_contexts, speed, train_memory
from benchmarks.gpu_suite import command as gpu
from benchmarks.learning import command as learning
from benchmarks.long_context import command as long_context
from benchmarks.models import SIZES
from benchmarks.peers import DEFAULT_PEERS, PEERS
from benchmarks.serving import command as serving
from benchmarks.suite import command as suite
from benchmarks.suite.page import NAME

SUITE = "suite"
_OWN_COMMANDS = {"learning": learning.main, "long-context": long_context.main, "serving": serving.main}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite or one case, print what it found, and write it where the options say.

    Returns:
        The exit code.

    Raises:
        ValueError: The implementations disagree, or a value has no meaning; nothing is reported then.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if getattr(options, "threads", None) is not None:
        torch.set_num_threads(options.threads)
    machine, console = report.environment(), Console()
    if options.case == "plot":
        return _redraw(options.folder, console)
    if options.case in (SUITE, "gpu"):
        command = suite if options.case == SUITE else gpu
        return command.main(options, machine, console)
    if options.case in _OWN_COMMANDS:
        _OWN_COMMANDS[options.case](options, machine, console)
        return 0
    result = _run(options)
    report.show(console, options.case, options.size, machine, result)
    if options.json is not None:
        chosen = {name: value for name, value in vars(options).items() if name not in ("case", "json", "folder")}
        report.write(options.json, report.as_dict(options.case, chosen, machine, result))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; without a case those of the suite. Ends the process with usage and exit code 2 on a wrong one."""
    arguments = list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, SUITE)
    return _parser().parse_args(arguments)


def _redraw(folder: Path, console: Console) -> int:
    """Pictures and tables anew, of every results file in the folder."""
    names = [name for name in (NAME, gpu.NAME) if (folder / "data" / f"{name}.json").is_file()]
    for name in names or [NAME]:
        suite.write(folder, name, console)
    return 0


def _run(options: argparse.Namespace) -> report.Result:
    if options.case == "memory":
        model, name = memory.model_for_memory(options.size)
        return memory.generation_memory(model, name, tokens=options.tokens, every=options.every)
    if options.case == "prefix-cache":
        model, name = memory.model_for_memory(options.size)
        return prefix_cache.prefix_cache(
            model,
            name,
            system=options.system,
            tokens=options.tokens,
            repeats=options.repeats,
            requests=options.requests,
        )
    if options.case == "shared-contexts":
        model, name = memory.model_for_memory(options.size)
        return shared_contexts.shared_contexts(
            model.to(options.device).eval(),
            name,
            shots=options.shots,
            question=options.question,
            questions=options.questions,
            subjects=options.subjects,
            batch_size=options.batch_size,
            repeats=options.repeats,
        )
    size = SIZES[options.size]
    if options.case == "convert":
        return conversion.conversion(
            size,
            options.size,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            folder=options.folder,
        )
    place = {"device": options.device, "dtype": options.dtype}
    if options.case == "profile":
        return op_profile.profile(size, length=options.length, tokens=options.tokens, **place)
    if options.case == "train-memory":
        return train_memory.train_memory(options.size, lengths=options.lengths, **place)
    place["peers"] = tuple(options.peers)
    if options.case == "decode":
        return speed.decode(size, tokens=options.tokens, context=options.context, repeats=options.repeats, **place)
    case = {"prefill": speed.prefill, "train": speed.train}[options.case]
    return case(size, length=options.length, repeats=options.repeats, **place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = parser.add_subparsers(dest="case", required=True)

    suite.add_arguments(_add_command(cases, SUITE, suite.main))
    gpu.add_arguments(_add_command(cases, "gpu", gpu.main))
    _add_command(cases, "plot", _redraw).add_argument("folder", type=Path, metavar="DIR", help="what a suite wrote to")

    prefill = _add_case(cases, "prefill", speed.prefill, "512x6")
    prefill.add_argument("--length", type=_positive, default=8192, help="tokens of the prompt (default %(default)s)")

    train = _add_case(cases, "train", speed.train, "512x6")
    train.add_argument("--length", type=_positive, default=2048, help="tokens of the row (default %(default)s)")

    decode = _add_case(cases, "decode", speed.decode, "256x12")
    decode.add_argument("--tokens", type=_positive, default=128, help="tokens a round (default %(default)s)")
    decode.add_argument(
        "--context", type=_positive, default=speed.DECODE_PROMPT, help="tokens of the prompt (default %(default)s)"
    )

    for case in (prefill, train, decode):
        case.add_argument("--repeats", type=_positive, default=7, help="rounds (default %(default)s)")
        chosen = " ".join(DEFAULT_PEERS)
        case.add_argument(
            "--peers",
            nargs="*",
            choices=list(PEERS),
            default=list(DEFAULT_PEERS),
            help=f"beside ours (default {chosen})",
        )

    profiled = _add_case(cases, "profile", op_profile.profile, "512x6")
    profiled.add_argument("--length", type=_positive, default=2048, help="tokens of the row (default %(default)s)")
    profiled.add_argument("--tokens", type=_positive, default=32, help="tokens decoded (default %(default)s)")

    peak = _add_case(cases, "train-memory", train_memory.train_memory, "512x6-256k")
    peak.add_argument(
        "--lengths", type=_positive, nargs="+", default=[2048, 4096], help="tokens of the row (default %(default)s)"
    )
    for case in (prefill, train, decode, profiled, peak):
        case.add_argument("--device", default="cpu", help="such as cuda (default %(default)s)")
        case.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")

    sampled = _add_case(cases, "memory", memory.generation_memory, "demo")
    sampled.add_argument("--tokens", type=_positive, default=20_000, help="tokens to decode (default %(default)s)")
    sampled.add_argument("--every", type=_positive, default=1000, help="tokens between samples (default %(default)s)")

    converted = _add_case(cases, "convert", conversion.conversion, "2048x12")
    converted.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    converted.add_argument("--max-shard-size", default="300MB", help="of a weight file (default %(default)s)")
    converted.add_argument("--folder", type=Path, metavar="DIR", help="for five times the weights (default: temporary)")

    shared = _add_case(cases, "prefix-cache", prefix_cache.prefix_cache, "demo")
    shared.add_argument("--system", type=_positive, default=2000, help="tokens they share (default %(default)s)")
    shared.add_argument("--tokens", type=_positive, default=20, help="tokens of an answer (default %(default)s)")
    shared.add_argument("--requests", type=_positive, default=200, help="of the workload (default %(default)s)")
    shared.add_argument("--repeats", type=_positive, default=7, help="rounds (default %(default)s)")

    forked = _add_case(cases, "shared-contexts", shared_contexts.shared_contexts, "demo")
    forked.add_argument("--shots", type=_positive, default=600, help="tokens of the examples (default %(default)s)")
    forked.add_argument("--question", type=_positive, default=100, help="tokens of a question (default %(default)s)")
    forked.add_argument("--questions", type=_positive, default=8, help="of a subject (default %(default)s)")
    forked.add_argument("--subjects", type=_positive, default=2, help="default %(default)s")
    forked.add_argument("--batch-size", type=_positive, default=8, help="rows of a pass (default %(default)s)")
    forked.add_argument("--repeats", type=_positive, default=3, help="rounds (default %(default)s)")
    forked.add_argument("--device", default="cpu", help="such as cuda (default %(default)s)")

    learning.add_arguments(_add_command(cases, "learning", learning.main))
    reading = _add_command(cases, "long-context", long_context.main)
    reading.add_argument("--threads", type=_positive, help="torch's threads (default: torch's own choice)")
    long_context.add_arguments(reading)
    serving.add_arguments(_add_command(cases, "serving", serving.main))
    return parser


def _add_command(cases: "argparse._SubParsersAction", name: str, run: object) -> argparse.ArgumentParser:
    summary = (run.__doc__ or "").partition("\n")[0]
    return cases.add_parser(name, help=summary, description=summary)


def _add_case(cases: "argparse._SubParsersAction", name: str, run: object, size: str) -> argparse.ArgumentParser:
    case = _add_command(cases, name, run)
    case.add_argument("--size", choices=sorted(SIZES), default=size, help="width x layers (default %(default)s)")
    case.add_argument("--threads", type=_positive, help="torch's threads (default: torch's own choice)")
    case.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    return case


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
