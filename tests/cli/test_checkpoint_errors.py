"""Whatever is wrong with a checkpoint or an option: one line on stderr that names it, its exit code, no text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from recurrent_gemma.cli.app import run
from recurrent_gemma.cli.errors import ExitCode


@pytest.fixture
def directory(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def _edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _shard(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="50KB")
    assert len(list(directory.glob("*.safetensors"))) > 1


def _drop_a_shard(directory: Path) -> None:
    _shard(directory)
    sorted(directory.glob("*.safetensors"))[-1].unlink()


def _empty_index(directory: Path) -> None:
    _shard(directory)
    (directory / "model.safetensors.index.json").write_text("{}")


def _pickle(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


NORM = "model.final_norm.weight"

# Name: (what is done to a good directory, exit code, what the message names).
BROKEN: dict[str, tuple[Callable[[Path], object], ExitCode, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), ExitCode.NOT_FOUND, "config.json: no such file"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ExitCode.NOT_FOUND, "model.safetensors: no such file"),
    "no shard": (_drop_a_shard, ExitCode.NOT_FOUND, ".safetensors: no such file"),
    "pickled weights": (_pickle, ExitCode.NOT_FOUND, "model.safetensors: no such file"),
    "config is no JSON": (lambda d: _truncate(d / "config.json", 0.5), ExitCode.BROKEN, "config.json: not valid JSON"),
    "config is no object": (lambda d: (d / "config.json").write_text("[]"), ExitCode.BROKEN, "expected a JSON object"),
    "config is no text": (
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\xfa"),
        ExitCode.BROKEN,
        "not valid JSON",
    ),
    "invalid field": (lambda d: _edit_json(d / "config.json", num_attention_heads=5), ExitCode.BROKEN, "hidden_size"),
    "wrong architecture": (
        lambda d: _edit_json(d / "config.json", model_type="gemma"),
        ExitCode.WRONG_ARCHITECTURE,
        "expected model_type 'recurrent_gemma', got 'gemma'",
    ),
    "no architecture": (
        lambda d: (d / "config.json").write_text("{}"),
        ExitCode.WRONG_ARCHITECTURE,
        "expected model_type 'recurrent_gemma', got None",
    ),
    "truncated header": (
        lambda d: _truncate(d / "model.safetensors", 0.001),
        ExitCode.BROKEN,
        "not a complete safetensors file",
    ),
    "truncated weights": (
        lambda d: _truncate(d / "model.safetensors", 0.9),
        ExitCode.BROKEN,
        "not a complete safetensors file",
    ),
    "empty weights": (
        lambda d: _truncate(d / "model.safetensors", 0),
        ExitCode.BROKEN,
        "not a complete safetensors file",
    ),
    "index names no files": (_empty_index, ExitCode.BROKEN, "weight_map"),
}

# What only shows when the model is loaded.
BROKEN_INSIDE: dict[str, tuple[Callable[[Path], object], ExitCode, str]] = {
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), ExitCode.NOT_FOUND, "tokenizer.json: no such file"),
    "tokenizer is no JSON": (
        lambda d: _truncate(d / "tokenizer.json", 0.5),
        ExitCode.BROKEN,
        "the tokenizer does not load",
    ),
    "missing key": (
        lambda d: _edit_weights(d / "model.safetensors", lambda tensors: tensors.pop(NORM)),
        ExitCode.BROKEN,
        NORM,
    ),
    "unexpected key": (
        lambda d: _edit_weights(d / "model.safetensors", lambda tensors: tensors.update(extra=torch.ones(2))),
        ExitCode.BROKEN,
        "extra",
    ),
    "misshapen weight": (
        lambda d: _edit_weights(d / "model.safetensors", lambda tensors: tensors.update({NORM: torch.ones(3)})),
        ExitCode.BROKEN,
        NORM,
    ),
}


def _fails(capsys: pytest.CaptureFixture[str], code: ExitCode, message: str, *arguments: str) -> None:
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("recurrent-gemma: error: ")
    assert message in line


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["generate", "info"])
def test_broken_directories(command: str, name: str, directory: Path, capsys: pytest.CaptureFixture[str]):
    damage, code, message = BROKEN[name]
    damage(directory)
    capsys.readouterr()
    arguments = {"generate": ["generate", "a", "--model", str(directory)], "info": ["info", str(directory)]}
    _fails(capsys, code, message, *arguments[command])


@pytest.mark.parametrize("name", BROKEN_INSIDE)
def test_checkpoints_broken_inside(name: str, directory: Path, capsys: pytest.CaptureFixture[str]):
    damage, code, message = BROKEN_INSIDE[name]
    damage(directory)
    capsys.readouterr()
    _fails(capsys, code, message, "generate", "a", "--model", str(directory))


@pytest.mark.parametrize("arguments", [["generate", "a", "--model"], ["info"]])
def test_directories_that_do_not_exist(arguments: list[str], directory: Path, capsys: pytest.CaptureFixture[str]):
    _fails(
        capsys,
        ExitCode.NOT_FOUND,
        f"{directory / 'nowhere'}: no such directory",
        *arguments,
        str(directory / "nowhere"),
    )
    file = directory / "config.json"
    _fails(capsys, ExitCode.NOT_FOUND, f"{file}: no such directory", *arguments, str(file))
    # Never taken for the name of a repository to download.
    _fails(capsys, ExitCode.NOT_FOUND, "google/recurrentgemma-2b: no such", *arguments, "google/recurrentgemma-2b")


def test_the_undamaged_directories_work(directory: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["generate", "In the", "--model", str(directory), "--seed", "0", "--max-new-tokens", "9"]
    assert run(arguments) == run(["info", str(directory)]) == 0
    whole = capsys.readouterr().out
    _shard(directory)
    capsys.readouterr()
    assert run(arguments) == run(["info", str(directory)]) == 0
    sharded = capsys.readouterr().out
    assert [line for line in sharded.splitlines() if "weights" not in line] == [
        line for line in whole.splitlines() if "weights" not in line
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "'--temperature': expected a finite number of more than 0, got 0"),
        (["--temperature", "-1"], "'--temperature'"),
        (["--temperature", "nan"], "'--temperature'"),
        (["--temperature", "inf"], "'--temperature'"),
        (["--temperature", "warm"], "'--temperature'"),
        (["--top-p", "0"], "'--top-p': expected more than 0 and at most 1, got 0"),
        (["--top-p", "1.01"], "'--top-p'"),
        (["--top-p", "nan"], "'--top-p'"),
        (["--top-k", "-1"], "'--top-k'"),
        (["--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["--seed", "-1"], "'--seed'"),
        (["--seed", str(2**32)], "'--seed'"),
        (["--dtype", "float8"], "'--dtype'"),
        (["--device", "nope"], "'--device': expected a device of this machine"),
        (["--device", "meta"], "'--device'"),
        (["--greedy", "--temperature", "1", "--top-k", "3"], "--greedy: does not go with --temperature, --top-k"),
        (["--bogus"], "--bogus"),
        (["--seed"], "--seed"),
        (["two"], "two"),
    ],
)
def test_option_values(options: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    _fails(capsys, ExitCode.USAGE, message, "generate", "a", "--model", str(checkpoint), *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "Missing argument 'PROMPT'"),
        (["bogus"], "No such command 'bogus'"),
        (["--bogus"], "--bogus"),
        (["info", "recurrentgemma-2b", "--dtype", "int8"], "'--dtype'"),
        (["info", "a", "b"], "b"),
        (["exec"], "write recurrent-gemma exec -- COMMAND"),
        (["exec", "--"], "write recurrent-gemma exec -- COMMAND"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    _fails(capsys, ExitCode.USAGE, message, *arguments)


def test_unexpected_errors_are_one_line_and_a_traceback_with_debug(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("one\nand another line " + "x" * 1000)

    monkeypatch.setattr("recurrent_gemma.cli.generate.pipeline", fail)
    arguments = ["generate", "a", "--model", str(checkpoint)]
    _fails(capsys, ExitCode.UNEXPECTED, "ZeroDivisionError: one and another line", *arguments)
    assert run(["--debug", *arguments]) == ExitCode.UNEXPECTED
    error = capsys.readouterr().err
    assert "Traceback (most recent call last):" in error and 'raise ZeroDivisionError("one' in error
    assert error.splitlines()[-1].startswith("recurrent-gemma: error: ZeroDivisionError: one and another line")


def test_debug_shows_why_a_checkpoint_is_refused(directory: Path, capsys: pytest.CaptureFixture[str]):
    _truncate(directory / "model.safetensors", 0.5)
    assert run(["--debug", "info", str(directory)]) == ExitCode.BROKEN
    assert "SafetensorError" in capsys.readouterr().err
