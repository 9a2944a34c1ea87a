"""What is mutated, and the tests that have to notice."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """Files or folders of sources, and arguments of pytest."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]

    def files(self) -> list[Path]:
        """The modules, without those that only name others."""
        paths = [path for source in self.sources for path in sorted((ROOT / source).rglob("*.py"))]
        return [path for path in (*paths, *self._single()) if path.name != "__init__.py"]

    def _single(self) -> list[Path]:
        return [ROOT / source for source in self.sources if source.endswith(".py")]


_OPS, _TESTS = "modeling/ops", "tests/modeling/ops"
_SHARED = ("dispatch", "double_backward", "packed", "ragged")

TARGETS = {
    "inputs": Target(
        ("modeling/inputs.py",),
        (
            "tests/modeling/test_equivalence.py",
            "tests/modeling/test_errors.py",
            "tests/modeling/test_position_errors.py",
        ),
    ),
    "cache": Target(
        ("modeling/cache",),
        ("tests/modeling/cache", "tests/modeling/test_errors.py"),
    ),
    "ops": Target(tuple(f"{_OPS}/{name}.py" for name in _SHARED), (_TESTS,)),
    "causal_conv1d": Target(
        tuple(f"{_OPS}/causal_conv1d/{name}.py" for name in ("api", "op", "reference", "shifted", "varlen")),
        (f"{_TESTS}/test_causal_conv1d.py", f"{_TESTS}/test_varlen.py"),
    ),
    "cross_entropy": Target((f"{_OPS}/cross_entropy",), (f"{_TESTS}/test_cross_entropy.py",)),
    "gated_activation": Target((f"{_OPS}/gated_activation",), (f"{_TESTS}/test_gated_activation.py",)),
    "linear": Target((f"{_OPS}/linear",), (f"{_TESTS}/test_linear.py",)),
    "local_attention": Target(
        (f"{_OPS}/local_attention",),
        (f"{_TESTS}/test_local_attention.py", f"{_TESTS}/test_local_attention_ring.py"),
    ),
    "rg_lru": Target(
        (
            f"{_OPS}/linear_scan",
            *(f"{_OPS}/rg_lru/{name}.py" for name in ("api", "chunked", "gates", "op", "reference")),
            f"{_OPS}/rg_lru/varlen.py",
        ),
        (f"{_TESTS}/test_rg_lru.py", f"{_TESTS}/test_varlen.py"),
    ),
    "rms_norm": Target((f"{_OPS}/rms_norm",), (f"{_TESTS}/test_rms_norm.py",)),
    "triton": Target(
        (
            f"{_OPS}/causal_conv1d/triton.py",
            f"{_OPS}/rg_lru/kernels_triton.py",
            f"{_OPS}/rg_lru/triton.py",
            f"{_OPS}/triton.py",
        ),
        (f"{_TESTS}/test_causal_conv1d_triton.py", f"{_TESTS}/test_rg_lru_triton.py", f"{_TESTS}/test_varlen.py"),
    ),
}
