"""Speed and memory of this package, measured beside Transformers' own class and the floor.

    python -m benchmarks prefill [--size 512x6] [--length 8192]
    python -m benchmarks train [--size 512x6] [--length 2048]
    python -m benchmarks decode [--size 256x12] [--tokens 128] [--quantize int8 int4]
    python -m benchmarks train-memory [--size 512x6-256k] [--lengths 2048 4096]
    python -m benchmarks memory [--size demo] [--tokens 20000] [--every 1000]
    python -m benchmarks convert [--size 2048x12] [--max-shard-size 300MB] [--dtype bfloat16] [--folder DIR]
    python -m benchmarks prefix-cache [--size demo] [--system 2000] [--tokens 20] [--requests 200]
    python -m benchmarks learning [--jobs 2] [--tasks marker] [--models hawk griffin] [--seeds 0] [--output DIR]

Speed: random weights, shared by both implementations. First they must give the same logits and gradients in fp32; then
the floor, ours and in-tree run in turn, round by round, in the dtype and on the device asked for. The floor is the
model's own matrix products at the same shapes (decode: reading its weights once). Train-memory: the most memory that
one training step takes beyond weights and gradients, each implementation in a process of its own. Memory: one sequence
grows token by token through the cache. Convert: random weights go to every kind of checkpoint and back, bit for bit;
time, and resident memory above that of the bare process. Prefix cache: answers below a shared system prompt, cold and
warm, and hit rates at the sizes of the 2B model, whose states are not computed. Learning: small models trained at one
length and tested at longer ones, which makes what docs/evidence.md shows.

Only ratios within one run mean something: take them on an otherwise idle machine.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import conversion, memory, prefix_cache, report, speed, train_memory
from benchmarks.learning import command as learning
from benchmarks.models import SIZES
from benchmarks.quantized import SCHEMES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one case, print what it found, and write it where ``--json`` says.

    Raises:
        ValueError: The implementations disagree, or a value has no meaning; nothing is reported then.
    """
    options = _parser().parse_args(arguments)
    if options.case == "learning":
        learning.main(options, report.environment(), Console())
        return
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = report.environment()
    result = _run(options)
    report.show(Console(), options.case, options.size, machine, result)
    if options.json is not None:
        chosen = {name: value for name, value in vars(options).items() if name not in ("case", "json", "folder")}
        report.write(options.json, report.as_dict(options.case, chosen, machine, result))


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
    if options.case == "train-memory":
        return train_memory.train_memory(options.size, lengths=options.lengths, **place)
    if options.case == "decode":
        return speed.decode(size, tokens=options.tokens, repeats=options.repeats, quantize=options.quantize, **place)
    case = {"prefill": speed.prefill, "train": speed.train}[options.case]
    return case(size, length=options.length, repeats=options.repeats, **place)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = parser.add_subparsers(dest="case", required=True)

    prefill = _add_case(cases, "prefill", speed.prefill, "512x6")
    prefill.add_argument("--length", type=_positive, default=8192, help="tokens of the prompt (default %(default)s)")

    train = _add_case(cases, "train", speed.train, "512x6")
    train.add_argument("--length", type=_positive, default=2048, help="tokens of the row (default %(default)s)")

    decode = _add_case(cases, "decode", speed.decode, "256x12")
    decode.add_argument("--tokens", type=_positive, default=128, help="tokens a round (default %(default)s)")

    decode.add_argument(
        "--quantize", choices=sorted(SCHEMES), nargs="+", default=[], help="also ours with quantized linear layers"
    )

    for case in (prefill, train, decode):
        case.add_argument("--repeats", type=_positive, default=7, help="rounds (default %(default)s)")

    peak = _add_case(cases, "train-memory", train_memory.train_memory, "512x6-256k")
    peak.add_argument(
        "--lengths", type=_positive, nargs="+", default=[2048, 4096], help="tokens of the row (default %(default)s)"
    )
    for case in (prefill, train, decode, peak):
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

    summary = (learning.main.__doc__ or "").partition("\n")[0]
    learning.add_arguments(cases.add_parser("learning", help=summary, description=learning.__doc__))
    return parser


def _add_case(cases: "argparse._SubParsersAction", name: str, run: object, size: str) -> argparse.ArgumentParser:
    summary = (run.__doc__ or "").partition("\n")[0]
    case = cases.add_parser(name, help=summary, description=summary)
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
    main()
