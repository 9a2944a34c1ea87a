"""What is mutated, and the tests that have to notice."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """Patterns of source files, and of test files below ``tests/modeling``.

    Kernels, whose tests run in Triton's interpreter and take long, are a target of their own.
    """

    sources: tuple[str, ...]
    test_files: tuple[str, ...]
    kernels: bool = False

    def files(self) -> list[Path]:
        """The modules, without those that only name others."""
        paths = _found(ROOT, self.sources)
        return [path for path in paths if path.name != "__init__.py" and ("triton" in path.name) == self.kernels]

    def tests(self) -> list[str]:
        """Arguments of pytest."""
        return [str(path.relative_to(ROOT)) for path in _found(ROOT / "tests" / "modeling", self.test_files)]


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def _op(name: str, *test_files: str) -> Target:
    test_files = (f"test_{name}.py", *test_files, "test_without_values.py")
    return Target((f"modeling/ops/{name}/*.py",), tuple(f"ops/{pattern}" for pattern in test_files))


TARGETS = {
    "inputs": Target(("modeling/inputs.py",), ("test_inputs.py", "test_position_errors.py", "test_errors.py")),
    "cache": Target(("modeling/cache/*.py",), ("cache/test_*.py", "test_errors.py")),
    "causal_conv1d": _op("causal_conv1d", "test_*varlen*.py"),
    "cross_entropy": _op("cross_entropy"),
    "gated_activation": _op("gated_activation"),
    "linear": _op("linear"),
    "linear_scan": Target(("modeling/ops/linear_scan/*.py",), ("ops/test_rg_lru.py",)),
    "local_attention": _op("local_attention", "test_local_attention_ring.py"),
    "rg_lru": _op("rg_lru", "test_*varlen*.py"),
    "rms_norm": _op("rms_norm"),
    "shared": Target(("modeling/ops/*.py",), ("ops/test_*.py",)),
    "triton": Target(("modeling/ops/**/*triton*.py",), ("ops/test_*triton*.py",), kernels=True),
}
