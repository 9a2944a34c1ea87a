"""Verification passes what conversions write, of every kind, and says where an altered checkpoint differs."""

import math
import re
import weakref
from collections.abc import Callable
from itertools import groupby, product
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from recurrent_gemma.conversion_scripts import Verification, convert, verify
from recurrent_gemma.conversion_scripts.checkpoints import TorchCheckpoint, TransformersCheckpoint
from recurrent_gemma.conversion_scripts.comparison import LayerDifference, StoredWeights
from recurrent_gemma.conversion_scripts.parameter_map import Rule
from tests.conversion_scripts.small_models import NAMES, OPTIONS, save
from tests.modeling.models import WINDOW
from tests.support import require

require("recurrentgemma")
require("orbax.checkpoint")
jax = require("jax")

PAIRS = list(product(NAMES, NAMES))
Tensors = dict[str, torch.Tensor]


def altered(source: Path, target: Path, alter: Callable[[Tensors], None]) -> Path:
    """A copy of a Transformers directory whose tensors ``alter`` has changed."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    alter(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def options_for(*kinds: str) -> dict[str, object]:
    return {} if "hf" in kinds else OPTIONS


def start(verification: Verification) -> str:
    """Where the difference starts."""
    assert not verification.passed
    assert verification.first_failure is not None
    return verification.first_failure.name


def swap_gates(tensors: Tensors) -> None:
    names = [f"model.layers.1.temporal_block.rg_lru.{gate}_gate_weight" for gate in ("input", "recurrent")]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def change_one_value(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp_block.down_proj.weight"][3, 5] += 0.25


def take_another_layers(tensors: Tensors) -> None:
    name = "model.layers.{}.temporal_block.linear_x.weight"
    tensors[name.format(1)] = tensors[name.format(0)].clone()


def swap_gate_and_up(tensors: Tensors) -> None:
    names = [f"model.layers.2.mlp_block.{name}_proj.weight" for name in ("gate", "up")]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def change_keys(tensors: Tensors) -> None:
    tensors["model.layers.2.temporal_block.k_proj.weight"].neg_()


def change_final_norm(tensors: Tensors) -> None:
    tensors["model.final_norm.weight"][0] += 0.01


def change_begin_of_text(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][2, 0] += 0.1


def lose_a_value(tensors: Tensors) -> None:
    tensors["model.layers.0.temporal_block.conv_1d.bias"][0] = math.nan


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_of_kinds_passes(intact: Path, source: str, target: str):
    found = verify(intact / NAMES[source], intact / NAMES[target], **options_for(source, target))
    assert found.passed
    assert found.first_failure is None
    assert found.notes == ()
    assert found.lengths == (WINDOW + 64, 7)
    assert found.agreeing == sum(found.lengths)
    assert [layer.name for layer in found.layers] == [
        "embedding", "block 0 (recurrent)", "block 1 (recurrent)", "block 2 (attention)", "final norm", "logits",
    ]  # fmt: skip
    # Two codes do not round alike: the model was not compared with itself.
    assert all(0 < layer.absolute <= layer.bound and layer.largest > 1 for layer in found.layers[1:])
    expected = NAMES["torch" if "torch" in (source, target) else "flax" if "flax" in (source, target) else "hf"]
    assert found.deepmind == intact / expected


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_pair_of_kinds_shows_swapped_gates(intact: Path, tmp_path: Path, source: str, target: str):
    path = altered(intact / "hf", tmp_path / "hf", swap_gates)
    if target != "hf":
        path = convert(path, tmp_path / NAMES[target], to=target).plan.target
    assert start(verify(intact / NAMES[source], path, **options_for(source, target))) == "block 1 (recurrent)"


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (change_one_value, "block 1 (recurrent)"),
        (take_another_layers, "block 1 (recurrent)"),
        (swap_gate_and_up, "block 2 (attention)"),
        (change_keys, "block 2 (attention)"),
        (change_final_norm, "final norm"),
        (change_begin_of_text, "embedding"),
        (lose_a_value, "block 0 (recurrent)"),
    ],
)
def test_the_table_shows_where_a_difference_starts(intact: Path, tmp_path: Path, alter, expected: str):
    found = verify(intact / "torch.pt", altered(intact / "hf", tmp_path / "altered", alter))
    assert start(found) == expected
    assert str(found).startswith(f"different from {expected} on: ")
    # All before it are as they were, all after it carry the difference along.
    differs = [not layer.passed for layer in found.layers]
    assert differs == sorted(differs)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(found.table())
    marked = [line for line in captured.get().splitlines() if "DIFFERS" in line]
    assert len(marked) == sum(differs)
    assert expected in marked[0]


def test_the_embedding_of_a_token_outside_the_prompts_shows_in_the_logits(intact: Path, tmp_path: Path):
    plain = load_file(intact / "hf" / "model.safetensors")["model.embed_tokens.weight"]

    starts = []
    for token in range(len(plain)):

        def alter(tensors: Tensors, token: int = token) -> None:
            tensors["model.embed_tokens.weight"][token, 0] += 0.01

        path = altered(intact / "hf", tmp_path / str(token), alter)
        starts.append(start(verify(intact / "torch.pt", path)))
        if starts[-1] == "logits":
            break
    assert starts[-1] == "logits"


def test_options_are_compared_with_the_config(tmp_path: Path):
    # Attention alone, which compiles fast.
    source = save(tmp_path, num_hidden_layers=1, block_types=["attention"])
    convert(source, tmp_path / "torch.pt")
    assert verify(tmp_path / "torch.pt", source, **OPTIONS).passed
    for field, value, expected in (
        ("attention_window_size", WINDOW + 1, "block 0 (attention)"),
        ("embeddings_scale_by_sqrt_dim", False, "embedding"),
        ("logits_soft_cap", 0.0, "logits"),
    ):
        assert start(verify(tmp_path / "torch.pt", source, **{field: value})) == expected


def test_a_torch_file_is_not_read_by_the_map_alone(intact: Path, tmp_path: Path, monkeypatch):
    layout_of = Rule.layout_of

    def mistaken(rule: Rule, kind: str):
        return rule.layout if rule.flax.endswith("proj_q/kernel") else layout_of(rule, kind)

    monkeypatch.setattr(Rule, "layout_of", mistaken)
    for source, kind in (("torch.pt", "hf"), ("hf", "torch"), ("flax", "torch"), ("torch.pt", "flax")):
        target = tmp_path / f"{source}-{NAMES[kind]}"
        options = {} if "hf" in (source, kind) and source == "hf" else OPTIONS
        result = convert(intact / source, target, to=kind, verify=True, **options)
        assert result.verification is not None
        assert start(result.verification) == "block 2 (attention)"
        assert target.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"block_types": ["recurrent"], "num_hidden_layers": 2, "logits_soft_cap": None},
        {"block_types": ["attention"], "num_hidden_layers": 2, "embeddings_scale_by_sqrt_dim": False},
    ],
    ids=["hawk", "attention"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_other_patterns(tmp_path: Path, fields: dict, dtype: torch.dtype):
    result = convert(save(tmp_path, dtype, **fields), tmp_path / "torch.pt", verify=True)
    assert result.verification and result.verification.passed
    assert result.verification.notes == ()


def test_large_logits_have_a_larger_bound(tmp_path: Path):
    source = save(tmp_path, num_hidden_layers=1, block_types=["attention"], logits_soft_cap=None)
    large = altered(source, tmp_path / "large", lambda tensors: tensors["model.embed_tokens.weight"].mul_(10))
    found = verify(large, large)
    assert found.passed
    assert found.logits.largest > 60
    assert found.logits.bound == pytest.approx(1e-4 * found.logits.largest / 30)


@pytest.mark.parametrize(("before", "after"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("kind", ["hf", "torch"])
def test_another_dtype_is_compared_on_rounded_weights(tmp_path: Path, before: str, after: str, kind: str):
    source = save(tmp_path, getattr(torch, before))
    found = convert(source, tmp_path / f"new-{NAMES[kind]}", to=kind, dtype=after, verify=True).verification
    assert found and found.passed
    assert found.notes == (f"The source's {before} weights are compared as {after}, the target's dtype.",)


def test_only_one_block_is_in_memory_at_a_time(tmp_path: Path, monkeypatch):
    blocks = 9
    source = save(tmp_path, torch.bfloat16, num_hidden_layers=blocks)
    convert(source, tmp_path / "torch.pt")
    reads: list[tuple[str, str]] = []
    for checkpoint in (TransformersCheckpoint, TorchCheckpoint):

        def read(self, name: str, original=checkpoint.read) -> torch.Tensor:
            reads.append((self.kind, name))
            return original(self, name)

        monkeypatch.setattr(checkpoint, "read", read)
    arrays_before = len(jax.live_arrays())
    earlier: list[weakref.ref] = []
    original = StoredWeights.block

    def block(self, layer: int) -> Tensors:
        # Of the blocks before, nothing: not here, not in JAX.
        assert all(reference() is None for reference in earlier)
        assert len(jax.live_arrays()) <= arrays_before
        weights = original(self, layer)
        earlier.extend(map(weakref.ref, weights.values()))
        return weights

    monkeypatch.setattr(StoredWeights, "block", block)
    assert verify(source, tmp_path / "torch.pt").passed
    assert earlier and not any(reference() for reference in earlier)
    # Both sides go through the model together, each tensor is read once, and the table of embeddings twice.
    number = re.compile(r"(?:layers|blocks)\.(\d+)\.")
    in_blocks = [(kind, found[1]) for kind, name in reads if (found := number.search(name))]
    visits = [visit for visit, _ in groupby(in_blocks)]
    assert visits == [(kind, str(layer)) for layer in range(blocks) for kind in ("torch", "hf")]
    assert {reads.count(read) for read in reads if "embed" not in read[1]} == {1}
    assert {reads.count(read) for read in reads if "embed" in read[1]} == {2}


def test_progress_reaches_the_bytes_of_both(intact: Path):
    calls: list[tuple[str, str, int, int]] = []
    verify(intact / "hf", intact / "torch.pt", on_progress=lambda *call: calls.append(call))
    assert {phase for phase, *_ in calls} == {"verify"}
    assert {sum(nbytes for _, _, nbytes, _ in calls)} == {total for *_, total in calls}
    assert len({name for _, name, *_ in calls}) == len(calls)


def test_convert_verifies_on_request(intact: Path, tmp_path: Path):
    assert convert(intact / "hf", tmp_path / "a.pt").verification is None
    assert convert(intact / "hf", tmp_path / "b.pt", verify=True, dry_run=True).verification is None
    phases: list[str] = []
    result = convert(
        intact / "flax", tmp_path / "c.pt", verify=True, on_progress=lambda p, *_: phases.append(p), **OPTIONS
    )
    assert result.verification and result.verification.passed
    assert result.seconds >= result.verification.seconds
    assert [phase for phase, _ in groupby(phases)] == ["check", "write", "verify"]


def test_a_value_that_is_not_finite_never_passes():
    assert not LayerDifference("logits", math.inf, math.nan, math.nan).passed
    assert LayerDifference("embedding", 0.0, 0.0, 0.0).passed


def test_fp64_decides_where_deepminds_fp32_loses_digits(tmp_path):
    def close_gates(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.endswith("temporal_pre_norm.weight"):
                tensor.copy_(torch.arange(tensor.numel()))

    source = altered(save(tmp_path), tmp_path / "closed", close_gates)
    convert(source, tmp_path / "flax", to="flax")
    phases = []
    result = verify(source, tmp_path / "flax", on_progress=lambda phase, *_: phases.append(phase))
    assert result.passed
    assert list(dict.fromkeys(phases)) == ["verify", "verify in fp64"]
    (note,) = result.notes
    in_fp32 = float(re.search(r"in fp32 the logits differ by ([\d.e-]+)\.", note)[1])
    assert in_fp32 > 1e-4
    # Neither side rounds to fp32 on the way but where DeepMind's scan does.
    assert result.logits.absolute < in_fp32 / 10
