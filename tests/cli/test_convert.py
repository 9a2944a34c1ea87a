"""``convert`` gives back the weights it got, prints its plan, and has an exit code and a line for every problem."""

import re
from pathlib import Path

import pytest
import torch

from recurrent_gemma import RecurrentGemmaForCausalLM
from recurrent_gemma.cli.app import run
from tests.support import require


@pytest.fixture(scope="module")
def weights(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepMind's PyTorch form of the folder's checkpoint."""
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    assert run(["convert", str(checkpoint), str(path)]) == 0
    return path


FIELDS = ["--attention-window-size", "8", "--embeddings-scale-by-sqrt-dim", "--logits-soft-cap", "30"]


def _rows(printed: str) -> dict[str, str]:
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    joined: dict[str, str] = {}
    for name, value in rows:
        # A long value goes on below an empty name.
        name = name or list(joined)[-1]
        joined[name] = f"{joined[name]} {value}" if name in joined else value
    return joined


def test_there_and_back(checkpoint: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "model"
    assert run(["convert", str(weights), str(target), *FIELDS]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    original, again = (RecurrentGemmaForCausalLM.from_pretrained(path) for path in (checkpoint, target))
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), again.parameters(), strict=True))
    rows = _rows(captured.out)
    count = sum(p.numel() for p in original.parameters())
    assert rows["from"] == "PyTorch (torch.save), float32"
    assert rows["to"] == "Transformers directory, float32"
    assert rows["parameters"].startswith(f"{count:,} in ")
    assert rows["bytes"].startswith(f"{4 * count:,} (")
    assert rows["window"] == "8"
    assert rows["logits"] == "soft-capped at 30"
    assert re.fullmatch(r"[\d.]+ s", rows["time"])


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [*FIELDS, "--dry-run", "--max-shard-size", "8000", "--dtype", "bfloat16"]
    assert run(["convert", str(weights), str(tmp_path / "model"), *arguments]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["to"] == "Transformers directory, bfloat16"
    assert "model-00001-of-0000" in rows["weight files"]
    assert "time" not in rows and "nothing was written" in rows["next"]
    assert list(tmp_path.iterdir()) == []


def test_exit_codes(checkpoint: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def ends(*arguments: str) -> tuple[int, str]:
        code = run(["convert", *arguments])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith("recurrent-gemma: error: ")
        return code, captured.err

    code, message = ends(str(tmp_path / "nothing"), str(tmp_path / "a"))
    assert code == 3 and "no such file" in message
    code, message = ends(str(weights), str(tmp_path / "a"))
    assert code == 2 and message.startswith(
        "recurrent-gemma: error: --attention-window-size, --embeddings-scale-by-sqrt-dim, --logits-soft-cap: expected "
        "values, which no shape says, got none; pass values, or --preset."
    )
    code, message = ends(str(weights), str(tmp_path / "a"), *FIELDS, "--attention-window-size", "0")
    assert code == 2 and "--attention-window-size: expected at least 1" in message
    code, message = ends(str(weights), str(tmp_path / "a"), "--preset", "2b")
    assert code == 2 and "hidden_size: expected 2560 (preset recurrentgemma-2b)" in message
    code, message = ends(str(checkpoint), str(tmp_path / "a"))
    assert code == 2 and "error: --to: expected a kind" in message
    code, message = ends(str(checkpoint), str(tmp_path / "a"), "--to", "flax", "--max-shard-size", "1GB")
    assert code == 2 and "error: --max-shard-size: expected None" in message
    code, message = ends(str(weights), str(tmp_path / "a"), *FIELDS, "--tokenizer", str(tmp_path / "gone.model"))
    assert code == 3 and "error: --tokenizer: " in message
    (tmp_path / "tokenizer.model").write_bytes(b"no archive")
    code, message = ends(str(tmp_path / "tokenizer.model"), str(tmp_path / "a"), *FIELDS)
    assert code == 5 and "DeepMind's PyTorch checkpoint" in message
    code, message = ends(str(checkpoint), str(tmp_path / "a"), "--to", "jax")
    assert code == 2
    code, message = ends(str(checkpoint), str(tmp_path / "a" / "b"), "--to", "hf")
    assert code == 3 and "make it first" in message
    (tmp_path / "there.pt").write_text("")
    code, message = ends(str(checkpoint), str(tmp_path / "there.pt"))
    assert code == 7 and "--overwrite" in message
    assert run(["convert", str(checkpoint), str(tmp_path / "there.pt"), "--overwrite"]) == 0


def test_a_file_that_is_no_tokenizer(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("sentencepiece")
    assert run(["convert", str(weights), str(tmp_path / "a"), *FIELDS, "--tokenizer", str(weights)]) == 2
    assert capsys.readouterr().err.startswith("recurrent-gemma: error: --tokenizer: expected a SentencePiece model")
    assert list(tmp_path.iterdir()) == []


def test_every_problem_is_a_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    entries = torch.load(weights, weights_only=True)
    entries["final_norm.scale"][0] = float("nan")
    entries["embedder.input_embedding"][0, 0] = float("inf")
    torch.save(entries, tmp_path / "a.pt")
    assert run(["convert", str(tmp_path / "a.pt"), str(tmp_path / "a"), *FIELDS]) == 5
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines[:-1]) == [
        "not finite: embedder.input_embedding, 1 of its values.",
        "not finite: final_norm.scale, 1 of its values.",
    ]
    assert "2 problems, which" in lines[-1]
    assert not (tmp_path / "a").exists()


def test_verification_is_printed_and_decides_the_exit_code(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    require("recurrentgemma")
    from recurrent_gemma.conversion_scripts.parameter_map import RULES, Rule

    assert run(["convert", str(weights), str(tmp_path / "a"), *FIELDS, "--verify"]) == 0
    assert "logits differ by at most" in " ".join(capsys.readouterr().out.split())

    # A converter that swaps the gates' biases.
    swapped = {
        "model.layers.{layer}.temporal_block.rg_lru.input_gate_bias": "recurrent_block/rg_lru/a_gate/b",
        "model.layers.{layer}.temporal_block.rg_lru.recurrent_gate_bias": "recurrent_block/rg_lru/input_gate/b",
    }
    rules = {rule.hf[0]: rule for rule in RULES}
    for name, flax in swapped.items():
        object.__setattr__(rules[name], "flax", "blocks.{layer}/" + flax)
    try:
        assert run(["convert", str(weights), str(tmp_path / "b"), *FIELDS, "--verify"]) == 1
    finally:
        for (name, _), (_, flax) in zip(swapped.items(), reversed(swapped.items()), strict=True):
            object.__setattr__(rules[name], "flax", "blocks.{layer}/" + flax)
    captured = capsys.readouterr()
    assert "DIFFERS" in captured.out and "are not those of" in captured.err
    assert isinstance(RULES[0], Rule)
    assert run(["convert", str(weights), str(tmp_path / "c"), *FIELDS, "--verify"]) == 0


def test_a_terminal_gets_a_bar_for_each_phase(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # Rich takes anything for a terminal then.
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["convert", str(weights), str(tmp_path / "model"), *FIELDS]) == 0
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().err)
    assert "━" in shown and re.search(r"[\d.]+/[\d.]+ [kM]?B", shown)
