"""What the suite measures, on whom, and what it may take at most: one table."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Budget:
    """At most so many times what ``over`` takes."""

    contestant: str
    at_most: float
    over: str = "floor"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: By which ``--only`` picks it.
        case: What is measured; a key of ``measure.CASES``.
        size: Of the models; a key of ``SIZES``.
        lengths: Tokens of the prompt or of the training row; of the cases of memory: each length.
        tokens: Tokens decoded a round.
        groups: Peers measured together, in rounds of the floor, ours and them. A large model has them in several
            groups, since all do not fit into memory at once.
        budgets: What it is judged by.
        repeats: Rounds at most, for each group.
        seconds: Wall-clock time of the rounds, for each group; the slowest are measured once where it is not enough.
    """

    name: str
    case: str
    size: str
    lengths: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    tokens: int = 64
    groups: tuple[tuple[str, ...], ...] = ()
    budgets: tuple[Budget, ...] = ()
    repeats: int = 7
    seconds: float = 240.0

    def quick(self) -> "Row":
        """The row at a tiny size: everything is run, and no figure means anything."""
        lengths = tuple(20 * (i + 1) for i in range(len(self.lengths)))
        return replace(self, size="tiny", lengths=lengths, tokens=3, repeats=2, seconds=10.0)


def floor(at_most: float) -> tuple[Budget, ...]:
    """The budget of most rows: ours, over the floor."""
    return (Budget("ours", at_most),)


def faster(times: float, contestant: str = "ours") -> tuple[Budget, ...]:
    """At least so many times faster than in-tree."""
    return (Budget(contestant, 1 / times, over="in-tree"),)


# Transformers' own class and DeepMind's code compute the same model; the others are of the same size.
SAME = ("in-tree", "deepmind-torch", "deepmind-jax")
OTHERS = ("gemma", "gemma-3", "lfm2")
ALL = ((*SAME, *OTHERS),)
ONE_BY_ONE = tuple((name,) for name in ("in-tree", *OTHERS))
IN_PARTS = (("in-tree", "deepmind-torch"), ("deepmind-jax", "lfm2"), ("gemma", "gemma-3"))


def _decode(name: str, size: str, at_most: float, **options: object) -> Row:
    return Row(f"decode-{name}", "decode", size, (16,), budgets=floor(at_most), **{"groups": ALL, **options})  # type: ignore[arg-type]


def _train(length: int, budgets: tuple[Budget, ...], groups: tuple[tuple[str, ...], ...] = ALL) -> Row:
    return Row(f"train-512x6-{length}", "train", "512x6", (length,), groups=groups, budgets=budgets, repeats=5)


def _context(name: str, length: int) -> Row:
    budgets = (Budget("ours", 1.0, over="gemma"),) if length >= 4096 else ()
    return Row(f"context-{name}", "decode", "512x6", (length,), tokens=32, groups=(OTHERS,), budgets=budgets)


ROWS = (
    Row("prefill-2560x3", "prefill", "2560x3", (2048,), groups=ALL, budgets=floor(1.12), seconds=400),
    Row("prefill-512x6", "prefill", "512x6", (8192,), groups=ALL, budgets=floor(1.25) + faster(2), seconds=300),
    Row("train-2560x3", "train", "2560x3", (2048,), groups=IN_PARTS, budgets=floor(1.25), repeats=5, seconds=300),
    _train(2048, floor(1.4)),
    _train(4096, floor(1.4)),
    # DeepMind's code takes more than 24 GB here, and a process that is killed for it has no result at all.
    _train(8192, floor(1.4) + faster(15), groups=(("in-tree", *OTHERS),)),
    _decode("2560x3", "2560x3", 1.25),
    _decode("2560x3-bf16", "2560x3", 1.25, dtype="bfloat16", groups=(("ours-int8", "ours-int4"), *ALL)),
    _decode("2560x6-256k-bf16", "2560x6-256k", 1.25, dtype="bfloat16", groups=IN_PARTS, tokens=32),
    Row(
        "decode-256x12",
        "decode",
        "256x12",
        (16,),
        groups=(("ours-compiled", *SAME, *OTHERS),),
        budgets=(Budget("ours", 2.5), Budget("ours-compiled", 1.3), *faster(2, "ours-compiled")),
    ),
    # One at a time, and without DeepMind's code, whose weights in fp32 do not fit beside ours into 24 GB.
    _decode("2b-bf16", "2b", 1.25, dtype="bfloat16", groups=ONE_BY_ONE, tokens=16, repeats=3),
    _context("2k", 2048),
    _context("4k", 4096),
    _context("8k", 8192),
    _context("32k", 32_768),
    Row(
        "train-memory-512x6-256k",
        "train-memory",
        "512x6-256k",
        (2048, 4096),
        budgets=(Budget("ours", 1.0, over="in-tree"),),
    ),
    # Flat: the cache at the end is as large as behind the first tokens.
    Row(
        "generation-memory",
        "memory",
        "demo",
        (1000, 100_000),
        budgets=(Budget("cache, last", 1.0, over="cache, first"),),
    ),
    Row("profile-2560x3", "profile", "2560x3", (2048,), tokens=32),
    Row("profile-512x6", "profile", "512x6", (2048,), tokens=32),
)
